"""Simple: the recurrent network of Elman.

References:
    [1] Elman. Finding structure in time. Cognitive Science 14(2), 1990.
"""

from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from rdrop.cells.base import Cell, Weights, hand_on, masked_matmul
from rdrop.dropout import Masks
from rdrop.noise import Mix


def simple(
    z: Float[Array, "B H"], h: Float[Array, "B H"], masks: Masks, weights: Weights
) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
    """Advances a simple recurrence [1] by one step.

        h_new = tanh(z + (m_h * h) U)               z = (m_x * x) W + b

    h_new is handed on mixed with the old state, and then is the output too, or
    multiplied by a mask, and then is not.

    Args:
        z: the input's share of the pre-activation.
        h: the state; it keeps its dtype.
        masks: of this step, (B, G, U).
        weights: `recurrent_kernel`.

    Returns:
        The new state, and the output.
    """
    kernel = weights["recurrent_kernel"]
    recurred = masked_matmul(h.astype(kernel.dtype), masks.recurrent, kernel)
    h_new = nn.tanh((z + recurred).astype(h.dtype))
    h_next = hand_on(h_new, h, masks.hidden_state)
    return h_next, h_next if isinstance(masks.hidden_state, Mix) else h_new


class SimpleCell(Cell):
    """Simple recurrence [1]; see `simple`. Its carry is h. It has no gates.

    Parameters (Keras layout):
        kernel [D, H] glorot uniform, recurrent_kernel [H, H] orthogonal, bias [H] zero.

    Attributes:
        units, dtype, param_dtype: as in `Cell`.
    """

    GATES: ClassVar[int] = 1

    @nn.nowrap
    def step(
        self,
        weights: Weights,
        carry: Float[Array, "B H"],
        z: Float[Array, "B H"],
        masks: Masks,
    ) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
        """Advances the carry by one projected input; returns it and y, unmasked."""
        return simple(z, carry, masks, weights)
