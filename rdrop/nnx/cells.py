"""Cells: the recurrences as nnx modules.

A cell owns its parameters, and streams and keys of its own if it has a `dropout`. Its
equations are those of the linen cell, which is kept unbound.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rdrop import cells
from rdrop.cells.base import Carry, advance, check_features
from rdrop.dropout import Dropout, Masks
from rdrop.keys import StreamKeys


def stream_keys(rngs: nnx.Rngs) -> StreamKeys:
    """Draws a key of each of the streams `inputs` and `recurrent`.

    Args:
        rngs: has the two streams, or the default one.

    Raises:
        AttributeError: it has neither.
    """
    return StreamKeys(inputs=rngs.inputs(), recurrent=rngs.recurrent())


class SequenceKeys(nnx.Variable):
    """The keys of the sequence that a cell is in, at its next step."""


class OwnKeys(nnx.Module):
    """The streams of a cell, and the keys drawn from them for its sequence.

    Args:
        rngs: has streams `inputs` and `recurrent`, or the default one; forked.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.streams = nnx.Rngs(
            inputs=rngs.inputs.fork(), recurrent=rngs.recurrent.fork()
        )
        self.sequence = SequenceKeys(self._draw())

    def begin(self) -> None:
        """Draws the keys of a new sequence."""
        self.sequence.set_value(self._draw())

    def now(self) -> StreamKeys:
        """Returns the keys at the next step."""
        return self.sequence.get_value()

    def go_on(self, steps: int) -> None:
        """Counts the steps that the keys have been used for."""
        keys = self.now()
        self.sequence.set_value(keys.replace(step=keys.step + jnp.int32(steps)))

    def _draw(self) -> StreamKeys:
        return stream_keys(self.streams).replace(step=jnp.int32(0))


class Cell(nnx.RNNCellBase):
    """A recurrence with noise; use one of the cells.

    Args:
        in_features: D, the size of the input.
        units: H, the size of the output.
        dtype: compute dtype of the matrix products; by default that of inputs and
            parameters together.
        param_dtype: dtype of the parameters.
        dropout: the noise of calls that name none, drawn from streams of its own.
        rngs: has a stream `params`, and `inputs` and `recurrent` if there is a
            `dropout`; or the default one.
    """

    LINEN: ClassVar[type[cells.Cell]]

    kernel: nnx.Param

    def __init__(
        self,
        in_features: int,
        units: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        dropout: Dropout | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.in_features = in_features
        self.equations = self.LINEN(units, dtype, param_dtype, **options)
        made = self.equations.parameters(in_features)
        for name, (initialise, shape) in made.items():
            value = initialise(rngs.params(), shape, param_dtype)
            setattr(self, name, nnx.Param(value))
        self.deterministic = False
        self.dropout = nnx.data(dropout)
        self.own: Any = nnx.data(None if dropout is None else OwnKeys(rngs))

    def __call__(
        self,
        carry: Carry,
        x: Float[Array, "B D"],
        dropout: Dropout | Masks | None = None,
        keys: StreamKeys | None = None,
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances one step.

        Args:
            carry: the state of the previous step, as `initialize_carry` makes it.
            x: the input of this step.
            dropout: where noise enters; or `Masks` of one step, used as they are. By
                default that of the cell.
            keys: explicit keys whose `step` is this one's absolute index; for those of
                `nnx.Rngs` see `stream_keys`. By default the cell's own, unless it is
                deterministic. No keys, no noise: the expectation is evaluated.

        Returns:
            The new carry, and the output y.

        Raises:
            TypeError, ValueError: as the linen cell.
        """
        dropout, drawn = self.noise(dropout, keys)
        result = advance(self.equations, self.weights, carry, x, dropout, drawn)
        if drawn is not keys:
            self.own.go_on(1)
        return result

    def weights(self, x: Float[Array, "*batch D"], name: str = "x") -> cells.Weights:
        """Returns the parameters for inputs like `x`, in the compute dtype.

        Raises:
            ValueError: `x`, which the caller knows by `name`, has another number of
                features than the parameters.
        """
        check_features(name, x.shape[-1], self.kernel[...])
        return self.equations.cast(self.parameters(), x)

    def parameters(self) -> cells.Weights:
        """Returns the parameters, by the names of the linen face."""
        names = self.equations.parameters(self.in_features)
        return {name: getattr(self, name)[...] for name in names}

    def noise(
        self,
        dropout: Dropout | Masks | None,
        keys: StreamKeys | None,
        begins: bool = False,
    ) -> tuple[Dropout | Masks | None, StreamKeys | None]:
        """Returns dropout and keys of a call, with what it leaves to the module."""
        dropout = self.dropout if dropout is None else dropout
        noisy = self.own is not None and not self.deterministic
        if keys is None and noisy and isinstance(dropout, Dropout):
            if begins:
                self.own.begin()
            keys = self.own.now()
        return dropout, keys

    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: Any = None
    ) -> Carry:
        """Begins a sequence, and returns a carry of zeros; `rngs` is not used."""
        if self.own is not None:
            self.own.begin()
        return self.equations.initialize_carry(jax.random.key(0), input_shape)

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are not batch."""
        return 1


class LSTMCell(Cell):
    """Long short-term memory; see `rdrop.LSTMCell`."""

    LINEN = cells.LSTMCell


class LayerNormLSTMCell(Cell):
    """LSTM with layer normalisation; see `rdrop.LayerNormLSTMCell`."""

    LINEN = cells.LayerNormLSTMCell


class GRUCell(Cell):
    """Gated recurrent unit, `reset_after` or before; see `rdrop.GRUCell`."""

    LINEN = cells.GRUCell


class SimpleCell(Cell):
    """Simple recurrence; see `rdrop.SimpleCell`."""

    LINEN = cells.SimpleCell


class MinGRUCell(Cell):
    """Recurrence that is affine in its state; see `rdrop.MinGRUCell`."""

    LINEN = cells.MinGRUCell
