"""The plain loop: a recurrence unrolled by `jax.lax.scan`, which is its definition.

Everything random was drawn before the loop starts. Inside there are only the carry, the
projected input of the step and the masks of the step.
"""

import jax
from jaxtyping import Array, Float

from rdrop.cells import Recurrence, Tape, Weights
from rdrop.cells.recurrence import Carry
from rdrop.loops.sequences import (
    Order,
    Sequences,
    align,
    merge,
    pass_padding,
    per_step,
    restart,
)


def plain(
    cell: Recurrence,
    weights: Weights,
    carry: Carry,
    sequences: Sequences,
    order: Order,
) -> tuple[Carry, Float[Array, "..."]]:
    """Projects the inputs of a cell, and runs it over them.

    Args:
        cell: the recurrence.
        weights: as the cell uses them, masks of weights applied.
        carry: the first; in reverse, the carry after the last step.
        sequences: inputs, masks and padding.
        order: how time lies in them.

    Returns:
        The final carry, and the outputs, with time where the inputs have it.
    """
    xs, masks, valid, resets = sequences

    def body(carry, at_step):
        z, masks_t, valid_t, resets_t = at_step
        carry = restart(cell, carry, resets_t)
        stepped = cell.step(weights, carry, z, merge(masks, masks_t), Tape())
        return pass_padding(stepped, carry, valid_t)

    zs = cell.project(weights, xs, align(masks.inputs, order.axis))
    zs = jax.tree.map(lambda z: z.swapaxes(0, order.axis), zs)
    steps = (zs, per_step(masks), valid, resets)
    carry, ys = jax.lax.scan(body, carry, steps, reverse=order.reverse)
    return carry, ys.swapaxes(0, order.axis)
