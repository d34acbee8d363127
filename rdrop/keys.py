"""PRNG keys: one stream per direction, one key per site.

A recurrent layer has two independent sources of noise: the *inputs* stream for the
vertical arrows of the unrolled network (x_t in, y_t out) and the *recurrent* stream for
the horizontal ones. The key of one site is a pure function of six coordinates,

    (stream key, layer, direction, site name, episode, time step in the episode),

so switching a site on, adding a layer or padding a batch changes no other mask. A
sequence without resets is one episode, of index 0. A site
may have a separate key in place of its stream's: two passes with the same key at a site
share the masks of that site alone.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from rdrop.advice import describe
from rdrop.noise.plan import Plan
from rdrop.noise.rates import known
from rdrop.noise.threefry import fold_in
from rdrop.sites import SITES

# One integer, or one for each row of a batch.
Count: TypeAlias = int | Int[jax.Array | np.ndarray, "..."]
STREAMS = {name: site.stream for name, site in SITES.items()}


class StreamKeys(struct.PyTreeNode):
    """The explicit keys of a recurrent layer, one per stream, and its place in the net.

    Hold one key fixed and vary the other to isolate one source of noise.

    Attributes:
        inputs: typed key of the vertical arrows.
        recurrent: typed key of the horizontal arrows.
        step: index of the first time step in its episode, int, int32[], or int32[B]
            with one per row, in [0, 2**31). Pass `keys.replace(step=T)` with the carry
            to continue a sequence exactly, or `keys.advance(resets)`.
        layer: index of the layer in a stack (static).
        direction: "forward" or "backward" (static).
        sites: typed keys of single sites, by name, in place of their stream's, as
            `sharing` sets them. Names are not checked here, as code outside the cells
            may have more sites: `keys.replace(sites={"words": key})`.
        episode: index of the episode of the first step, of the same types as `step`.
        plan: of passes whose numbers are drawn together, as
            `rdrop.montecarlo.pass_keys` sets it; None for independent passes.

    Raises:
        ValueError: `direction` is neither of the two, or `layer` is negative.
    """

    inputs: Key[Array, "..."]
    recurrent: Key[Array, "..."]
    step: Count = 0
    layer: int = struct.field(pytree_node=False, default=0)
    direction: str = struct.field(pytree_node=False, default="forward")
    sites: Mapping[str, Key[Array, "..."]] = struct.field(default_factory=dict)
    episode: Count = 0
    plan: Plan | None = None

    def __post_init__(self):
        if isinstance(self.layer, int) and self.layer < 0:
            raise ValueError(f"`layer` must be 0 or more, got {self.layer}.")
        if self.direction not in ("forward", "backward"):
            raise ValueError(
                f'`direction` must be "forward" or "backward", got {self.direction!r}.'
            )

    def site(self, stream: str, name: str) -> Key[Array, ""]:
        """Returns the key of a site in episode 0, the same for all time steps.

        Args:
            stream: "inputs" or "recurrent".
            name: name of the site, for example "update".

        """
        key = self._start(stream, name)
        for coordinate in (self.layer, _tag(self.direction), _tag(name)):
            key = fold_in(key, coordinate)
        return key

    def fold_in(self, data: int | Int[Array, ""]) -> "StreamKeys":
        """Returns independent keys for each value of `data`, such as a device index.

        Under `jax.shard_map` and `pmap` each shard is given the same keys, and would
        draw the same masks for different examples. Fold in the index of the shard:

            keys = keys.fold_in(jax.lax.axis_index("data"))

        Masks then depend on the number of shards. To keep them independent of it, draw
        the masks of the whole batch outside and shard the `Masks`.

        Args:
            data: an integer in [0, 2**32), or a traced integer. It is folded into both
                streams and into the keys of single sites.
        """
        return self.replace(
            inputs=fold_in(self.inputs, data),
            recurrent=fold_in(self.recurrent, data),
            sites={name: fold_in(key, data) for name, key in self.sites.items()},
        )

    def advance(
        self, resets: Bool[Any, "..."], time_major: bool = False
    ) -> "StreamKeys":
        """Returns the keys of the next piece of the sequences.

        Args:
            resets: bool[B, T] of this piece, or [T, B] if `time_major`.
            time_major: as in `RNN`.
        """
        resets = jnp.asarray(resets)
        by_time = resets if time_major else resets.T
        time, batch = by_time.shape
        rows = rows_of(self, by_time, batch, time)
        assert rows is not None
        return self.replace(step=rows.step[-1] + 1, episode=rows.episode[-1])

    def sharing(self, other: "StreamKeys", *names: str) -> "StreamKeys":
        """Returns these keys, with the keys of another pass at some sites.

        The masks there are then the same in both passes, in all layers and directions;
        at other sites they differ.

        Args:
            other: the keys of the other pass.
            names: sites of a `Dropout`, for example "recurrent_weights".

        Raises:
            ValueError: a name is not a site of a `Dropout`.

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


class Rows(NamedTuple):
    """Places of the rows of a batch in their episodes, at one step or at all steps.

    Attributes:
        episode: index of the episode, int32[B] or int32[T, B].
        step: index of the step in the episode, of the same shape.
        begins: where an episode begins at a step, bool of the same shape.
    """

    episode: Int[Array, "*T B"]
    step: Int[Array, "*T B"]
    begins: Bool[Array, "*T B"]


def rows_of(
    keys: StreamKeys,
    resets: Bool[Array | np.ndarray, "T B"] | None,
    batch: int,
    time: int | None = None,
) -> Rows | None:
    """Returns the place of each row; None if all rows are at the same place.

    Args:
        keys: step and episode of the first time step.
        resets: where an episode begins, or None.
        batch: B.
        time: T, or None for one step.
    """
    if resets is None and not jnp.ndim(keys.step) and not jnp.ndim(keys.episode):
        return None
    episode, step = (
        jnp.broadcast_to(jnp.asarray(value, jnp.int32), (batch,))
        for value in (keys.episode, keys.step)
    )
    if time is None:
        return Rows(episode, step, jnp.zeros(batch, bool))
    steps = jnp.arange(time, dtype=jnp.int32)[:, None]
    resets = jnp.zeros((time, batch), bool) if resets is None else jnp.asarray(resets)
    begun = jax.lax.cummax(jnp.where(resets, steps, -1), axis=0)
    return Rows(
        episode[None] + jnp.cumsum(resets, axis=0, dtype=jnp.int32),
        jnp.where(begun < 0, step[None] + steps, steps - begun),
        resets,
    )


def of_episode(key: Key[Array, ""], episode: Count) -> Key[Array, "..."]:
    """Returns the key of a site in each of some episodes; its own in episode 0."""
    if isinstance(episode, int) and not episode:
        return key
    episode = jnp.asarray(episode, jnp.int32)
    folded = fold_in(fold_in(key, _tag("episode")), episode)
    return jnp.where(episode == 0, key, folded)


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
    _check_key("key", key)
    inputs, recurrent = (fold_in(key, _tag(s)) for s in ("inputs", "recurrent"))
    return StreamKeys(inputs=inputs, recurrent=recurrent)


def check_keys(keys: Any) -> None:
    """Raises if masks cannot be drawn from `keys`.

    Raises:
        TypeError: not `StreamKeys`, a stream or a site without a typed key, or a step
            or episode that is not an integer.
        ValueError: an array of keys (vmap over it instead), a step or episode of more
            than one axis, or a known one outside [0, 2**31).
    """
    if not isinstance(keys, StreamKeys):
        raise TypeError(
            "`keys` must be StreamKeys, made by rdrop.stream_keys(key), got "
            f"{describe(keys)}."
        )
    _check_key("keys.inputs", keys.inputs)
    _check_key("keys.recurrent", keys.recurrent)
    if not isinstance(keys.sites, Mapping):
        raise TypeError(
            f"`keys.sites` must map names of sites to keys, got {describe(keys.sites)}."
        )
    for name, key in keys.sites.items():
        _check_key(f"keys.sites[{name!r}]", key)
    _check_count("keys.step", keys.step)
    _check_count("keys.episode", keys.episode)


def _tag(name: str) -> int:
    """A 32-bit number that stands for a name on every platform and in every run."""
    return zlib.crc32(name.encode())


def _check_key(argument: str, key) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        got = describe(key) if dtype is None else f"{dtype}{list(key.shape)}"
        raise TypeError(
            f"`{argument}` must be a typed PRNG key such as jax.random.key(0), "
            f"got {got}."
        )
    if key.shape:
        raise ValueError(
            f"`{argument}` must be a single key, got an array of shape {key.shape}; "
            "use jax.vmap to map over keys."
        )


def _check_count(argument: str, count) -> None:
    is_count = isinstance(count, int) and not isinstance(count, bool)
    dtype = getattr(count, "dtype", None)
    if not is_count and (dtype is None or not jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"`{argument}` must be an integer, got {count}.")
    if len(shape := jnp.shape(count)) > 1:
        raise ValueError(
            f"`{argument}` must be a single integer or one per row, [B], got shape "
            f"{shape}."
        )
    value = known(count)
    if value is not None and not np.all((value >= 0) & (value < 2**31)):
        raise ValueError(f"`{argument}` must lie in [0, 2**31), got {count}.")
