"""Masking: how a mask enters an equation.

A mask that is held over time has the axes (B, G, U), one per step (T, B, G, U), a mask
of a kernel (R, G, U): batch, gates, units, rows. An axis of size 1 is shared.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from rdrop.dropout import Mask, Masks
from rdrop.noise import Add, Mix

Weights: TypeAlias = dict[str, Float[Array, "..."]]


def drop_weights(weights: Weights, masks: Masks) -> Weights:
    """Applies masks (R, G, U) to the kernels, once per forward pass."""
    dropped = dict(weights)
    for name, mask in (
        ("kernel", masks.input_weights),
        ("recurrent_kernel", masks.recurrent_weights),
    ):
        if mask is not None:
            dropped[name] = drop_kernel(weights[name], mask)
    return dropped


def drop_kernel(kernel: Float[Array, "R GU"], mask: Mask | Add) -> Float[Array, "R GU"]:
    """Multiplies a kernel by its mask (R, G, U), or adds its noise."""

    def flat(values):
        return values.reshape(len(values), -1).astype(kernel.dtype)

    if isinstance(mask, Add):
        return kernel + flat(mask.noise)
    return kernel * flat(mask)


def project(
    weights: Weights, x: Float[Array, "*batch D"], mask: Float[Array, "..."] | None
) -> Float[Array, "*batch GH"]:
    """Returns (m_x * x) W, without the bias, of one step or of all steps."""
    kernel = weights["kernel"]
    return masked_matmul(x.astype(kernel.dtype), mask, kernel)


def with_bias(
    weights: Weights, z: Float[Array, "*batch GH"]
) -> Float[Array, "*batch GH"]:
    """Adds the bias of a cell to projected inputs, if the cell has one."""
    if "bias" not in weights:
        return z
    return z + broadcastable(weights["bias"], z)


def broadcastable(
    values: Inexact[Array, "*last"], like: Inexact[Array, "..."]
) -> Inexact[Array, "..."]:
    """Returns values of the last axes with as many axes as another array."""
    return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)


def masked_matmul(
    x: Float[Array, "*batch D"],
    mask: Float[Array, "..."] | None,
    kernel: Float[Array, "D GH"],
) -> Float[Array, "*batch GH"]:
    """Multiplies (m * x) by the kernels of all gates, side by side.

    Args:
        x: left operand; a leading time axis may precede the batch.
        mask: (B, 1, D) or (B, G, D), or either after a time axis; None means no mask.
        kernel: the kernels of the gates.
    """
    operands = masked_operands(x, mask)
    kernels = jnp.split(kernel, len(operands), axis=-1)
    products = [x @ kernel for x, kernel in zip(operands, kernels, strict=True)]
    return jnp.concatenate(products, axis=-1)


def masked_operands(
    x: Float[Array, "*batch D"], mask: Float[Array, "..."] | None
) -> list[Float[Array, "*batch D"]]:
    """Returns m * x: one array for all gates, or one per gate if each has a mask."""
    return [mask_units(x, m) for m in split_gates(mask)]


def split_gates(
    mask: Float[Array, "..."] | None,
) -> Sequence[Float[Array, "..."] | None]:
    """Returns the mask of each gate, or the single one that all gates share."""
    return [None] if mask is None else jnp.split(mask, mask.shape[-2], axis=-2)


def mask_units(
    value: Inexact[Array, "*batch H"], mask: Float[Array, "..."] | None
) -> Inexact[Array, "*batch H"]:
    """Multiplies by a mask (B, 1, H), or (T, B, 1, H) if `value` has a time axis."""
    return value if mask is None else value * broadcast_units(value, mask)


def broadcast_units(
    value: Inexact[Array, "*batch H"], mask: Float[Array, "..."]
) -> Inexact[Array, "..."]:
    """Returns a mask of one gate with the axes and the dtype of a value."""
    return broadcastable(jnp.squeeze(mask, -2).astype(value.dtype), value)


def mask_gates(
    gates: Sequence[Float[Array, "*batch H"]], mask: Float[Array, "..."] | None
) -> Sequence[Float[Array, "*batch H"]]:
    """Multiplies each gate by its own mask, or all by one: (B, G, H) or (B, 1, H)."""
    if mask is None:
        return gates
    parts = [*split_gates(mask)]
    parts = parts * (len(gates) // len(parts))
    return [mask_units(gate, part) for gate, part in zip(gates, parts, strict=True)]


def next_state(
    new: Inexact[Array, "*batch H"],
    old: Inexact[Array, "*batch H"],
    mask: Mask | Mix | Add | None,
) -> Inexact[Array, "*batch H"]:
    """Returns the state that the next step sees.

    It is multiplied, mixed with the old one, or has noise added.
    """
    if isinstance(mask, Add):
        return new + broadcast_units(new, mask.noise)
    if not isinstance(mask, Mix):
        return mask_units(new, mask)
    share = mask.share.astype(jnp.finfo(new.dtype).dtype)
    return mask_units(old, share) + mask_units(new, 1 - share)


def next_memory(
    new: Inexact[Array, "*batch H"],
    old: Inexact[Array, "*batch H"],
    mask: Mask | Mix | Add | None,
) -> tuple[Inexact[Array, "*batch H"], Inexact[Array, "*batch H"]]:
    """Returns the memory that the next step sees, and the one that h is made from.

    h is made from a multiplied or a noisy memory, but from the one before mixing.
    """
    state = next_state(new, old, mask)
    return state, new if isinstance(mask, Mix) else state


def next_hidden(
    new: Float[Array, "*batch H"],
    old: Float[Array, "*batch H"],
    mask: Mask | Mix | Add | None,
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Returns the h that the next step sees, and the output y.

    A mixed or a noisy h is also the output; a multiplied one is not.
    """
    state = next_state(new, old, mask)
    return state, state if is_output(mask) else new


def is_output(mask: Mask | Mix | Add | None) -> bool:
    """Returns whether the output is the h that the next step sees."""
    return isinstance(mask, Mix | Add)
