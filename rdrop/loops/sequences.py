"""Sequences: the inputs of a loop over time, and how time lies in them."""

import dataclasses
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdrop.cells import Recurrence
from rdrop.dropout import Masks

C = TypeVar("C")
M = TypeVar("M")


class Sequences(NamedTuple):
    """A batch of sequences with the masks of its steps.

    Attributes:
        xs: the inputs, [T, B, D] or [B, T, D].
        masks: of the inputs and of the sites inside the cell: (B, G, U) if held over
            time, (T, B, G, U) if there is one per step.
        valid: False at padding, where the carry passes and y is zero; or None.
        resets: where the carry is the initial one again before a step; or None.
    """

    xs: Float[Array, "..."]
    masks: Masks
    valid: Bool[Array, "T B"] | None = None
    resets: Bool[Array, "T B"] | None = None


@dataclasses.dataclass(frozen=True)
class Order:
    """How time lies in the arrays, and in which direction a loop runs.

    Attributes:
        axis: the time axis of inputs and outputs, 0 or 1.
        reverse: whether to run from the last step to the first. Outputs stay at their
            time steps.
    """

    axis: int = 0
    reverse: bool = False

    def time(self, xs: Float[Array, "..."]) -> int:
        """Returns T, the number of steps of inputs or outputs."""
        return xs.shape[self.axis]


def align(masks: M, axis: int) -> M:
    """Returns masks that broadcast over sequences with time along `axis`."""
    if axis == 0:
        return masks
    return jax.tree.map(
        lambda mask: mask[:, None] if mask.ndim == 3 else mask.swapaxes(0, 1), masks
    )


def per_step(values: M, masks: M | None = None) -> M:
    """Returns the masks that have a time axis; or the values that belong to them."""
    return jax.tree.map(
        lambda value, mask: value if mask.ndim == 4 else None,
        values,
        values if masks is None else masks,
    )


def held(values: M, masks: M | None = None) -> M:
    """Returns the masks that are held over time; or the values that belong to them."""
    return jax.tree.map(
        lambda value, mask: None if mask.ndim == 4 else value,
        values,
        values if masks is None else masks,
    )


def merge(masks: Masks, of_step: Masks) -> Masks:
    """Returns the masks of one step: its own, and the ones held over time."""
    return jax.tree.map(
        lambda held, drawn: held if drawn is None else drawn,
        masks,
        of_step,
        is_leaf=lambda leaf: leaf is None,
    )


def restart(cell: Recurrence, carry: C, resets: Bool[Array, "B"] | None) -> C:
    """Returns the carry with the initial one in the rows that are reset."""
    if resets is None:
        return carry
    where = resets[:, None]
    return jax.tree.map(
        lambda leaf, initial: jnp.where(where, initial[None].astype(leaf.dtype), leaf),
        carry,
        cell.initial_carry(),
    )


def pass_padding(
    stepped: tuple[C, Float[Array, "B H"]], carry: C, valid: Bool[Array, "B"] | None
) -> tuple[C, Float[Array, "B H"]]:
    """Keeps the old carry, and outputs zeros, if a step is padding."""
    if valid is None:
        return stepped
    new, y = stepped
    keep = valid[:, None]
    carry = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, carry)
    return carry, jnp.where(keep, y, 0)
