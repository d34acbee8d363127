"""GRU: the gated recurrent unit, its reset gate before or after the matrix product.

References:
    [1] Cho et al. Learning phrase representations using RNN encoder-decoder for
        statistical machine translation. EMNLP 2014. arXiv:1406.1078.
    [2] Keras GRU (`reset_after`) and PyTorch GRU, for the form with the reset after.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import zeros_init
from jaxtyping import Array, Float

from rdrop.cells.base import Cell, Linear, Parameters
from rdrop.cells.masking import (
    Weights,
    kernel_gradient,
    mask_gates,
    mask_units,
    masked_matmul,
    put_out,
    take_back,
    transposed_matmul,
)
from rdrop.dropout import Masks
from rdrop.noise import Site


def gru(
    a: Float[Array, "B GH"],
    h: Float[Array, "B H"],
    masks: Masks,
    weights: Weights,
    reset_after: bool = True,
) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
    """Advances a GRU by one step.

        z, r = m_z * sigmoid(a_z + (m_h * h) U_z), m_r * sigmoid(a_r + (m_h * h) U_r)
        n = tanh(a_n + r * ((m_h * h) U_n + b_n))       reset after [2]
        n = tanh(a_n + (m_h * r * h) U_n)               reset before [1]
        h_new = z * h + (1 - z) * (m_g * n)             a = (m_x * x) W + b

    The h of the last line, the leak path, has no mask. h_new is handed on mixed with
    the old state, and then is the output too, or multiplied by a mask, and then is not.

    Args:
        a: the input's share of the pre-activations, gates in the order z, r, n.
        h: the state; it keeps its dtype, and the gates have it too.
        masks: of this step, (B, G, U).
        weights: `recurrent_kernel`, and `recurrent_bias` [H] with the reset after.
        reset_after: which form.

    Returns:
        The new state, and the output.
    """
    return linear_gru(a, h, masks, weights, reset_after)[0]


def linear_gru(
    a: Float[Array, "*batch GH"],
    h: Float[Array, "*batch H"],
    masks: Masks,
    weights: Weights,
    reset_after: bool = True,
) -> tuple[tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]], Linear]:
    """Advances a GRU by one step, and takes its derivative there.

    Per unit, z, r before their masks, v = (m_h * h) U_n + b_n:

        s_n    = (1 - m_z z) m_g (1 - n^2)
        slopes = (h - m_g n) m_z z (1 - z),  s_n v m_r r (1 - r),  s_n    reset after
        slopes = (h - m_g n) m_z z (1 - z),    h m_r r (1 - r),  s_n    reset before
        rest   = m_z z,  m_r r

    Args:
        a: the input's share of the pre-activations; a time axis may precede the batch.
        h: the state.
        masks: of this step, or of all.
        weights: as in `gru`.
        reset_after: which form.

    Returns:
        What `gru` does, and the derivative.
    """
    kernel = weights["recurrent_kernel"]
    hidden, units = h.astype(kernel.dtype), h.shape[-1]
    a_zr, a_n = jnp.split(a.astype(h.dtype), [2 * units], axis=-1)
    if reset_after:
        recurred = masked_matmul(hidden, masks.recurrent, kernel).astype(h.dtype)
        u_zr, u_n = jnp.split(recurred, [2 * units], axis=-1)
        bias = weights["recurrent_bias"].astype(h.dtype)
        v = u_n + bias.reshape((1,) * (h.ndim - 1) + bias.shape)
    else:
        mask_zr, mask_n = _split_mask(masks.recurrent)
        kernel_zr, kernel_n = jnp.split(kernel, [2 * units], axis=-1)
        u_zr = masked_matmul(hidden, mask_zr, kernel_zr).astype(h.dtype)
    z, r = gates = jnp.split(0.5 * nn.tanh(0.5 * (a_zr + u_zr)) + 0.5, 2, axis=-1)
    z_m, r_m = mask_gates(tuple(gates), masks.gates)
    if reset_after:
        n = nn.tanh(a_n + r_m * v)
    else:
        reset = (r_m * h).astype(kernel.dtype)
        n = nn.tanh(a_n + masked_matmul(reset, mask_n, kernel_n).astype(h.dtype))
    candidate = mask_units(n, masks.update)
    h_new = z_m * h + (1 - z_m) * candidate
    slope_n = (1 - z_m) * mask_units(1 - n * n, masks.update)
    slope_r = (slope_n * v if reset_after else h) * r_m * (1 - r)
    by_gate = ((h - candidate) * z_m * (1 - z), slope_r, slope_n)
    slopes = jnp.concatenate(by_gate, axis=-1).astype(a.dtype)
    return put_out(h_new, h, masks.hidden_state), Linear(slopes, (z_m, r_m))


def pull_gru(
    transposed: Weights,
    linear: Linear,
    masks: Masks,
    d_h: Float[Array, "B H"],
    d_y: Float[Array, "B H"],
    reset_after: bool = True,
) -> tuple[Float[Array, "B H"], Float[Array, "B GH"]]:
    """Takes cotangents back through a step of `gru`; see `Cell.pull`."""
    keep, reset = linear.rest
    d_new, d_old = take_back(d_h, d_y, masks.hidden_state)
    d_old = d_old + d_new * keep
    d_new = d_new.astype(linear.slopes.dtype)
    if reset_after:
        d_a = jnp.concatenate([d_new, d_new, d_new], axis=-1) * linear.slopes
        return d_old, d_a
    slope_z, slope_r, slope_n = jnp.split(linear.slopes, 3, axis=-1)
    _, kernel_n = _split_transposed(transposed)
    _, mask_n = _split_mask(masks.recurrent)
    d_n = d_new * slope_n
    d_reset = transposed_matmul(d_n, mask_n, kernel_n)
    d_a = jnp.concatenate([d_new * slope_z, d_reset * slope_r, d_n], axis=-1)
    return d_old + d_reset.astype(d_h.dtype) * reset, d_a


def pull_gru_recurrent(
    transposed: Weights,
    linear: Linear,
    masks: Masks,
    d_a: Float[Array, "B GH"],
    reset_after: bool = True,
) -> Float[Array, "B H"]:
    """Takes the cotangent of a back to h; see `Cell.pull_recurrent`."""
    if reset_after:
        d_u = _reset_candidate(d_a, linear.rest[1])
        kernel = transposed["recurrent_kernel"]
        return transposed_matmul(d_u, masks.recurrent, kernel)
    kernel_zr, _ = _split_transposed(transposed)
    mask_zr, _ = _split_mask(masks.recurrent)
    return transposed_matmul(d_a[..., : len(kernel_zr)], mask_zr, kernel_zr)


def _reset_candidate(d_a, reset):
    """From the cotangent of a to that of (m_h * h) U, with the reset after."""
    d_zr, d_n = jnp.split(d_a, [2 * reset.shape[-1]], axis=-1)
    return jnp.concatenate([d_zr, d_n * reset.astype(d_n.dtype)], axis=-1)


def _split_transposed(transposed):
    """The transposed kernels of the gates z and r, and that of the candidate."""
    kernel = transposed["recurrent_kernel"]
    return jnp.split(kernel, [2 * kernel.shape[1]])


def _split_mask(mask):
    """The masks of the gates z and r, and that of the candidate."""
    if mask is None or mask.shape[-2] == 1:
        return mask, mask
    return mask[..., :2, :], mask[..., 2:, :]


class GRUCell(Cell):
    """Gated recurrent unit [1, 2]; see `gru`. Its carry is h.

    Parameters (Keras layout and gate order z, r, n):
        kernel [D, 3H] glorot uniform, recurrent_kernel [H, 3H] orthogonal, bias [3H]
        zero; with the reset after, recurrent_bias [H] zero, that of the candidate.
        Those of the other gates, which Keras and PyTorch have as well, add up with
        `bias`.

    Attributes:
        units, dtype, param_dtype: as in `Cell`.
        reset_after: whether the reset gate multiplies the matrix product (Keras,
            PyTorch, flax) rather than the state (Cho et al.).
    """

    reset_after: bool = True

    GATES: ClassVar[int] = 3

    @nn.nowrap
    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        own = {"update": Site(1, self.units), "gates": Site(2, self.units)}
        return super().sites(features) | own

    @nn.nowrap
    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        params = super().parameters(features)
        if self.reset_after:
            params["recurrent_bias"] = (zeros_init(), (self.units,))
        return params

    @nn.nowrap
    def step(
        self,
        weights: Weights,
        carry: Float[Array, "B H"],
        z: Float[Array, "B GH"],
        masks: Masks,
    ) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
        """Advances the carry by one projected input; returns it and y, unmasked."""
        return gru(z, carry, masks, weights, self.reset_after)

    @nn.nowrap
    def linearise(
        self,
        weights: Weights,
        carry: Float[Array, "*batch H"],
        z: Float[Array, "*batch GH"],
        masks: Masks,
    ) -> tuple[tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]], Linear]:
        """Returns what `step` does, and its derivative."""
        return linear_gru(z, carry, masks, weights, self.reset_after)

    @nn.nowrap
    def pull(
        self,
        transposed: Weights,
        linear: Linear,
        masks: Masks,
        d_carry: Float[Array, "B H"],
        d_y: Float[Array, "B H"],
    ) -> tuple[Float[Array, "B H"], Float[Array, "B GH"]]:
        """Takes cotangents back through a step."""
        return pull_gru(transposed, linear, masks, d_carry, d_y, self.reset_after)

    @nn.nowrap
    def pull_recurrent(
        self,
        transposed: Weights,
        linear: Linear,
        masks: Masks,
        d_z: Float[Array, "B GH"],
    ) -> Float[Array, "B H"]:
        """Takes the cotangent of z back to the h before the step."""
        return pull_gru_recurrent(transposed, linear, masks, d_z, self.reset_after)

    @nn.nowrap
    def pull_weights(
        self,
        linear: Linear,
        masks: Masks,
        hs: Float[Array, "*batch H"],
        d_zs: Float[Array, "*batch GH"],
    ) -> Weights:
        """Returns the cotangents of the weights that `step` uses."""
        _, reset = linear.rest
        if self.reset_after:
            d_us = _reset_candidate(d_zs, reset)
            kernel = kernel_gradient(hs, masks.recurrent, d_us)
            bias = d_us[..., -self.units :].sum((0, 1))
            return {"recurrent_kernel": kernel, "recurrent_bias": bias}
        mask_zr, mask_n = _split_mask(masks.recurrent)
        d_zr, d_n = jnp.split(d_zs, [2 * self.units], axis=-1)
        kernels = (
            kernel_gradient(hs, mask_zr, d_zr),
            kernel_gradient(reset.astype(hs.dtype) * hs, mask_n, d_n),
        )
        return {"recurrent_kernel": jnp.concatenate(kernels, axis=-1)}
