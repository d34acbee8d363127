"""sLSTM: the LSTM of xLSTM with exponential input gates.

References:
    [1] Beck et al. xLSTM: extended long short-term memory. NeurIPS 2024.
        arXiv:2405.04517, equations 8 to 17.
    [2] NX-AI/xlstm, xlstm/blocks/slstm/src/vanilla/slstm.py and slstm/cell.py.
"""

import dataclasses
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells.masking import (
    Weights,
    mask_gates,
    mask_units,
    next_hidden,
    next_memory,
    next_state,
)
from rdrop.cells.recurrence import Recurrence, widened
from rdrop.cells.tape import Tape
from rdrop.dropout import Masks
from rdrop.noise import Mix
from rdrop.sites import Site

# c, its normaliser n, the logarithm m of their common scale, and h.
SLSTMCarry: TypeAlias = tuple[
    Float[Array, "*batch H"],
    Float[Array, "*batch H"],
    Float[Array, "*batch H"],
    Float[Array, "*batch H"],
]
LOWEST = -1e30  # m before the first step: the scale is then set by that step


@dataclasses.dataclass(frozen=True)
class SLSTM(Recurrence):
    """LSTM with exponential input gates and a normalised memory [1].

        i, f, g, o = split(z + (m_h * h) U)         z = (m_x * x) W + b
        m_new = max(i, m + log sigmoid(f))
        i, f = exp(i - m_new), sigmoid(f) * exp(m - m_new)
        c_new = m_f * f * c + m_i * i * (m_g * tanh(g))
        n_new = f * n + i
        h_new = m_o * sigmoid(o) * c_new / n_new

    The true memory is exp(m) * c, and exp(m) * n its normaliser; m keeps both finite.
    Masks of gates act on the memory and not on its normaliser, which would be zero if
    both gates were dropped.

    The next step sees c_new and h_new multiplied by a mask, or mixed with the old
    state. c is mixed together with n and on the same scale. h_new is made from the
    multiplied c, but from the c before mixing, as in `LSTM`.

    The kernel of h is dense, which is one head of [2].

    Parameters (gate order i, f, g, o):
        kernel [D, 4H] glorot uniform, recurrent_kernel [H, 4H] orthogonal, bias [4H]
        zero. In [2] the recurrent kernel begins at zero, and the bias of f is spread
        over its units.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`. c, n and m are float32 or wider.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Recurrence`.

    Raises:
        ValueError, TypeError: as `Recurrence`.
    """

    GATES: ClassVar[int] = 4
    CARRY: ClassVar[tuple[str, ...]] = ("c", "n", "m", "h")

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return super().sites(features) | {
            "update": Site(1, self.units),
            "gates": Site(3, self.units),
            "cell_state": Site(1, self.units),
        }

    def initial_carry(self, *batch: int) -> SLSTMCarry:
        """Returns (c, n, m, h), [*batch, H] each: zeros, and m very low."""
        h = super().initial_carry(*batch)
        zeros = jnp.zeros_like(h, dtype=widened(self.param_dtype))
        return zeros, zeros, zeros + LOWEST, h

    def step(
        self,
        weights: Weights,
        carry: SLSTMCarry,
        z: Float[Array, "*batch GH"],
        masks: Masks,
        tape: Tape,
    ) -> tuple[SLSTMCarry, Float[Array, "*batch H"]]:
        """Advances (c, n, m, h) by one step; see `Recurrence.step`."""
        c, n, m, h = carry
        a = z + tape.matmul(h, weights["recurrent_kernel"], masks.recurrent)
        a_i, a_f, a_g, a_o = jnp.split(tape.save(a.astype(c.dtype)), 4, axis=-1)
        kept = m - jax.nn.softplus(-a_f)
        m_new = jnp.maximum(a_i, kept)
        i, f, o = jnp.exp(a_i - m_new), jnp.exp(kept - m_new), jax.nn.sigmoid(a_o)
        n_new = f * n + i
        i, f, o = mask_gates((i, f, o), masks.gates)
        c_new = f * c + i * mask_units(jnp.tanh(a_g), masks.update)
        mask, old = masks.cell_state, jnp.exp(m - m_new)
        c_next, seen = next_memory(c_new, old * c, mask)
        n_next = next_state(n_new, old * n, mask if isinstance(mask, Mix) else None)
        h_new = (o * seen / n_new).astype(h.dtype)
        h_next, y = next_hidden(h_new, h, masks.hidden_state)
        return (c_next, n_next, m_new, h_next), y
