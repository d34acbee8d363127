"""Scan: a recurrence unrolled over time.

Everything random has been drawn before the loop starts; inside it there are only the
carry, the projected input of the step and the masks that change with the step. A
recurrence that is affine in its state takes O(log T) steps by an associative scan.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdrop.dropout import Masks

C = TypeVar("C")


def scan(
    step: Callable[[C, Array, Masks], tuple[C, Array]],
    carry: C,
    zs: Float[Array, "T B Z"],
    masks: Masks,
    valid: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
) -> tuple[C, Float[Array, "T B H"]]:
    """Runs `step` over the leading axis of `zs`, by `jax.lax.scan`.

    Args:
        step: (carry, z [B, Z], masks of one step) -> (carry, y [B, H]).
        carry: pytree of arrays [B, H]; in reverse, the carry after the last step.
        zs: projected inputs.
        masks: (B, G, U) where held over time, (T, B, G, U) where drawn at each step.
        valid: where false, the step is padding: the carry passes and y is zero.
        reverse: whether to run from the last step to the first. The outputs stay at
            their time steps.

    Returns:
        The final carry, and the outputs.
    """
    steps = jax.tree.map(lambda mask: mask if mask.ndim == 4 else None, masks)

    def body(carry, step_inputs):
        z, mask_t, valid_t = step_inputs
        new, y = step(carry, z, _merge(masks, mask_t))
        if valid_t is None:
            return new, y
        keep = valid_t[:, None]
        carry = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, carry)
        return carry, jnp.where(keep, y, 0)

    return jax.lax.scan(body, carry, (zs, steps, valid), reverse=reverse)


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


def _merge(held: Masks, changing: Masks) -> Masks:
    """The masks of one step: those drawn for it, and those held over time."""
    return jax.tree.map(
        lambda h, c: h if c is None else c,
        held,
        changing,
        is_leaf=lambda leaf: leaf is None,
    )
