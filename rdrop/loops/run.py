"""Runs: a cell over whole sequences, in both directions, and layer after layer.

Masks are drawn in bulk before the loop over time, and the inputs of all steps are
projected by one matrix product; both give the same as the cell step by step. Layer and
direction are part of every key, so that no two layers or directions share a mask.

The functions own no parameters: the modules of `rdrop.linen` and `rdrop.nnx` do. A
layer is anything that is called as `RNN` is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rdrop.advice import describe
from rdrop.cells import Affine, Carry, Recurrence, Tape, Weights, mask_units
from rdrop.dropout import Dropout, Masks, resolve
from rdrop.keys import StreamKeys
from rdrop.lengths import valid_steps
from rdrop.loops.affine import affine
from rdrop.loops.buffer import alike, axis_of_units, shard_carry, shard_sites, unsharded
from rdrop.loops.fused import fused
from rdrop.loops.native import check_installed, is_installed, native
from rdrop.loops.plain import plain
from rdrop.loops.sequences import Order, Sequences, align

Noise: TypeAlias = Dropout | Masks | None
Loop: TypeAlias = Literal["fused", "recompute", "plain", "native"]
# Loose on purpose: wrong ranks and lengths get the errors of this module.
Xs: TypeAlias = Float[Array, "..."]
Layer: TypeAlias = Callable[..., tuple[Carry, Xs]]


class Call(NamedTuple):
    """The arguments of a call of a layer, as `RNN` documents them.

    In a call of several layers or directions, `dropout` and `initial_carry` may be
    sequences with one entry for each.
    """

    xs: Any
    dropout: Any = None
    keys: StreamKeys | None = None
    initial_carry: Any = None
    lengths: Any = None
    resets: Any = None


class Options(NamedTuple):
    """The attributes of an `RNN`, as it documents them."""

    time_major: bool = False
    reverse: bool = False
    loop: Loop = "fused"


def run_step(
    cell: Recurrence,
    weights: Callable[[Xs], Weights],
    carry: Carry,
    x: Xs,
    dropout: Noise,
    keys: StreamKeys | None,
) -> tuple[Carry, Float[Array, "B H"]]:
    """Runs one step of a cell: checks the arguments, draws the masks, advances.

    Args:
        cell: the equations.
        weights: returns the parameters for inputs like its argument.
        carry: the state of the previous step.
        x: the input of this step, [B, D].
        dropout: where noise enters.
        keys: explicit keys, or None.

    Returns:
        The new carry, and the output.
    """
    if not hasattr(x, "shape"):
        raise ValueError(f"`x` must be an array [B, D], got {describe(x)}.")
    if len(x.shape) != 2:
        raise ValueError(f"`x` must have the axes [B, D], got shape {x.shape}.")
    batch, features = x.shape
    check_carry("carry", carry, cell, batch)
    own = weights(x)
    sites = shard_sites(cell.sites(features), x, units=axis_of_units(own))
    masks = resolve(dropout, keys, sites, batch)
    dropped = cell.drop(own, masks)
    z = cell.project(dropped, x, masks.inputs)
    carry, y = cell.step(dropped, carry, z, masks, Tape())
    return carry, mask_units(y, masks.outputs)


def run_sequences(
    cell: Recurrence,
    weights: Callable[[Xs], Weights],
    call: Call,
    options: Options,
) -> tuple[Carry, Xs]:
    """Runs a cell over the sequences of a batch, as `RNN` does.

    Args:
        cell: the equations.
        weights: returns the parameters for inputs like its argument.
        call: the arguments of the call.
        options: of the layer.

    Returns:
        The final carry, and the outputs.
    """
    xs = jnp.asarray(call.xs)
    order = Order(0 if options.time_major else 1, options.reverse)
    if xs.ndim != 3:
        axes = "[T, B, D]" if options.time_major else "[B, T, D]"
        raise ValueError(f"`xs` must have the axes {axes}, got shape {xs.shape}.")
    time, batch, features = xs.swapaxes(0, order.axis).shape
    keys = call.keys
    if isinstance(keys, StreamKeys) and options.reverse:
        keys = keys.replace(direction="backward")
    carry = call.initial_carry
    if carry is None:
        carry = cell.initial_carry(batch)
    check_carry("initial_carry", carry, cell, batch)
    valid = None
    if call.lengths is not None:
        valid = valid_steps(call.lengths, time, batch)
        xs = jnp.where(valid.swapaxes(0, order.axis)[..., None], xs, 0)
    resets = None
    if call.resets is not None:
        resets = _check_resets(call.resets, xs.shape[:2]).swapaxes(0, order.axis)
        resets = resets if valid is None else resets & valid
    own = weights(xs)
    units = axis_of_units(own)
    sites = shard_sites(cell.sites(features), xs, order.axis, units)
    masks = resolve(call.dropout, keys, sites, batch, time, resets)
    dropped = cell.drop(own, masks)
    loop = _loop_of(cell, options.loop, units)
    inside = masks.replace(outputs=None, input_weights=None, recurrent_weights=None)
    if resets is not None and options.reverse:
        # In reverse, the first step of an episode ends it.
        resets = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    sequences = Sequences(xs, inside, valid, resets)
    carry = shard_carry(carry, xs, order.axis, units)
    carry, ys = loop(cell, *alike(dropped, carry, sequences), order)
    return carry, mask_units(ys, align(masks.outputs, order.axis))


def run_both_ways(
    forward: Layer, backward: Layer, call: Call
) -> tuple[tuple[Carry, Carry], Xs]:
    """Runs two layers over the same sequences, as `Bidirectional` does.

    Args:
        forward: the layer that runs from the first step to the last.
        backward: the layer that runs in reverse.
        call: the arguments of the call.

    Returns:
        The pair of final carries, and the outputs of both side by side, [..., 2H].
    """
    calls = _calls(call, 2)
    ahead, ys = _apply(forward, calls[0])
    back, zs = _apply(backward, calls[1])
    return (ahead, back), jnp.concatenate([ys, zs], axis=-1)


def run_in_turn(layers: Sequence[Layer], call: Call) -> tuple[tuple[Carry, ...], Xs]:
    """Runs layers one after the other, as `Stack` does.

    Args:
        layers: from the input upwards.
        call: the arguments of the call.

    Returns:
        The final carries, one per layer, and the outputs of the last layer.
    """
    xs, final = call.xs, []
    for depth, (layer, own) in enumerate(
        zip(layers, _calls(call, len(layers)), strict=True)
    ):
        keys = own.keys
        if isinstance(keys, StreamKeys):
            keys = keys.replace(layer=keys.layer + depth)
        carry, xs = _apply(layer, own._replace(xs=xs, keys=keys))
        final.append(carry)
    return tuple(final), xs


def check_loop(loop: str) -> None:
    """Raises a ValueError unless a loop has that name.

    For the native loop, raises a ModuleNotFoundError if it is not installed.
    """
    if loop not in (words := get_args(Loop)):
        raise ValueError(f"`loop` must be one of {words}, got {loop!r}.")
    if loop == "native":
        check_installed()


def check_distinct(name: str, modules: Sequence[Any]) -> None:
    """Raises a ValueError if one module stands twice: it would share its parameters."""
    if len({id(module) for module in modules}) < len(modules):
        raise ValueError(
            f"`{name}` must be distinct modules; the same instance was given twice."
        )


def check_carry(name: str, carry: Any, cell: Recurrence, batch: int) -> None:
    """Raises a ValueError unless `carry` is like the initial one of the cell."""
    expected = jax.eval_shape(partial(cell.initial_carry, batch))
    leaves = jax.tree.leaves(carry)
    is_complex = jnp.iscomplexobj(jax.tree.leaves(expected)[-1])
    kind = jnp.complexfloating if is_complex else jnp.floating
    structure: Any = jax.tree.structure(expected)
    same = structure == jax.tree.structure(carry) and all(
        jnp.shape(leaf) == like.shape and jnp.issubdtype(jnp.result_type(leaf), kind)
        for leaf, like in zip(leaves, jax.tree.leaves(expected), strict=True)
    )
    if not same:
        last = jax.tree.leaves(expected)[-1]
        names = ", ".join(cell.CARRY)
        numbers = "complex numbers" if is_complex else "floats"
        parts = f"a tuple ({names}), each" if isinstance(expected, tuple) else names
        each = [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]
        of_type = "" if leaves and leaves[0] is carry else f"{type(carry).__name__} of "
        got = of_type + ", ".join(each) if leaves else describe(carry)
        raise ValueError(
            f"`{name}` must be {parts} of {numbers} of shape [B, H] = {last.shape}, "
            f"got {got}."
        )


def _check_resets(resets: Any, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Returns resets as an array; raises a ValueError if they do not fit."""
    resets = resets if hasattr(resets, "dtype") else np.asarray(resets)
    if resets.shape != shape or resets.dtype != bool:
        raise ValueError(
            f"`resets` must be bool of shape {shape}, the first axes of `xs`, got "
            f"{resets.dtype}{list(resets.shape)}."
        )
    return unsharded(jnp.asarray(resets))


def check_features(name: str, features: int, kernel: Float[Array, "D GH"]) -> None:
    """Raises a ValueError if parameters were made for another number of features."""
    if kernel.shape[0] != features:
        raise ValueError(
            f"`{name}` must have {kernel.shape[0]} features, as the parameters do, "
            f"got {features}."
        )


def _loop_of(cell, loop, units):
    """Returns the loop of a name, or the one that a cell needs.

    A cell that is affine in its state has its own loop. A cell with a projection of
    its own, or with units over an axis of a mesh, is run by the plain loop, as the
    backward passes of the others know the kernel alone, and do not shard it.
    "native" and "fused" are the same where the compiled code is installed.
    """
    if units is not None:
        return plain
    if loop in ("fused", "native") and isinstance(cell, Affine):
        return affine
    if loop == "plain" or type(cell).project is not Recurrence.project:
        return plain
    if loop == "recompute":
        return partial(fused, recompute=True)
    return native if loop == "native" or is_installed() else fused


def _apply(layer, call):
    more = {} if call.resets is None else {"resets": call.resets}
    return layer(
        call.xs,
        call.dropout,
        call.keys,
        initial_carry=call.initial_carry,
        lengths=call.lengths,
        **more,
    )


def _calls(call: Call, count: int) -> list[Call]:
    """Returns the call of each of `count` layers or directions."""
    noises = _spread("dropout", call.dropout, count)
    carries = _spread("initial_carry", call.initial_carry, count)
    return [
        call._replace(dropout=noise, initial_carry=carry)
        for noise, carry in zip(noises, carries, strict=True)
    ]


def _spread(name: str, value, count: int) -> Sequence[Any]:
    """Returns one value for each of `count` layers or directions."""
    if not isinstance(value, (tuple, list)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"`{name}` must have {count} entries, one for each, got {len(value)}."
        )
    return value
