"""Blocks: a sequence processed a few steps at a time.

Intermediate values of a block, such as its projected inputs, then stay in the cache of
the processor, and no array of the whole sequence is needed for them.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

S = TypeVar("S")
# Least size of a block's projected inputs: below it, the loops over blocks dominate.
LEAST_BYTES = 2**20
# Least number of rows of a block, B times steps, per row of the kernels: gradients of
# the kernels are read and written once per block.
LEAST_ROWS = 2


def steps_of_block(time: int, batch: int, rows: int, bytes_of_step: int) -> int:
    """Returns the number of steps of a block, which divides T if possible.

    Args:
        time: steps of the sequence, at least one.
        batch: examples.
        rows: of all kernels, D + H.
        bytes_of_step: of the projected inputs of a step.
    """
    bytes_want = -(-LEAST_BYTES // max(bytes_of_step, 1))
    rows_want = -(-LEAST_ROWS * rows // max(batch, 1))
    least = max(bytes_want, rows_want)
    even = (size for size in range(least, min(2 * least, time + 1)) if time % size == 0)
    return min(time, next(even, least))


def over_blocks(
    function: Callable[[S, int | Int[Array, ""], int, Any], tuple[S, Any]],
    state: S,
    time: int,
    size: int,
    kept: Sequence[Any] | None = None,
    reverse: bool = False,
) -> tuple[S, Sequence[Any]]:
    """Passes a state through the blocks of a sequence, as `jax.lax.scan` does.

    Args:
        function: takes the state, the first step of a block, its number of steps and
            the values that an earlier pass kept of it; returns the next state and the
            values to keep.
        state: the first.
        time: steps of the sequence.
        size: steps of a block; the last block takes the rest.
        kept: by an earlier pass over the same blocks.
        reverse: whether to run from the last block to the first.

    Returns:
        The last state, and the kept values, for a later pass.
    """

    def whole(state, kept):
        def body(state, part):
            index, kept = part
            return function(state, index * size, size, kept)

        parts = (jnp.arange(count, dtype=jnp.int32), kept)
        return jax.lax.scan(body, state, parts, reverse=reverse)

    def one(start, size):
        return lambda state, kept: function(state, start, size, kept)

    count, rest = divmod(time, size)
    passes = [whole if count > 1 else one(0, size)]
    if rest:
        passes.append(one(count * size, rest))
    keeping = list(kept or [None] * len(passes))
    order = range(len(passes))
    for n in reversed(order) if reverse else order:
        state, keeping[n] = passes[n](state, keeping[n])
    return state, keeping
