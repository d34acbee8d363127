"""Fused: the scan over time with its derivative written by hand.

It gives what `plain_scan` gives, and the same gradients, in less time and memory.
Forwards, the slopes of each step are written where its projected input was. Backwards,
the loop multiplies by them, writes the cotangent of the projected input in their place,
and takes it back through the recurrent kernel; the gradient of each kernel is one large
matrix product after the loop, where the derivative of a scan does a small one a step.

Besides inputs and outputs, in numbers a step, an example and a unit, are kept:

    LSTM  6: 4 slopes, 2 factors         GRU  5: 3 slopes, 2 factors       simple  1
    with recompute  1: c                      0                                    0

Those of recompute are what lies between the two passes. Within one compiled program XLA
may compute the slopes of all layers before the first are used; on CPU it does.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from rdrop.buffer import empty, put, take
from rdrop.cells import Cell, Weights, mask_units
from rdrop.cells.base import Carry, Linear
from rdrop.cells.masking import kernel_gradient, masked_matmul, transposed_matmul
from rdrop.dropout import Masks
from rdrop.noise import Mix
from rdrop.scan import align, changing, merge, pass_padding, plain_scan


def fused_scan(
    cell: Cell,
    weights: Weights,
    carry: Carry,
    xs: Float[Array, "..."],
    masks: Masks,
    valid: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    axis: int = 0,
    recompute: bool = False,
) -> tuple[Carry, Float[Array, "..."]]:
    """Projects the inputs of a cell, and runs it over them.

    A gradient with respect to masks, as that of a Gaussian rate, is taken through the
    plain scan. Second derivatives exist; forward mode does not, and raises (inside
    `jax.jit` with JAX's own words).

    Args:
        cell: a recurrence that supplies its derivative.
        weights: as the cell uses them, masks of weights applied.
        carry: the first; in reverse, that after the last step.
        xs: the inputs, [T, B, D], or [B, T, D] if `axis` is 1.
        masks: as in `plain_scan`.
        valid: where false, the step is padding: the carry passes and y is zero.
        reverse: whether to run from the last step to the first.
        axis: that of time.
        recompute: whether the backward pass computes the slopes again, of all steps at
            once, instead of keeping them.

    Returns:
        The final carry, and the outputs, with time along `axis`.

    Raises:
        TypeError: it is differentiated in forward mode.
    """
    if xs.shape[axis] == 0:
        return plain_scan(cell, weights, carry, xs, masks, valid, reverse, axis)
    drawn, structure = jax.tree.flatten(masks)
    loop = _Loop(cell, structure, reverse, axis, recompute)
    function = jax.custom_vjp(loop.run)
    function.defvjp(loop.forward, loop.backward, symbolic_zeros=True)
    try:
        return function(weights, carry, xs, drawn, valid)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "A fused loop has derivatives in reverse mode only; for those in forward "
            'mode (jax.jvp, jax.jacfwd) set `loop` to "plain".'
        ) from error


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The loops over time, forwards and back.

    Attributes:
        cell: the recurrence.
        masks: the structure of the masks, whose leaves are arguments.
        reverse, axis, recompute: as in `fused_scan`.
    """

    cell: Cell
    masks: Any
    reverse: bool
    axis: int
    recompute: bool

    def run(self, weights, carry, xs, drawn, valid):
        """The result, where no derivative is taken."""
        masks = jax.tree.unflatten(self.masks, drawn)
        return self._keep_memory(weights, carry, xs, masks, valid)[0]

    def forward(self, *marked):
        """The result, and what `backward` needs."""
        arguments = jax.tree.map(lambda leaf: leaf.value, marked)
        weights, carry, xs, drawn, valid = arguments
        if any(leaf.perturbed for leaf in marked[3]):
            plain = jax.tree_util.Partial(self._plain, valid=valid)
            return jax.vjp(plain, weights, carry, xs, drawn)
        masks = jax.tree.unflatten(self.masks, drawn)
        keep = self._keep_memory if self.recompute else self._keep_slopes
        result, kept = keep(weights, carry, xs, masks, valid)
        return result, (weights, carry, xs, masks, valid, result[1], kept)

    def backward(self, residuals, cotangents):
        """The cotangents of the arguments of `run`."""
        cotangents = jax.tree.map(_instantiate, cotangents, is_leaf=_is_zero)
        if callable(residuals):
            return (*residuals(cotangents), None)
        weights, carry, xs, masks, valid, ys, kept = residuals
        aligned = align(masks, self.axis)
        hs = self._states_before(carry, ys, aligned.hidden_state, valid)
        linear = kept
        if self.recompute:
            zs = self.cell.project(weights, xs, aligned)
            carries = jax.tree.unflatten(jax.tree.structure(carry), (*kept, hs))
            _, linear = self.cell.linearise(weights, carries, zs, aligned)
        transposed = {n: weight.T for n, weight in weights.items() if weight.ndim == 2}
        d_carry, d_zs = self._pull_back(transposed, linear, masks, valid, *cotangents)
        d_weights, d_xs = _pull_projection(transposed, xs, aligned, d_zs)
        d_weights |= self.cell.pull_weights(linear, aligned, hs, d_zs)
        return d_weights, d_carry, d_xs, None, None

    def _plain(self, weights, carry, xs, drawn, valid):
        masks = jax.tree.unflatten(self.masks, drawn)
        return plain_scan(
            self.cell, weights, carry, xs, masks, valid, self.reverse, self.axis
        )

    def _keep_memory(self, weights, carry, xs, masks, valid):
        """The result, and the parts of the carry before each step other than h."""

        def body(state, step_inputs):
            carry, memory, ys = state
            t, masks_t, valid_t = step_inputs
            z = take(zs, t, self.axis) + bias
            stepped = self.cell.step(weights, carry, z, merge(masks, masks_t))
            new, y = pass_padding(stepped, carry, valid_t)
            values = (jax.tree.leaves(carry)[:-1], y)
            return (new, *put((memory, ys), values, t, self.axis)), None

        zs, bias = _project(weights, xs, align(masks, self.axis))
        *memory, h = jax.tree.leaves(carry)
        memory, ys = empty((memory, h), zs.shape[self.axis], self.axis)
        inputs = (jnp.arange(zs.shape[self.axis]), changing(masks), valid)
        state, _ = jax.lax.scan(body, (carry, memory, ys), inputs, reverse=self.reverse)
        carry, memory, ys = state
        return (carry, ys), memory

    def _keep_slopes(self, weights, carry, xs, masks, valid):
        """The result, and the derivative of each step."""

        def body(state, step_inputs):
            carry, slopes, rest, ys = state
            t, masks_t, valid_t = step_inputs
            z = take(slopes, t, self.axis) + bias
            merged = merge(masks, masks_t)
            stepped, linear = self.cell.linearise(weights, carry, z, merged)
            new, y = pass_padding(stepped, carry, valid_t)
            values = (linear.slopes, linear.rest, y)
            return (new, *put((slopes, rest, ys), values, t, self.axis)), None

        def of_step():
            h = jax.tree.leaves(carry)[-1]
            z = jnp.zeros((*h.shape[:-1], zs.shape[-1]), zs.dtype)
            blank = jax.tree.map(lambda m: jnp.zeros(m.shape[-3:], m.dtype), masks)
            (_, y), linear = self.cell.linearise(weights, carry, z, blank)
            return linear.rest, y

        zs, bias = _project(weights, xs, align(masks, self.axis))
        rest, ys = empty(jax.eval_shape(of_step), zs.shape[self.axis], self.axis)
        inputs = (jnp.arange(zs.shape[self.axis]), changing(masks), valid)
        state, _ = jax.lax.scan(
            body, (carry, zs, rest, ys), inputs, reverse=self.reverse
        )
        carry, slopes, rest, ys = state
        return (carry, ys), Linear(slopes, rest)

    def _pull_back(self, transposed, linear, masks, valid, d_carry, d_ys):
        """The cotangents of the first carry and of the projected inputs."""
        cell, axis = self.cell, self.axis

        def body(state, step_inputs):
            d_carry, buffer = state
            t, masks_t, valid_t = step_inputs
            slopes, rest, d_y = take((buffer, linear.rest, d_ys), t, axis)
            merged = merge(masks, masks_t)
            # A padded step has cotangents of zero, and passes that of the carry.
            zeros = jax.tree.map(jnp.zeros_like, d_carry)
            d_stepped, d_y = pass_padding((d_carry, d_y), zeros, valid_t)
            at_step = Linear(slopes, rest)
            d_old, d_z = cell.pull(transposed, at_step, merged, d_stepped, d_y)
            # Read back, lest XLA computes it again for the product, from a copy.
            buffer = put(buffer, d_z, t, axis)
            d_z = take(buffer, t, axis)
            d_h = cell.pull_recurrent(transposed, at_step, merged, d_z)
            new, _ = pass_padding((_add_to_state(d_old, d_h), d_y), d_carry, valid_t)
            return (new, buffer), None

        inputs = (jnp.arange(d_ys.shape[self.axis]), changing(masks), valid)
        start = (d_carry, linear.slopes)
        return jax.lax.scan(body, start, inputs, reverse=not self.reverse)[0]

    def _states_before(self, carry, ys, mask, valid):
        """The h before each step, from the outputs: nothing else is kept for it."""
        first = jnp.expand_dims(jax.tree.leaves(carry)[-1], self.axis)
        states = ys if isinstance(mask, Mix) else mask_units(ys, mask)
        if valid is not None:
            keep = valid.swapaxes(0, self.axis)[..., None]
            states = jnp.where(keep, states, first)
        time = ys.shape[self.axis]
        if self.reverse:
            later = jax.lax.slice_in_dim(states, 1, time, axis=self.axis)
            return jnp.concatenate([later, first], self.axis)
        earlier = jax.lax.slice_in_dim(states, 0, time - 1, axis=self.axis)
        return jnp.concatenate([first, earlier], self.axis)


def _project(weights, xs, masks):
    """Returns (m_x * x) W of all steps, and the bias, which a step adds for nothing."""
    kernel = weights["kernel"]
    zs = masked_matmul(xs.astype(kernel.dtype), masks.inputs, kernel)
    return zs, weights["bias"][None]


def _pull_projection(transposed, xs, masks, d_zs):
    """Returns the cotangents of the weights of the projection, and of its inputs."""
    kernel = transposed["kernel"]
    gradient = kernel_gradient(xs.astype(kernel.dtype), masks.inputs, d_zs)
    d_xs = transposed_matmul(d_zs, masks.inputs, kernel)
    return {"kernel": gradient, "bias": d_zs.sum((0, 1))}, d_xs.astype(xs.dtype)


def _add_to_state(d_carry, d_h):
    """Adds to the cotangent of the carry's h."""
    leaves, structure = jax.tree.flatten(d_carry)
    leaves[-1] = leaves[-1] + d_h.astype(leaves[-1].dtype)
    return jax.tree.unflatten(structure, leaves)


def _is_zero(leaf) -> bool:
    return isinstance(leaf, SymbolicZero)


def _instantiate(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) else leaf
