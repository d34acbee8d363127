"""Masking: how a mask enters an equation, and what it does to cotangents.

A mask held over time has the axes (B, G, U), one of each step (T, B, G, U), that of a
kernel (R, G, U); an axis of size 1 is shared. The functions forwards stand beside those
that take cotangents back through them.
"""

import functools
from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.dropout import Mask, Masks
from rdrop.noise import Mix

Weights: TypeAlias = dict[str, Float[Array, "..."]]


def drop_weights(weights: Weights, masks: Masks) -> Weights:
    """Multiplies the kernels by their masks (R, G, U), once a forward pass."""
    dropped = dict(weights)
    for name, mask in (
        ("kernel", masks.input_weights),
        ("recurrent_kernel", masks.recurrent_weights),
    ):
        if mask is not None:
            kernel = weights[name]
            flat = mask.reshape(mask.shape[0], -1).astype(kernel.dtype)
            dropped[name] = kernel * flat
    return dropped


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
    masks = split_gates(mask)
    kernels = jnp.split(kernel, len(masks), axis=-1)
    products = [mask_units(x, m) @ k for m, k in zip(masks, kernels, strict=True)]
    return jnp.concatenate(products, axis=-1)


def split_gates(
    mask: Float[Array, "..."] | None,
) -> Sequence[Float[Array, "..."] | None]:
    """Returns the mask of each gate that has its own, or the one that all share."""
    return [None] if mask is None else jnp.split(mask, mask.shape[-2], axis=-2)


def transposed_matmul(
    d_z: Float[Array, "*batch GH"],
    mask: Float[Array, "..."] | None,
    transposed: Float[Array, "GH D"],
) -> Float[Array, "*batch D"]:
    """Takes the cotangent of `masked_matmul` back to x."""
    masks = split_gates(mask)
    parts = (jnp.split(a, len(masks), axis) for a, axis in ((d_z, -1), (transposed, 0)))
    products = [mask_units(d @ u, m) for d, u, m in zip(*parts, masks, strict=True)]
    return functools.reduce(jnp.add, products)


def kernel_gradient(
    xs: Float[Array, "*batch D"],
    mask: Float[Array, "..."] | None,
    d_zs: Float[Array, "*batch GH"],
) -> Float[Array, "D GH"]:
    """Takes the cotangent of `masked_matmul` back to the kernel, of all steps at once.

    One large product costs a fraction of a small one after each step.
    """
    masks = split_gates(mask)
    gradients = [
        _flat(mask_units(xs, m)).T @ _flat(d)
        for m, d in zip(masks, jnp.split(d_zs, len(masks), axis=-1), strict=True)
    ]
    return jnp.concatenate(gradients, axis=-1)


def _flat(values):
    return values.reshape(-1, values.shape[-1])


def mask_units(
    value: Float[Array, "*batch H"], mask: Float[Array, "..."] | None
) -> Float[Array, "*batch H"]:
    """Multiplies by a mask (B, 1, H), or (T, B, 1, H) where `value` has a time axis."""
    if mask is None:
        return value
    mask = jnp.squeeze(mask, -2).astype(value.dtype)
    return value * mask.reshape((1,) * (value.ndim - mask.ndim) + mask.shape)


def mask_gates(
    gates: tuple[Float[Array, "*batch H"], ...], mask: Float[Array, "..."] | None
) -> tuple[Float[Array, "*batch H"], ...]:
    """Multiplies each gate by its own mask, or all by one: (B, G, H) or (B, 1, H)."""
    if mask is None:
        return gates
    parts = [*split_gates(mask)]
    parts = parts * (len(gates) // len(parts))
    return tuple(
        mask_units(gate, part) for gate, part in zip(gates, parts, strict=True)
    )


def hand_on(
    new: Float[Array, "*batch H"],
    old: Float[Array, "*batch H"],
    mask: Mask | Mix | None,
) -> Float[Array, "*batch H"]:
    """Returns the state that the next step sees: multiplied, or mixed with the old."""
    if not isinstance(mask, Mix):
        return mask_units(new, mask)
    share = mask.share.astype(new.dtype)
    return mask_units(old, share) + mask_units(new, 1 - share)


def put_out(
    new: Float[Array, "*batch H"],
    old: Float[Array, "*batch H"],
    mask: Mask | Mix | None,
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Returns h as the next step sees it, and as the output: the mixed, or the new."""
    state = hand_on(new, old, mask)
    return state, state if isinstance(mask, Mix) else new


def hand_back(
    d_state: Float[Array, "*batch H"], mask: Mask | Mix | None
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Takes the cotangent of `hand_on` back to the new state and to the old."""
    if not isinstance(mask, Mix):
        return mask_units(d_state, mask), jnp.zeros_like(d_state)
    share = mask.share.astype(d_state.dtype)
    return mask_units(d_state, 1 - share), mask_units(d_state, share)


def take_back(
    d_state: Float[Array, "*batch H"],
    d_y: Float[Array, "*batch H"],
    mask: Mask | Mix | None,
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Takes the cotangents of `put_out` back to the new h and to the old."""
    if isinstance(mask, Mix):
        return hand_back(d_state + d_y, mask)
    d_new, d_old = hand_back(d_state, mask)
    return d_new + d_y, d_old
