"""LSTM: long short-term memory, plain and with layer normalisation.

References:
    [1] Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997.
    [2] Gers, Schmidhuber, Cummins. Learning to forget: continual prediction with LSTM.
        Neural Computation 12(10), 2000.
    [3] Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
        activations. ICLR 2017. arXiv:1606.01305; their code, recurrent.py.
    [4] Ba, Kiros, Hinton. Layer normalization. 2016. arXiv:1607.06450.
    [5] TensorFlow 1, tf.contrib.rnn.LayerNormBasicLSTMCell.
"""

from typing import ClassVar, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.initializers import ones_init, zeros_init
from jaxtyping import Array, Float, Key

from rdrop.cells.base import Cell, Linear, Parameters
from rdrop.cells.masking import (
    Weights,
    hand_back,
    hand_on,
    mask_gates,
    mask_units,
    masked_matmul,
    put_out,
    take_back,
)
from rdrop.dropout import Masks
from rdrop.noise import Mix, Site

LSTMCarry: TypeAlias = tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]
EPSILON = 1e-12


def lstm(
    z: Float[Array, "B GH"], carry: LSTMCarry, masks: Masks, weights: Weights
) -> tuple[LSTMCarry, Float[Array, "B H"]]:
    """Advances an LSTM [1, 2] by one step.

        i, f, g, o = split(z + (m_h * h) U)         z = (m_x * x) W + b
        i, f, o = m_i * sigmoid(i), m_f * sigmoid(f), m_o * sigmoid(o)
        c_new = f * c + i * (m_g * tanh(g))
        h_new = o * tanh(c_new)

    c_new and h_new are handed on multiplied by a mask, or mixed with the old state. A
    multiplied c is also the one that h_new is made from; a mixed one is not [3]. A
    mixed h is also the output; a multiplied one is not.

    Args:
        z: the input's share of the pre-activations, gates in the order i, f, g, o.
        carry: (c, h); each keeps its dtype, and gates and memory have that of c.
        masks: of this step, (B, G, U).
        weights: `recurrent_kernel`.

    Returns:
        The new carry, and the output.
    """
    gates = _activate(_add_recurrent(z, carry, masks, weights))
    result, _ = _remember(_mask(gates, masks), carry, masks)
    return result


def linear_lstm(
    z: Float[Array, "*batch GH"], carry: LSTMCarry, masks: Masks, weights: Weights
) -> tuple[tuple[LSTMCarry, Float[Array, "*batch H"]], Linear]:
    """Advances an LSTM by one step, and takes its derivative there.

    Per unit, i, f, g, o before their masks, s = tanh of the memory that is seen:

        slopes = m_g g m_i i (1 - i),  c m_f f (1 - f),  m_i i m_g (1 - g^2),
                 s m_o o (1 - o)
        rest   = m_f f,  m_o o (1 - s^2)

    Args:
        z: the input's share of the pre-activations; a time axis may precede the batch.
        carry: (c, h).
        masks: of this step, or of all.
        weights: as in `lstm`.

    Returns:
        What `lstm` does, and the derivative.
    """
    gates = _activate(_add_recurrent(z, carry, masks, weights))
    masked = _mask(gates, masks)
    result, seen = _remember(masked, carry, masks)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i_m, f_m, g_m, o_m = masked
    by_gate = (
        g_m * i_m * (1 - i),
        carry[0] * f_m * (1 - f),
        i_m * mask_units(1 - g * g, masks.update),
        seen * o_m * (1 - o),
    )
    slopes = jnp.concatenate(by_gate, axis=-1).astype(z.dtype)
    return result, Linear(slopes, (f_m, o_m * (1 - seen * seen)))


def pull_lstm(
    linear: Linear, masks: Masks, d_carry: LSTMCarry, d_y: Float[Array, "B H"]
) -> tuple[LSTMCarry, Float[Array, "B GH"]]:
    """Takes cotangents back through a step of `lstm`; see `Cell.pull`."""
    d_c, d_h = d_carry
    forget, expose = linear.rest
    d_new, d_old = take_back(d_h, d_y, masks.hidden_state)
    d_new = d_new.astype(d_c.dtype)
    d_seen = d_new * expose
    if isinstance(masks.cell_state, Mix):
        d_memory, d_kept = hand_back(d_c, masks.cell_state)
        d_memory = d_memory + d_seen
    else:
        d_memory, d_kept = hand_back(d_c + d_seen, masks.cell_state)
    d_gates = jnp.concatenate([d_memory, d_memory, d_memory, d_new], axis=-1)
    d_z = d_gates.astype(linear.slopes.dtype) * linear.slopes
    return (d_memory * forget + d_kept, d_old), d_z


def layer_norm_lstm(
    z: Float[Array, "B GH"], carry: LSTMCarry, masks: Masks, weights: Weights
) -> tuple[LSTMCarry, Float[Array, "B H"]]:
    """Advances an LSTM whose gates and memory are normalised [4], as TensorFlow 1 [5].

        i, f, g, o = LN_i(..), LN_f(..) + 1, LN_g(..), LN_o(..)   of  z + (m_h * h) U
        c_new = LN_c(f * c + i * (m_g * tanh(g)))                 rest as in `lstm`

    Each LN normalises over the units of its gate, with epsilon 1e-12, gain and shift of
    its own. The c that is carried is the normalised one.

    Args:
        z: (m_x * x) W, without a bias, gates in the order i, f, g, o.
        carry: as in `lstm`.
        masks: as in `lstm`.
        weights: `recurrent_kernel`, `gain` and `shift` [4H] of the gates, `cell_gain`
            and `cell_shift` [H].
    """
    z = _add_recurrent(z, carry, masks, weights)
    gates = z.reshape(*z.shape[:-1], 4, -1)
    gain, shift = (weights[n].reshape(1, 4, -1) for n in ("gain", "shift"))
    forget_one = jnp.array([0, 1, 0, 0], z.dtype).reshape(1, 4, 1)
    gates = _activate((_normalise(gates, gain, shift) + forget_one).reshape(z.shape))

    def normalise_memory(c):
        return _normalise(c, weights["cell_gain"][None], weights["cell_shift"][None])

    result, _ = _remember(_mask(gates, masks), carry, masks, normalise_memory)
    return result


def _add_recurrent(z, carry, masks, weights):
    """The pre-activations, in the dtype of the memory."""
    c, h = carry
    kernel = weights["recurrent_kernel"]
    recurred = masked_matmul(h.astype(kernel.dtype), masks.recurrent, kernel)
    return (z + recurred).astype(c.dtype)


def _activate(z):
    """One tanh for all gates: sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    half = np.repeat([0.5, 0.5, 1, 0.5], z.shape[-1] // 4)
    half = jnp.asarray(half, z.dtype).reshape((1,) * (z.ndim - 1) + half.shape)
    return half * nn.tanh(half * z) + (1 - half)


def _mask(gates, masks):
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, o = mask_gates((i, f, o), masks.gates)
    return i, f, mask_units(g, masks.update), o


def _remember(gates, carry, masks, normalise=lambda c: c):
    """From the masked gates to (the new carry, the output), and the memory seen."""
    c, h = carry
    i, f, g, o = gates
    c_new = normalise(f * c + i * g)
    c_next = hand_on(c_new, c, masks.cell_state)
    seen = nn.tanh(c_new if isinstance(masks.cell_state, Mix) else c_next)
    h_next, y = put_out((o * seen).astype(h.dtype), h, masks.hidden_state)
    return ((c_next, h_next), y), seen


def _normalise(x, gain, shift):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    normal = (x - mean) / jnp.sqrt(variance + EPSILON)
    return normal * gain.astype(x.dtype) + shift.astype(x.dtype)


class LSTMCell(Cell):
    """Long short-term memory [1, 2]; see `lstm`.

    Parameters (Keras layout and gate order i, f, g, o):
        kernel [D, 4H] glorot uniform, recurrent_kernel [H, 4H] orthogonal, bias [4H]
        one for the forget gate and zero elsewhere.

    The carry (c, h) is that of flax; c is kept in `param_dtype`, h in `dtype`.

    Attributes:
        units, dtype, param_dtype: as in `Cell`.

    Example:
        >>> import jax
        >>> cell = LSTMCell(8)
        >>> x = jnp.ones((2, 3))
        >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
        >>> params = cell.init(jax.random.key(0), carry, x)
        >>> carry, y = cell.apply(params, carry, x)
        >>> y.shape
        (2, 8)
    """

    GATES: ClassVar[int] = 4

    @nn.nowrap
    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return super().sites(features) | {
            "update": Site(1, self.units),
            "gates": Site(3, self.units),
            "cell_state": Site(1, self.units),
        }

    @nn.nowrap
    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        bias = {"bias": (_forget_one, (4 * self.units,))}
        return super().parameters(features) | bias

    @nn.nowrap
    def step(
        self, weights: Weights, carry: LSTMCarry, z: Float[Array, "B GH"], masks: Masks
    ) -> tuple[LSTMCarry, Float[Array, "B H"]]:
        """Advances the carry by one projected input; returns it and y, unmasked."""
        return lstm(z, carry, masks, weights)

    @nn.nowrap
    def linearise(
        self,
        weights: Weights,
        carry: LSTMCarry,
        z: Float[Array, "*batch GH"],
        masks: Masks,
    ) -> tuple[tuple[LSTMCarry, Float[Array, "*batch H"]], Linear]:
        """Returns what `step` does, and its derivative."""
        return linear_lstm(z, carry, masks, weights)

    @nn.nowrap
    def pull(
        self,
        transposed: Weights,
        linear: Linear,
        masks: Masks,
        d_carry: LSTMCarry,
        d_y: Float[Array, "B H"],
    ) -> tuple[LSTMCarry, Float[Array, "B GH"]]:
        """Takes cotangents back through a step."""
        return pull_lstm(linear, masks, d_carry, d_y)

    @nn.nowrap
    def initialize_carry(
        self, rng: Key[Array, ""], input_shape: tuple[int, ...]
    ) -> LSTMCarry:
        """Returns (c, h) of zeros for inputs of `input_shape`; `rng` is not used."""
        h = super().initialize_carry(rng, input_shape)
        return jnp.zeros(h.shape, self.param_dtype), h


class LayerNormLSTMCell(LSTMCell):
    """Long short-term memory with layer normalisation [4, 5]; see `layer_norm_lstm`.

    Parameters (gate order i, f, g, o):
        kernel [D, 4H] glorot uniform, recurrent_kernel [H, 4H] orthogonal; gain [4H]
        and cell_gain [H] one, shift [4H] and cell_shift [H] zero.

    Attributes:
        units, dtype, param_dtype: as in `Cell`.
    """

    @nn.nowrap
    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        kernels = super().parameters(features)
        return {name: kernels[name] for name in ("kernel", "recurrent_kernel")} | {
            "gain": (ones_init(), (4 * self.units,)),
            "shift": (zeros_init(), (4 * self.units,)),
            "cell_gain": (ones_init(), (self.units,)),
            "cell_shift": (zeros_init(), (self.units,)),
        }

    @nn.nowrap
    def project(
        self, weights: Weights, x: Float[Array, "*batch D"], masks: Masks
    ) -> Float[Array, "*batch GH"]:
        """Returns (m_x * x) W, of one step or of all steps at once."""
        kernel = weights["kernel"]
        return masked_matmul(x.astype(kernel.dtype), masks.inputs, kernel)

    @nn.nowrap
    def step(
        self, weights: Weights, carry: LSTMCarry, z: Float[Array, "B GH"], masks: Masks
    ) -> tuple[LSTMCarry, Float[Array, "B H"]]:
        """Advances the carry by one projected input; returns it and y, unmasked."""
        return layer_norm_lstm(z, carry, masks, weights)


def _forget_one(key, shape, dtype):
    units = shape[0] // 4
    return jnp.zeros(shape, dtype).at[units : 2 * units].set(1)
