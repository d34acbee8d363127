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

from rdrop.cells.base import (
    Cell,
    Parameters,
    Weights,
    hand_on,
    mask_gates,
    mask_units,
    masked_matmul,
)
from rdrop.dropout import Masks
from rdrop.noise import Mix, Site


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
    kernel = weights["recurrent_kernel"]
    hidden, units = h.astype(kernel.dtype), h.shape[-1]
    a_zr, a_n = jnp.split(a.astype(h.dtype), [2 * units], axis=-1)
    if reset_after:
        recurred = masked_matmul(hidden, masks.recurrent, kernel).astype(h.dtype)
        u_zr, u_n = jnp.split(recurred, [2 * units], axis=-1)
        bias = weights["recurrent_bias"].astype(h.dtype)[None]
    else:
        mask_zr, mask_n = _split_mask(masks.recurrent)
        kernel_zr, kernel_n = jnp.split(kernel, [2 * units], axis=-1)
        u_zr = masked_matmul(hidden, mask_zr, kernel_zr).astype(h.dtype)
    z, r = jnp.split(nn.sigmoid(a_zr + u_zr), 2, axis=-1)
    z, r = mask_gates((z, r), masks.gates)
    if reset_after:
        n = nn.tanh(a_n + r * (u_n + bias))
    else:
        reset = (r * h).astype(kernel.dtype)
        n = nn.tanh(a_n + masked_matmul(reset, mask_n, kernel_n).astype(h.dtype))
    h_new = z * h + (1 - z) * mask_units(n, masks.update)
    h_next = hand_on(h_new, h, masks.hidden_state)
    return h_next, h_next if isinstance(masks.hidden_state, Mix) else h_new


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
