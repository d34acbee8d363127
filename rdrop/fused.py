"""Fused: the scan over time with its derivative written by hand.

It gives what `plain_scan` gives, and the same gradients, in less time and memory.
Forwards, the slopes of each step are written where its projected input was. Backwards,
the loop multiplies by them, writes the cotangent of the projected input in their place,
and takes it back through the recurrent kernel; the gradient of each kernel is one large
matrix product after the loop, where the derivative of a scan does a small one a step.

Besides inputs and outputs, in numbers a step, an example and a unit, are kept:

    LSTM  6: 4 slopes, 2 factors         GRU  5: 3 slopes, 2 factors       simple  1
    with recompute  1: c                      0                                    0

To keep less, and where no derivative is taken, it goes block by block: inputs are
projected, and slopes computed again, of some steps at a time.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from rdrop.blocks import over_blocks, steps_of_block
from rdrop.buffer import cut, empty, paste, put, take
from rdrop.cells import Cell, Weights, mask_units
from rdrop.cells.base import Carry, Linear, widen
from rdrop.cells.masking import kernel_gradient, masked_matmul, transposed_matmul
from rdrop.dropout import Masks
from rdrop.noise import Mix
from rdrop.scan import align, changing, merge, pass_padding, plain_scan

# Up to this size a kernel is transposed once, before the loop backwards: on CPU a
# product is a fifth faster then, but takes twice as long if the kernel is larger.
LARGE_BYTES = 2**22


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
        recompute: whether the backward pass computes the slopes again, of a block of
            steps at once, instead of keeping them.

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
        size = self._size(weights, xs)
        arguments = (weights, carry, xs, masks, valid)
        return self._run_blocks(self._keep_nothing, size, *arguments)[0]

    def forward(self, *marked):
        """The result, and what `backward` needs."""
        arguments = jax.tree.map(lambda leaf: leaf.value, marked)
        weights, carry, xs, drawn, valid = arguments
        if any(leaf.perturbed for leaf in marked[3]):
            plain = jax.tree_util.Partial(self._plain, valid=valid)
            return jax.vjp(plain, weights, carry, xs, drawn)
        masks = jax.tree.unflatten(self.masks, drawn)
        keep = self._keep_memory if self.recompute else self._keep_slopes
        size = self._size(weights, xs, whole=not self.recompute)
        result, left = self._run_blocks(keep, size, weights, carry, xs, masks, valid)
        return result, (weights, xs, masks, valid, result[1], left)

    def backward(self, residuals, cotangents):
        """The cotangents of the arguments of `run`."""
        cotangents = jax.tree.map(_instantiate, cotangents, is_leaf=_is_zero)
        if callable(residuals):
            return (*residuals(cotangents), None)
        weights, xs, masks, valid, ys, left = residuals
        d_carry, d_ys = cotangents

        def pull_block(state, start, size, left):
            d_carry, gradients, d_xs = state
            block = self._cut(start, size, xs, masks, valid)
            y, d_y = cut((ys, d_ys), start, size, self.axis)
            pulled = self._pull_block(weights, block, y, left, d_carry, d_y)
            d_carry, d_weights, d_x = pulled
            gradients = jax.tree.map(_add, gradients, d_weights)
            return (d_carry, gradients, paste(d_xs, d_x, start, self.axis)), None

        state = (d_carry, jax.tree.map(_wide_zeros, weights), jnp.zeros_like(xs))
        time = xs.shape[self.axis]
        size = self._size(weights, xs, whole=not self.recompute)
        state, _ = over_blocks(pull_block, state, time, size, left, not self.reverse)
        d_carry, gradients, d_xs = state
        d_weights = jax.tree.map(lambda g, w: g.astype(w.dtype), gradients, weights)
        return d_weights, d_carry, d_xs, None, None

    def _size(self, weights, xs, whole=False):
        """The steps of a block: all, where what is kept is kept of the whole."""
        time, batch, _ = xs.swapaxes(0, self.axis).shape
        if whole:
            return time
        kernels = [weight for weight in weights.values() if weight.ndim == 2]
        of_step = batch * kernels[0].shape[1] * kernels[0].dtype.itemsize
        rows = sum(len(kernel) for kernel in kernels)
        return steps_of_block(time, batch, rows, of_step)

    def _run_blocks(self, keep, size, weights, carry, xs, masks, valid):
        """The result; and of each block the first h, and what it keeps."""

        def run_block(state, start, size, _):
            carry, ys = state
            block = self._cut(start, size, xs, masks, valid)
            (new, y), kept = keep(weights, carry, *block)
            return (new, paste(ys, y, start, self.axis)), (_state(carry), kept)

        time = xs.shape[self.axis]
        start = (carry, empty(_state(carry), time, self.axis))
        return over_blocks(run_block, start, time, size, reverse=self.reverse)

    def _cut(self, start, size, xs, masks, valid):
        """Inputs, masks and padding of a block."""
        drawn, valid = cut((changing(masks), valid), start, size, 0)
        return cut(xs, start, size, self.axis), merge(masks, drawn), valid

    def _plain(self, weights, carry, xs, drawn, valid):
        masks = jax.tree.unflatten(self.masks, drawn)
        return plain_scan(
            self.cell, weights, carry, xs, masks, valid, self.reverse, self.axis
        )

    def _keep_nothing(self, *arguments):
        return self._keep_memory(*arguments)[0], None

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
            h = _state(carry)
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

    def _pull_block(self, weights, block, ys, left, d_carry, d_ys):
        """The cotangents of the carry before a block, of the weights and the inputs."""
        xs, masks, valid = block
        first, kept = left
        aligned = align(masks, self.axis)
        hs = self._states_before(first, ys, aligned.hidden_state, valid)
        linear = kept
        if self.recompute:
            zs = self.cell.project(weights, xs, aligned)
            carries = jax.tree.unflatten(jax.tree.structure(d_carry), (*kept, hs))
            _, linear = self.cell.linearise(weights, carries, zs, aligned)
        d_carry, d_zs = self._pull_back(weights, linear, masks, valid, d_carry, d_ys)
        d_weights, d_xs = _pull_projection(weights["kernel"], xs, aligned, d_zs)
        d_weights |= self.cell.pull_weights(linear, aligned, hs, d_zs)
        return d_carry, d_weights, d_xs

    def _pull_back(self, weights, linear, masks, valid, d_carry, d_ys):
        """The cotangents of the first carry and of the projected inputs."""
        cell, axis = self.cell, self.axis
        kernels = {name: w for name, w in weights.items() if w.ndim == 2}
        turned = {n: w.T for n, w in kernels.items() if w.nbytes <= LARGE_BYTES}

        def body(state, step_inputs):
            transposed = {n: w.T for n, w in kernels.items() if n not in turned}
            transposed |= turned
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

    def _states_before(self, first, ys, mask, valid):
        """The h before each step, from the outputs: nothing else is kept for it."""
        first = jnp.expand_dims(first, self.axis)
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


def _pull_projection(kernel, xs, masks, d_zs):
    """Returns the cotangents of the weights of the projection, and of its inputs."""
    gradient = kernel_gradient(xs.astype(kernel.dtype), masks.inputs, d_zs)
    d_xs = transposed_matmul(d_zs, masks.inputs, kernel.T)
    return {"kernel": gradient, "bias": d_zs.sum((0, 1))}, d_xs.astype(xs.dtype)


def _state(carry):
    """The h of a carry: all that is returned as an output, and all or its last part."""
    return jax.tree.leaves(carry)[-1]


def _add_to_state(d_carry, d_h):
    """Adds to the cotangent of the carry's h."""
    leaves, structure = jax.tree.flatten(d_carry)
    leaves[-1] = _add(leaves[-1], d_h)
    return jax.tree.unflatten(structure, leaves)


def _wide_zeros(weight):
    """Zeros to add the gradients of blocks to, in float32 or wider."""
    return jnp.zeros(weight.shape, widen(weight.dtype))


def _add(total, value):
    return total + value.astype(total.dtype)


def _is_zero(leaf) -> bool:
    return isinstance(leaf, SymbolicZero)


def _instantiate(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) else leaf
