"""Scan: a recurrence unrolled over time, by definition.

Everything random has been drawn before the loop starts; inside it there are only the
carry, the projected input of the step and the masks that change with the step. A
recurrence that is affine in its state takes O(log T) steps by an associative scan.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdrop.cells import Cell, Weights
from rdrop.cells.base import Carry
from rdrop.dropout import Masks

C = TypeVar("C")
M = TypeVar("M")


def plain_scan(
    cell: Cell,
    weights: Weights,
    carry: Carry,
    xs: Float[Array, "..."],
    masks: Masks,
    valid: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    axis: int = 0,
) -> tuple[Carry, Float[Array, "..."]]:
    """Projects the inputs of a cell, and runs it over them by `jax.lax.scan`.

    Args:
        cell: the recurrence.
        weights: as the cell uses them, masks of weights applied.
        carry: the first; in reverse, that after the last step.
        xs: the inputs, [T, B, D], or [B, T, D] if `axis` is 1.
        masks: of `inputs` and of the sites inside the cell: (B, G, U) where held over
            time, (T, B, G, U) where drawn at each step.
        valid: where false, the step is padding: the carry passes and y is zero.
        reverse: whether to run from the last step to the first. The outputs stay at
            their time steps.
        axis: that of time.

    Returns:
        The final carry, and the outputs, with time along `axis`.
    """

    def body(carry, step_inputs):
        z, masks_t, valid_t = step_inputs
        stepped = cell.step(weights, carry, z, merge(masks, masks_t))
        return pass_padding(stepped, carry, valid_t)

    zs = cell.project(weights, xs, align(masks, axis)).swapaxes(0, axis)
    inputs = (zs, changing(masks), valid)
    carry, ys = jax.lax.scan(body, carry, inputs, reverse=reverse)
    return carry, ys.swapaxes(0, axis)


def affine_scan(
    factors: Float[Array, "T B H"],
    terms: Float[Array, "T B H"],
    h: Float[Array, "B H"],
    valid: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Array, "T B H"], Float[Array, "T B H"]]:
    """Runs h <- factor * h + term over time, by `jax.lax.associative_scan`.

    Args:
        factors: of each step.
        terms: of each step.
        h: the state before the first step; in reverse, after the last.
        valid: where false, the step is padding and h passes.
        reverse: whether to run from the last step to the first.

    Returns:
        The state before and after each step.
    """
    if valid is not None:
        factors = jnp.where(valid[..., None], factors, 1)
        terms = jnp.where(valid[..., None], terms, 0)

    def after(first, second):
        return first[0] * second[0], first[1] * second[0] + second[1]

    factors, terms = jax.lax.associative_scan(after, (factors, terms), reverse=reverse)
    states = factors * h[None] + terms
    if reverse:
        return jnp.concatenate([states[1:], h[None]]), states
    return jnp.concatenate([h[None], states[:-1]]), states


def align(masks: M, axis: int) -> M:
    """Returns masks that broadcast over sequences with time along `axis`."""
    if axis == 0:
        return masks
    return jax.tree.map(
        lambda mask: mask[:, None] if mask.ndim == 3 else mask.swapaxes(0, 1), masks
    )


def changing(masks: Masks) -> Masks:
    """Returns the masks that have a time axis, to be scanned over."""
    return jax.tree.map(lambda mask: mask if mask.ndim == 4 else None, masks)


def merge(masks: Masks, of_step: Masks) -> Masks:
    """Returns the masks of one step: those drawn for it, and those held over time."""
    return jax.tree.map(
        lambda held, drawn: held if drawn is None else drawn,
        masks,
        of_step,
        is_leaf=lambda leaf: leaf is None,
    )


def pass_padding(
    stepped: tuple[C, Float[Array, "B H"]], carry: C, valid: Bool[Array, "B"] | None
) -> tuple[C, Float[Array, "B H"]]:
    """Lets the old carry pass, and puts out zeros, where a step is padding."""
    if valid is None:
        return stepped
    new, y = stepped
    keep = valid[:, None]
    carry = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, carry)
    return carry, jnp.where(keep, y, 0)
