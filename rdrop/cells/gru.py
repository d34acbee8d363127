"""GRU: the gated recurrent unit, its reset gate before or after the matrix product.

References:
    [1] Cho et al. Learning phrase representations using RNN encoder-decoder for
        statistical machine translation. EMNLP 2014. arXiv:1406.1078.
    [2] Keras GRU (`reset_after`) and PyTorch GRU, for the form with the reset after.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros
from jaxtyping import Array, Float

from rdrop.cells.masking import (
    Weights,
    broadcastable,
    mask_gates,
    mask_units,
    next_hidden,
)
from rdrop.cells.recurrence import Parameters, Recurrence, check_function
from rdrop.cells.tape import SIGMOID, Activation, Tape
from rdrop.dropout import Masks
from rdrop.sites import Site


@dataclasses.dataclass(frozen=True)
class GRU(Recurrence):
    """Gated recurrent unit [1, 2]. Its carry is h.

        z, r = m_z * sigmoid(a_z + (m_h * h) U_z), m_r * sigmoid(a_r + (m_h * h) U_r)
        n = tanh(a_n + r * ((m_h * h) U_n + b_n))       reset after [2]
        n = tanh(a_n + (m_h * r * h) U_n)               reset before [1]
        h_new = z * h + (1 - z) * (m_g * n)             a = (m_x * x) W + b

    The h of the last line, the leak path, has no mask. The next step sees h_new mixed
    with the old state, and the mixture is the output; or it sees h_new multiplied by a
    mask, and the output is h_new. The gates have the dtype of h.

    Parameters (Keras layout and gate order z, r, n):
        kernel [D, 3H] glorot uniform, recurrent_kernel [H, 3H] orthogonal, bias [3H]
        zero; with the reset after, recurrent_bias [H] zero, of the candidate. Keras and
        PyTorch have recurrent biases of the other gates too, which add up with `bias`.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Recurrence`.
        reset_after: whether the reset gate multiplies the matrix product (Keras,
            PyTorch, flax) rather than the state (Cho et al.).
        activation: of the candidate, in place of tanh.
        recurrent_activation: of the gates z and r, in place of the sigmoid.

    Raises:
        ValueError: as `Recurrence`.
        TypeError: as `Recurrence`; or an activation that is not a function.
    """

    reset_after: bool = True
    activation: Activation = jnp.tanh
    recurrent_activation: Activation = jax.nn.sigmoid

    GATES: ClassVar[int] = 3

    def __post_init__(self):
        super().__post_init__()
        for name in ("activation", "recurrent_activation"):
            check_function(name, getattr(self, name))

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        own = {"update": Site(1, self.units), "gates": Site(2, self.units)}
        return super().sites(features) | own

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        params = super().parameters(features)
        if self.reset_after and self.use_bias:
            params["recurrent_bias"] = (self.bias_init or zeros, (self.units,))
        return params

    def step(
        self,
        weights: Weights,
        carry: Float[Array, "*batch H"],
        z: Float[Array, "*batch GH"],
        masks: Masks,
        tape: Tape,
    ) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
        """Advances h by one step; see `Recurrence.step`."""
        h, kernel = carry, weights["recurrent_kernel"]
        a_zr, a_n = jnp.split(z.astype(h.dtype), [2 * self.units], axis=-1)

        def activated(u_zr):
            a = a_zr + u_zr.astype(h.dtype)
            activate = self.recurrent_activation
            if activate in SIGMOID:
                gates = jnp.split(tape.sigmoid(a), 2, axis=-1)
            else:
                gates = [tape.activate(activate, p) for p in jnp.split(a, 2, axis=-1)]
            return mask_gates(gates, masks.gates)

        if self.reset_after:
            recurred = tape.matmul(h, kernel, masks.recurrent).astype(h.dtype)
            u_zr, u_n = jnp.split(recurred, [2 * self.units], axis=-1)
            if self.use_bias:
                bias = weights["recurrent_bias"].astype(h.dtype)
                u_n = u_n + broadcastable(bias, u_n)
            candidate = tape.save(u_n)
            update, reset = activated(u_zr)
            n = tape.activate(self.activation, a_n + reset * candidate)
        else:
            mask_zr, mask_n = _split_mask(masks.recurrent)
            kernel_zr, kernel_n = jnp.split(kernel, [2 * self.units], axis=-1)
            update, reset = activated(tape.matmul(h, kernel_zr, mask_zr))
            recurred = tape.matmul(reset * h, kernel_n, mask_n)
            n = tape.activate(self.activation, a_n + recurred.astype(h.dtype))
        h_new = update * h + (1 - update) * mask_units(n, masks.update)
        return next_hidden(h_new, h, masks.hidden_state)


def _split_mask(mask):
    """Returns the masks of the gates z and r, and the mask of the candidate."""
    if mask is None or mask.shape[-2] == 1:
        return mask, mask
    return mask[..., :2, :], mask[..., 2:, :]
