"""Layers: a cell run over whole sequences, in both directions, and stacked, in linen.

They own the parameters, and take keys from the rng collections where none are given;
what they run is in `rdrop.unroll`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from flax import linen as nn

from rdrop.cells import Cell
from rdrop.cells.base import Carry
from rdrop.keys import StreamKeys
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


class RNN(nn.Module):
    """Unrolls a cell over time by `jax.lax.scan`.

    A `MinGRUCell` is affine in its state and unrolled by `jax.lax.associative_scan`.
    The parameters are those of the bare cell, under the same names.

    Attributes:
        cell: the recurrence, for example `LSTMCell(128)`.
        time_major: whether sequences are [T, B, D] rather than [B, T, D].
        reverse: whether to run from the last step to the first. Outputs stay at the
            time steps of their inputs, and keys are those of direction "backward".
        loop: "fused" has a derivative written by hand, for the cells that supply one:
            LSTM, GRU and simple. "recompute" keeps less between the two passes, and
            computes the rest again, a block of steps at a time: sequences of many
            blocks (a MB each) take about half the memory or less. "plain" is the
            definition, which also has derivatives in forward mode (`jax.jvp`,
            `jax.jacfwd`).

    Raises:
        ValueError: `loop` is another word, or "recompute" for a cell that does not
            supply its derivative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rdrop import LSTMCell
        >>> rnn, xs = RNN(LSTMCell(8)), jnp.ones((2, 5, 3))
        >>> params = rnn.init(jax.random.key(0), xs)
        >>> (c, h), ys = rnn.apply(params, xs)
        >>> ys.shape
        (2, 5, 8)
    """

    cell: Cell
    time_major: bool = False
    reverse: bool = False
    loop: Loop = "fused"

    def __post_init__(self):
        check_loop(self.loop, self.cell)
        super().__post_init__()

    def setup(self):  # noqa: D102
        nn.share_scope(self, self.cell)

    def __call__(
        self,
        xs: Xs,
        dropout: Noise = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: Carry | None = None,
        lengths: Any = None,
    ) -> tuple[Carry, Xs]:
        """Runs over the sequences of a batch.

        Args:
            xs: the inputs, [B, T, D], or [T, B, D] if `time_major`.
            dropout: where noise enters; or `Masks` of the whole sequence, used as they
                are. By default that of the cell.
            keys: explicit keys; `keys.step` is the absolute index of xs's first step.
                By default keys of the rng collections `inputs` and `recurrent`, if the
                module has them. No keys, no noise: the expectation is evaluated.
            initial_carry: as the cell's `initialize_carry` makes it; zeros by default.
            lengths: int[B], number of valid steps of each sequence, in [0, T]. Later
                steps are padding: they change nothing, and their outputs are zero.
                Traced lengths are not checked.

        Returns:
            The final carry, and the outputs, [B, T, H] or [T, B, H].

        Raises:
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, lengths outside [0, T], a site that the
                cell has not, or a rate that does not broadcast; one rng collection
                without the other.
        """
        dropout, keys = self.cell.noise(dropout, keys)
        return unroll(
            self.cell,
            partial(self.cell.weights, name="xs"),
            xs,
            dropout,
            keys,
            initial_carry=initial_carry,
            lengths=lengths,
            time_major=self.time_major,
            reverse=self.reverse,
            loop=self.loop,
        )


class Bidirectional(nn.Module):
    """Runs one cell forwards and another backwards over the same sequences.

    The two directions have masks of their own. With lengths, the backward cell starts
    at the last valid step of each sequence.

    Attributes:
        forward: the cell that runs from the first step to the last.
        backward: the cell that runs from the last step to the first.
        time_major: whether sequences are [T, B, D] rather than [B, T, D].
        loop: as in `RNN`.

    Raises:
        ValueError: both are one and the same module; `loop` as in `RNN`.
    """

    forward: Cell
    backward: Cell
    time_major: bool = False
    loop: Loop = "fused"

    def __post_init__(self):
        check_distinct("forward, backward", (self.forward, self.backward))
        for cell in (self.forward, self.backward):
            check_loop(self.loop, cell)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise] = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        lengths: Any = None,
    ) -> tuple[tuple[Carry, Carry], Xs]:
        """Runs over the sequences of a batch; arguments are those of `RNN`.

        Args:
            xs: the inputs.
            dropout: one for both directions, or a pair (forward, backward).
            keys: explicit keys.
            initial_carry: a pair of carries, or None.
            lengths: int[B], number of valid steps of each sequence.

        Returns:
            The pair of final carries, and the outputs of both side by side, [..., 2H].
        """
        forward, backward = (
            RNN(cell, self.time_major, reverse, self.loop, name=name)
            for cell, reverse, name in (
                (self.forward, False, "forward_rnn"),
                (self.backward, True, "backward_rnn"),
            )
        )
        return run_both_ways(
            forward,
            backward,
            xs,
            dropout,
            keys,
            initial_carry=initial_carry,
            lengths=lengths,
        )


class Stack(nn.Module):
    """Runs layers one after the other, the outputs of each the inputs of the next.

    Noise between two layers is that of the site `inputs` of the upper one, or `outputs`
    of the lower one: a new mask each step or one held over the sequence ("locked").

    Attributes:
        layers: `RNN` or `Bidirectional` layers, from the input upwards.

    Raises:
        ValueError: one and the same module is there twice.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rdrop import LSTMCell
        >>> layers = Stack([RNN(LSTMCell(8)), RNN(LSTMCell(4))])
        >>> params = layers.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> carries, ys = layers.apply(params, jnp.ones((2, 5, 3)))
        >>> len(carries), ys.shape
        (2, (2, 5, 4))
    """

    layers: Sequence[RNN | Bidirectional]

    def __post_init__(self):
        check_distinct("layers", self.layers)
        super().__post_init__()

    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise | Sequence[Noise]] = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: Sequence[Carry] | None = None,
        lengths: Any = None,
    ) -> tuple[tuple[Carry, ...], Xs]:
        """Runs over the sequences of a batch; arguments are those of `RNN`.

        Args:
            xs: the inputs.
            dropout: one for all layers, or a sequence of one a layer, which may be a
                pair for a layer of two directions.
            keys: explicit keys; layer n has `keys.layer + n`.
            initial_carry: a sequence of one carry a layer, or None.
            lengths: int[B], number of valid steps of each sequence.

        Returns:
            The final carries, one a layer, and the outputs of the last layer.
        """
        return run_in_turn(
            self.layers,
            xs,
            dropout,
            keys,
            initial_carry=initial_carry,
            lengths=lengths,
        )
