"""Cells: one step of a recurrence, as the papers write it.

The equations are pure functions of weights, carry and masks. The linen modules own the
parameters and turn a `Dropout` and explicit keys into masks.

Symbols:
    B batch, D features, H units, G gates (4: input i, forget f, candidate g, output o);
    W kernel [D, G H], U recurrent_kernel [H, G H], b bias [G H].

References:
    [1] Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997.
    [2] Gers, Schmidhuber, Cummins. Learning to forget: continual prediction with LSTM.
        Neural Computation 12(10), 2000.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import glorot_uniform, orthogonal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from rdrop.dropout import Dropout, Masks, Site, resolve
from rdrop.keys import StreamKeys

Carry: TypeAlias = tuple[Float[Array, "B H"], Float[Array, "B H"]]


class Weights(NamedTuple):
    """The parameters of a cell in its compute dtype: W [D, GH], U [H, GH], b [GH]."""

    kernel: Float[Array, "D GH"]
    recurrent_kernel: Float[Array, "H GH"]
    bias: Float[Array, "GH"]


def masked_matmul(
    x: Float[Array, "*batch D"],
    mask: Float[Array, "..."] | None,
    kernel: Float[Array, "D GH"],
) -> Float[Array, "*batch GH"]:
    """Multiplies (m * x) by a fused kernel, with one mask for all gates or one a gate.

    Args:
        x: left operand; a leading time axis may precede the batch.
        mask: (B, 1, D) or (B, G, D), or either after a time axis; None is no mask.
        kernel: the gates' kernels side by side.
    """
    if mask is None:
        return x @ kernel
    mask = mask.reshape((1,) * (x.ndim + 1 - mask.ndim) + mask.shape).astype(x.dtype)
    masked = x[..., None, :] * mask
    gates = mask.shape[-2]
    if gates == 1:
        return masked[..., 0, :] @ kernel
    per_gate = kernel.reshape(kernel.shape[0], gates, -1)
    projected = jnp.einsum("...gd,dgh->...gh", masked, per_gate)
    return projected.reshape(*x.shape[:-1], kernel.shape[1])


def lstm_step(
    z: Float[Array, "B GH"],
    carry: Carry,
    masks: Masks,
    recurrent_kernel: Float[Array, "H GH"],
) -> Carry:
    """Advances the memory and the output of an LSTM [1, 2] by one step.

        i, f, g, o = split(z + (m_h * h) U)         z = (m_x * x) W + b
        c' = sigmoid(f) * c + sigmoid(i) * (m_g * tanh(g))
        h' = sigmoid(o) * tanh(c')

    Gates and memory are computed in the dtype of c, the matrix product in that of U.

    Args:
        z: the input's share of the pre-activations, gates in the order i, f, g, o.
        carry: (c, h); each keeps its dtype.
        masks: `recurrent` (B, 1, H) or (B, 4, H), and `update` (B, 1, H); others are
            not read.
        recurrent_kernel: U.
    """
    c, h = carry
    hidden = h.astype(recurrent_kernel.dtype)
    z = z + masked_matmul(hidden, masks.recurrent, recurrent_kernel)
    i, f, g, o = jnp.split(z.astype(c.dtype), 4, axis=-1)
    g = mask_units(nn.tanh(g), masks.update)
    c_new = nn.sigmoid(f) * c + nn.sigmoid(i) * g
    h_new = nn.sigmoid(o) * nn.tanh(c_new)
    return c_new, h_new.astype(h.dtype)


def mask_units(
    value: Float[Array, "*batch H"], mask: Float[Array, "..."] | None
) -> Float[Array, "*batch H"]:
    """Multiplies by a mask (B, 1, H), or (T, B, 1, H) where `value` has a time axis."""
    if mask is None:
        return value
    mask = jnp.squeeze(mask, -2).astype(value.dtype)
    return value * mask.reshape((1,) * (value.ndim - mask.ndim) + mask.shape)


class LSTMCell(nn.RNNCellBase):
    """Long short-term memory [1, 2] with noise on x, h, g and y; see `lstm_step`.

    Parameters (Keras layout and gate order i, f, g, o):
        kernel [D, 4H] glorot uniform, recurrent_kernel [H, 4H] orthogonal, bias [4H]
        one for the forget gate and zero elsewhere.

    The carry (c, h) is that of flax; c is kept in `param_dtype`, h in `dtype`.

    Attributes:
        units: H, the size of the memory and of the output.
        dtype: compute dtype of the matrix products; by default that of inputs and
            parameters together.
        param_dtype: dtype of the parameters.

    Example:
        >>> cell = LSTMCell(8)
        >>> x = jnp.ones((2, 3))
        >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
        >>> params = cell.init(jax.random.key(0), carry, x)
        >>> carry, y = cell.apply(params, carry, x)
        >>> y.shape
        (2, 8)
    """

    units: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return {
            "inputs": Site(gates=4, units=features),
            "outputs": Site(gates=1, units=self.units),
            "recurrent": Site(gates=4, units=self.units),
            "update": Site(gates=1, units=self.units),
        }

    @nn.compact
    def weights(self, x: Float[Array, "*batch D"]) -> Weights:
        """Returns the parameters for inputs like `x`, in the compute dtype.

        Raises:
            ValueError: the parameters were made for another number of features.
        """
        features, gates = x.shape[-1], 4 * self.units
        if self.has_variable("params", "kernel"):
            made_for: int = self.get_variable("params", "kernel").shape[0]
            if made_for != features:
                raise ValueError(
                    f"The inputs must have {made_for} features, as the parameters do, "
                    f"got shape {x.shape}."
                )
        params = (
            self.param("kernel", glorot_uniform(), (features, gates), self.param_dtype),
            self.param(
                "recurrent_kernel", orthogonal(), (self.units, gates), self.param_dtype
            ),
            self.param("bias", _forget_one, (gates,), self.param_dtype),
        )
        dtype = nn.dtypes.canonicalize_dtype(x, *params, dtype=self.dtype)
        return Weights(*(p.astype(dtype) for p in params))

    @nn.nowrap
    def project(
        self, weights: Weights, x: Float[Array, "*batch D"], masks: Masks
    ) -> Float[Array, "*batch GH"]:
        """Returns (m_x * x) W + b, of one step or of all steps at once."""
        z = masked_matmul(x.astype(weights.kernel.dtype), masks.inputs, weights.kernel)
        return z + weights.bias.reshape((1,) * (z.ndim - 1) + (-1,))

    @nn.nowrap
    def step(
        self, weights: Weights, carry: Carry, z: Float[Array, "B GH"], masks: Masks
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances the carry by one projected input; returns it and h', unmasked."""
        carry = lstm_step(z, carry, masks, weights.recurrent_kernel)
        return carry, carry[1]

    def __call__(
        self,
        carry: Carry,
        x: Float[Array, "B D"],
        dropout: Dropout | Masks | None = None,
        keys: StreamKeys | None = None,
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances one step.

        Args:
            carry: (c, h), the memory and the output of the previous step.
            x: the input of this step.
            dropout: where noise enters; or `Masks` of one step, used as they are.
            keys: explicit keys whose `step` is this one's absolute index. No keys, no
                noise: the expectation is evaluated.

        Returns:
            The new carry, and y = m_y * h'.

        Raises:
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, or a rate that does not broadcast.
        """
        if x.ndim != 2:
            raise ValueError(f"`x` must have the axes [B, D], got shape {x.shape}.")
        check_carry("carry", carry, (x.shape[0], self.units))
        weights = self.weights(x)
        masks = resolve(dropout, keys, self.sites(x.shape[1]), x.shape[0])
        carry, h = self.step(weights, carry, self.project(weights, x, masks), masks)
        return carry, mask_units(h, masks.outputs)

    @nn.nowrap
    def initialize_carry(
        self, rng: Key[Array, ""], input_shape: tuple[int, ...]
    ) -> Carry:
        """Returns a carry of zeros for inputs of `input_shape`; `rng` is not used."""
        shape = (*input_shape[:-1], self.units)
        c = jnp.zeros(shape, self.param_dtype)
        return c, jnp.zeros(shape, self.dtype or self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are not batch."""
        return 1


def check_carry(name: str, carry, shape: tuple[int, int]) -> None:
    """Raises a ValueError where `carry` is not a pair (c, h) of arrays of `shape`."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(carry)]
    if not isinstance(carry, tuple) or shapes != [shape, shape]:
        raise ValueError(
            f"`{name}` must be (c, h), each of shape [B, H] = {shape}, got {shapes}."
        )


def _forget_one(key, shape, dtype):
    units = shape[0] // 4
    return jnp.zeros(shape, dtype).at[units : 2 * units].set(1)
