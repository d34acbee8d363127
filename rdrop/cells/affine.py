"""Affine recurrences: the next state is factor * state + term, unit by unit.

Factor and term depend on the inputs and not on the state, so that they are computed for
all steps at once, and an associative scan runs a sequence in O(log T) steps. Noise on
the update, the gates and the state keeps a recurrence affine. There is no matrix
product on the state, so the sites `recurrent` and `recurrent_weights` do not exist.
"""

import dataclasses
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from rdrop.cells.masking import Mask, Weights, next_hidden, next_state
from rdrop.cells.recurrence import Parameters, Recurrence, widened
from rdrop.cells.tape import Tape
from rdrop.dropout import Masks
from rdrop.noise import Add, Mix
from rdrop.sites import Site

T = TypeVar("T")
Pair = tuple[Inexact[Array, "*#batch N"], Inexact[Array, "*batch N"]]


@dataclasses.dataclass(frozen=True)
class Affine(Recurrence):
    """A recurrence that is affine in its state. Its carry is h, which is its output.

    Subclass it with `coefficients`. h is kept in float32 or wider, as a narrower float
    would lose the small terms of a long sum; the output has the compute dtype.

    Attributes:
        units, dtype, param_dtype: as in `Recurrence`.
        kernel_init, bias_init, use_bias: as in `Recurrence`.

    Raises:
        ValueError, TypeError: as `Recurrence`.
    """

    INITS: ClassVar[tuple[str, ...]] = ("kernel_init", "bias_init")

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        sites = super().sites(features)
        del sites["recurrent"], sites["recurrent_weights"]
        return sites | {"update": Site(1, self.units)}

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        params = super().parameters(features)
        del params["recurrent_kernel"]
        return params

    def initial_carry(self, *batch: int) -> Float[Array, "*batch H"]:
        """Returns h of zeros, [*batch, H], in float32 or wider."""
        h = super().initial_carry(*batch)
        return h.astype(widened(h.dtype))

    def coefficients(self, weights: Weights, z: Any, masks: Masks) -> Pair:
        """Returns (factor, term) such that the new state is factor * state + term.

        Args:
            weights: parameters, masks of weights applied.
            z: the projected input of the step, in the dtype of the state.
            masks: of the step; masks of the state itself are applied later.
        """
        raise NotImplementedError

    def step(
        self,
        weights: Weights,
        carry: Inexact[Array, "*batch N"],
        z: Any,
        masks: Masks,
        tape: Tape,
    ) -> tuple[Inexact[Array, "*batch N"], Float[Array, "*batch H"]]:
        """Advances the state by one step; see `Recurrence.step`."""
        wide = in_float_of(carry, z)
        factor, term = self.coefficients(weights, wide, masks)
        return self.emit(weights, factor * carry + term, carry, z, masks, tape)

    def emit(
        self,
        weights: Weights,
        new: Float[Array, "*batch H"],
        old: Float[Array, "*batch H"],
        z: Any,
        masks: Masks,
        tape: Tape,
    ) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
        """Returns the state that the next step sees, and the output of this step.

        Args:
            weights: as in `coefficients`.
            new: the new state.
            old: the state before the step; not used without a mask of the state.
            z: the projected input, in the compute dtype.
            masks: of the step.
            tape: as in `Recurrence.step`.
        """
        state, y = next_hidden(new, old, masks.hidden_state)
        return state, y.astype(z.dtype)

    def mask_of_state(self, masks: Masks) -> Mask | Mix | Add | None:
        """Returns the mask of the state that the next step sees."""
        return masks.hidden_state


def in_float_of(state: Inexact[Array, "..."], z: T) -> T:
    """Returns projected inputs in the float type of a real or complex state."""
    dtype = jnp.finfo(state.dtype).dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), z)


def masked(
    factor: Inexact[Array, "*#batch N"],
    term: Inexact[Array, "*batch N"],
    mask: Mask | Mix | Add | None,
) -> Pair:
    """Returns (a, b) such that a * state + b is the masked factor * state + term."""
    if mask is None:
        return factor, term
    factor = jnp.broadcast_to(factor, term.shape)
    one, zero = jnp.ones_like(factor), jnp.zeros_like(term)
    if not isinstance(mask, Add):
        factor = next_state(factor, one, mask)
    return factor, next_state(term, zero, mask)
