"""Layers: a cell run over whole sequences, in both directions, and stacked, in nnx."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from flax import nnx

from rdrop.cells.base import Carry
from rdrop.keys import StreamKeys
from rdrop.nnx.cells import Cell, stream_keys
from rdrop.unroll import (
    Loop,
    Noise,
    Xs,
    check_distinct,
    check_loop,
    run_both_ways,
    run_in_turn,
    unroll,
)

Keys: TypeAlias = StreamKeys | nnx.Rngs | None


class RNN(nnx.Module):
    """Unrolls a cell over time; see `rdrop.RNN`.

    Args:
        cell: the recurrence, for example `LSTMCell(12, 128, rngs=rngs)`.
        time_major, reverse, loop: as in `rdrop.RNN`.

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
    ):
        check_loop(loop, cell.equations)
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
    ) -> tuple[Carry, Xs]:
        """Runs over the sequences of a batch, as `rdrop.RNN` does.

        Args:
            xs: the inputs, [B, T, D], or [T, B, D] if `time_major`.
            dropout: where noise enters; by default that of the cell.
            keys: explicit keys; `nnx.Rngs` to draw them from; or None for the cell's
                own, unless it is deterministic. Its own are drawn anew unless an
                initial carry is given: then its sequence goes on.
            initial_carry: as the cell's `initialize_carry` makes it.
            lengths: int[B], number of valid steps of each sequence.

        Returns:
            The final carry, and the outputs, [B, T, H] or [T, B, H].

        Raises:
            TypeError, ValueError: as `rdrop.RNN`.
        """
        keys = _explicit(keys)
        dropout, drawn = self.cell.noise(dropout, keys, begins=initial_carry is None)
        carry, ys = unroll(
            self.cell.equations,
            partial(self.cell.weights, name="xs"),
            xs,
            dropout,
            drawn,
            initial_carry=initial_carry,
            lengths=lengths,
            time_major=self.time_major,
            reverse=self.reverse,
            loop=self.loop,
        )
        if drawn is not keys:
            self.cell.own.go_on(ys.shape[0 if self.time_major else 1])
        return carry, ys


class Bidirectional(nnx.Module):
    """Runs one cell forwards and another backwards; see `rdrop.Bidirectional`.

    Args:
        forward: the cell that runs from the first step to the last.
        backward: the cell that runs from the last step to the first.
        time_major, loop: as in `rdrop.RNN`.
    """

    def __init__(
        self,
        forward: Cell,
        backward: Cell,
        *,
        time_major: bool = False,
        loop: Loop = "fused",
    ):
        check_distinct("forward, backward", (forward, backward))
        self.forward = RNN(forward, time_major=time_major, loop=loop)
        self.backward = RNN(backward, time_major=time_major, loop=loop, reverse=True)

    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise] = None,
        keys: Keys = None,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        lengths: Any = None,
    ) -> tuple[tuple[Carry, Carry], Xs]:
        """Runs over the sequences of a batch, as `rdrop.Bidirectional` does.

        Args:
            xs: the inputs.
            dropout: one for both directions, or a pair (forward, backward).
            keys: as in `RNN`.
            initial_carry: a pair of carries, or None.
            lengths: int[B], number of valid steps of each sequence.

        Returns:
            The pair of final carries, and the outputs of both side by side, [..., 2H].
        """
        return run_both_ways(
            self.forward,
            self.backward,
            xs,
            dropout,
            _explicit(keys),
            initial_carry=initial_carry,
            lengths=lengths,
        )


class Stack(nnx.Module):
    """Runs layers one after the other; see `rdrop.Stack`.

    Args:
        layers: `RNN` or `Bidirectional` layers, from the input upwards.
    """

    def __init__(self, layers: Sequence[RNN | Bidirectional]):
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
    ) -> tuple[tuple[Carry, ...], Xs]:
        """Runs over the sequences of a batch, as `rdrop.Stack` does.

        Args:
            xs: the inputs.
            dropout: one for all layers, or a sequence of one a layer, which may be a
                pair for a layer of two directions.
            keys: as in `RNN`.
            initial_carry: a sequence of one carry a layer, or None.
            lengths: int[B], number of valid steps of each sequence.

        Returns:
            The final carries, one a layer, and the outputs of the last layer.
        """
        return run_in_turn(
            self.layers,
            xs,
            dropout,
            _explicit(keys),
            initial_carry=initial_carry,
            lengths=lengths,
        )


def _explicit(keys: Keys) -> StreamKeys | None:
    return stream_keys(keys) if isinstance(keys, nnx.Rngs) else keys
