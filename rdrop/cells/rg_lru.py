"""RG-LRU: the real-gated linear recurrent unit of Griffin.

References:
    [1] De et al. Griffin: mixing gated linear recurrences with local attention for
        efficient language models. 2024. arXiv:2402.19427.
    [2] google-deepmind/recurrentgemma, recurrentgemma/jax/layers.py.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells.affine import Affine, Pair
from rdrop.cells.masking import Weights, broadcastable, mask_gates, mask_units
from rdrop.cells.recurrence import Parameters
from rdrop.dropout import Masks
from rdrop.sites import Site

SHARPNESS = 8.0  # c in [1], section 2.4
RADII = (0.9, 0.999)  # of a at initialisation [2]
STEEPEST = 1000.0  # slope of the square root [2]


@dataclasses.dataclass(frozen=True)
class RGLRU(Affine):
    """Real-gated linear recurrent unit [1]. Its carry is h.

        r, i = m_r * sigmoid(a_r), m_i * sigmoid(a_i)       a = (m_x * x) W + b
        decay = exp(-8 * max(r, 0) * softplus(d))
        h_new = decay * h + sqrt(1 - decay^2) * i * (m_g * a_n)

    r is negative only with a negative mask, and the decay would then exceed 1.

    In [1] a linear layer comes before the unit, and the gates read its result; here the
    candidate a_n is a linear function of x like the gates, and with an identity for
    its block of W the unit is the one of [1]. The kernels of the gates are dense; those
    of [2] are block-diagonal. The code of [2] does not multiply the first input of a
    sequence by the square root, which the equation of [1] does.

    Parameters:
        kernel [D, 3H] glorot uniform, bias [3H] zero, in the order r, i, n; decay d [H]
        such that exp(-softplus(d)) is spread over a ring of radii 0.9 to 0.999 [2].

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, bias_init, use_bias: as in `Recurrence`.

    Raises:
        ValueError, TypeError: as `Recurrence`.
    """

    GATES: ClassVar[int] = 3
    WIDE: ClassVar[tuple[str, ...]] = ("decay",)

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return super().sites(features) | {"gates": Site(2, self.units)}

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        return super().parameters(features) | {"decay": (_decay, (self.units,))}

    def coefficients(
        self, weights: Weights, z: Float[Array, "*batch GH"], masks: Masks
    ) -> Pair:
        """Returns decay and scaled candidate; see `Affine.coefficients`."""
        r, i, candidate = jnp.split(z, 3, axis=-1)
        r, i = mask_gates((jax.nn.sigmoid(r), jax.nn.sigmoid(i)), masks.gates)
        speed = broadcastable(jax.nn.softplus(weights["decay"]).astype(z.dtype), z)
        log_decay = -SHARPNESS * jnp.maximum(r, 0) * speed
        scale = _sqrt(-jnp.expm1(2 * log_decay))
        return jnp.exp(log_decay), scale * i * mask_units(candidate, masks.update)


def _decay(key, shape, dtype):
    """Draws radii uniformly by area, and returns d of them."""
    least, most = RADII
    area = jax.random.uniform(key, shape, jnp.float32)
    log_radius = 0.5 * jnp.log(area * (most**2 - least**2) + least**2)
    return jnp.log(jnp.expm1(-log_radius)).astype(dtype)


def _sqrt(x):
    """The square root, with a slope of at most `STEEPEST` [2]."""
    is_steep = x < (0.5 / STEEPEST) ** 2
    held = jax.lax.stop_gradient(x)
    straight = jnp.sqrt(held) + STEEPEST * (x - held)
    return jnp.where(is_steep, straight, jnp.sqrt(jnp.where(is_steep, 1, x)))
