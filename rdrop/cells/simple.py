"""Simple: the recurrent network of Elman.

References:
    [1] Elman. Finding structure in time. Cognitive Science 14(2), 1990.
"""

from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from rdrop.cells.base import Cell, Linear
from rdrop.cells.masking import Weights, masked_matmul, put_out, take_back
from rdrop.dropout import Masks


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
    return linear_simple(z, h, masks, weights)[0]


def linear_simple(
    z: Float[Array, "*batch H"],
    h: Float[Array, "*batch H"],
    masks: Masks,
    weights: Weights,
) -> tuple[tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]], Linear]:
    """Advances by one step, and takes the derivative there: slopes = 1 - h_new^2.

    Args:
        z: the input's share of the pre-activation; a time axis may precede the batch.
        h: the state.
        masks: of this step, or of all.
        weights: as in `simple`.

    Returns:
        What `simple` does, and the derivative.
    """
    kernel = weights["recurrent_kernel"]
    recurred = masked_matmul(h.astype(kernel.dtype), masks.recurrent, kernel)
    h_new = nn.tanh((z + recurred).astype(h.dtype))
    slopes = (1 - h_new * h_new).astype(z.dtype)
    return put_out(h_new, h, masks.hidden_state), Linear(slopes)


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

    @nn.nowrap
    def linearise(
        self,
        weights: Weights,
        carry: Float[Array, "*batch H"],
        z: Float[Array, "*batch H"],
        masks: Masks,
    ) -> tuple[tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]], Linear]:
        """Returns what `step` does, and its derivative."""
        return linear_simple(z, carry, masks, weights)

    @nn.nowrap
    def pull(
        self,
        transposed: Weights,
        linear: Linear,
        masks: Masks,
        d_carry: Float[Array, "B H"],
        d_y: Float[Array, "B H"],
    ) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
        """Takes cotangents back through a step."""
        d_new, d_old = take_back(d_carry, d_y, masks.hidden_state)
        return d_old, d_new.astype(linear.slopes.dtype) * linear.slopes
