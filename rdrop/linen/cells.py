"""Cells as `flax.linen` modules: they own the parameters of `rdrop.cells`."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from rdrop import cells
from rdrop.advice import describe, reject_unknown
from rdrop.arguments import check_count
from rdrop.dropout import Dropout, Masks
from rdrop.keys import StreamKeys
from rdrop.linen.rngs import (
    check_collections_reach,
    check_lifetimes,
    collected_keys,
)
from rdrop.loops import Noise, check_features, run_step
from rdrop.sites import Site


class Advised:
    """Explains arguments that a module does not have, instead of Python."""

    def __new__(cls, *values: Any, **named: Any):
        """Raises a TypeError for arguments that are not fields of the module."""
        fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        own = [name for name in fields if name not in ("parent", "name")]
        reject_unknown(cls.__name__, [n for n in named if n not in fields], own)
        if len(values) > len(own):
            got = ", ".join(describe(value) for value in values)
            raise TypeError(
                f"{cls.__name__} has the arguments {', '.join(own)}, got {got}."
            )
        return super().__new__(cls)


def check_call(module: nn.Module, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raises if a module has no parameters, or does not have an argument.

    Args:
        module: a cell or a layer.
        unknown: names of arguments that its call does not have.
        known: names of those that it has.

    Raises:
        RuntimeError: it was called directly and not by `init` or `apply`.
        TypeError: an unknown argument.
    """
    name = type(module).__name__
    if module.scope is None:
        raise RuntimeError(
            f"{name} must be called by `apply`: params = module.init(key, ...), then "
            "module.apply(params, ...). Modules of rdrop.nnx are called directly."
        )
    reject_unknown(name, unknown, known)


class Cell(Advised, nn.RNNCellBase):
    """A recurrence with noise; use one of the cells, or define your own.

    A subclass names its equations, a `rdrop.cells.Recurrence`, and has its fields:

        class MyCell(rdrop.Cell):
            EQUATIONS = MyRecurrence

    Attributes:
        units: H, the size of the output.
        dtype: compute dtype of the matrix products; by default the common dtype of
            inputs and parameters.
        param_dtype: dtype of the parameters.
        dropout: the noise of calls that pass none, such as the calls of
            `flax.linen.RNN`.
        kernel_init, recurrent_init, bias_init: initialisers of the kernels and of the
            bias, functions of (key, shape, dtype); by default those of the cell.
        use_bias: whether there is a bias.

    Raises:
        TypeError: an unknown argument, `dropout` is not a `Dropout`, or an initialiser
            is not a function.
        ValueError: `units` is not an integer of 1 or more, or an option that the cell
            lacks.
    """

    units: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    dropout: Dropout | None = None
    kernel_init: cells.Initialiser | None = None
    recurrent_init: cells.Initialiser | None = None
    bias_init: cells.Initialiser | None = None
    use_bias: bool = True

    EQUATIONS: ClassVar[type[cells.Recurrence]]

    def __post_init__(self):
        check_count("units", self.units)
        if hasattr(self, "EQUATIONS"):
            _ = self.equations  # checks the options
        if not isinstance(self.dropout, Dropout | Masks | None):
            raise TypeError(
                "`dropout` must be an rdrop.Dropout, such as rdrop.Dropout(recurrent="
                f"rdrop.Bernoulli(0.5)), or None, got {describe(self.dropout)}."
            )
        super().__post_init__()

    @property
    def equations(self) -> cells.Recurrence:
        """The equations of the cell, without parameters.

        An option of the equations that the module does not have is at its default.
        """
        own = {field.name for field in dataclasses.fields(self)}
        named = [f.name for f in dataclasses.fields(self.EQUATIONS) if f.name in own]
        return self.EQUATIONS(**{name: getattr(self, name) for name in named})

    @nn.nowrap
    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return self.equations.sites(features)

    @nn.compact
    def weights(self, x: Float[Array, "*batch D"], name: str = "x") -> cells.Weights:
        """Returns the parameters for inputs like `x`, in the compute dtype.

        Raises:
            ValueError: the parameters were made for another number of features than
                `x` has; the caller knows `x` by `name`.
        """
        features = x.shape[-1]
        if self.has_variable("params", "kernel"):
            check_features(name, features, self.get_variable("params", "kernel"))
        params = {
            name: self.param(name, initialiser, shape, self.param_dtype)
            for name, (initialiser, shape) in self.equations.parameters(
                features
            ).items()
        }
        return self.equations.cast(params, x)

    def __call__(
        self,
        carry: cells.Carry,
        x: Float[Array, "B D"],
        dropout: Noise = None,
        keys: StreamKeys | None = None,
        **unknown: Any,
    ) -> tuple[cells.Carry, Float[Array, "B H"]]:
        """Advances one step.

        Args:
            carry: the state of the previous step, as `initialize_carry` makes it.
            x: the input of this step.
            dropout: where noise enters; or `Masks` of one step, used as they are. By
                default the cell's own.
            keys: explicit keys whose `step` is the absolute index of this step. By
                default keys of the rng collections `inputs` and `recurrent`, or
                `dropout`, if the module has them: their masks live as long as flax
                holds the collections. No keys, no noise: the expectation is evaluated.
            unknown: none; other arguments are rejected.

        Returns:
            The new carry, and the output y.

        Raises:
            RuntimeError: the module is called without `init` or `apply`.
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, a site that the cell does not have, or a
                rate that does not broadcast; one of the two rng collections alone, or
                noise that depends on the step together with rng collections.
        """
        check_call(self, unknown, ("carry", "x", "dropout", "keys"))
        dropout, drawn = self.noise(dropout, keys)
        if drawn is not keys:
            check_lifetimes(dropout)
        return run_step(self.equations, self.weights, carry, x, dropout, drawn)

    @nn.nowrap
    def noise(
        self, dropout: Noise, keys: StreamKeys | None
    ) -> tuple[Noise, StreamKeys | None]:
        """Returns dropout and keys of a call; by default the module supplies them."""
        dropout = self.dropout if dropout is None else dropout
        if keys is None and isinstance(dropout, Dropout):
            keys = collected_keys(self)
        return dropout, keys

    @nn.nowrap
    def initialize_carry(
        self, rng: Key[Array, ""], input_shape: tuple[int, ...]
    ) -> cells.Carry:
        """Returns the carry before the first step; `rng` is not used.

        Args:
            rng: any key, for the interface of flax.
            input_shape: [..., D], of the input of one step.

        Raises:
            ValueError: the module is in a `flax.linen.RNN` that keeps the rng
                collections of its noise from it.
        """
        check_collections_reach(self)
        return self.equations.initial_carry(*input_shape[:-1])

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are not batch."""
        return 1


class LSTMCell(Cell):
    """Long short-term memory; see `rdrop.cells.LSTM` for equations and parameters.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Cell`.
        forget_bias: initial bias of the forget gate; None to use `bias_init`.
        activation: of the candidate and of the memory, in place of tanh.
        recurrent_activation: of the gates, in place of the sigmoid.
        projection: size of h and of the output (LSTMP); None for `units`.

    Example:
        >>> import jax
        >>> cell = LSTMCell(8)
        >>> x = jnp.ones((2, 3))
        >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
        >>> params = cell.init(jax.random.key(0), carry, x)
        >>> carry, y = cell.apply(params, carry, x)
        >>> y.shape
        (2, 8)
    """

    forget_bias: float | None = 1.0
    activation: cells.Activation = jnp.tanh
    recurrent_activation: cells.Activation = jax.nn.sigmoid
    projection: int | None = None

    EQUATIONS = cells.LSTM


class LayerNormLSTMCell(Cell):
    """LSTM with layer normalisation; see `rdrop.cells.LayerNormLSTM`.

    Attributes:
        units, dtype, param_dtype, dropout, kernel_init, recurrent_init: as in `Cell`.
        forget_bias: added in front of the forget gate.
        activation, recurrent_activation, projection: as in `LSTMCell`.
    """

    forget_bias: float | None = 1.0
    activation: cells.Activation = jnp.tanh
    recurrent_activation: cells.Activation = jax.nn.sigmoid
    projection: int | None = None

    EQUATIONS = cells.LayerNormLSTM


class GRUCell(Cell):
    """Gated recurrent unit; see `rdrop.cells.GRU` for equations and parameters.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Cell`.
        reset_after: whether the reset gate multiplies the matrix product (Keras,
            PyTorch, flax) rather than the state (Cho et al.).
        activation: of the candidate, in place of tanh.
        recurrent_activation: of the gates, in place of the sigmoid.
    """

    reset_after: bool = True
    activation: cells.Activation = jnp.tanh
    recurrent_activation: cells.Activation = jax.nn.sigmoid

    EQUATIONS = cells.GRU


class SimpleCell(Cell):
    """Simple recurrence; see `rdrop.cells.Simple` for equations and parameters.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Cell`.
        activation: in place of tanh.
    """

    activation: cells.Activation = jnp.tanh

    EQUATIONS = cells.Simple


class MinGRUCell(Cell):
    """Minimal GRU, affine in its state; see `rdrop.cells.MinGRU`.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, bias_init, use_bias: as in `Cell`.
        activation: of the candidate, by default none.
    """

    activation: cells.Activation = cells.linear

    EQUATIONS = cells.MinGRU


class MinLSTMCell(Cell):
    """Minimal LSTM, affine in its state; see `rdrop.cells.MinLSTM`.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, bias_init, use_bias: as in `Cell`.
        activation: of the candidate, by default none.
    """

    activation: cells.Activation = cells.linear

    EQUATIONS = cells.MinLSTM


class RGLRUCell(Cell):
    """Real-gated linear recurrent unit of Griffin; see `rdrop.cells.RGLRU`.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, bias_init, use_bias: as in `Cell`.
    """

    EQUATIONS = cells.RGLRU


class LRUCell(Cell):
    """Linear recurrent unit, of complex memory; see `rdrop.cells.LRU`.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init: of both kernels.
        state: size of the memory; None for `units`.
        radii: least and largest modulus of the decay at initialisation.
        largest_phase: of the decay at initialisation, in radians.
    """

    use_bias: bool = False
    state: int | None = None
    radii: tuple[float, float] = (0.0, 1.0)
    largest_phase: float = 6.28

    EQUATIONS = cells.LRU


class S5Cell(Cell):
    """State space model S5, of complex memory; see `rdrop.cells.S5`.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init: of both kernels.
        state: size of the memory, half of the state size of the paper; None for
            `units`.
        blocks: of the state matrix at initialisation.
        steps: least and largest time step at initialisation.
    """

    use_bias: bool = False
    state: int | None = None
    blocks: int = 1
    steps: tuple[float, float] = (0.001, 0.1)

    EQUATIONS = cells.S5


class SLSTMCell(Cell):
    """LSTM with exponential input gates, of xLSTM; see `rdrop.cells.SLSTM`.

    Attributes:
        units, dtype, param_dtype, dropout: as in `Cell`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Cell`.
    """

    EQUATIONS = cells.SLSTM
