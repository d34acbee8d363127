"""Blocks: a sequence worked through some steps at a time.

What is made of a block for the next thing to use, as the projection of its inputs, then
stays in the processor's cache, and no array of the whole sequence is made for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

S = TypeVar("S")
# The least bytes of a block's projected inputs: below, all is loop and little product.
LEAST_BYTES = 2**20
# The least rows of a block, B times steps, to each row of the kernels, whose gradients
# are read and written once a block.
LEAST_ROWS = 2


def steps_of_block(time: int, batch: int, rows: int, bytes_of_step: int) -> int:
    """Returns how many steps to take at a time: one to all, evenly where it can be.

    Args:
        time: steps of the sequence, at least one.
        batch: examples.
        rows: of all kernels, D + H.
        bytes_of_step: of the projected inputs of a step.
    """
    bytes_want = -(-LEAST_BYTES // max(bytes_of_step, 1))
    rows_want = -(-LEAST_ROWS * rows // max(batch, 1))
    least = max(bytes_want, rows_want)
    even = (size for size in range(least, 2 * least) if time % size == 0)
    return min(time, next(even, least))


def over_blocks(
    function: Callable[[S, int | Int[Array, ""], int, Any], tuple[S, Any]],
    state: S,
    time: int,
    size: int,
    left: Sequence[Any] | None = None,
    reverse: bool = False,
) -> tuple[S, Sequence[Any]]:
    """Hands a state through the blocks of a sequence, as `jax.lax.scan` does.

    Args:
        function: takes the state, the first step of a block, its number of steps and
            what an earlier pass left there; returns the next state and what it leaves.
        state: the first.
        time: steps of the sequence.
        size: steps of a block; the last takes the rest.
        left: by an earlier pass over the same blocks.
        reverse: whether to go from the last block to the first.

    Returns:
        The last state, and what was left, for a later pass.
    """

    def whole(state, left):
        def body(state, part):
            index, left = part
            return function(state, index * size, size, left)

        parts = (jnp.arange(count, dtype=jnp.int32), left)
        return jax.lax.scan(body, state, parts, reverse=reverse)

    def one(start, size):
        return lambda state, left: function(state, start, size, left)

    count, rest = divmod(time, size)
    turns = [whole if count > 1 else one(0, size)]
    if rest:
        turns.append(one(count * size, rest))
    leaving = list(left or [None] * len(turns))
    order = range(len(turns))
    for turn in reversed(order) if reverse else order:
        state, leaving[turn] = turns[turn](state, leaving[turn])
    return state, leaving
