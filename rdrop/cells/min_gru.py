"""MinGRU: a recurrence without a matrix product on the state.

It is affine in h, so that an associative scan runs a sequence in O(log T) steps. Noise
on the update, the gate and the state keeps it affine.

References:
    [1] Feng et al. Were RNNs all we needed? 2024. arXiv:2410.01201.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells.masking import (
    Weights,
    mask_gates,
    mask_units,
    next_hidden,
    next_state,
)
from rdrop.cells.recurrence import Parameters, Recurrence
from rdrop.cells.tape import Tape
from rdrop.dropout import Masks
from rdrop.noise import Add
from rdrop.sites import Site


@dataclasses.dataclass(frozen=True)
class MinGRU(Recurrence):
    """Minimal gated recurrent unit [1]. Its carry is h.

        z = m_z * sigmoid(a_z)                      a = (m_x * x) W + b
        h_new = (1 - z) * h + z * (m_g * a_n)

    The linear form of the paper, without its log-space variant. There is no matrix
    product on h, so the sites `recurrent` and `recurrent_weights` do not exist.

    Parameters:
        kernel [D, 2H] glorot uniform, bias [2H] zero, in the order z, n.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, bias_init, use_bias: as in `Recurrence`.

    Raises:
        ValueError, TypeError: as `Recurrence`.
    """

    INITS: ClassVar[tuple[str, ...]] = ("kernel_init", "bias_init")

    GATES: ClassVar[int] = 2

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        sites = super().sites(features)
        del sites["recurrent"], sites["recurrent_weights"]
        return sites | {"update": Site(1, self.units), "gates": Site(1, self.units)}

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        params = super().parameters(features)
        del params["recurrent_kernel"]
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
        factor, term = _new_state(z.astype(carry.dtype), masks)
        return next_hidden(factor * carry + term, carry, masks.hidden_state)

    def affine(
        self, z: Float[Array, "*batch GH"], masks: Masks
    ) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
        """Returns (a, b) such that the next step sees a * h + b."""
        factor, term = _new_state(z, masks)
        mask = masks.hidden_state
        one, zero = jnp.ones_like(factor), jnp.zeros_like(term)
        if not isinstance(mask, Add):
            factor = next_state(factor, one, mask)
        return factor, next_state(term, zero, mask)


def _new_state(a, masks):
    """Returns (factor, term) such that h_new = factor * h + term."""
    a_z, n = jnp.split(a, 2, axis=-1)
    (z,) = mask_gates((jax.nn.sigmoid(a_z),), masks.gates)
    return 1 - z, z * mask_units(n, masks.update)
