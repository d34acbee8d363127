"""Buffers: arrays of all steps, which a loop reads and writes in place.

`jax.vmap` turns indexing into gathers and scatters, which XLA does not do in place.
Here it stays a slice and an update, as long as all examples are at the same step.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from rdrop.sites import Site

T = TypeVar("T")
Step = int | Int[Array, ""]


def take(buffers: T, step: Step, axis: int) -> T:
    """Returns the values of a step in a pytree of buffers, along an axis."""
    return jax.tree.map(lambda b: jnp.squeeze(_take(axis, 1, b, step), axis), buffers)


def put(buffers: T, values: T, step: Step, axis: int) -> T:
    """Returns the buffers with the values of a step written into them."""
    return paste(
        buffers, jax.tree.map(lambda v: jnp.expand_dims(v, axis), values), step, axis
    )


def cut(buffers: T, start: Step, size: int, axis: int) -> T:
    """Returns the values of `size` steps in a pytree of buffers."""

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


def buffers_like(of_step: T, time: int, axis: int) -> T:
    """Returns buffers of zeros for `time` steps, like the values of one step.

    They are sharded, and vary over the axes of a `jax.shard_map`, as the values do.
    """

    def buffer(value):
        shape = (*value.shape[:axis], time, *value.shape[axis:])
        return jnp.broadcast_to(jnp.expand_dims(jnp.zeros_like(value), axis), shape)

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


def alike(*trees: T) -> tuple[T, ...]:
    """Returns arrays that vary over the same axes of a `jax.shard_map`.

    The derivative of a value that all shards share is then summed over the shards.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))

    def vary(leaf):
        missing = tuple(axes - _varying(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, trees)


def shard_carry(carry: T, xs: Shaped[Array, "..."], axis: int, units: Any = None) -> T:
    """Returns a carry that is sharded as its step will be, on an explicit mesh.

    Args:
        carry: leaves [B, H].
        xs: its batch is sharded as the batch of `xs`.
        axis: the time axis of `xs`.
        units: the axis of the mesh over which units are sharded, or None.
    """
    of_xs = jax.typeof(xs).sharding
    batch = of_xs.spec[1 - axis]
    if batch is None and units is None:
        return carry
    sharding = NamedSharding(of_xs.mesh, PartitionSpec(batch, units))
    return jax.tree.map(lambda leaf: jax.reshard(leaf, sharding), carry)


def shard_sites(
    sites: Mapping[str, Site],
    xs: Shaped[Array, "..."],
    axis: int | None = None,
    units: Any = None,
) -> dict[str, Site]:
    """Returns sites whose masks are sharded as what they multiply.

    Masks on weights are whole on every device.

    Args:
        sites: of a cell.
        xs: the inputs, whose batch and features may be sharded.
        axis: the time axis of `xs`; None if it has none.
        units: the axis of the mesh over which units are sharded, or None.
    """
    spec = jax.typeof(xs).sharding.spec
    batch, features = spec[0 if axis is None else 1 - axis], spec[-1]

    def sharded(name, site):
        of_mask = PartitionSpec(batch, None, features if name == "inputs" else units)
        whole = site.rows is not None or not any(of_mask)
        return site if whole else site._replace(spec=of_mask)

    return {name: sharded(name, site) for name, site in sites.items()}


def unsharded(array: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Returns an array that is whole on every device of an explicit mesh."""
    sharding = jax.typeof(array).sharding
    if not any(sharding.spec):
        return array
    return jax.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def axis_of_units(weights: Any) -> Any:
    """Returns the explicit axis of the mesh that shards the columns of kernels."""
    specs = [jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(weights)]
    return next((s[-1] for s in specs if len(s) == 2 and s[-1] is not None), None)


def _varying(leaf) -> frozenset[str]:
    return jax.typeof(leaf).manual_axis_type.varying
