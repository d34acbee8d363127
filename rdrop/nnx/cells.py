"""Cells as `flax.nnx` modules: they own the parameters of `rdrop.cells`.

A cell that is made with a `dropout` owns streams too, and the keys of its sequence.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import rdrop.keys
from rdrop import cells
from rdrop.advice import describe, reject_unknown
from rdrop.cells import Carry
from rdrop.dropout import Dropout, Masks
from rdrop.keys import StreamKeys
from rdrop.loops import Noise, check_features, run_step


def stream_keys(rngs: nnx.Rngs) -> StreamKeys:
    """Draws one key of each of the streams `inputs` and `recurrent`.

    Args:
        rngs: has the two streams, or the default one, or `dropout`, from which both
            keys are split.

    Raises:
        ValueError: it has none of these.
    """
    if _has_dropout_only(rngs):
        return rdrop.keys.stream_keys(rngs.dropout())
    return StreamKeys(inputs=rngs.inputs(), recurrent=rngs.recurrent())


def _has_dropout_only(rngs) -> bool:
    """Returns whether `dropout` is the stream of noise; raises if there is none."""
    named = [name for name in ("inputs", "recurrent") if name in rngs]
    if "default" in rngs or len(named) == 2:
        return False
    if "dropout" not in rngs or named:
        raise ValueError(
            "`rngs` must have the streams `inputs` and `recurrent`, or `dropout`, or a "
            f"default one, nnx.Rngs(0); got {', '.join(sorted(rngs)) or 'none'}."
        )
    return True


def _check_rngs(rngs) -> None:
    """Raises unless a cell can make its parameters from the streams of `rngs`."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"`rngs` must be nnx.Rngs, got {describe(rngs)}.")
    if not {"default", "params"} & set(rngs):
        raise ValueError(
            "`rngs` must have the stream `params`, from which parameters are drawn, or "
            "a default one: nnx.Rngs(0), or nnx.Rngs(params=0, dropout=1); got "
            f"{', '.join(sorted(rngs)) or 'none'}."
        )


class SequenceKeys(nnx.Variable):
    """The keys of the sequence that a cell is in, at its next step."""


class OwnKeys(nnx.Module):
    """The streams of a cell, and the keys drawn from them for its sequence.

    Args:
        rngs: as for `stream_keys`; its streams are forked.
    """

    def __init__(self, rngs: nnx.Rngs):
        if _has_dropout_only(rngs):
            self.streams = nnx.Rngs(dropout=rngs.dropout.fork())
        else:
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

    def advance(self, steps: int, resets: Any = None, time_major: bool = False) -> None:
        """Counts the steps and episodes that the keys have been used for."""
        keys = self.now()
        if resets is None:
            keys = keys.replace(step=keys.step + jnp.int32(steps))
        else:
            keys = keys.advance(resets, time_major)
        self.sequence.set_value(keys)

    def _draw(self) -> StreamKeys:
        return stream_keys(self.streams).replace(step=jnp.int32(0))


class Cell(nnx.RNNCellBase):
    """A recurrence with noise; use one of the cells, or define your own.

    A subclass names its equations, a `rdrop.cells.Recurrence`:

        class MyCell(rdrop.nnx.Cell):
            EQUATIONS = MyRecurrence

    Args:
        in_features: D, the size of the input.
        units: H, the size of the output.
        dropout: the noise of calls that pass none, drawn from the cell's streams.
        rngs: has a stream `params`, and `inputs` and `recurrent`, or `dropout`, if
            there is a `dropout`; or the default one.
        options: other fields of the equations: `dtype` and `param_dtype` as in
            `rdrop.Cell`, and for example `reset_after` of a GRU.

    Raises:
        TypeError: an unknown option, `dropout` is not a `Dropout`, or `rngs` are not
            `nnx.Rngs`.
        ValueError: `units` is not an integer of 1 or more, or `rngs` lack a stream.
    """

    EQUATIONS: ClassVar[type[cells.Recurrence]]

    kernel: nnx.Param

    def __init__(
        self,
        in_features: int,
        units: int,
        *,
        dropout: Dropout | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        known = [field.name for field in dataclasses.fields(self.EQUATIONS)][1:]
        unknown = [name for name in options if name not in known]
        reject_unknown(type(self).__name__, unknown, (*known, "dropout", "rngs"))
        if not isinstance(dropout, Dropout | Masks | None):
            raise TypeError(
                f"`dropout` must be an rdrop.Dropout or None, got {describe(dropout)}."
            )
        _check_rngs(rngs)
        self.in_features = in_features
        self.equations = self.EQUATIONS(units, **options)
        made = self.equations.parameters(in_features)
        for name, (initialise, shape) in made.items():
            value = initialise(rngs.params(), shape, self.equations.param_dtype)
            setattr(self, name, nnx.Param(value))
        self.deterministic = False
        self.dropout = nnx.data(dropout)
        self.own: Any = nnx.data(None if dropout is None else OwnKeys(rngs))

    def __call__(  # type: ignore[override]
        self,
        carry: Carry,
        x: Float[Array, "B D"],
        dropout: Noise = None,
        keys: StreamKeys | None = None,
        **unknown: Any,
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances one step.

        Args:
            carry: the state of the previous step, as `initialize_carry` makes it.
            x: the input of this step.
            dropout: where noise enters; or `Masks` of one step, used as they are. By
                default the cell's own.
            keys: explicit keys whose `step` is the absolute index of this step; for
                keys of `nnx.Rngs` see `stream_keys`. By default the cell's own, unless
                it is deterministic. No keys, no noise: the expectation is evaluated.
            unknown: none; other arguments are rejected.

        Returns:
            The new carry, and the output y.

        Raises:
            TypeError, ValueError: as the linen cell.
        """
        known = ("carry", "x", "dropout", "keys")
        reject_unknown(type(self).__name__, unknown, known)
        dropout, drawn = self.noise(dropout, keys)
        result = run_step(self.equations, self.weights, carry, x, dropout, drawn)
        if drawn is not keys:
            self.own.advance(1)
        return result

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode of a copy that `nnx.view` makes; None leaves it as it is.

        Args:
            deterministic: whether calls without keys evaluate the expectation.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def weights(self, x: Float[Array, "*batch D"], name: str = "x") -> cells.Weights:
        """Returns the parameters for inputs like `x`, in the compute dtype.

        Raises:
            ValueError: `x`, which the caller knows by `name`, has another number of
                features than the parameters.
        """
        check_features(name, x.shape[-1], self.kernel[...])
        return self.equations.cast(self.parameters(), x)

    def parameters(self) -> cells.Weights:
        """Returns the parameters, by the names of the linen module."""
        names = self.equations.parameters(self.in_features)
        return {name: getattr(self, name)[...] for name in names}

    def noise(
        self,
        dropout: Noise,
        keys: StreamKeys | None,
        new_sequence: bool = False,
    ) -> tuple[Noise, StreamKeys | None]:
        """Returns dropout and keys of a call; by default the module supplies them."""
        dropout = self.dropout if dropout is None else dropout
        noisy = self.own is not None and not self.deterministic
        if keys is None and noisy and isinstance(dropout, Dropout):
            if new_sequence:
                self.own.begin()
            keys = self.own.now()
        return dropout, keys

    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: Any = None
    ) -> Carry:
        """Begins a sequence, and returns its first carry; `rngs` is not used."""
        if self.own is not None:
            self.own.begin()
        return self.equations.initial_carry(*input_shape[:-1])

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are not batch."""
        return 1


class LSTMCell(Cell):
    """Long short-term memory; see `rdrop.cells.LSTM`."""

    EQUATIONS = cells.LSTM


class LayerNormLSTMCell(Cell):
    """LSTM with layer normalisation; see `rdrop.cells.LayerNormLSTM`."""

    EQUATIONS = cells.LayerNormLSTM


class GRUCell(Cell):
    """Gated recurrent unit, `reset_after` or before; see `rdrop.cells.GRU`."""

    EQUATIONS = cells.GRU


class SimpleCell(Cell):
    """Simple recurrence; see `rdrop.cells.Simple`."""

    EQUATIONS = cells.Simple


class MinGRUCell(Cell):
    """Recurrence that is affine in its state; see `rdrop.cells.MinGRU`."""

    EQUATIONS = cells.MinGRU


class MinLSTMCell(Cell):
    """Minimal LSTM, affine in its state; see `rdrop.cells.MinLSTM`."""

    EQUATIONS = cells.MinLSTM


class RGLRUCell(Cell):
    """Real-gated linear recurrent unit; see `rdrop.cells.RGLRU`."""

    EQUATIONS = cells.RGLRU


class LRUCell(Cell):
    """Linear recurrent unit, of complex memory; see `rdrop.cells.LRU`."""

    EQUATIONS = cells.LRU


class S5Cell(Cell):
    """State space model S5, of complex memory; see `rdrop.cells.S5`."""

    EQUATIONS = cells.S5


class SLSTMCell(Cell):
    """LSTM with exponential input gates; see `rdrop.cells.SLSTM`."""

    EQUATIONS = cells.SLSTM
