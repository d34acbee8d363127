"""Noise: how one mask is drawn.

Each unit of a mask has one random number, drawn in float32 whatever the compute dtype:
a uniform u in [0, 1) for masks that drop (a unit is kept where u >= rate, so the units
dropped at a low rate are among those dropped at a higher one), a normal one for
Gaussian masks. A kind turns it into a mask; its lifetime says when the number is drawn
anew.

Axes of a mask:
    (B, G, U) batch, gates, units; of a weight mask (R, G, U) rows of the kernel, gates,
    units. An axis of size 1 is shared. Masks that change with the step have T in front.

References:
    [1] Srivastava et al. Dropout: a simple way to prevent neural networks from
        overfitting. JMLR 15, 2014.
    [2] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
    [3] Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
        activations. ICLR 2017. arXiv:1606.01305.
    [4] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182.
    [5] Melis, Dyer, Blunsom. On the state of the art of evaluation in neural language
        models. ICLR 2018. arXiv:1707.05589; `DriftingDropout` in its code.
    [6] Gal, Hron, Kendall. Concrete dropout. NeurIPS 2017. arXiv:1705.07832; checked
        with the notebooks of their code, numbers of equations with quotations of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from rdrop.threefry import fold_in, uniform

# A number, an array, a schedule; or what stands for one while JAX rebuilds a pytree.
Rate: TypeAlias = Any
Shape: TypeAlias = tuple[int, int, int]
# Stands for a number or a rate so near to 0 that its logit might not be finite.
LEAST = 2.0**-100


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A rate that is a function of the training step, awaiting `Dropout.at(step)`.

    A function cannot be traced, so it is a node without leaves: it passes through
    `jax.jit` as static data.
    """

    function: Callable[..., Array]


class Site(NamedTuple):
    """The size of a noise site in a given cell.

    Attributes:
        gates: how many gates read it.
        units: units of the mask.
        rows: rows of the kernel, for the sites that are weights; None elsewhere.
    """

    gates: int
    units: int
    rows: int | None = None


class Mix(struct.PyTreeNode):
    """A mask that mixes instead of multiplying: old * share + new * (1 - share).

    Attributes:
        share: float32, of the shape of a mask; or what stands for it in a pytree.
    """

    share: Any


def _option(*allowed: str, default: int = 0) -> Any:
    """A static field that takes one of a few words."""
    return struct.field(
        pytree_node=False, default=allowed[default], metadata={"allowed": allowed}
    )


class Noise(struct.PyTreeNode):
    """What the kinds of noise on activations have in common; use one of the kinds.

    Attributes:
        rate: a number, an array that broadcasts to the mask's axes (B, G, U), a tracer,
            or an optax schedule. A leaf: jit, vmap and tree_map see it. Traced and
            device arrays are not checked.
        per: "sequence" holds one mask for all time steps [2]; "step" draws anew.
        gates: "shared" gives all gates one mask ("tied" in [2]); "each" its own.
        batch: "each" example has its own mask; "shared" gives all of them one.
        units: "each" unit has its own number; "shared" makes a mask one scalar.
        drift: probability, a leaf, that a unit's number is drawn anew at a step [5];
            only with per="step". None draws all anew, as 1 does; 0 holds them, bitwise
            as per="sequence" does. Drawing starts at time step 0, so it takes time
            proportional to `keys.step` as well.
    """

    rate: Rate
    per: Literal["sequence", "step"] = _option("sequence", "step")
    gates: Literal["shared", "each"] = _option("shared", "each")
    batch: Literal["each", "shared"] = _option("each", "shared")
    units: Literal["each", "shared"] = _option("each", "shared")
    drift: Rate = None

    def __post_init__(self):
        _wrap_schedules(self)
        _check_options(self)
        _check_probability("rate", self.rate)
        _check_probability("drift", self.drift)
        if self.drift is not None and self.per != "step":
            raise ValueError(
                f'`drift` must be None unless per="step", got {self.drift} with '
                f'per="{self.per}".'
            )

    def at(self, step):
        """Replaces what is a schedule by its value at a training step."""
        return _at(self, step)

    def shape(self, batch: int, gates: int, units: int) -> Shape:
        """Returns the mask's axes (B, G, U), of size 1 where the mask is shared."""
        return (
            batch if self.batch == "each" else 1,
            gates if self.gates == "each" else 1,
            units if self.units == "each" else 1,
        )

    def variate(self, key: Key[Array, ""], shape: Shape) -> Float[Array, "B G U"]:
        """Draws the numbers that a mask is made of: uniform in [0, 1)."""
        return uniform(key, shape)

    def redraw(
        self,
        key: Key[Array, ""],
        step: int | Int[Array, ""],
        variate: Float[Array, "B G U"],
    ) -> Float[Array, "B G U"]:
        """Draws each number anew with probability `drift`, at an absolute time step."""
        shape: Any = variate.shape
        key = fold_in(key, step)
        chance = uniform(fold_in(key, 0), shape)
        fresh = self.variate(key, shape)
        return jnp.where(chance < _frozen(self.drift), fresh, variate)

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"] | Mix:
        """Turns numbers into a mask; each kind has its own way."""
        raise NotImplementedError

    def expected(self) -> Float[Array, "#B #G #U"] | Mix | None:
        """Returns what stands for the mask in evaluation; None where that is nothing.

        Raises:
            ValueError: `rate` matters in evaluation and is a schedule without its step.
        """
        return None

    def draw(self, key: Key[Array, ""], shape: Shape) -> Float[Array, "B G U"] | Mix:
        """Draws one mask.

        Args:
            key: the same key always gives the same numbers.
            shape: (B, G, U), to which `rate` must broadcast.

        Returns:
            The mask, float32.

        Raises:
            ValueError: `rate` does not broadcast, or is a schedule without its step.
        """
        check(self, shape)
        return self.mask(self.variate(key, shape))


class Bernoulli(Noise):
    """Drops a unit with probability `rate` in [0, 1]: dropout [1].

    A mask is not differentiable in its rate; the gradient is zero. At rate 0 it is
    exactly one everywhere, at rate 1 zero.

    Attributes:
        rate, per, gates, batch, units, drift: as in `Noise`.
        scale: "inverted" masks are 0 or 1 / (1 - rate), and evaluation has no mask;
            "expectation" masks are 0 or 1, and evaluation multiplies by 1 - rate [1].

    Raises:
        ValueError: a Python or NumPy rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text.

    Example:
        >>> Bernoulli(0.5).draw(jax.random.key(0), (1, 1, 4)).shape
        (1, 1, 4)
    """

    scale: Literal["inverted", "expectation"] = _option("inverted", "expectation")

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"]:
        """Keeps where the number is at least `rate`."""
        return _keep(variate, _frozen(self.rate), self.scale == "inverted")

    def expected(self) -> Float[Array, "#B #G #U"] | None:
        """Returns 1 - rate where the scale is "expectation"; see `Noise`."""
        return None if self.scale == "inverted" else 1 - _frozen(self.rate)


class Gaussian(Noise):
    """Multiplies by noise of N(1, p / (1 - p)), p = `rate` in [0, 1) [1, section 10].

    Mean and variance are those of an inverted Bernoulli mask. The mask is
    differentiable in its rate; evaluation has no mask. Its last digit may depend on the
    size of the batch, unlike that of masks that drop.

    Attributes:
        rate, per, gates, batch, units, drift: as in `Noise`.

    Raises:
        ValueError: a Python or NumPy rate outside [0, 1), or an unknown option.
        TypeError: `rate` is text.
    """

    def __post_init__(self):
        super().__post_init__()
        if _known(self.rate) and np.any(np.asarray(self.rate) == 1):
            raise ValueError(f"`rate` of Gaussian must lie in [0, 1), got {self.rate}.")

    def variate(self, key: Key[Array, ""], shape: Shape) -> Float[Array, "B G U"]:
        """Draws standard normal numbers."""
        # The barrier keeps XLA from folding the scale of the mask into the numbers.
        normal = jax.random.normal(key, shape, jnp.float32)
        return jax.lax.optimization_barrier(normal)

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"]:
        """Scales the numbers to the standard deviation of `rate`."""
        return _gaussian(variate, _array(self.rate))


class Concrete(Noise):
    """Drops a unit with probability `rate` p in [0, 1], smoothly in the rate [6].

        drop = sigmoid((log p - log(1 - p) + log(1 - u) - log u) / temperature)
        mask = (1 - drop) / (1 - p)

    u is the number of the unit. [6, equation 5] has 1 - u in its place, which has the
    same distribution; so turned, the mask tends to that of an inverted `Bernoulli` as
    the temperature tends to 0: what that drops is near 0 here, what it keeps near
    1 / (1 - p).

    The mask is differentiable in its rate and its temperature. At rate 0 it is exactly
    one everywhere, at rate 1 zero, and there its gradient is zero: a rate that is to be
    learned must begin between them. Evaluation has no mask, though the mean of masks is
    not quite one: it is 1 - p (1 - 2 p) (pi temperature)^2 / 6 to the third order, at a
    temperature of 0.1 between 0.998 (p = 0.25) and 1.017 (p near 1), at 0.5 between
    0.96 and 1.57. The last digit of a mask may depend on the size of the batch.

    Attributes:
        rate, per, gates, batch, units, drift: as in `Noise`.
        temperature: positive; a leaf that may be what a rate may be. 0.1 in the code of
            [6]. Below 1, masks are mostly near their two ends.

    Raises:
        ValueError: a Python or NumPy rate outside [0, 1], a temperature that is not
            positive, or an unknown option.
        TypeError: `rate` or `temperature` is text.
    """

    temperature: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        _check_number("temperature", self.temperature)
        known = _known(self.temperature)
        if known and not np.all(np.asarray(self.temperature) > 0):
            raise ValueError(f"`temperature` must be above 0, got {self.temperature}.")

    def mask(self, variate: Float[Array, "B G U"]) -> Float[Array, "B G U"]:
        """Compares numbers and `rate`, the more sharply the lower the temperature."""
        temperature = _array(self.temperature, "temperature")
        return _concrete(variate, _array(self.rate), temperature)


class Zoneout(Noise):
    """Keeps the old value of a state with probability `rate` in [0, 1] [3].

        new state = d * old + (1 - d) * new,    d = 1 with probability `rate`

    Evaluation mixes with d = `rate`. A mask is not differentiable in its rate.

    Attributes:
        rate, gates, batch, units, drift: as in `Noise`.
        per: as in `Noise`, "step" by default.

    Raises:
        ValueError: a Python or NumPy rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text.
    """

    per: Literal["sequence", "step"] = _option("sequence", "step", default=1)

    def mask(self, variate: Float[Array, "B G U"]) -> Mix:
        """Keeps the old value where the number is below `rate`."""
        return Mix(_once(variate < _frozen(self.rate)))

    def expected(self) -> Mix:
        """Returns the mix with d = `rate`; see `Noise`."""
        return Mix(_frozen(self.rate))


class DropConnect(struct.PyTreeNode):
    """Drops weights of a kernel with probability `rate`, once a forward pass [4].

    All time steps and examples share the mask, which is 0 or 1 / (1 - rate); evaluation
    has none. It is not differentiable in its rate.

    Attributes:
        rate: as in `Noise`, in [0, 1]; broadcasts to (rows, gates, units).
        by: "weight" drops each weight by itself; "row" drops all that leads to one
            pre-activation of a gate, a row of PyTorch's `weight_hh`, as `variational`
            does in the code of [4] (there in evaluation too, here not).

    Raises:
        ValueError: a Python or NumPy rate outside [0, 1], or an unknown option.
        TypeError: `rate` is text.
    """

    rate: Rate
    by: Literal["weight", "row"] = _option("weight", "row")

    per = "sequence"
    gates = "each"
    drift = None

    def __post_init__(self):
        _wrap_schedules(self)
        _check_options(self)
        _check_probability("rate", self.rate)

    def at(self, step):
        """Replaces a rate that is a schedule by its value at a training step."""
        return _at(self, step)

    def shape(self, rows: int, gates: int, units: int) -> Shape:
        """Returns the mask's axes (R, G, U), R of size 1 if `by` is "row"."""
        return (rows if self.by == "weight" else 1, gates, units)

    def draw(self, key: Key[Array, ""], shape: Shape) -> Float[Array, "R G U"]:
        """Draws one mask; see `Noise.draw`."""
        check(self, shape)
        return _keep(uniform(key, shape), _frozen(self.rate), inverted=True)

    def expected(self) -> None:
        """Returns None: evaluation uses the kernel as it is."""
        return None


def check(noise: Noise | DropConnect, shape: Shape) -> None:
    """Raises a ValueError where `rate` or another leaf does not fit a `shape`."""
    for name in _leaves(noise):
        value = getattr(noise, name)
        if value is None and name != "drift":
            raise ValueError(
                f"`{name}` must be a number, an array or a schedule, got None."
            )
        if value is None or isinstance(value, Schedule):
            continue
        value_shape: tuple[int, ...] = getattr(value, "shape", ())
        if not _broadcasts(value_shape, shape):
            raise ValueError(
                f"`{name}` must broadcast to the mask's axes {shape}, got shape "
                f"{value_shape}."
            )


def _keep(uniform, rate, inverted):
    kept = _once(uniform >= rate)
    return kept / jnp.where(rate < 1, 1 - rate, 1) if inverted else kept


def _once(chosen):
    """Zeros and ones that are computed once, however often they are read.

    XLA would draw them again wherever they are used, were there no operation among
    theirs that it holds to be expensive.
    """
    return jnp.sqrt(chosen.astype(jnp.float32))


@jax.jit
def _gaussian(variate, rate):
    """Compiled as one even where nothing else is, so that it always rounds alike."""
    on = (rate > 0) & (rate < 1)
    odds = jnp.where(on, rate, 0.5) / jnp.where(on, 1 - rate, 0.5)
    return 1 + jnp.where(on, jnp.sqrt(odds), 0) * variate


@jax.jit
def _concrete(variate, rate, temperature):
    """Compiled as one, as `_gaussian` is; a rate that is not a number shows."""
    none, every = rate <= 0, rate >= 1
    p = jnp.where(none | every, 0.5, rate)
    kept = jax.nn.sigmoid((_logit(variate) - _logit(p)) / temperature)
    return jnp.where(none, 1, jnp.where(every, 0, kept / (1 - p)))


def _logit(p):
    p = jnp.maximum(p, LEAST)
    return jnp.log(p) - jnp.log1p(-p)


def _array(value, name="rate") -> Float[Array, "#B #G #U"]:
    if isinstance(value, Schedule):
        raise ValueError(
            f"`{name}` is a schedule; resolve it with `dropout.at(step)` first."
        )
    value = jnp.asarray(value, jnp.float32)
    return value.reshape((1,) * (3 - value.ndim) + value.shape)


def _frozen(value) -> Float[Array, "#B #G #U"]:
    return jax.lax.stop_gradient(_array(value))


def _leaves(noise) -> list[str]:
    """Names of the fields that are no options: `rate` first."""
    return [
        field.name
        for field in dataclasses.fields(noise)
        if field.metadata.get("pytree_node", True)
    ]


def _at(noise, step):
    changes = {
        name: value.function(step)
        for name in _leaves(noise)
        if isinstance(value := getattr(noise, name), Schedule)
    }
    return noise.replace(**changes)


def _wrap_schedules(noise):
    for name in _leaves(noise):
        if callable(function := getattr(noise, name)):
            object.__setattr__(noise, name, Schedule(function))


def _broadcasts(shape: tuple[int, ...], target: Shape) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _known(value) -> bool:
    return isinstance(value, (int, float, np.ndarray, np.generic))


def _check_number(name: str, value) -> None:
    if isinstance(value, (str, list, tuple)):
        raise TypeError(
            f"`{name}` must be a number, an array or a schedule, got {value!r}."
        )


def _check_probability(name: str, value) -> None:
    """Checks what is known now; a pytree's other contents (tracers) pass."""
    _check_number(name, value)
    if _known(value):
        values = np.asarray(value)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")


def _check_options(noise) -> None:
    for field in dataclasses.fields(noise):
        allowed = field.metadata.get("allowed")
        value = getattr(noise, field.name)
        if allowed and value not in allowed:
            raise ValueError(f"`{field.name}` must be one of {allowed}, got {value!r}.")
