"""The associative loop: all steps of an affine recurrence in O(log T) steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from rdrop.cells import Tape, Weights
from rdrop.loops.plain import plain
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
    carry: Inexact[Array, "B N"],
    sequences: Sequences,
    order: Order,
) -> tuple[Inexact[Array, "B N"], Float[Array, "..."]]:
    """Runs a cell that supplies `affine`; arguments and results as of `plain`."""
    xs, masks, valid, resets = sequences
    if order.time(xs) == 0:
        return plain(cell, weights, carry, sequences, order)
    zs = cell.project(weights, xs, align(masks.inputs, order.axis))
    zs = zs.swapaxes(0, order.axis)

    def affine(masks_t, z):
        z = z.astype(jnp.finfo(carry.dtype).dtype)
        return cell.affine(weights, z, merge(masks, masks_t))

    def outputs(masks_t, z, state):
        return cell.step(weights, state, z, merge(masks, masks_t), Tape())[1]

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
    factors: Inexact[Array, "T B N"],
    terms: Inexact[Array, "T B N"],
    state: Inexact[Array, "B N"],
    valid: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
) -> tuple[Inexact[Array, "T B N"], Inexact[Array, "T B N"]]:
    """Runs state <- factor * state + term over time, by `jax.lax.associative_scan`.

    Args:
        factors: of each step.
        terms: of each step.
        state: before the first step; in reverse, after the last.
        valid: False at padding, where the state passes.
        reverse: whether to run from the last step to the first.

    Returns:
        The state before and after each step.
    """
    if valid is not None:
        factors = jnp.where(valid[..., None], factors, 1)
        terms = jnp.where(valid[..., None], terms, 0)
    scan = partial(jax.lax.associative_scan, reverse=reverse)
    factors, terms = scan(_composed, (factors, terms))
    states = factors * state[None] + terms
    if reverse:
        return jnp.concatenate([states[1:], state[None]]), states
    return jnp.concatenate([state[None], states[:-1]]), states


def _composed(first, second):
    """Returns the affine map that applies `first`, then `second`."""
    return first[0] * second[0], first[1] * second[0] + second[1]
