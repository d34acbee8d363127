"""Layers: a cell run over whole sequences, in both directions, and stacked.

Masks are drawn in bulk before the time loop, and the input projection of all steps is
one matrix product; both give what the cell gives step by step. Layer and direction are
part of every key, so no two layers or directions share a mask.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from rdrop.cells import Cell, MinGRUCell, mask_units
from rdrop.cells.base import Carry, check_carry, drop_weights
from rdrop.dropout import Dropout, Masks, resolve
from rdrop.fused import fused_scan
from rdrop.keys import StreamKeys
from rdrop.scan import affine_scan, align, plain_scan

Noise: TypeAlias = Dropout | Masks | None
Loop: TypeAlias = Literal["fused", "recompute", "plain"]
# Loose on purpose: wrong ranks and lengths get this module's own errors.
Xs: TypeAlias = Float[Array, "..."]


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
            computes the rest again. "plain" is the definition, which also has
            derivatives in forward mode (`jax.jvp`, `jax.jacfwd`).

    Raises:
        ValueError: `loop` is another word, or "recompute" for a cell that does not
            supply its derivative.

    Example:
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
        _check_loop(self.loop, self.cell)
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
                are.
            keys: explicit keys; `keys.step` is the absolute index of xs's first step.
                No keys, no noise: the expectation is evaluated.
            initial_carry: as the cell's `initialize_carry` makes it; zeros by default.
            lengths: int[B], number of valid steps of each sequence, in [0, T]. Later
                steps are padding: they change nothing, and their outputs are zero.
                Traced lengths are not checked.

        Returns:
            The final carry, and the outputs, [B, T, H] or [T, B, H].

        Raises:
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, lengths outside [0, T], a site that the
                cell has not, or a rate that does not broadcast.
        """
        xs = jnp.asarray(xs)
        if xs.ndim != 3:
            axes = "[T, B, D]" if self.time_major else "[B, T, D]"
            raise ValueError(f"`xs` must have the axes {axes}, got shape {xs.shape}.")
        cell, axis = self.cell, 0 if self.time_major else 1
        time, batch, features = xs.swapaxes(0, axis).shape
        if isinstance(keys, StreamKeys) and self.reverse:
            keys = keys.replace(direction="backward")
        carry = initial_carry
        if carry is None:
            carry = cell.initialize_carry(jax.random.key(0), (batch, features))
        check_carry("initial_carry", carry, cell, (batch, features))
        valid = None
        if lengths is not None:
            valid = _valid(lengths, time, batch)
            xs = jnp.where(valid.swapaxes(0, axis)[..., None], xs, 0)
        masks = resolve(dropout, keys, cell.sites(features), batch, time)
        weights = drop_weights(cell.weights(xs, "xs"), masks)
        carry, ys = self._loop()(
            cell, weights, carry, xs, _inside(masks), valid, self.reverse, axis
        )
        return carry, mask_units(ys, align(masks.outputs, axis))

    def _loop(self):
        if isinstance(self.cell, MinGRUCell):
            return _affine
        if self.loop == "plain" or not self.cell.is_linearised():
            return plain_scan
        return partial(fused_scan, recompute=self.loop == "recompute")


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
        _check_distinct("forward, backward", (self.forward, self.backward))
        for cell in (self.forward, self.backward):
            _check_loop(self.loop, cell)
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
        noises = _spread("dropout", dropout, 2)
        carries = _spread("initial_carry", initial_carry, 2)
        rnns = [
            RNN(cell, self.time_major, reverse, self.loop, name=name)
            for cell, reverse, name in (
                (self.forward, False, "forward_rnn"),
                (self.backward, True, "backward_rnn"),
            )
        ]
        results = [
            rnn(xs, noise, keys, initial_carry=carry, lengths=lengths)
            for rnn, noise, carry in zip(rnns, noises, carries, strict=True)
        ]
        (forward, ys), (backward, zs) = results
        return (forward, backward), jnp.concatenate([ys, zs], axis=-1)


class Stack(nn.Module):
    """Runs layers one after the other, the outputs of each the inputs of the next.

    Noise between two layers is that of the site `inputs` of the upper one, or `outputs`
    of the lower one: a new mask each step or one held over the sequence ("locked").

    Attributes:
        layers: `RNN` or `Bidirectional` layers, from the input upwards.

    Raises:
        ValueError: one and the same module is there twice.

    Example:
        >>> from rdrop import LSTMCell
        >>> layers = Stack([RNN(LSTMCell(8)), RNN(LSTMCell(4))])
        >>> params = layers.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> carries, ys = layers.apply(params, jnp.ones((2, 5, 3)))
        >>> len(carries), ys.shape
        (2, (2, 5, 4))
    """

    layers: Sequence[RNN | Bidirectional]

    def __post_init__(self):
        _check_distinct("layers", self.layers)
        super().__post_init__()

    def __call__(
        self,
        xs: Xs,
        dropout: Noise | Sequence[Noise] = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: Sequence[Carry] | None = None,
        lengths: Any = None,
    ) -> tuple[tuple[Carry, ...], Xs]:
        """Runs over the sequences of a batch; arguments are those of `RNN`.

        Args:
            xs: the inputs.
            dropout: one for all layers, or a sequence of one a layer.
            keys: explicit keys; layer n has `keys.layer + n`.
            initial_carry: a sequence of one carry a layer, or None.
            lengths: int[B], number of valid steps of each sequence.

        Returns:
            The final carries, one a layer, and the outputs of the last layer.
        """
        count = len(self.layers)
        noises = _spread("dropout", dropout, count)
        carries = _spread("initial_carry", initial_carry, count)
        final = []
        for depth, layer in enumerate(self.layers):
            at_depth = keys
            if isinstance(keys, StreamKeys):
                at_depth = keys.replace(layer=keys.layer + depth)
            carry, xs = layer(
                xs,
                noises[depth],
                at_depth,
                initial_carry=carries[depth],
                lengths=lengths,
            )
            final.append(carry)
        return tuple(final), xs


def _inside(masks: Masks) -> Masks:
    """The masks still to be applied: weights have been, outputs will be."""
    return masks.replace(outputs=None, input_weights=None, recurrent_weights=None)


def _affine(cell, weights, carry, xs, masks, valid, reverse, axis):
    """All steps at once, for a cell that is affine in its state."""
    zs = cell.project(weights, xs, align(masks, axis)).astype(carry.dtype)
    zs = zs.swapaxes(0, axis)
    before, after = affine_scan(*cell.affine(zs, masks), carry, valid, reverse)
    _, ys = cell.step(weights, before, zs, masks)
    if valid is not None:
        ys = jnp.where(valid[..., None], ys, 0)
    return after[0 if reverse else -1], ys.swapaxes(0, axis)


def _check_loop(loop: str, cell: Cell) -> None:
    if loop not in (words := get_args(Loop)):
        raise ValueError(f"`loop` must be one of {words}, got {loop!r}.")
    if loop == "recompute" and not cell.is_linearised():
        raise ValueError(
            f'`loop` must be "fused" or "plain" for {type(cell).__name__}, which does '
            'not supply its derivative, got "recompute".'
        )


def _check_distinct(name: str, modules: Sequence[nn.Module]) -> None:
    """Raises where one module stands twice, as it would have one set of parameters."""
    if len({id(module) for module in modules}) < len(modules):
        raise ValueError(
            f"`{name}` must be modules of their own, got one and the same twice."
        )


def _spread(name: str, value, count: int) -> Sequence[Any]:
    """One value for each of `count` layers or directions."""
    if not isinstance(value, (tuple, list)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"`{name}` must have {count} entries, one for each, got {len(value)}."
        )
    return value


def _valid(lengths, time: int, batch: int) -> Bool[Array, "T B"]:
    """Which steps are not padding; checks lengths whose values are known."""
    lengths = lengths if hasattr(lengths, "dtype") else np.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"`lengths` must be integers of shape [B] = ({batch},), got "
            f"{lengths.dtype}{list(lengths.shape)}."
        )
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        if np.any((values < 0) | (values > time)):
            raise ValueError(f"`lengths` must lie in [0, T = {time}], got {values}.")
    steps = jnp.arange(time, dtype=jnp.int32)
    return steps[:, None] < jnp.asarray(lengths).astype(jnp.int32)[None]
