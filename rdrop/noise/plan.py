"""Plans: passes whose numbers are drawn together, so that their mean varies less.

In each pass alone, every number is as random as without a plan: uniform or normal, and
independent of all other numbers of the pass. Only numbers of one unit in different
passes depend on each other.

References:
    [1] Hammersley, Morton. A new Monte Carlo technique: antithetic variates. 1956.
        (Text unchecked.)
    [2] McKay, Beckman, Conover. A comparison of three methods for selecting values of
        input variables in the analysis of output from a computer code. 1979.
        (Text unchecked.)
    [3] Durasov et al. Masksembles for uncertainty estimation. CVPR 2021.
        arXiv:2012.08334; checked with masksembles/common.py of their code.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from rdrop.noise.kinds import NoiseKind
from rdrop.noise.node import check
from rdrop.noise.rates import Shape
from rdrop.noise.threefry import Keys, fold_in, normal_of, uniform

Design = Literal["independent", "antithetic", "balanced"]
# The spacing of uniform numbers, and the largest float32 below 1.
SPACING = np.float32(2.0**-23)
BELOW_ONE = np.float32(1 - 2.0**-24)
STRATUM, STRIDE, PLACE = 1, 2, 3  # folded into the key of a site


class Plan(struct.PyTreeNode):
    """The place of a pass in its plan; `rdrop.montecarlo.pass_keys` makes it.

    "antithetic" [1]: two passes mirror each other, u and 1 - u, or z and -z.

    "balanced" [2]: [0, 1) is cut into K parts, and each unit has one number from each
    part in K passes. A unit of rate p is thus dropped in K p passes, rounded up or
    down. As in [3], a set of masks covers all units evenly; the masks there, however,
    have an exact number of units, and each unit is in any number of masks but none.

    Attributes:
        number: of the pass, int or int32[].
        passes: K (static).
        design: "antithetic" or "balanced" (static).
    """

    number: int | Int[Array, "..."]
    passes: int = struct.field(pytree_node=False)
    design: Design = struct.field(pytree_node=False)

    def over(self, noise: NoiseKind) -> "Planned":
        """Returns a noise that draws the numbers of this pass."""
        return Planned(noise, self)

    def numbers(self, key: Keys, shape: Shape) -> Float[Array, "B G U"]:
        """Returns the uniform numbers of this pass, in [0, 1).

        Args:
            key: of a site, the same in all passes of the plan.
            shape: as in `uniform`.
        """
        if self.design == "antithetic":
            numbers = uniform(key, shape)
            mirrored = 1 - SPACING - numbers
            return jnp.where(jnp.asarray(self.number) % 2 == 1, mirrored, numbers)
        return self._balanced(key, shape)

    def _balanced(self, key, shape):
        """One number from each K-th part of [0, 1), in an order of each unit's own.

        Pass k is in part a k + b mod K, with random b, and a random a that shares no
        factor with K.
        """
        count = self.passes
        strides = np.int32([a for a in range(1, count + 1) if math.gcd(a, count) == 1])
        first = _choice(fold_in(key, STRATUM), shape, count)
        stride = jnp.asarray(strides)[
            _choice(fold_in(key, STRIDE), shape, len(strides))
        ]
        number = jnp.asarray(self.number, jnp.int32)
        part = jax.lax.rem(first + stride * number, jnp.int32(count))
        within = uniform(fold_in(fold_in(key, PLACE), number), shape)
        numbers = (part.astype(jnp.float32) + within) / count
        return jnp.minimum(numbers, BELOW_ONE)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A noise whose numbers follow a plan; lifetimes draw from it as from any noise."""

    noise: NoiseKind
    plan: Plan

    def variate(self, key: Keys, shape: Shape) -> Float[Array, "B G U"]:
        """Draws the random numbers of a mask in this pass."""
        numbers = self.plan.numbers(key, shape)
        return normal_of(numbers) if self.noise.NORMAL else numbers

    def mask(self, variate: Float[Array, "B G U"]) -> Any:
        """Turns random numbers into a mask, as the noise does."""
        return self.noise.mask(variate)

    def draw(self, key: Keys, shape: Shape) -> Any:
        """Draws one mask; see `NoiseKind.draw`."""
        check(self.noise, shape)
        return self.mask(self.variate(key, shape))


def _choice(key, shape, count):
    """A random integer below `count` for each unit."""
    return (uniform(key, shape) * count).astype(jnp.int32)
