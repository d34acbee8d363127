"""Unroll: a cell over whole sequences, in both directions, and layer after layer.

Masks are drawn in bulk before the time loop, and the input projection of all steps is
one matrix product; both give what the cell gives step by step. Layer and direction are
part of every key, so no two layers or directions share a mask.

The functions own no parameters: the modules of `rdrop.layers` and `rdrop.nnx` do, and
hand them over. A layer is anything that is called as `RNN` is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rdrop.cells import Cell, MinGRUCell, Weights, mask_units
from rdrop.cells.base import Carry, check_carry
from rdrop.cells.masking import drop_weights
from rdrop.dropout import Dropout, Masks, resolve
from rdrop.fused import fused_scan
from rdrop.keys import StreamKeys
from rdrop.scan import affine_scan, align, plain_scan

Noise: TypeAlias = Dropout | Masks | None
Loop: TypeAlias = Literal["fused", "recompute", "plain"]
# Loose on purpose: wrong ranks and lengths get this module's own errors.
Xs: TypeAlias = Float[Array, "..."]
Layer: TypeAlias = Callable[..., tuple[Carry, Xs]]


def unroll(
    cell: Cell,
    weights: Callable[[Xs], Weights],
    xs: Any,
    dropout: Noise,
    keys: StreamKeys | None,
    *,
    initial_carry: Carry | None = None,
    lengths: Any = None,
    time_major: bool = False,
    reverse: bool = False,
    loop: Loop = "fused",
) -> tuple[Carry, Xs]:
    """Runs a cell over the sequences of a batch, as `RNN` does.

    The cell gives the equations, `weights` the parameters for inputs like its argument;
    the rest are the arguments of a call of `RNN`, and its attributes.

    Returns:
        The final carry, and the outputs.
    """
    xs = jnp.asarray(xs)
    if xs.ndim != 3:
        axes = "[T, B, D]" if time_major else "[B, T, D]"
        raise ValueError(f"`xs` must have the axes {axes}, got shape {xs.shape}.")
    axis = 0 if time_major else 1
    time, batch, features = xs.swapaxes(0, axis).shape
    if isinstance(keys, StreamKeys) and reverse:
        keys = keys.replace(direction="backward")
    carry = initial_carry
    if carry is None:
        carry = cell.initialize_carry(jax.random.key(0), (batch, features))
    check_carry("initial_carry", carry, cell, (batch, features))
    valid = None
    if lengths is not None:
        valid = _valid(lengths, time, batch)
        xs = jnp.where(valid.swapaxes(0, axis)[..., None], xs, 0)
    masks = resolve(dropout, keys, cell.sites(features), batch, time)
    dropped = drop_weights(weights(xs), masks)
    scan = _scan_of(cell, loop)
    carry, ys = scan(cell, dropped, carry, xs, _inside(masks), valid, reverse, axis)
    return carry, mask_units(ys, align(masks.outputs, axis))


def run_both_ways(
    forward: Layer,
    backward: Layer,
    xs: Any,
    dropout: Noise | Sequence[Noise],
    keys: StreamKeys | None,
    *,
    initial_carry: tuple[Carry, Carry] | None = None,
    lengths: Any = None,
) -> tuple[tuple[Carry, Carry], Xs]:
    """Runs two layers over the same sequences, as `Bidirectional` does.

    The second is one that runs in reverse; the rest are the arguments of a call of
    `Bidirectional`.

    Returns:
        The pair of final carries, and the outputs of both side by side, [..., 2H].
    """
    noises = _spread("dropout", dropout, 2)
    carries = _spread("initial_carry", initial_carry, 2)
    results = [
        layer(xs, noise, keys, initial_carry=carry, lengths=lengths)
        for layer, noise, carry in zip(
            (forward, backward), noises, carries, strict=True
        )
    ]
    (ahead, ys), (back, zs) = results
    return (ahead, back), jnp.concatenate([ys, zs], axis=-1)


def run_in_turn(
    layers: Sequence[Layer],
    xs: Any,
    dropout: Noise | Sequence[Noise | Sequence[Noise]],
    keys: StreamKeys | None,
    *,
    initial_carry: Sequence[Carry] | None = None,
    lengths: Any = None,
) -> tuple[tuple[Carry, ...], Xs]:
    """Runs layers one after the other, as `Stack` does, whose arguments these are.

    Returns:
        The final carries, one a layer, and the outputs of the last layer.
    """
    count = len(layers)
    noises = _spread("dropout", dropout, count)
    carries = _spread("initial_carry", initial_carry, count)
    final = []
    for depth, layer in enumerate(layers):
        at_depth = keys
        if isinstance(keys, StreamKeys):
            at_depth = keys.replace(layer=keys.layer + depth)
        carry, xs = layer(
            xs, noises[depth], at_depth, initial_carry=carries[depth], lengths=lengths
        )
        final.append(carry)
    return tuple(final), xs


def check_loop(loop: str, cell: Cell) -> None:
    """Raises a ValueError where a cell cannot be run by the loop of that name."""
    if loop not in (words := get_args(Loop)):
        raise ValueError(f"`loop` must be one of {words}, got {loop!r}.")
    if loop == "recompute" and not cell.is_linearised():
        raise ValueError(
            f'`loop` must be "fused" or "plain" for {type(cell).__name__}, which does '
            'not supply its derivative, got "recompute".'
        )


def check_distinct(name: str, modules: Sequence[Any]) -> None:
    """Raises where one module stands twice, as it would have one set of parameters."""
    if len({id(module) for module in modules}) < len(modules):
        raise ValueError(
            f"`{name}` must be modules of their own, got one and the same twice."
        )


def _inside(masks: Masks) -> Masks:
    """The masks still to be applied: weights have been, outputs will be."""
    return masks.replace(outputs=None, input_weights=None, recurrent_weights=None)


def _scan_of(cell, loop):
    if isinstance(cell, MinGRUCell):
        return _affine
    if loop == "plain" or not cell.is_linearised():
        return plain_scan
    return partial(fused_scan, recompute=loop == "recompute")


def _affine(cell, weights, carry, xs, masks, valid, reverse, axis):
    """All steps at once, for a cell that is affine in its state."""
    zs = cell.project(weights, xs, align(masks, axis)).astype(carry.dtype)
    zs = zs.swapaxes(0, axis)
    before, after = affine_scan(*cell.affine(zs, masks), carry, valid, reverse)
    _, ys = cell.step(weights, before, zs, masks)
    if valid is not None:
        ys = jnp.where(valid[..., None], ys, 0)
    return after[0 if reverse else -1], ys.swapaxes(0, axis)


def _spread(name: str, value, count: int) -> Sequence[Any]:
    """One value for each of `count` layers or directions."""
    if not isinstance(value, (tuple, list)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"`{name}` must have {count} entries, one for each, got {len(value)}."
        )
    return value


def _valid(lengths, time: int, batch: int) -> Bool[Array, "T B"]:
    """Which steps are not padding; checks lengths whose values are known."""
    lengths = lengths if hasattr(lengths, "dtype") else np.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"`lengths` must be integers of shape [B] = ({batch},), got "
            f"{lengths.dtype}{list(lengths.shape)}."
        )
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        if np.any((values < 0) | (values > time)):
            raise ValueError(f"`lengths` must lie in [0, T = {time}], got {values}.")
    steps = jnp.arange(time, dtype=jnp.int32)
    return steps[:, None] < jnp.asarray(lengths).astype(jnp.int32)[None]
