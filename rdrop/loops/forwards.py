"""Forwards: a block of steps, in which each step may keep values for later."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells import Recurrence, Weights
from rdrop.cells.masking import project, with_bias
from rdrop.cells.recurrence import Carry
from rdrop.dropout import Masks
from rdrop.loops.buffer import buffers_like, put, take
from rdrop.loops.residuals import StepResiduals, record
from rdrop.loops.sequences import (
    Order,
    Sequences,
    align,
    merge,
    pass_padding,
    per_step,
    restart,
)


class Example(NamedTuple):
    """Values of a step, with the shapes, dtypes and shardings that they have in a loop.

    Attributes:
        carry: of zeros.
        z: projected input, of zeros.
        masks: of one step.
        y: output.
        step: all values.
        kernels: the right operands of the matrix products; these are the real ones.
    """

    carry: Carry
    z: Float[Array, "B GH"]
    masks: Masks
    y: Float[Array, "B H"]
    step: StepResiduals
    kernels: list[Any]


def example_of(
    cell: Recurrence, weights: Weights, carry: Carry, block: Sequences, order: Order
) -> Example:
    """Returns an example of a step of a block."""
    x = take(block.xs, 0, order.axis)
    masks = merge(block.masks, take(per_step(block.masks), 0, 0))
    z = jnp.zeros_like(project(weights, x, masks.inputs))
    carry = jax.tree.map(jnp.zeros_like, carry)
    (_, y), step, kernels = record(cell, weights, carry, z, masks)
    return Example(carry, z, masks, y, step, kernels)


def run_forwards(
    cell: Recurrence,
    weights: Weights,
    carry: Carry,
    block: Sequences,
    order: Order,
    keep: Callable[[StepResiduals], Any],
) -> tuple[tuple[Carry, Float[Array, "..."]], Any]:
    """Projects the inputs of a block, and runs a cell over it.

    The first kept value that has the shape of a projected input takes its place.

    Args:
        cell: the recurrence.
        weights: as the cell uses them, masks of weights applied.
        carry: the carry before the block.
        block: inputs, masks and padding.
        order: how time lies in them.
        keep: from all values of a step to a pytree of those to keep.

    Returns:
        The carry after the block and the outputs; and the kept values of all steps.
    """
    axis, (xs, masks, valid, resets) = order.axis, block
    zs = project(weights, xs, align(masks.inputs, axis))
    example = example_of(cell, weights, carry, block, order)
    like, structure = jax.tree.flatten((keep(example.step), example.y))
    buffers = buffers_like(like, order.time(xs), axis)
    place = find_like(zs, buffers[:-1])
    if place is not None:
        buffers[place] = zs

    first, next_step = (order.time(xs) - 1, -1) if order.reverse else (0, 1)

    def body(state, at_step):
        carry, buffers, z = state
        t, masks_t, valid_t, resets_t = at_step
        carry = restart(cell, carry, resets_t)
        if place is None:
            z = take(zs, t, axis)
        z = with_bias(weights, z)
        stepped, step, _ = record(cell, weights, carry, z, merge(masks, masks_t))
        new, y = pass_padding(stepped, carry, valid_t)
        buffers = put(buffers, jax.tree.leaves((keep(step), y)), t, axis)
        # Read after the write, so that XLA writes in place.
        z = None if place is None else take(buffers[place], t + next_step, axis)
        return (new, buffers, z), None

    steps = (jnp.arange(order.time(xs)), per_step(masks), valid, resets)
    z = None if place is None else take(zs, first, axis)
    state = (carry, buffers, z)
    state, _ = jax.lax.scan(body, state, steps, reverse=order.reverse)
    carry, buffers, _ = state
    kept, ys = jax.tree.unflatten(structure, buffers)
    return (carry, ys), kept


def find_like(value: Float[Array, "..."], others: list[Any]) -> int | None:
    """Returns the index of the first array with the shape and dtype of a value.

    Entries that are None are passed over.
    """
    for index, other in enumerate(others):
        if other is not None and (other.shape, other.dtype) == (
            value.shape,
            value.dtype,
        ):
            return index
    return None
