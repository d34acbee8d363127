"""Buffer: arrays of all steps, of which a loop reads and writes one step in place.

`jax.vmap` makes gathers and scatters of indexing, which XLA does not do in place. Here
it stays a slice and an update, as long as all examples are at the same step.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

T = TypeVar("T")


def take(buffers: T, step: Int[Array, ""], axis: int) -> T:
    """Returns what a pytree of buffers holds of a step, along an axis."""
    return jax.tree.map(lambda buffer: _take(axis, buffer, step), buffers)


def put(buffers: T, values: T, step: Int[Array, ""], axis: int) -> T:
    """Returns the buffers with the values of a step written into them."""
    return jax.tree.map(lambda b, v: _put(axis, b, v, step), buffers, values)


def empty(of_step: T, time: int, axis: int) -> T:
    """Returns buffers for so many steps, of zeros, from what there is of one step."""

    def buffer(value):
        shape = (*value.shape[:axis], time, *value.shape[axis:])
        return jnp.zeros(shape, value.dtype)

    return jax.tree.map(buffer, of_step)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _take(axis, buffer, step):
    @custom_vmap
    def function(buffer, step):
        return _slice(axis, buffer, step)

    @function.def_vmap
    def rule(size, is_batched, buffer, step):
        if is_batched[1]:
            return jax.vmap(partial(_slice, axis), is_batched)(buffer, step), True
        return _take(axis + 1, buffer, step), True

    return function(buffer, step)


@_take.defjvp
def _take_jvp(axis, primals, tangents):
    return _take(axis, *primals), _slice(axis, tangents[0], primals[1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _put(axis, buffer, value, step):
    @custom_vmap
    def function(buffer, value, step):
        return _update(axis, buffer, value, step)

    @function.def_vmap
    def rule(size, is_batched, buffer, value, step):
        if is_batched[2]:
            update = jax.vmap(partial(_update, axis), is_batched)
            return update(buffer, value, step), True
        buffer, value = (
            a if batched else jnp.broadcast_to(a[None], (size, *a.shape))
            for a, batched in zip((buffer, value), is_batched[:2], strict=True)
        )
        return _put(axis + 1, buffer, value, step), True

    return function(buffer, value, step)


@_put.defjvp
def _put_jvp(axis, primals, tangents):
    d_buffer, d_value, _ = tangents
    return _put(axis, *primals), _update(axis, d_buffer, d_value, primals[2])


def _slice(axis: int, buffer: Float[Array, "..."], step) -> Float[Array, "..."]:
    return jax.lax.dynamic_index_in_dim(buffer, step, axis, keepdims=False)


def _update(axis: int, buffer: Float[Array, "..."], value, step) -> Float[Array, "..."]:
    return jax.lax.dynamic_update_index_in_dim(buffer, value, step, axis)
