"""Noise: how one mask is drawn.

Each unit of a mask has one uniform number u in [0, 1), drawn in float32 whatever the
compute dtype, and is kept where u >= rate. Masks of one key are therefore nested: the
units dropped at a low rate are among those dropped at a higher one.

Axes of a mask:
    (B, G, U): batch, gates, units; an axis of size 1 is shared.

References:
    [1] Srivastava et al. Dropout: a simple way to prevent neural networks from
        overfitting. JMLR 15, 2014.
    [2] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Key


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A rate that is a function of the training step, awaiting `Dropout.at(step)`.

    A function cannot be traced, so it is a node without leaves: it passes through
    `jax.jit` as static data.
    """

    function: Callable[..., Array]


# A number, an array, a schedule; or what stands for one while JAX rebuilds a pytree.
Rate: TypeAlias = Any


class Bernoulli(struct.PyTreeNode):
    """Drops a unit with probability `rate` [1].

    Attributes:
        rate: probability of a drop, in [0, 1]: a number, an array that broadcasts to
            the mask's axes (B, G, U), a tracer, or an optax schedule. A leaf: jit, vmap
            and tree_map see it. Traced and device arrays are not checked. A mask is not
            differentiable in its rate; the gradient is zero.
        per: "sequence" holds one mask for all time steps [2]; "step" draws anew.
        gates: "shared" gives all gates one mask ("tied" in [2]); "each" its own.
        batch: "each" example has its own mask; "shared" gives all of them one.
        scale: "inverted" masks are 0 or 1 / (1 - rate), and evaluation has no mask;
            "expectation" masks are 0 or 1, and evaluation multiplies by 1 - rate [1].

    Raises:
        ValueError: a Python or NumPy rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text.

    Example:
        >>> Bernoulli(0.5).draw(jax.random.key(0), (1, 1, 4)).shape
        (1, 1, 4)
    """

    rate: Rate
    per: Literal["sequence", "step"] = struct.field(
        pytree_node=False, default="sequence"
    )
    gates: Literal["shared", "each"] = struct.field(pytree_node=False, default="shared")
    batch: Literal["each", "shared"] = struct.field(pytree_node=False, default="each")
    scale: Literal["inverted", "expectation"] = struct.field(
        pytree_node=False, default="inverted"
    )

    def __post_init__(self):
        if callable(self.rate):
            object.__setattr__(self, "rate", Schedule(self.rate))
        _check_rate(self.rate)
        _check_option("per", self.per, ("sequence", "step"))
        _check_option("gates", self.gates, ("shared", "each"))
        _check_option("batch", self.batch, ("each", "shared"))
        _check_option("scale", self.scale, ("inverted", "expectation"))

    def at(self, step) -> "Bernoulli":
        """Replaces a rate that is a schedule by its value at a training step."""
        if isinstance(self.rate, Schedule):
            return self.replace(rate=self.rate.function(step))
        return self

    def shape(self, batch: int, gates: int, units: int) -> tuple[int, int, int]:
        """Returns the mask's axes (B, G, U), of size 1 where the mask is shared."""
        return (
            batch if self.batch == "each" else 1,
            gates if self.gates == "each" else 1,
            units,
        )

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises a ValueError where `rate` does not broadcast to a mask's `shape`."""
        if isinstance(self.rate, Schedule):
            return
        rate_shape: tuple[int, ...] = getattr(self.rate, "shape", ())
        if not _broadcasts(rate_shape, shape):
            raise ValueError(
                f"`rate` must broadcast to the mask's axes (batch, gates, units) = "
                f"{shape}, got shape {rate_shape}."
            )

    def draw(
        self, key: Key[Array, ""], shape: tuple[int, int, int]
    ) -> Float[Array, "B G U"]:
        """Draws one mask.

        Args:
            key: the same key always gives the same uniforms.
            shape: (B, G, U), to which `rate` must broadcast.

        Returns:
            The mask, float32: exactly one everywhere at rate 0, zero at rate 1.

        Raises:
            ValueError: `rate` does not broadcast, or is a schedule without its step.
        """
        self.check(shape)
        rate = self._rate()
        kept = jax.random.uniform(key, shape, jnp.float32) >= rate
        if self.scale == "expectation":
            return kept.astype(jnp.float32)
        keep = jnp.where(rate < 1, 1 - rate, 1)
        return jnp.where(kept, 1 / keep, 0)

    def expected(self) -> Float[Array, "#B #G #U"] | None:
        """Returns what stands for the mask in evaluation; None where that is nothing.

        Raises:
            ValueError: `rate` matters in evaluation and is a schedule without its step.
        """
        return None if self.scale == "inverted" else 1 - self._rate()

    def _rate(self) -> Float[Array, "#B #G #U"]:
        if isinstance(self.rate, Schedule):
            raise ValueError(
                "`rate` is a schedule; resolve it with `dropout.at(step)` first."
            )
        rate = jax.lax.stop_gradient(jnp.asarray(self.rate, jnp.float32))
        return rate.reshape((1,) * (3 - rate.ndim) + rate.shape)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _check_rate(rate) -> None:
    """Checks what is known now; a pytree's other contents (tracers) pass."""
    if isinstance(rate, str):
        raise TypeError(
            f"`rate` must be a number, an array or a schedule, got {rate!r}."
        )
    if isinstance(rate, (int, float, np.ndarray, np.generic)):
        values = np.asarray(rate)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"`rate` must lie in [0, 1], got {rate}.")


def _check_option(name: str, value: str, allowed: tuple[str, str]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
