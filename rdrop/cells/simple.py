"""The simple recurrent network of Elman.

References:
    [1] Elman. Finding structure in time. Cognitive Science 14(2), 1990.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells.masking import Weights, next_hidden
from rdrop.cells.recurrence import Recurrence, check_function
from rdrop.cells.tape import Activation, Tape
from rdrop.dropout import Masks


@dataclasses.dataclass(frozen=True)
class Simple(Recurrence):
    """Simple recurrence [1]. Its carry is h. It has no gates.

        h_new = tanh(z + (m_h * h) U)               z = (m_x * x) W + b

    The next step sees h_new mixed with the old state, and the mixture is the output; or
    it sees h_new multiplied by a mask, and the output is h_new.

    Parameters (Keras layout):
        kernel [D, H] glorot uniform, recurrent_kernel [H, H] orthogonal, bias [H] zero.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Recurrence`.
        activation: in place of tanh.

    Raises:
        ValueError: as `Recurrence`.
        TypeError: as `Recurrence`; or an activation that is not a function.
    """

    activation: Activation = jnp.tanh

    def __post_init__(self):
        super().__post_init__()
        check_function("activation", self.activation)

    def step(
        self,
        weights: Weights,
        carry: Float[Array, "*batch H"],
        z: Float[Array, "*batch H"],
        masks: Masks,
        tape: Tape,
    ) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
        """Advances h by one step; see `Recurrence.step`."""
        h = carry
        a = z + tape.matmul(h, weights["recurrent_kernel"], masks.recurrent)
        h_new = tape.activate(self.activation, a.astype(h.dtype))
        return next_hidden(h_new, h, masks.hidden_state)
