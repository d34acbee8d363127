"""Lifetime: when the mask of a site is drawn anew.

A mask held over a sequence is drawn from the key of its site alone; the one of time
step t from `fold_in(key, t)`, so padding or cutting a sequence changes no bit of it. A
drifting mask goes from one step to the next, beginning before step 0 with the held one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rdrop.noise import Mix, Shape, check
from rdrop.threefry import fold_in


def draw_step(
    noise: Any,
    key: Key[Array, ""],
    shape: Shape,
    step: int | Int[Array, ""],
) -> Float[Array, "B G U"] | Mix:
    """Draws the mask of one absolute time step from the key of its site.

    Args:
        noise: its lifetime says whether the step matters.
        key: the key of the site; step t draws from `fold_in(key, t)`.
        shape: (B, G, U).
        step: the absolute time step, 0 or later.
    """
    if noise.per == "sequence":
        return noise.draw(key, shape)
    step = jnp.asarray(step, jnp.int32)
    if noise.drift is None:
        return noise.draw(fold_in(key, step), shape)
    return noise.mask(_drifted(noise, key, shape, step + 1))


def draw_steps(
    noise: Any,
    key: Key[Array, ""],
    shape: Shape,
    step: int | Int[Array, ""],
    time: int,
) -> Any:
    """Draws the masks of `time` steps from `step` on, bitwise those of `draw_step`.

    Returns:
        One mask (B, G, U) if it is held over the sequence, else (T, B, G, U).
    """
    if noise.per == "sequence":
        return noise.draw(key, shape)
    step = jnp.asarray(step, jnp.int32)
    steps = step[None] + jnp.arange(time, dtype=jnp.int32)
    if noise.drift is None:
        return jax.vmap(lambda t: draw_step(noise, key, shape, t))(steps)

    def advance(variate, t):
        variate = noise.redraw(key, t, variate)
        return variate, noise.mask(variate)

    return jax.lax.scan(advance, _drifted(noise, key, shape, step), steps)[1]


def _drifted(noise, key, shape, end):
    """The numbers after steps 0 to end - 1, each of which may draw some anew."""
    check(noise, shape)
    return jax.lax.fori_loop(
        jnp.zeros_like(end),
        end,
        lambda t, variate: noise.redraw(key, t, variate),
        noise.variate(key, shape),
    )
