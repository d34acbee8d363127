"""Kinds of noise: how random numbers become one mask.

Each unit of a mask has one random number, drawn in float32 whatever the compute dtype:
a uniform u in [0, 1) for masks that drop units, a normal one for Gaussian masks. A unit
is kept if u >= rate, so a higher rate drops all units that a lower one drops.

Axes of a mask: (B, G, U) batch, gates, units; (R, G, U) of a weight mask: rows of the
kernel, gates, units. A shared axis has size 1. Masks per step have T in front.

A rate that is known when the noise is made must lie in its range. A traced rate that
is NaN or out of range makes the whole mask NaN. Numbers in brackets are the references
of `rdrop.noise`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from rdrop.noise.lifetime import Block, Drift
from rdrop.noise.node import Node, check, one_of
from rdrop.noise.rates import (
    Rate,
    Shape,
    as_float32,
    as_probability,
    check_positive,
    check_probability,
    known,
    one_or_nan,
)
from rdrop.noise.threefry import Keys, normal, uniform

# Replaces a number or a rate so near to 0 that its logit might not be finite.
LEAST = 2.0**-100


class Mix(struct.PyTreeNode):
    """A mask that mixes instead of multiplying: old * share + new * (1 - share).

    Attributes:
        share: float32, of the shape of a mask; or a placeholder of JAX.
    """

    share: Any


class Add(struct.PyTreeNode):
    """A mask that is added instead of multiplied: new + noise.

    Attributes:
        noise: float32, of the shape of a mask; or a placeholder of JAX.
    """

    noise: Any


@dataclass(frozen=True)
class NoiseKind(Node):
    """Base of all kinds of noise; use one of the kinds.

    Attributes:
        rate: a number, an array that broadcasts to the mask's axes, a tracer or a
            schedule. A leaf: jit, vmap and tree_map see it.
        NORMAL: whether the numbers of a mask are normal, and not uniform in [0, 1).
    """

    rate: Rate

    NORMAL: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_probability("rate", self.rate)

    def variate(self, key: Keys, shape: Shape) -> Float[Array, "B G U"]:
        """Draws the random numbers of a mask."""
        if not self.NORMAL:
            return uniform(key, shape)
        # The barrier keeps XLA from folding the scale of the mask into the numbers.
        return jax.lax.optimization_barrier(normal(key, shape))

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"] | Mix | Add:
        """Turns random numbers into a mask; each kind has its own way."""
        raise NotImplementedError

    def expected(self) -> Float[Array, "#B #G #U"] | Mix | None:
        """Returns the mask of evaluation, None if evaluation has no mask.

        Raises:
            ValueError: `rate` matters in evaluation and is a schedule without its step.
        """
        return None

    def draw(self, key: Keys, shape: Shape) -> Float[Array, "B G U"] | Mix | Add:
        """Draws one mask.

        Args:
            key: the same key always gives the same numbers. With an array of keys [B]
                each row of the batch is drawn with its own key.
            shape: (B, G, U), or (R, G, U) of a mask on weights.

        Returns:
            The mask, float32.

        Raises:
            ValueError: `rate` does not broadcast, or is a schedule without its step.
        """
        check(self, shape)
        return self.mask(self.variate(key, shape))

    def _probability(self) -> Float[Array, "#B #G #U"]:
        """The rate without its gradient, NaN if it lies outside [0, 1]."""
        return jax.lax.stop_gradient(as_probability("rate", self.rate))


@dataclass(frozen=True)
class Noise(NoiseKind):
    """Base of the kinds of noise on activations; use one of the kinds.

    Attributes:
        rate: a number, an array that broadcasts to the mask's axes (B, G, U), a tracer
            or an optax schedule. A leaf: jit, vmap and tree_map see it.
        per: lifetime: "sequence" holds one mask for all time steps [2]; "step" draws a
            mask at each step; `Drift(p)` redraws each unit with probability p per step;
            `Block(k)` draws a mask for k steps.
        gates: "shared" gives all gates one mask ("tied" in [2]); "each" one per gate.
        batch: "each" draws one mask per example; "shared" gives all examples one mask.
        units: "each" draws one number per unit; "shared" makes a mask one scalar.
    """

    per: Literal["sequence", "step"] | Drift | Block = field(
        default="sequence", metadata=one_of("sequence", "step", other=(Drift, Block))
    )
    gates: Literal["shared", "each"] = field(
        default="shared", metadata=one_of("shared", "each")
    )
    batch: Literal["each", "shared"] = field(
        default="each", metadata=one_of("each", "shared")
    )
    units: Literal["each", "shared"] = field(
        default="each", metadata=one_of("each", "shared")
    )

    def shape(self, batch: int, gates: int, units: int) -> Shape:
        """Returns the mask's axes (B, G, U), of size 1 if the mask is shared."""
        return (
            batch if self.batch == "each" else 1,
            gates if self.gates == "each" else 1,
            units if self.units == "each" else 1,
        )


@dataclass(frozen=True)
class Bernoulli(Noise):
    """Drops a unit with probability `rate` in [0, 1]: dropout [1].

    A mask is not differentiable in its rate; the gradient is zero. At rate 0 it is
    exactly one everywhere, at rate 1 zero.

    Attributes:
        rate, per, gates, batch, units: as in `Noise`.
        scale: "inverted" masks are 0 or 1 / (1 - rate), and evaluation has no mask;
            "expectation" masks are 0 or 1, and evaluation multiplies by 1 - rate [1].

    Raises:
        ValueError: a known rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text or a list.

    Example:
        >>> Bernoulli(0.5).draw(jax.random.key(0), (1, 1, 4)).shape
        (1, 1, 4)
    """

    scale: Literal["inverted", "expectation"] = field(
        default="inverted", metadata=one_of("inverted", "expectation")
    )

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"]:
        """Keeps a unit if its number is at least `rate`."""
        rate = self._probability()
        kept = _ones_if(variate >= rate, rate)
        return _inverted(kept, rate) if self.scale == "inverted" else kept

    def expected(self) -> Float[Array, "#B #G #U"] | None:
        """Returns 1 - rate if the scale is "expectation"; see `NoiseKind`."""
        return None if self.scale == "inverted" else 1 - self._probability()


@dataclass(frozen=True)
class Gaussian(Noise):
    """Multiplies by noise of N(1, p / (1 - p)), p = `rate` in [0, 1) [1, section 10].

    Mean and variance are the same as in an inverted Bernoulli mask. The mask is
    differentiable in its rate; evaluation has no mask. Its last digit may depend on the
    size of the batch, unlike masks that drop units. A traced rate of 1, whose variance
    is infinite, makes the mask NaN.

    Attributes:
        rate, per, gates, batch, units: as in `Noise`.

    Raises:
        ValueError: a known rate outside [0, 1), or an unknown option.
        TypeError: `rate` is text or a list.
    """

    NORMAL = True

    def __post_init__(self):
        super().__post_init__()
        rate = known(self.rate)
        if rate is not None and np.any(rate == 1):
            raise ValueError(f"`rate` of Gaussian must lie in [0, 1), got {self.rate}.")

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"]:
        """Scales the numbers to the standard deviation of `rate`."""
        return _gaussian(variate, as_float32("rate", self.rate))


@dataclass(frozen=True)
class Concrete(Noise):
    """Drops a unit with probability `rate` p in [0, 1], smoothly in the rate [6].

        drop = sigmoid((log p - log(1 - p) + log(1 - u) - log u) / temperature)
        mask = (1 - drop) / (1 - p)

    u is the number of the unit. [6, equation 5] has 1 - u in its place, which has the
    same distribution. With u, the mask tends to the mask of an inverted `Bernoulli` of
    the same key as the temperature tends to 0: units dropped there are near 0 here,
    units kept there are near 1 / (1 - p).

    The mask is differentiable in its rate and its temperature. At rate 0 it is exactly
    one everywhere, at rate 1 zero, and there its gradient is zero: a rate that is to be
    learned must begin between them. Evaluation has no mask, though the mean of masks is
    not quite one: it is 1 - p (1 - 2 p) (pi temperature)^2 / 6 to the third order, at a
    temperature of 0.1 between 0.998 (p = 0.25) and 1.017 (p near 1), at 0.5 between
    0.96 and 1.57. The last digit of a mask may depend on the size of the batch.

    Attributes:
        rate, per, gates, batch, units: as in `Noise`.
        temperature: above 0; a leaf of the same types as `rate`. 0.1 in the code of
            [6]. Below 1, masks are mostly near their two ends.

    Raises:
        ValueError: a known rate outside [0, 1], a known temperature that is not above
            0, or an unknown option.
        TypeError: `rate` or `temperature` is text or a list.
    """

    temperature: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_positive("temperature", self.temperature)

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"]:
        """Compares numbers with `rate`, more sharply the lower the temperature."""
        temperature = as_float32("temperature", self.temperature)
        return _concrete(variate, as_probability("rate", self.rate), temperature)


@dataclass(frozen=True)
class Zoneout(Noise):
    """Keeps the old value of a state with probability `rate` in [0, 1] [3].

        new state = d * old + (1 - d) * new,    d = 1 with probability `rate`

    Evaluation mixes with d = `rate`. A mask is not differentiable in its rate.

    Attributes:
        rate, gates, batch, units: as in `Noise`.
        per: as in `Noise`, "step" by default.

    Raises:
        ValueError: a known rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text or a list.
    """

    per: Literal["sequence", "step"] | Drift | Block = field(
        default="step", metadata=one_of("sequence", "step", other=(Drift, Block))
    )

    def mask(self, variate: Float[Array, "B G U"]) -> Mix:
        """Keeps the old value of a unit if its number is below `rate`."""
        rate = self._probability()
        return Mix(_ones_if(variate < rate, rate))

    def expected(self) -> Mix:
        """Returns the mix with d = `rate`; see `NoiseKind`."""
        return Mix(self._probability())


@dataclass(frozen=True)
class Additive(Noise):
    """Adds Gaussian noise of standard deviation `rate` to a state [7].

        new state = new + rate * N(0, 1)

    Evaluation adds nothing. The noise is differentiable in its rate. Its last digit may
    depend on the size of the batch, as in `Gaussian`. The code of [7] adds noise to h
    at each step of a simple recurrence, and reads its outputs from the noisy h.

    Attributes:
        rate: as in `Noise`, but in [0, 1]: the standard deviation.
        per: as in `Noise`, "step" by default.
        gates, batch, units: as in `Noise`.

    Raises:
        ValueError: a known rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text or a list.
    """

    per: Literal["sequence", "step"] | Drift | Block = field(
        default="step", metadata=one_of("sequence", "step", other=(Drift, Block))
    )

    NORMAL = True

    def mask(self, variate: Float[Array, "B G U"]) -> Add:
        """Scales the numbers to the standard deviation `rate`."""
        return Add(_scaled(variate, as_probability("rate", self.rate)))


@dataclass(frozen=True)
class DropConnect(NoiseKind):
    """Drops weights of a kernel with probability `rate`, once per forward pass [4].

    All time steps and examples share the mask, which is 0 or 1 / (1 - rate); evaluation
    has no mask. It is not differentiable in its rate.

    Attributes:
        rate: as in `Noise`, in [0, 1]; broadcasts to (rows, gates, units).
        by: "weight" drops each weight by itself; "row" drops all weights of one
            pre-activation of a gate, a row of PyTorch's `weight_hh`, as `variational`
            does in the code of [4] (there in evaluation too, here not).

    Raises:
        ValueError: a known rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text or a list.
    """

    by: Literal["weight", "row"] = field(
        default="weight", metadata=one_of("weight", "row")
    )

    per = "sequence"
    gates = "each"

    def shape(self, rows: int, gates: int, units: int) -> Shape:
        """Returns the mask's axes (R, G, U), R of size 1 if `by` is "row"."""
        return (rows if self.by == "weight" else 1, gates, units)

    def mask(self, variate: Float[Array, "R G U"]) -> Float[Array, "R G U"]:
        """Keeps a weight if its number is at least `rate`."""
        rate = self._probability()
        return _inverted(_ones_if(variate >= rate, rate), rate)


@dataclass(frozen=True)
class WeightNoise(NoiseKind):
    """Adds Gaussian noise of standard deviation `rate` to the weights of a kernel [8].

    It is drawn once per forward pass; all time steps and examples share it. Evaluation
    adds nothing. The noise is differentiable in its rate.

    Attributes:
        rate: as in `Noise`, but in [0, 1]: the standard deviation; broadcasts to (rows,
            gates, units).

    Raises:
        ValueError: a known rate outside [0, 1].
        TypeError: `rate` is text or a list.
    """

    per = "sequence"
    gates = "each"
    NORMAL = True

    def shape(self, rows: int, gates: int, units: int) -> Shape:
        """Returns the noise's axes (R, G, U)."""
        return (rows, gates, units)

    def mask(self, variate: Float[Array, "R G U"]) -> Add:
        """Scales the numbers to the standard deviation `rate`."""
        return Add(_scaled(variate, as_probability("rate", self.rate)))


KINDS_BY_NAME: dict[str, type[NoiseKind]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "concrete": Concrete,
    "zoneout": Zoneout,
    "additive": Additive,
    "dropconnect": DropConnect,
    "weight_noise": WeightNoise,
}


def _ones_if(chosen: Bool[Array, "B G U"], rate) -> Float[Array, "B G U"]:
    """Ones and zeros, NaN if `rate` is; computed once, however often they are read.

    The square root does that: XLA repeats cheap operations for each of their readers,
    and would draw the random numbers again with them.
    """
    one = one_or_nan(rate)
    return jnp.sqrt(jnp.where(chosen, one, one - 1))


def _inverted(kept, rate) -> Float[Array, "B G U"]:
    return kept / jnp.where(rate == 1, 1, 1 - rate)


@jax.jit
def _gaussian(variate, rate) -> Float[Array, "B G U"]:
    """Compiled as one program even in eager mode, so that it always rounds alike."""
    on = (rate > 0) & (rate < 1)
    odds = jnp.where(on, rate, 0.5) / jnp.where(on, 1 - rate, 0.5)
    off = jnp.where(rate == 0, 0.0, jnp.nan)
    return 1 + jnp.where(on, jnp.sqrt(odds), off) * variate


@jax.jit
def _scaled(variate, rate) -> Float[Array, "B G U"]:
    """Compiled as one program, as `_gaussian` is."""
    return rate * variate


@jax.jit
def _concrete(variate, rate, temperature) -> Float[Array, "B G U"]:
    """Compiled as one program, as `_gaussian` is."""
    none, every = rate == 0, rate == 1
    p = jnp.where(none | every, 0.5, rate)
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
    kept = jax.nn.sigmoid((_logit(variate) - _logit(p)) / temperature)
    return jnp.where(none, 1, jnp.where(every, 0, kept / (1 - p)))


def _logit(p):
    p = jnp.maximum(p, LEAST)
    return jnp.log(p) - jnp.log1p(-p)
