"""MinGRU: a recurrence without a matrix product on the state.

It is affine in h, so a whole sequence takes O(log T) steps by an associative scan;
noise on the update, the gate and the state keeps it affine.

References:
    [1] Feng et al. Were RNNs all we needed? 2024. arXiv:2410.01201.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from rdrop.cells.base import Cell, Parameters
from rdrop.cells.masking import Weights, hand_on, mask_gates, mask_units, put_out
from rdrop.dropout import Masks
from rdrop.noise import Mix, Site


def min_gru(
    a: Float[Array, "*batch GH"], masks: Masks
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Returns the factor and the term of one step of a minGRU [1], or of all steps.

        z = m_z * sigmoid(a_z)                      a = (m_x * x) W + b
        h_new = (1 - z) * h + z * (m_g * a_n)

    Args:
        a: the pre-activations, in the order z, n.
        masks: `gates` and `update`, (B, 1, U), or (T, B, 1, U) for all steps.

    Returns:
        (1 - z, z * m_g * a_n).
    """
    z, n = jnp.split(a, 2, axis=-1)
    (z,) = mask_gates((nn.sigmoid(z),), masks.gates)
    return 1 - z, z * mask_units(n, masks.update)


class MinGRUCell(Cell):
    """Minimal gated recurrent unit [1]; see `min_gru`. Its carry is h.

    The linear form of the paper, without its log-space variant. There is no matrix
    product on h, so the sites `recurrent` and `recurrent_weights` do not exist.

    Parameters:
        kernel [D, 2H] glorot uniform, bias [2H] zero, in the order z, n.

    Attributes:
        units, dtype, param_dtype: as in `Cell`.
    """

    GATES: ClassVar[int] = 2

    @nn.nowrap
    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        sites = super().sites(features)
        del sites["recurrent"], sites["recurrent_weights"]
        return sites | {"update": Site(1, self.units), "gates": Site(1, self.units)}

    @nn.nowrap
    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        params = super().parameters(features)
        del params["recurrent_kernel"]
        return params

    @nn.nowrap
    def step(
        self,
        weights: Weights,
        carry: Float[Array, "*batch H"],
        z: Float[Array, "*batch GH"],
        masks: Masks,
    ) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
        """Advances the carry by one projected input; returns it and y, unmasked.

        With a time axis in front of all arguments it does each step by itself.
        """
        factor, term = min_gru(z.astype(carry.dtype), masks)
        h_new = factor * carry + term
        return put_out(h_new, carry, masks.hidden_state)

    @nn.nowrap
    def affine(
        self, z: Float[Array, "T B GH"], masks: Masks
    ) -> tuple[Float[Array, "T B H"], Float[Array, "T B H"]]:
        """Returns (a, b) of all steps, such that the state handed on is a * h + b."""
        factor, term = min_gru(z, masks)
        mask = masks.hidden_state
        if not isinstance(mask, Mix):
            return mask_units(factor, mask), mask_units(term, mask)
        old = jnp.ones_like(factor)
        return hand_on(factor, old, mask), hand_on(term, jnp.zeros_like(term), mask)
