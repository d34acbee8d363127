"""The affine loop: all steps of a recurrence that is affine in its state.

Its coefficients and its outputs are computed for all steps at once; between them there
is only state <- factor * state + term.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from rdrop.cells import Affine, Tape, Weights
from rdrop.cells.affine import in_float_of, masked
from rdrop.loops.plain import plain
from rdrop.loops.sequences import Order, Sequences


def affine(
    cell: Affine,
    weights: Weights,
    carry: Inexact[Array, "B N"],
    sequences: Sequences,
    order: Order,
) -> tuple[Inexact[Array, "B N"], Float[Array, "..."]]:
    """Runs a cell that is affine in its state; arguments and results as of `plain`."""
    xs, masks, valid, resets = sequences
    if order.time(xs) == 0:
        return plain(cell, weights, carry, sequences, order)
    # Inputs are fewer than what they are projected to, and so faster to turn.
    zs = cell.project(weights, xs.swapaxes(0, order.axis), masks.inputs)
    coefficients = cell.coefficients(weights, in_float_of(carry, zs), masks)
    mask = cell.mask_of_state(masks)
    factors, terms = masked(*coefficients, mask)
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
    new = after if mask is None else coefficients[0] * before + coefficients[1]
    ys = cell.emit(weights, new, before, zs, masks, Tape())[1]
    if valid is not None:
        ys = jnp.where(valid[..., None], ys, 0)
    return after[0 if order.reverse else -1], ys.swapaxes(0, order.axis)


def affine_scan(
    factors: Inexact[Array, "#T #B N"],
    terms: Inexact[Array, "T B N"],
    state: Inexact[Array, "B N"],
    valid: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
) -> tuple[Inexact[Array, "T B N"], Inexact[Array, "T B N"]]:
    """Runs state <- factor * state + term over time.

    On CPU step after step, which reads and writes each number once; elsewhere by
    `jax.lax.associative_scan`, in O(log T) steps.

    Args:
        factors: of each step, or the same for all steps and examples.
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
    after = _states(reverse, factors, terms, state)
    return _before(reverse, state, after), after


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _states(reverse, factors, terms, state):
    """The state after each step.

    Its tangents follow the same recurrence, so that nothing but the states is kept for
    the backward pass, and gradients of factors are taken of all steps at once.
    """
    return jax.lax.platform_dependent(
        factors,
        terms,
        state,
        cpu=partial(_in_turn, reverse),
        default=partial(_at_once, reverse),
    )


@_states.defjvp
def _states_jvp(reverse, primals, tangents):
    factors, terms, state = primals
    d_factors, d_terms, d_state = tangents
    after = _states(reverse, factors, terms, state)
    d_terms = d_terms + d_factors * _before(reverse, state, after)
    return after, _states(reverse, factors, d_terms, d_state)


def _in_turn(reverse, factors, terms, state):
    constant = factors[0] if len(factors) == 1 else None

    def body(state, at_step):
        factor, term = at_step
        state = (constant if factor is None else factor) * state + term
        return state, state

    steps = (factors if constant is None else None, terms)
    return jax.lax.scan(body, state, steps, reverse=reverse)[1]


def _at_once(reverse, factors, terms, state):
    scan = partial(jax.lax.associative_scan, reverse=reverse)
    factors = jnp.broadcast_to(factors, terms.shape)
    factors, terms = scan(_composed, (factors, terms))
    return factors * state[None] + terms


def _composed(first, second):
    """Returns the affine map that applies `first`, then `second`."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def _before(reverse, state, after):
    """The state before each step, of the first one and the states after each."""
    if reverse:
        return jnp.concatenate([after[1:], state[None]])
    return jnp.concatenate([state[None], after[:-1]])
