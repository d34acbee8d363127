"""The fused loop: a recurrence with its own backward pass.

It gives the same values and gradients as the plain loop, in less time and memory.
Forwards, it keeps the values of each step that its derivative reads, the first one of a
fitting shape in the place of the projected inputs. Backwards, it pulls the cotangents
through one step after another and writes them in the place of the residuals. The
gradient of each kernel is one large matrix product after the loop, whereas the
derivative of a scan adds up a small one in every step.

Residuals, in floats per step, example and unit, in addition to inputs and outputs:

    LSTM  6: 4 gates, c, tanh of the new c      GRU  4: z, r, n, product      simple  1
    with recompute  1: c                             0                                0

With recompute, and if no derivative is taken, the loop runs block by block: it projects
the inputs, and computes the residuals again, for a few steps at a time.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells import Recurrence, Weights
from rdrop.cells.recurrence import Carry, widened
from rdrop.loops.backwards import Backwards, states_before
from rdrop.loops.blocks import over_blocks, steps_of_block
from rdrop.loops.buffer import buffers_like, cut, paste
from rdrop.loops.forwards import example_of, run_forwards
from rdrop.loops.plain import plain
from rdrop.loops.residuals import pack
from rdrop.loops.sequences import Order, Sequences, merge, per_step


def fused(
    cell: Recurrence,
    weights: Weights,
    carry: Carry,
    sequences: Sequences,
    order: Order,
    recompute: bool = False,
) -> tuple[Carry, Float[Array, "..."]]:
    """Projects the inputs of a cell, and runs it over them.

    Second derivatives exist. Forward-mode derivatives do not, and raise (inside
    `jax.jit` with JAX's own message).

    Args:
        cell: the recurrence.
        weights: as the cell uses them, masks of weights applied.
        carry: the first; in reverse, the carry after the last step.
        sequences: inputs, masks and padding.
        order: how time lies in them.
        recompute: whether the backward pass computes the residuals again, for a block
            of steps at once (gradient checkpointing), instead of keeping them.

    Returns:
        The final carry, and the outputs, with time where the inputs have it.

    Raises:
        TypeError: it is differentiated in forward mode.
    """
    if order.time(sequences.xs) == 0:
        return plain(cell, weights, carry, sequences, order)
    loop = Fused(cell, order, recompute)
    function = jax.custom_vjp(loop.run)
    function.defvjp(loop.forward, loop.backward)
    with reverse_mode_only():
        return function(weights, carry, sequences)


@contextlib.contextmanager
def reverse_mode_only() -> Iterator[None]:
    """Says which loop has derivatives in forward mode, if JAX needs one here."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "A fused loop has derivatives in reverse mode only; for forward mode "
            '(jax.jvp, jax.jacfwd) set `loop` to "plain".'
        ) from error


@dataclasses.dataclass(frozen=True)
class Fused:
    """The loop over blocks, forwards and backwards; attributes as in `fused`."""

    cell: Recurrence
    order: Order
    recompute: bool

    def run(self, weights, carry, sequences):
        """Returns the result, if no derivative is taken."""
        size = self._size(weights, sequences)
        arguments = (weights, carry, sequences)
        return self._run_blocks(size, *arguments, keep=lambda step: None)[0]

    def forward(self, weights, carry, sequences):
        """Returns the result, and what `backward` needs."""
        arguments = (weights, carry, sequences)
        plan = Backwards.of(self.cell, *arguments, self.order).plan

        def keep(step):
            if not self.recompute:
                return pack(step, plan)
            return step.carry[:-1] if plan.outputs_h else step.carry

        time = self.order.time(sequences.xs)
        size = self._size(weights, sequences) if self.recompute else time
        result, kept = self._run_blocks(size, *arguments, keep=keep)
        return result, (weights, sequences, result[1], kept)

    def backward(self, saved, cotangents):
        """Returns the cotangents of the arguments of `run`."""
        weights, sequences, ys, kept = saved
        d_carry, d_ys = cotangents

        def pull_block(state, start, size, kept):
            d_carry, gradients, d_sequences = state
            block = self._cut(start, size, sequences)
            y, d_y = cut((ys, d_ys), start, size, self.order.axis)
            d_carry, d_weights, d_block = self._pull_block(
                weights, block, y, kept, d_carry, d_y
            )
            gradients = jax.tree.map(jnp.add, gradients, d_weights)
            return (d_carry, gradients, self._paste(d_sequences, d_block, start)), None

        time = self.order.time(sequences.xs)
        size = self._size(weights, sequences) if self.recompute else time
        state = (
            d_carry,
            jax.tree.map(_wide_zeros, weights),
            jax.tree.map(jnp.zeros_like, sequences._replace(valid=None, resets=None)),
        )
        state, _ = over_blocks(
            pull_block, state, time, size, kept, not self.order.reverse
        )
        d_carry, gradients, d_sequences = state
        d_weights = jax.tree.map(lambda g, w: g.astype(w.dtype), gradients, weights)
        return d_weights, d_carry, d_sequences

    def _size(self, weights, sequences) -> int:
        """Returns the number of steps of a block."""
        time, batch, _ = sequences.xs.swapaxes(0, self.order.axis).shape
        kernels = [weight for weight in weights.values() if weight.ndim == 2]
        of_step = batch * kernels[0].shape[1] * kernels[0].dtype.itemsize
        rows = sum(len(kernel) for kernel in kernels)
        return steps_of_block(time, batch, rows, of_step)

    def _run_blocks(self, size, weights, carry, sequences, keep):
        """Returns the result; and for each block the first h and the kept values."""

        def run_block(state, start, size, _):
            carry, ys = state
            block = self._cut(start, size, sequences)
            arguments = (self.cell, weights, carry, block, self.order)
            (new, y), kept = run_forwards(*arguments, keep)
            return (new, paste(ys, y, start, self.order.axis)), (_state(carry), kept)

        time = self.order.time(sequences.xs)
        y = example_of(self.cell, weights, carry, sequences, self.order).y
        state = (carry, buffers_like(y, time, self.order.axis))
        return over_blocks(run_block, state, time, size, reverse=self.order.reverse)

    def _pull_block(self, weights, block, ys, kept, d_carry, d_ys):
        """Returns cotangents: of the carry before a block, the weights, the block."""
        first, residuals = kept
        loop = Backwards.of(self.cell, weights, d_carry, block, self.order)
        hs = None
        if loop.plan.outputs_h:
            initial = _state(self.cell.initial_carry())
            hs = states_before(first, ys, block, self.order, initial)
        if self.recompute:
            leaves = residuals if hs is None else (*residuals, hs)
            carries = jax.tree.unflatten(jax.tree.structure(d_carry), leaves)
            residuals = loop.recompute(carries)
        return loop.run(hs, residuals, d_carry, d_ys)

    def _cut(self, start, size, sequences) -> Sequences:
        """Returns the inputs, masks and padding of a block."""
        xs, masks, *marks = sequences
        drawn, *marks = cut((per_step(masks), *marks), start, size, 0)
        xs = cut(xs, start, size, self.order.axis)
        return Sequences(xs, merge(masks, drawn), *marks)

    def _paste(self, total, block, start) -> Sequences:
        """Adds the cotangents of a block to the total."""

        def add(total, mask):
            return paste(total, mask, start, 0) if total.ndim == 4 else total + mask

        xs = paste(total.xs, block.xs, start, self.order.axis)
        return Sequences(xs, jax.tree.map(add, total.masks, block.masks))


def _state(carry):
    """Returns the h of a carry: all of it, or its last part."""
    return jax.tree.leaves(carry)[-1]


def _wide_zeros(weight):
    """Returns zeros in float32 or wider, to which gradients of blocks are added."""
    zeros = jnp.zeros_like(weight)
    return zeros.astype(widened(zeros.dtype))
