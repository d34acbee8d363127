"""Layers as `flax.linen` modules: a cell over sequences, both ways, and stacked.

They take keys from the rng collections if none are given; `rdrop.loops` does the rest.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from flax import linen as nn

from rdrop.advice import describe
from rdrop.cells import Carry
from rdrop.keys import StreamKeys
from rdrop.linen.cells import Advised, Cell, check_call
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

ARGUMENTS = ("xs", "dropout", "keys", "initial_carry", "lengths", "resets")


class RNN(Advised, nn.Module):
    """Unrolls a cell over time by `jax.lax.scan`.

    It has the parameters of the bare cell, under the same names.

    Attributes:
        cell: the recurrence, for example `LSTMCell(128)`.
        time_major: whether sequences are [T, B, D] rather than [B, T, D]. PyTorch's are
            by default; an input of the wrong layout is noticed only with `lengths`.
        reverse: whether to run from the last step to the first. Outputs stay at the
            time steps of their inputs, and keys have the direction "backward".
        loop: "fused" has a backward pass of its own; of a cell that is affine in its
            state, only the state is left to a scan, which on GPU and TPU takes O(log T)
            steps. "recompute" keeps less for the backward pass, and computes the rest
            again for a block of steps at a time (gradient checkpointing): sequences of
            many blocks, of 1 MB each, take half the memory or less. "plain" is the
            definition, which also has derivatives in forward mode (`jax.jvp`,
            `jax.jacfwd`). "fused" uses compiled code on CPU if `rdrop-cpu` is
            installed and supports the case; "native" also requires the installation.

    Raises:
        TypeError: `cell` is not a cell of rdrop, or an unknown argument.
        ValueError: `loop` is another word.
        ModuleNotFoundError: `loop` is "native", and `rdrop-cpu` is not installed.

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
        check_cell("cell", self.cell)
        check_loop(self.loop)
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
        resets: Any = None,
        **unknown: Any,
    ) -> tuple[Carry, Xs]:
        """Runs over the sequences of a batch.

        Args:
            xs: the inputs, [B, T, D], or [T, B, D] if `time_major`.
            dropout: where noise enters; or `Masks` of the whole sequence, used as they
                are. By default the noise of the cell.
            keys: explicit keys; `keys.step` is the absolute index of xs's first step.
                By default keys of the rng collections `inputs` and `recurrent`, or
                `dropout`, if the module has them. No keys, no noise: the expectation is
                evaluated.
            initial_carry: as the cell's `initialize_carry` makes it; zeros by default.
            lengths: int[B], number of valid steps of each sequence, in [0, T]. Later
                steps are padding: they change nothing, and their outputs are zero.
                Traced lengths are not checked.
            resets: bool[B, T], or [T, B] if `time_major`. Where it is true, an episode
                begins: the carry before the step is the cell's initial one again, and
                the masks are those of the next episode, see `StreamKeys`.
            unknown: none; other arguments are rejected.

        Returns:
            The final carry, and the outputs, [B, T, H] or [T, B, H].

        Raises:
            RuntimeError: the module is called without `init` or `apply`.
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, lengths outside [0, T], a site that the
                cell does not have, or a rate that does not broadcast; one of the rng
                collections `inputs` and `recurrent` alone.
        """
        check_call(self, unknown, ARGUMENTS)
        dropout, keys = self.cell.noise(dropout, keys)
        return run_sequences(
            self.cell.equations,
            partial(self.cell.weights, name="xs"),
            Call(xs, dropout, keys, initial_carry, lengths, resets),
            Options(self.time_major, self.reverse, self.loop),
        )


class Bidirectional(Advised, nn.Module):
    """Runs one cell forwards and another backwards over the same sequences.

    The two directions have different masks. With lengths, the backward cell starts at
    the last valid step of each sequence.

    Attributes:
        forward: the cell that runs from the first step to the last.
        backward: the cell that runs from the last step to the first.
        time_major: whether sequences are [T, B, D] rather than [B, T, D].
        loop: as in `RNN`.

    Raises:
        TypeError: not two cells of rdrop, or an unknown argument.
        ValueError: both are the same module; `loop` as in `RNN`.
    """

    forward: Cell
    backward: Cell = None  # type: ignore[assignment]
    time_major: bool = False
    loop: Loop = "fused"

    def __post_init__(self):
        check_cell("forward", self.forward)
        check_cell("backward", self.backward)
        check_distinct("forward, backward", (self.forward, self.backward))
        check_loop(self.loop)
        super().__post_init__()

    def setup(self):  # noqa: D102
        options = {"time_major": self.time_major, "loop": self.loop}
        self.forward_rnn = RNN(self.forward, **options)
        self.backward_rnn = RNN(self.backward, reverse=True, **options)

    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise] = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        lengths: Any = None,
        resets: Any = None,
        **unknown: Any,
    ) -> tuple[tuple[Carry, Carry], Xs]:
        """Runs over the sequences of a batch; arguments and errors as in `RNN`.

        Args:
            xs: the inputs.
            dropout: one for both directions, or a pair (forward, backward).
            keys: explicit keys.
            initial_carry: a pair of carries, or None.
            lengths: int[B], number of valid steps of each sequence.
            resets: bool[B, T], where an episode begins.
            unknown: none; other arguments are rejected.

        Returns:
            The pair of final carries, and the outputs of both side by side, [..., 2H].
        """
        check_call(self, unknown, ARGUMENTS)
        call = Call(xs, dropout, keys, initial_carry, lengths, resets)
        return run_both_ways(self.forward_rnn, self.backward_rnn, call)


class Stack(Advised, nn.Module):
    """Runs layers one after the other: the outputs of each are the inputs of the next.

    Noise between two layers is noise at the site `inputs` of the upper one, or at
    `outputs` of the lower one: a new mask at each step, or one held over the sequence
    (a locked mask).

    Attributes:
        layers: `RNN` or `Bidirectional` layers, from the input upwards.

    Raises:
        TypeError: `layers` is not a sequence of layers, or an unknown argument.
        ValueError: one module is there twice.

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

    def __new__(cls, *values: Any, **named: Any):
        """Raises a TypeError for layers that are not in one list."""
        if len(values) > 1:
            check_layers(values[0], values[1:], nn.Module, Cell)
        return super().__new__(cls, *values, **named)

    def __post_init__(self):
        check_layers(self.layers, (), nn.Module, Cell)
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
        resets: Any = None,
        **unknown: Any,
    ) -> tuple[tuple[Carry, ...], Xs]:
        """Runs over the sequences of a batch; arguments and errors as in `RNN`.

        Args:
            xs: the inputs.
            dropout: one for all layers, or a sequence with one per layer, which may be
                a pair for a layer of two directions.
            keys: explicit keys; layer n has `keys.layer + n`.
            initial_carry: a sequence with one carry per layer, or None.
            lengths: int[B], number of valid steps of each sequence.
            resets: bool[B, T], where an episode begins.
            unknown: none; other arguments are rejected.

        Returns:
            The final carries, one per layer, and the outputs of the last layer.
        """
        check_call(self, unknown, ARGUMENTS)
        call = Call(xs, dropout, keys, initial_carry, lengths, resets)
        return run_in_turn(self.layers, call)


def check_cell(name: str, cell: Any) -> None:
    """Raises a TypeError unless `cell` is a linen cell of rdrop."""
    if not isinstance(cell, Cell):
        raise TypeError(
            f"`{name}` must be a linen cell of rdrop, such as rdrop.LSTMCell(64), got "
            f"{describe(cell)}."
        )


def check_layers(layers: Any, more: Sequence[Any], module: type, cell: type) -> None:
    """Raises a TypeError unless `layers` is a sequence of layers.

    Args:
        layers: from the input upwards.
        more: positional arguments after it, of which there should be none.
        module: the class of modules that layers are.
        cell: the class of cells, which are not layers.
    """
    if more or not isinstance(layers, (list, tuple)):
        got = ", ".join(describe(each) for each in (layers, *more))
        raise TypeError(
            f"`layers` must be one list, Stack([RNN(...), RNN(...)]), got {got}."
        )
    for index, layer in enumerate(layers):
        if not isinstance(layer, module) or isinstance(layer, cell):
            raise TypeError(
                f"`layers[{index}]` must be a layer, such as RNN(LSTMCell(64)), got "
                f"{describe(layer)}."
            )
