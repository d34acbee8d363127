"""Buffer: arrays of all steps, of which a loop reads and writes some in place.

`jax.vmap` makes gathers and scatters of indexing, which XLA does not do in place. Here
it stays a slice and an update, as long as all examples are at the same step.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int, Shaped

T = TypeVar("T")
Step = int | Int[Array, ""]


def take(buffers: T, step: Step, axis: int) -> T:
    """Returns what a pytree of buffers holds of a step, along an axis."""
    return jax.tree.map(lambda b: jnp.squeeze(_take(axis, 1, b, step), axis), buffers)


def put(buffers: T, values: T, step: Step, axis: int) -> T:
    """Returns the buffers with the values of a step written into them."""
    return paste(
        buffers, jax.tree.map(lambda v: jnp.expand_dims(v, axis), values), step, axis
    )


def cut(buffers: T, start: Step, size: int, axis: int) -> T:
    """Returns what a pytree of buffers holds of so many steps."""

    def part(buffer):
        if buffer.shape[axis] == size:
            return buffer
        return _take(axis, size, buffer, start)

    return jax.tree.map(part, buffers)


def paste(buffers: T, values: T, start: Step, axis: int) -> T:
    """Returns the buffers with the values of some steps written into them."""

    def written(buffer, value):
        if buffer.shape[axis] == value.shape[axis]:
            return value
        return _put(axis, buffer, value, start)

    return jax.tree.map(written, buffers, values)


def empty(of_step: T, time: int, axis: int) -> T:
    """Returns buffers for so many steps, of zeros, from what there is of one step."""

    def buffer(value):
        shape = (*value.shape[:axis], time, *value.shape[axis:])
        return jnp.zeros(shape, value.dtype)

    return jax.tree.map(buffer, of_step)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _take(axis, size, buffer, start):
    @custom_vmap
    def function(buffer, start):
        return _slice(axis, size, buffer, start)

    @function.def_vmap
    def rule(examples, is_batched, buffer, start):
        if is_batched[1]:
            part = jax.vmap(partial(_slice, axis, size), is_batched)
            return part(buffer, start), True
        return _take(axis + 1, size, buffer, start), True

    return function(buffer, start)


@_take.defjvp
def _take_jvp(axis, size, primals, tangents):
    out = _take(axis, size, *primals)
    return out, _slice(axis, size, tangents[0], primals[1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _put(axis, buffer, value, start):
    @custom_vmap
    def function(buffer, value, start):
        return _update(axis, buffer, value, start)

    @function.def_vmap
    def rule(examples, is_batched, buffer, value, start):
        if is_batched[2]:
            update = jax.vmap(partial(_update, axis), is_batched)
            return update(buffer, value, start), True
        buffer, value = (
            a if batched else jnp.broadcast_to(a[None], (examples, *a.shape))
            for a, batched in zip((buffer, value), is_batched[:2], strict=True)
        )
        return _put(axis + 1, buffer, value, start), True

    return function(buffer, value, start)


@_put.defjvp
def _put_jvp(axis, primals, tangents):
    d_buffer, d_value, _ = tangents
    return _put(axis, *primals), _update(axis, d_buffer, d_value, primals[2])


def _slice(
    axis: int, size: int, buffer: Shaped[Array, "..."], start
) -> Shaped[Array, "..."]:
    return jax.lax.dynamic_slice_in_dim(buffer, start, size, axis)


def _update(
    axis: int, buffer: Shaped[Array, "..."], value, start
) -> Shaped[Array, "..."]:
    return jax.lax.dynamic_update_slice_in_dim(buffer, value, start, axis)
