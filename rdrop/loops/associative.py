"""The associative loop: all steps of an affine recurrence in O(log T) steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdrop.cells import Tape, Weights
from rdrop.loops.sequences import (
    Order,
    Sequences,
    align,
    merge,
    per_step,
)


def associative(
    cell: Any,
    weights: Weights,
    carry: Float[Array, "B H"],
    sequences: Sequences,
    order: Order,
) -> tuple[Float[Array, "B H"], Float[Array, "..."]]:
    """Runs a cell that supplies `affine`; arguments and results as of `plain`."""
    xs, masks, valid, resets = sequences
    if order.time(xs) == 0:
        return carry, jnp.zeros((*xs.shape[:-1], cell.units), carry.dtype)
    zs = cell.project(weights, xs, align(masks.inputs, order.axis))
    zs = zs.astype(carry.dtype).swapaxes(0, order.axis)

    def affine(masks_t, z):
        return cell.affine(z, merge(masks, masks_t))

    def outputs(masks_t, z, h):
        return cell.step(weights, h, z, merge(masks, masks_t), Tape())[1]

    factors, terms = jax.vmap(affine)(per_step(masks), zs)
    initial = cell.initial_carry()
    if resets is not None:
        # A reset step takes the initial state, whatever the state before it.
        terms = jnp.where(
            resets[..., None], factors * initial[None, None] + terms, terms
        )
        factors = jnp.where(resets[..., None], 0, factors)
    before, after = affine_scan(factors, terms, carry, valid, order.reverse)
    if resets is not None:
        before = jnp.where(resets[..., None], initial[None, None], before)
    ys = jax.vmap(outputs)(per_step(masks), zs, before)
    if valid is not None:
        ys = jnp.where(valid[..., None], ys, 0)
    return after[0 if order.reverse else -1], ys.swapaxes(0, order.axis)


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
        valid: False at padding, where h passes.
        reverse: whether to run from the last step to the first.

    Returns:
        The state before and after each step.
    """
    if valid is not None:
        factors = jnp.where(valid[..., None], factors, 1)
        terms = jnp.where(valid[..., None], terms, 0)
    scan = partial(jax.lax.associative_scan, reverse=reverse)
    factors, terms = scan(_composed, (factors, terms))
    states = factors * h[None] + terms
    if reverse:
        return jnp.concatenate([states[1:], h[None]]), states
    return jnp.concatenate([h[None], states[:-1]]), states


def _composed(first, second):
    """Returns the affine map that applies `first`, then `second`."""
    return first[0] * second[0], first[1] * second[0] + second[1]
