"""Keys: from where the randomness comes.

A recurrent layer has two independent sources of noise: the *inputs* stream for the
vertical arrows of the unrolled network (x_t in, y_t out) and the *recurrent* stream for
the horizontal ones. The key of one site is a pure function of five coordinates,

    (stream key, layer, direction, site name, absolute time step),

so switching a site on, adding a layer or padding a batch changes no other mask. A site
may have a key of its own in place of its stream's: two passes that are given the same
one there share the masks of that site alone.
"""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key

from rdrop.threefry import fold_in

# The stream of each site of a `Dropout`.
STREAMS = {
    "inputs": "inputs",
    "outputs": "inputs",
    "input_weights": "inputs",
    "recurrent": "recurrent",
    "update": "recurrent",
    "gates": "recurrent",
    "cell_state": "recurrent",
    "hidden_state": "recurrent",
    "recurrent_weights": "recurrent",
}


class StreamKeys(struct.PyTreeNode):
    """The explicit keys of a recurrent layer, one a stream, and its place in the net.

    Hold one key fixed and vary the other to isolate one source of noise.

    Attributes:
        inputs: typed key of the vertical arrows.
        recurrent: typed key of the horizontal arrows.
        step: absolute index of the first time step, int or int32[]. Handing on
            `keys.replace(step=T)` with the carry continues a sequence exactly.
        layer: index of the layer in a stack (static).
        direction: "forward" or "backward" (static).
        sites: typed keys of single sites, by name, in place of their stream's, as
            `sharing` sets them. Names are not checked here, as what lies outside the
            cells may have sites of its own: `keys.replace(sites={"words": key})`.

    Raises:
        ValueError: `direction` is neither of the two, or `layer` is negative.
    """

    inputs: Key[Array, "..."]
    recurrent: Key[Array, "..."]
    step: int | Int[Array, "..."] = 0
    layer: int = struct.field(pytree_node=False, default=0)
    direction: str = struct.field(pytree_node=False, default="forward")
    sites: Mapping[str, Key[Array, "..."]] = struct.field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.layer, int) and self.layer < 0:
            raise ValueError(f"`layer` must be 0 or more, got {self.layer}.")
        if self.direction not in ("forward", "backward"):
            raise ValueError(
                f'`direction` must be "forward" or "backward", got {self.direction!r}.'
            )

    def site(self, stream: str, name: str) -> Key[Array, ""]:
        """Returns the key of a site, the same for all time steps.

        Args:
            stream: "inputs" or "recurrent".
            name: name of the site, for example "update".

        """
        key = self._start(stream, name)
        for coordinate in (self.layer, _tag(self.direction), _tag(name)):
            key = fold_in(key, coordinate)
        return key

    def sharing(self, other: "StreamKeys", *names: str) -> "StreamKeys":
        """Returns these keys with those of another pass at some sites.

        The masks there are then the same in both passes, in all layers and directions;
        at other sites they stay apart.

        Args:
            other: the keys of the other pass.
            names: sites of a `Dropout`, for example "recurrent_weights".

        Raises:
            ValueError: a name is no site of a `Dropout`.

        Example:
            >>> first, second = (stream_keys(jax.random.key(n)) for n in (0, 1))
            >>> second = second.sharing(first, "recurrent_weights")
        """
        if unknown := [name for name in names if name not in STREAMS]:
            raise ValueError(
                f"`names` must be among {', '.join(STREAMS)}, got {unknown[0]!r}."
            )
        keys = {name: other._start(STREAMS[name], name) for name in names}
        return self.replace(sites={**self.sites, **keys})

    def _start(self, stream: str, name: str) -> Key[Array, "..."]:
        return self.sites.get(name, getattr(self, stream))


def stream_keys(key: Key[Array, ""]) -> StreamKeys:
    """Splits one key into the two streams of a recurrent layer.

    Args:
        key: a typed key, `jax.random.key(seed)`. Use a fresh one for each sequence,
            for example `jax.random.fold_in(key, training_step)`.

    Returns:
        `StreamKeys` at time step 0.

    Raises:
        TypeError: `key` is not a typed PRNG key.
        ValueError: `key` is an array of keys; vmap over it instead.
    """
    _check("key", key)
    inputs, recurrent = (fold_in(key, _tag(s)) for s in ("inputs", "recurrent"))
    return StreamKeys(inputs=inputs, recurrent=recurrent)


def check_keys(keys) -> None:
    """Raises where `keys` cannot be drawn from.

    Raises:
        TypeError: no `StreamKeys`, a stream or a site without a typed key, a step that
            is no integer.
        ValueError: an array of keys, or of steps; vmap over it instead.
    """
    if not isinstance(keys, StreamKeys):
        raise TypeError(
            "`keys` must be StreamKeys, made by rdrop.stream_keys(key), got "
            f"{type(keys).__name__}."
        )
    _check("keys.inputs", keys.inputs)
    _check("keys.recurrent", keys.recurrent)
    if not isinstance(keys.sites, Mapping):
        raise TypeError(
            "`keys.sites` must map names of sites to keys, got "
            f"{type(keys.sites).__name__}."
        )
    for name, key in keys.sites.items():
        _check(f"keys.sites[{name!r}]", key)
    if not jnp.issubdtype(jnp.result_type(keys.step), jnp.integer):
        raise TypeError(f"`keys.step` must be an integer, got {keys.step}.")
    if jnp.shape(keys.step):
        raise ValueError(
            f"`keys.step` must be a single step, got shape {jnp.shape(keys.step)}."
        )


def _tag(name: str) -> int:
    """A 32-bit number that stands for a name on every platform and in every run."""
    return zlib.crc32(name.encode())


def _check(argument: str, key) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        got = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
        raise TypeError(
            f"`{argument}` must be a typed PRNG key such as jax.random.key(0), "
            f"got {got}."
        )
    if key.shape:
        raise ValueError(
            f"`{argument}` must be a single key, got an array of shape {key.shape}; "
            "use jax.vmap to map over keys."
        )
