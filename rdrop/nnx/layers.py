"""Layers as `flax.nnx` modules: a cell over sequences, both ways, and stacked."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from flax import nnx

from rdrop.advice import describe, reject_unknown
from rdrop.cells import Carry
from rdrop.keys import StreamKeys
from rdrop.linen.layers import check_layers
from rdrop.loops import (
    Call,
    Loop,
    Noise,
    Options,
    Xs,
    check_distinct,
    check_loop,
    run_both_ways,
    run_in_turn,
    run_sequences,
)
from rdrop.nnx.cells import Cell, stream_keys

Keys: TypeAlias = StreamKeys | nnx.Rngs | None
ARGUMENTS = (
    "xs",
    "dropout",
    "keys",
    "initial_carry",
    "lengths",
    "resets",
    "new_sequence",
)


class RNN(nnx.Module):
    """Unrolls a cell over time; see `rdrop.RNN`.

    Args:
        cell: the recurrence, for example `LSTMCell(12, 128, rngs=rngs)`.
        time_major, reverse, loop: as in `rdrop.RNN`.
        unknown: none; other arguments are rejected.

    Raises:
        TypeError: `cell` is not an nnx cell of rdrop, or an unknown argument.
        ValueError: `loop` is another word.

    Example:
        >>> import jax.numpy as jnp
        >>> from rdrop.nnx import LSTMCell
        >>> rnn = RNN(LSTMCell(3, 8, rngs=nnx.Rngs(0)))
        >>> (c, h), ys = rnn(jnp.ones((2, 5, 3)))
        >>> ys.shape
        (2, 5, 8)
    """

    def __init__(
        self,
        cell: Cell,
        *,
        time_major: bool = False,
        reverse: bool = False,
        loop: Loop = "fused",
        **unknown: Any,
    ):
        reject_unknown("RNN", unknown, ("cell", "time_major", "reverse", "loop"))
        check_cell("cell", cell)
        check_loop(loop)
        self.cell = cell
        self.time_major = time_major
        self.reverse = reverse
        self.loop = loop

    def __call__(
        self,
        xs: Xs,
        dropout: Noise = None,
        keys: Keys = None,
        *,
        initial_carry: Carry | None = None,
        lengths: Any = None,
        resets: Any = None,
        new_sequence: bool | None = None,
        **unknown: Any,
    ) -> tuple[Carry, Xs]:
        """Runs over the sequences of a batch, as `rdrop.RNN` does.

        Args:
            xs: the inputs, [B, T, D], or [T, B, D] if `time_major`.
            dropout: where noise enters; by default the noise of the cell.
            keys: explicit keys; `nnx.Rngs` to draw them from; or None for the cell's
                own, unless it is deterministic.
            initial_carry: as the cell's `initialize_carry` makes it.
            lengths: int[B], number of valid steps of each sequence.
            resets: bool[B, T], or [T, B] if `time_major`. Where it is true, an episode
                begins: the carry before the step is the cell's initial one again, and
                the masks are those of the next episode, see `StreamKeys`.
            new_sequence: whether the cell draws new keys of its own for this call. By
                default it does unless an initial carry is given, which continues its
                sequence. A decoder that starts from the carry of an encoder needs
                `new_sequence=True`, or it keeps the same masks for ever.
            unknown: none; other arguments are rejected.

        Returns:
            The final carry, and the outputs, [B, T, H] or [T, B, H].

        Raises:
            TypeError, ValueError: as `rdrop.RNN`.
        """
        reject_unknown(type(self).__name__, unknown, ARGUMENTS)
        keys = _explicit(keys)
        begins = initial_carry is None if new_sequence is None else new_sequence
        dropout, drawn = self.cell.noise(dropout, keys, begins)
        carry, ys = run_sequences(
            self.cell.equations,
            partial(self.cell.weights, name="xs"),
            Call(xs, dropout, drawn, initial_carry, lengths, resets),
            Options(self.time_major, self.reverse, self.loop),
        )
        if drawn is not keys:
            time = ys.shape[0 if self.time_major else 1]
            self.cell.own.advance(time, resets, self.time_major)
        return carry, ys


class Bidirectional(nnx.Module):
    """Runs one cell forwards and another backwards; see `rdrop.Bidirectional`.

    Args:
        forward: the cell that runs from the first step to the last.
        backward: the cell that runs from the last step to the first.
        time_major, loop: as in `rdrop.RNN`.
        unknown: none; other arguments are rejected.

    Raises:
        TypeError: not two nnx cells of rdrop, or an unknown argument.
        ValueError: both are the same module; `loop` as in `RNN`.
    """

    def __init__(
        self,
        forward: Cell,
        backward: Cell | None = None,
        *,
        time_major: bool = False,
        loop: Loop = "fused",
        **unknown: Any,
    ):
        known = ("forward", "backward", "time_major", "loop")
        reject_unknown("Bidirectional", unknown, known)
        check_cell("forward", forward)
        check_cell("backward", backward)
        check_distinct("forward, backward", (forward, backward))
        options: dict[str, Any] = {"time_major": time_major, "loop": loop}
        self.forward = RNN(forward, **options)
        self.backward = RNN(backward, reverse=True, **options)  # type: ignore[arg-type]

    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise] = None,
        keys: Keys = None,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        lengths: Any = None,
        resets: Any = None,
        new_sequence: bool | None = None,
        **unknown: Any,
    ) -> tuple[tuple[Carry, Carry], Xs]:
        """Runs over the sequences of a batch, as `rdrop.Bidirectional` does.

        Args:
            xs: the inputs.
            dropout: one for both directions, or a pair (forward, backward).
            keys: as in `RNN`.
            initial_carry: a pair of carries, or None.
            lengths: int[B], number of valid steps of each sequence.
            resets: bool[B, T], where an episode begins.
            new_sequence: as in `RNN`.
            unknown: none; other arguments are rejected.

        Returns:
            The pair of final carries, and the outputs of both side by side, [..., 2H].
        """
        reject_unknown(type(self).__name__, unknown, ARGUMENTS)
        call = Call(xs, dropout, _explicit(keys), initial_carry, lengths, resets)
        layers = (self.forward, self.backward)
        forward, backward = (
            partial(each, new_sequence=new_sequence) for each in layers
        )
        return run_both_ways(forward, backward, call)


class Stack(nnx.Module):
    """Runs layers one after the other; see `rdrop.Stack`.

    Args:
        layers: `RNN` or `Bidirectional` layers, from the input upwards.

    Raises:
        TypeError: `layers` is not a sequence of layers.
        ValueError: one module is there twice.
    """

    def __init__(self, layers: Sequence[RNN | Bidirectional], *more: Any):
        check_layers(layers, more, nnx.Module, Cell)
        check_distinct("layers", layers)
        self.layers = nnx.List(layers)

    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise | Sequence[Noise]] = None,
        keys: Keys = None,
        *,
        initial_carry: Sequence[Carry] | None = None,
        lengths: Any = None,
        resets: Any = None,
        new_sequence: bool | None = None,
        **unknown: Any,
    ) -> tuple[tuple[Carry, ...], Xs]:
        """Runs over the sequences of a batch, as `rdrop.Stack` does.

        Args:
            xs: the inputs.
            dropout: one for all layers, or a sequence with one per layer, which may be
                a pair for a layer of two directions.
            keys: as in `RNN`.
            initial_carry: a sequence with one carry per layer, or None.
            lengths: int[B], number of valid steps of each sequence.
            resets: bool[B, T], where an episode begins.
            new_sequence: as in `RNN`.
            unknown: none; other arguments are rejected.

        Returns:
            The final carries, one per layer, and the outputs of the last layer.
        """
        reject_unknown(type(self).__name__, unknown, ARGUMENTS)
        call = Call(xs, dropout, _explicit(keys), initial_carry, lengths, resets)
        layers = [partial(layer, new_sequence=new_sequence) for layer in self.layers]
        return run_in_turn(layers, call)


def check_cell(name: str, cell: Any) -> None:
    """Raises a TypeError unless `cell` is an nnx cell of rdrop."""
    if not isinstance(cell, Cell):
        raise TypeError(
            f"`{name}` must be an nnx cell of rdrop, such as rdrop.nnx.LSTMCell(12, "
            f"64, rngs=nnx.Rngs(0)), got {describe(cell)}."
        )


def _explicit(keys: Keys) -> StreamKeys | None:
    return stream_keys(keys) if isinstance(keys, nnx.Rngs) else keys
