"""Minimal gated recurrences: gates that depend on the inputs alone.

References:
    [1] Feng et al. Were RNNs all we needed? 2024. arXiv:2410.01201; their code,
        BorealisAI/minRNNs, models/minRNNs.py.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells.affine import Affine, Pair
from rdrop.cells.masking import Weights, mask_gates, mask_units
from rdrop.cells.recurrence import check_function
from rdrop.cells.tape import Activation
from rdrop.dropout import Masks
from rdrop.sites import Site


def positive(x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """Returns x + 0.5 if x is 0 or more, else sigmoid(x): g in appendix B of [1]."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def linear(x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """Returns x."""
    return x


@dataclasses.dataclass(frozen=True)
class Minimal(Affine):
    """Base of the minimal recurrences: a candidate, and gates that mix it with h.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, bias_init, use_bias: as in `Recurrence`.
        activation: of the candidate; `linear` in section 3 of [1], `positive` in its
            log-space form and its code.

    Raises:
        ValueError: as `Recurrence`.
        TypeError: as `Recurrence`; or an activation that is not a function.
    """

    activation: Activation = linear

    def __post_init__(self):
        super().__post_init__()
        check_function("activation", self.activation)

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return super().sites(features) | {"gates": Site(self.GATES - 1, self.units)}


@dataclasses.dataclass(frozen=True)
class MinGRU(Minimal):
    """Minimal gated recurrent unit [1]. Its carry is h.

        z = m_z * sigmoid(a_z)                      a = (m_x * x) W + b
        h_new = (1 - z) * h + z * (m_g * activation(a_n))

    [1] trains in log space, with a positive candidate. There the result is the same;
    here it is a scan of products, which stays finite as the gate is below 1.

    Parameters:
        kernel [D, 2H] glorot uniform, bias [2H] zero, in the order z, n.

    Attributes:
        units, dtype, param_dtype, activation: as in `Minimal`.
        kernel_init, bias_init, use_bias: as in `Recurrence`.

    Raises:
        ValueError, TypeError: as `Minimal`.
    """

    GATES: ClassVar[int] = 2

    def coefficients(
        self, weights: Weights, z: Float[Array, "*batch GH"], masks: Masks
    ) -> Pair:
        """Returns 1 - z and z * candidate; see `Affine.coefficients`."""
        gate, candidate = jnp.split(z, 2, axis=-1)
        (gate,) = mask_gates((jax.nn.sigmoid(gate),), masks.gates)
        return 1 - gate, gate * mask_units(self.activation(candidate), masks.update)


@dataclasses.dataclass(frozen=True)
class MinLSTM(Minimal):
    """Minimal long short-term memory [1]. Its carry is h; it has no other memory.

        f, i = sigmoid(a_f), sigmoid(a_i)           a = (m_x * x) W + b
        f, i = m_f * f / (f + i), m_i * i / (f + i)
        h_new = f * h + i * (m_g * activation(a_n))

    The gates are normalised, so that f + i = 1 without noise.

    Parameters:
        kernel [D, 3H] glorot uniform, bias [3H] zero, in the order f, i, n.

    Attributes:
        units, dtype, param_dtype, activation: as in `Minimal`.
        kernel_init, bias_init, use_bias: as in `Recurrence`.

    Raises:
        ValueError, TypeError: as `Minimal`.
    """

    GATES: ClassVar[int] = 3

    def coefficients(
        self, weights: Weights, z: Float[Array, "*batch GH"], masks: Masks
    ) -> Pair:
        """Returns f and i * candidate; see `Affine.coefficients`."""
        f, i, candidate = jnp.split(z, 3, axis=-1)
        # f / (f + i) and i / (f + i), without a quotient of two small numbers.
        odds = jax.nn.softplus(-f) - jax.nn.softplus(-i)
        gates = jax.nn.sigmoid(-odds), jax.nn.sigmoid(odds)
        f, i = mask_gates(gates, masks.gates)
        return f, i * mask_units(self.activation(candidate), masks.update)
