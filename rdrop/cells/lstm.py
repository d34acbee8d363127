"""LSTM: long short-term memory, plain and with layer normalisation.

References:
    [1] Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997.
    [2] Gers, Schmidhuber, Cummins. Learning to forget: continual prediction with LSTM.
        Neural Computation 12(10), 2000.
    [3] Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
        activations. ICLR 2017. arXiv:1606.01305; their code, recurrent.py.
    [4] Ba, Kiros, Hinton. Layer normalization. 2016. arXiv:1607.06450.
    [5] TensorFlow 1, tf.contrib.rnn.LayerNormBasicLSTMCell.
    [6] Sak, Senior, Beaufays. Long short-term memory based recurrent neural network
        architectures for large vocabulary speech recognition. 2014. arXiv:1402.1128;
        torch.nn.LSTM (`proj_size`).
"""

import dataclasses
from functools import partial
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform, ones, zeros
from jaxtyping import Array, Float

from rdrop.arguments import check_count
from rdrop.cells.masking import (
    Weights,
    broadcastable,
    mask_gates,
    mask_units,
    next_hidden,
    next_memory,
)
from rdrop.cells.recurrence import Parameters, Recurrence, check_function
from rdrop.cells.tape import SIGMOID, TANH, Activation, Tape
from rdrop.dropout import Masks
from rdrop.sites import Site

# c, and h, which has another size with a projection.
LSTMCarry: TypeAlias = tuple[Float[Array, "*batch H"], Float[Array, "*batch P"]]
EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class LSTM(Recurrence):
    """Long short-term memory [1, 2].

        i, f, g, o = split(z + (m_h * h) U)         z = (m_x * x) W + b
        i, f, o = m_i * sigmoid(i), m_f * sigmoid(f), m_o * sigmoid(o)
        c_new = f * c + i * (m_g * tanh(g))
        h_new = o * tanh(c_new)

    The next step sees c_new and h_new multiplied by a mask, or mixed with the old
    state. h_new is made from the multiplied c, but from the c before mixing [3]. A
    mixed h is also the output; a multiplied one is not.

    The carry (c, h) is the one of flax; c is kept in `param_dtype`, h in `dtype`. Gates
    have the dtype of c.

    With a projection [6], h_new is (o * tanh(c_new)) R, and H is its size in the sites
    `recurrent`, `hidden_state` and `outputs`.

    Parameters (Keras layout and gate order i, f, g, o):
        kernel [D, 4H] glorot uniform, recurrent_kernel [H, 4H] orthogonal, bias [4H]
        `forget_bias` for the forget gate and zero elsewhere; with a projection to P
        units, recurrent_kernel [P, 4H], and projection [H, P] glorot uniform.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, recurrent_init, bias_init, use_bias: as in `Recurrence`.
        forget_bias: initial bias of the forget gate; None to use `bias_init`.
        activation: of g and of c_new, in place of tanh.
        recurrent_activation: of the gates i, f, o, in place of the sigmoid.
        projection: P, the size of h and of the output; None for H.

    Raises:
        ValueError: as `Recurrence`; or a projection that is not an integer of 1 or
            more, or a `forget_bias` without biases.
        TypeError: as `Recurrence`; or an activation that is not a function.
    """

    forget_bias: float | None = 1.0
    activation: Activation = jnp.tanh
    recurrent_activation: Activation = jax.nn.sigmoid
    projection: int | None = None

    GATES: ClassVar[int] = 4
    CARRY: ClassVar[tuple[str, ...]] = ("c", "h")

    def __post_init__(self):
        super().__post_init__()
        for name in ("activation", "recurrent_activation"):
            check_function(name, getattr(self, name))
        if self.projection is not None:
            check_count("projection", self.projection)
        if not self.use_bias and self.forget_bias not in (None, 1):
            raise ValueError(
                "`forget_bias` must be 1 or None if `use_bias` is False, got "
                f"{self.forget_bias}."
            )

    @property
    def width(self) -> int:
        """The size of h and of the output."""
        return self.projection or self.units

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return super().sites(features) | {
            "update": Site(1, self.units),
            "gates": Site(3, self.units),
            "cell_state": Site(1, self.units),
        }

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        params = super().parameters(features)
        if self.use_bias and self.forget_bias is not None:
            initialise = partial(
                _with_forget_bias, self.bias_init or zeros, self.forget_bias
            )
            params["bias"] = (initialise, params["bias"][1])
        if self.projection is not None:
            kernel = self.kernel_init or glorot_uniform()
            params["projection"] = (kernel, (self.units, self.projection))
        return params

    def initial_carry(self, *batch: int) -> LSTMCarry:
        """Returns (c, h) of zeros, [*batch, H] and [*batch, P]."""
        h = super().initial_carry(*batch)
        return jnp.zeros((*batch, self.units), self.param_dtype), h

    def step(
        self,
        weights: Weights,
        carry: LSTMCarry,
        z: Float[Array, "*batch GH"],
        masks: Masks,
        tape: Tape,
    ) -> tuple[LSTMCarry, Float[Array, "*batch P"]]:
        """Advances (c, h) by one step; see `Recurrence.step`."""
        c, h = carry
        a = z + tape.matmul(h, weights["recurrent_kernel"], masks.recurrent)
        # Only normalised gates need their sum again in the backward pass.
        a = self.normalise_gates(weights, tape.save(a.astype(c.dtype)))
        i, f, g, o = self._activate(a, tape)
        i, f, o = mask_gates((i, f, o), masks.gates)
        c_new = f * c + i * mask_units(g, masks.update)
        c_new = self.normalise_memory(weights, c_new)
        c_next, seen = next_memory(c_new, c, masks.cell_state)
        h_new = o * tape.activate(self.activation, seen)
        if self.projection is not None:
            h_new = tape.matmul(h_new, weights["projection"])
        h_next, y = next_hidden(h_new.astype(h.dtype), h, masks.hidden_state)
        return (c_next, h_next), y

    def _activate(self, a, tape):
        """Returns i, f, g, o; the usual ones by a single tanh."""
        if self.activation in TANH and self.recurrent_activation in SIGMOID:
            return jnp.split(_activate(a, tape), 4, axis=-1)
        functions = [self.recurrent_activation] * 4
        functions[2] = self.activation
        parts = zip(functions, jnp.split(a, 4, axis=-1), strict=True)
        return [tape.activate(function, part) for function, part in parts]

    def normalise_gates(
        self, weights: Weights, a: Float[Array, "*batch GH"]
    ) -> Float[Array, "*batch GH"]:
        """Returns the pre-activations as the gates use them: here as they are."""
        return a

    def normalise_memory(
        self, weights: Weights, c: Float[Array, "*batch H"]
    ) -> Float[Array, "*batch H"]:
        """Returns the new memory as it is kept: here as it is."""
        return c


@dataclasses.dataclass(frozen=True)
class LayerNormLSTM(LSTM):
    """LSTM whose gates and memory are normalised [4], as in TensorFlow 1 [5].

        i, f, g, o = LN_i(..), LN_f(..) + b, LN_g(..), LN_o(..)   of  z + (m_h * h) U
        c_new = LN_c(f * c + i * (m_g * tanh(g)))                 rest as in `LSTM`

    Each LN normalises over the units of its gate, with epsilon 1e-12 and its own gain
    and shift. The c that is carried is the normalised one. z has no bias; b is
    `forget_bias`, a constant.

    Parameters (gate order i, f, g, o):
        kernel [D, 4H] glorot uniform, recurrent_kernel [H, 4H] orthogonal; gain [4H]
        and cell_gain [H] one, shift [4H] and cell_shift [H] zero.

    Attributes:
        units, dtype, param_dtype, kernel_init, recurrent_init: as in `Recurrence`.
        forget_bias, activation, recurrent_activation, projection: as in `LSTM`.

    Raises:
        ValueError: as `LSTM`; or `use_bias` is False.
        TypeError: as `LSTM`.
    """

    INITS: ClassVar[tuple[str, ...]] = ("kernel_init", "recurrent_init")

    def __post_init__(self):
        super().__post_init__()
        if not self.use_bias:
            raise ValueError(
                "`use_bias` must be True in LayerNormLSTM, whose shifts are its biases."
            )

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        kernels = super().parameters(features)
        del kernels["bias"]
        return kernels | {
            "gain": (ones, (4 * self.units,)),
            "shift": (zeros, (4 * self.units,)),
            "cell_gain": (ones, (self.units,)),
            "cell_shift": (zeros, (self.units,)),
        }

    def normalise_gates(
        self, weights: Weights, a: Float[Array, "*batch GH"]
    ) -> Float[Array, "*batch GH"]:
        """Returns the normalised pre-activations, a bias added for the forget gate."""
        shape = (1,) * (a.ndim - 1) + (4, self.units)
        gain, shift = (weights[name].reshape(shape) for name in ("gain", "shift"))
        gates = _normalise(a.reshape(*a.shape[:-1], 4, self.units), gain, shift)
        bias = jnp.array([0, self.forget_bias or 0, 0, 0], a.dtype)
        return (gates + bias.reshape(*shape[:-1], 1)).reshape(a.shape)

    def normalise_memory(
        self, weights: Weights, c: Float[Array, "*batch H"]
    ) -> Float[Array, "*batch H"]:
        """Returns the normalised memory."""
        names = "cell_gain", "cell_shift"
        return _normalise(c, *(broadcastable(weights[name], c) for name in names))


def _activate(a, tape):
    """Activates all gates by one tanh: sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    half = np.repeat([0.5, 0.5, 1, 0.5], a.shape[-1] // 4)
    half = broadcastable(jnp.asarray(half, a.dtype), a)
    return half * tape.tanh(half * a) + (1 - half)


def _normalise(x, gain, shift):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    normal = (x - mean) / jnp.sqrt(variance + EPSILON)
    return normal * gain.astype(x.dtype) + shift.astype(x.dtype)


def _with_forget_bias(init, value, key, shape, dtype):
    units = shape[0] // 4
    return init(key, shape, dtype).at[units : 2 * units].set(value)
