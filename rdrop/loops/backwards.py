"""Backwards: the cotangents of a block of steps.

The loop backwards pulls cotangents through one step after another. It writes the ones
of the projected inputs, and of the matrix products if they differ, into buffers. After
the loop there is one large product per kernel.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells import Recurrence, Weights
from rdrop.cells.masking import masked_operands
from rdrop.cells.recurrence import Carry, widened
from rdrop.loops.buffer import buffers_like, put, take
from rdrop.loops.forwards import Example, example_of, find_like
from rdrop.loops.residuals import (
    Plan,
    operands_of,
    pack,
    plan_of,
    pull,
    record,
    unpack,
)
from rdrop.loops.sequences import (
    Order,
    Sequences,
    align,
    held,
    merge,
    pass_padding,
    per_step,
)

# Up to this size a kernel is transposed once, before the loop: on CPU a product is a
# fifth faster then, but takes twice as long if the kernel is larger.
LARGE_BYTES = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Backwards:
    """A block of steps that is run backwards.

    Attributes:
        cell, weights, block, order: as in the loop forwards.
        example: of a step.
        plan: how the cell is differentiated.
    """

    cell: Recurrence
    weights: Weights
    block: Sequences
    order: Order
    example: Example
    plan: Plan

    @classmethod
    def of(cls, cell, weights, carry, block, order) -> "Backwards":
        """Plans to run a block backwards; only shapes of the carry matter."""
        example = example_of(cell, weights, carry, block, order)
        plan = plan_of(cell, weights, example.carry, example.z, example.masks)
        return cls(cell, weights, block, order, example, plan)

    def recompute(self, carries: Carry) -> list[Any]:
        """Returns the residuals of all steps at once, from the carries before them."""
        xs, masks = self.block[:2]
        aligned = align(masks.inputs, self.order.axis)
        zs = self.cell.project(self.weights, xs, aligned)

        def residuals(masks, carry, z):
            _, step, _ = record(self.cell, self.weights, carry, z, masks)
            return pack(step, self.plan)

        return self._over_steps(residuals, carries, zs)

    def run(
        self,
        hs: Float[Array, "..."] | None,
        residuals: list[Any],
        d_carry: Carry,
        d_ys: Float[Array, "..."],
    ) -> tuple[Carry, Weights, Sequences]:
        """Pulls cotangents back through the block.

        Args:
            hs: the h before each step; None if it is kept in the residuals.
            residuals: of all steps.
            d_carry: cotangent of the carry after the block.
            d_ys: cotangent of the outputs.

        Returns:
            The cotangents of the carry before the block, of the weights, in float32 or
            wider, and of the block.
        """
        state, d_drawn = self._loop(hs, residuals, d_carry, d_ys)
        d_carry, buffers, (direct, d_held) = state
        places, _ = self._places(residuals)
        d_zs, *d_other = [buffers[place] for place in places]
        other = iter(d_other)
        d_products = [d_zs if same else next(other) for same in self.plan.same_as_z]
        d_kernel, d_xs, d_mask = self._pull_projection(d_zs)
        parts = [
            self._pull_kernels(hs, buffers[: len(residuals)], d_products),
            {"kernel": d_kernel},
            {"bias": d_zs.sum((0, 1))} if "bias" in self.weights else {},
            direct,
        ]
        d_weights = {
            name: sum(_wide(part[name]) for part in parts if name in part)
            for name in self.weights
        }
        d_masks = merge(d_held, d_drawn)
        if d_mask is not None:
            d_masks = d_masks.replace(inputs=d_masks.inputs + d_mask)
        return d_carry, d_weights, Sequences(d_xs, d_masks)

    def _loop(self, hs, residuals, d_carry, d_ys):
        """Returns the last state of the loop, and the cotangents of masks per step."""
        axis, (_, masks, valid, resets) = self.order.axis, self.block
        places, buffers = self._places(residuals)
        turned = [
            k.T if k.nbytes <= LARGE_BYTES else None for k in self.example.kernels
        ]

        def body(state, at_step):
            d_carry, buffers, ahead, sums = state
            t, masks_t, valid_t, resets_t = at_step
            values = take(buffers[: len(residuals)], t, axis)
            for place, value in ahead.items():
                values[place] = value
            h, d_y = take((hs, d_ys), t, axis)
            # A padded step has cotangents of zero, and passes the one of the carry.
            zeros = jax.tree.map(jnp.zeros_like, d_carry)
            d_stepped = pass_padding((d_carry, d_y), zeros, valid_t)
            d = self._pull(values, h, merge(masks, masks_t), turned, d_stepped)
            buffers = list(buffers)
            for place, value in zip(
                places, self._distinct(d.z, d.products), strict=True
            ):
                buffers[place] = put(buffers[place], value, t, axis)
            # Read after the write, so that XLA writes in place.
            ahead = {n: take(buffers[n], t + next_step, axis) for n in ahead}
            d_held, d_drawn = held(d.masks, masks), per_step(d.masks, masks)
            sums = jax.tree.map(_add, sums, (d.direct, d_held))
            d_carry, _ = pass_padding((d.carry, d_y), d_carry, valid_t)
            d_carry = _stop(d_carry, resets_t)
            return (d_carry, buffers, ahead, sums), d_drawn

        direct = {name: self.weights[name] for name in self.plan.direct}
        sums = jax.tree.map(lambda v: _wide(jnp.zeros_like(v)), (direct, held(masks)))
        time = self.order.time(d_ys)
        first, next_step = (0, 1) if self.order.reverse else (time - 1, -1)
        ahead = {n: take(buffers[n], first, axis) for n in places if n < len(residuals)}
        steps = (jnp.arange(time), per_step(masks), valid, resets)
        state = (d_carry, buffers, ahead, sums)
        state, d_drawn = jax.lax.scan(
            body, state, steps, reverse=not self.order.reverse
        )
        d_carry, buffers, _, sums = state
        return (d_carry, buffers, sums), d_drawn

    def _pull(self, values, h, masks, turned, d_stepped):
        """Pulls cotangents back through one step."""
        step = unpack(values, self.plan, self.example.step, h)
        kernels = zip(self.example.kernels, turned, strict=True)
        transposed = [k.T if done is None else done for k, done in kernels]
        return pull(
            self.cell,
            self.weights,
            self.plan.direct,
            transposed,
            self.example.carry,
            step,
            masks,
            d_stepped,
        )

    def _pull_kernels(self, hs, residuals, d_products):
        """Takes the cotangents of the matrix products to the kernels."""

        def operands(masks, h, values):
            step = unpack(values, self.plan, self.example.step, h)
            like = self.example.carry
            return operands_of(self.cell, self.weights, like, step, masks)

        lefts = self._over_steps(operands, hs, residuals)

        def products(weights):
            carry, z, masks = self.example[:3]
            kernels = record(self.cell, weights, carry, z, masks)[2]
            return [
                _concatenated(left, kernel)
                for left, kernel in zip(lefts, kernels, strict=True)
            ]

        _, back = jax.vjp(products, self.weights)
        return back([_flat(d) for d in d_products])[0]

    def _over_steps(self, function, *arguments) -> Any:
        """Maps a function of masks and values of one step over all steps."""
        masks, axis = self.block.masks, self.order.axis

        def of_step(masks_t, *arguments):
            return function(merge(masks, masks_t), *arguments)

        axes = (0, *[axis] * len(arguments))
        return jax.vmap(of_step, axes, axis)(per_step(masks), *arguments)

    def _distinct(self, z, products):
        """Returns the cotangents of z, and of the products that differ from it."""
        own = zip(products, self.plan.same_as_z, strict=True)
        return [z, *(product for product, same in own if not same)]

    def _places(self, residuals):
        """Returns indices of buffers for cotangents, and the buffers.

        Cotangents take the places of residuals that are not read after the loop.
        """
        buffers = list(residuals)
        last = self.plan.reads_last
        free = [None if keep else b for b, keep in zip(buffers, last, strict=True)]
        places = []
        for value in self._distinct(self.example.z, self.example.step.products):
            buffer = buffers_like(
                value, self.order.time(self.block.xs), self.order.axis
            )
            place = find_like(buffer, free)
            if place is None:
                place = len(buffers)
                buffers.append(buffer)
            else:
                free[place] = None
            places.append(place)
        return places, buffers

    def _pull_projection(self, d_zs):
        """Returns the cotangents of the input kernel, the inputs and their mask."""
        kernel, axis = self.weights["kernel"], self.order.axis

        def operands(xs, mask):
            return masked_operands(xs.astype(kernel.dtype), align(mask, axis))

        xs, masks = self.block[:2]
        lefts, back = jax.vjp(operands, xs, masks.inputs)
        _, to_kernel = jax.vjp(partial(_concatenated, lefts), kernel)
        d_parts = jnp.split(d_zs, len(lefts), axis=-1)
        kernels = jnp.split(kernel, len(lefts), axis=-1)
        d_xs, d_mask = back([d @ k.T for d, k in zip(d_parts, kernels, strict=True)])
        return to_kernel(_flat(d_zs))[0], d_xs, d_mask


def states_before(
    first: Float[Array, "B H"],
    ys: Float[Array, "..."],
    block: Sequences,
    order: Order,
    initial: Float[Array, "H"],
) -> Float[Array, "..."]:
    """Returns the h before each step, if it is the output of the step before.

    Args:
        first: the h before the first step.
        ys: the outputs, zero at padding.
        block: with padding and resets.
        order: how time lies in the outputs.
        initial: the h of a row after a reset.
    """
    valid, resets = block.valid, block.resets
    first = jnp.expand_dims(first, order.axis)
    states = ys
    if valid is not None:
        states = jnp.where(valid.swapaxes(0, order.axis)[..., None], ys, first)
    time = order.time(ys)
    if order.reverse:
        later = jax.lax.slice_in_dim(states, 1, time, axis=order.axis)
        before = jnp.concatenate([later, first], order.axis)
    else:
        earlier = jax.lax.slice_in_dim(states, 0, time - 1, axis=order.axis)
        before = jnp.concatenate([first, earlier], order.axis)
    if resets is None:
        return before
    where = resets.swapaxes(0, order.axis)[..., None]
    return jnp.where(where, initial[None, None].astype(before.dtype), before)


def _stop(d_carry, resets):
    """Returns the cotangent of a carry, zero in the rows whose carry was reset."""
    if resets is None:
        return d_carry
    return jax.tree.map(lambda d: jnp.where(resets[:, None], 0, d), d_carry)


def _concatenated(lefts, kernel):
    """Returns the matrix products of all gates, with steps and examples in one axis."""
    kernels = jnp.split(kernel, len(lefts), axis=-1)
    parts = [_flat(x) @ k for x, k in zip(lefts, kernels, strict=True)]
    return jnp.concatenate(parts, axis=-1)


def _flat(values):
    return values.reshape(-1, values.shape[-1])


def _wide(value):
    """Returns a gradient in float32 or wider, so that others can be added to it."""
    return value.astype(widened(value.dtype))


def _add(total, value):
    return total + value.astype(total.dtype)
