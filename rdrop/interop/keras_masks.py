"""Masks to and from Keras: one layer of Keras and one of rdrop with the same noise.

The weights of a port can be compared with the noise off. That the noise is the same
too shows only where both have the same masks: of rdrop in Keras, or of Keras in rdrop.

A live layer of Keras 3 draws its masks at the start of a call, holds them in private
attributes of its cell over the time steps, and clears them at the end. Held already,
they are not drawn. This module reads and writes those attributes, so it depends on what
Keras does not promise; a Keras that keeps its masks elsewhere is refused.

    masks of Keras      `implementation=1`: a list of one a gate, [B, U] each
                        `implementation=2`, or SimpleRNN: one array [B, U]
    masks of rdrop      one array (B, G, U), G = 1 where the gates share it

References:
    [1] keras/src/layers/rnn, dropout_rnn_cell.py, rnn.py, lstm.py, gru.py and
        simple_rnn.py, of Keras 3.8 to 3.15.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rdrop.dropout import Masks
from rdrop.keys import STREAMS

OLDEST = (3, 8)  # before it, gates shared a mask that the leak path of a GRU had too


class Store(NamedTuple):
    """Where a cell of Keras keeps the masks of a site: names of its attributes."""

    rate: str
    masks: str
    draw: str


STORES = {
    "inputs": Store("dropout", "_dropout_mask", "get_dropout_mask"),
    "recurrent": Store(
        "recurrent_dropout", "_recurrent_dropout_mask", "get_recurrent_dropout_mask"
    ),
}


def masks_to_keras(masks: Any, layer: Any) -> None:
    """Makes a layer of Keras use these masks at its next call.

    That call is to be made directly, with training=True: one with training=False clears
    the masks unused, and a program that is compiled already does not see them.

    Args:
        masks: `Masks` held over the sequence, of the sites `inputs` and `recurrent`,
            (B, G, U); None at a site is no noise there, whatever the layer's rate. For
            a Bidirectional a pair (forward, backward), for a list a sequence of one a
            layer.
        layer: a live Keras LSTM, GRU, SimpleRNN, or Bidirectional of these, built; or a
            list of such layers. Its own rates say which masks it looks at.

    Raises:
        ImportError: Keras is not installed.
        RuntimeError: this version of Keras keeps its masks elsewhere.
        TypeError: `layer` or `masks` are of another type.
        ValueError: masks that Keras cannot take: of other sites, of each step, one a
            gate where it has one for all, at a rate of 0; or of the wrong size.
    """
    found = [
        (cell, store.masks, _as_keras(f"{name}.{site}", getattr(own, site), cell, site))
        for name, own, cell in _by_cell("masks", masks, layer)
        for site, store in STORES.items()
    ]
    for cell, attribute, value in found:
        setattr(cell, attribute, value)


def masks_from_keras(layer: Any, xs: Any) -> Any:
    """Has a layer of Keras draw its masks, keep them for its next call, and tell them.

    They are the ones that the call would have drawn, from the layer's own seed. As in
    `masks_to_keras`, the call is to be made directly and with training=True.

    Args:
        layer: as in `masks_to_keras`.
        xs: inputs of the (first) layer, [B, T, D]; their shape alone matters.

    Returns:
        float32 `Masks`, for `rnn.apply(params, xs, masks)`; for a Bidirectional a pair
        (forward, backward), for a list a tuple of one a layer. A site whose rate is 0
        has None.

    Raises:
        ImportError: Keras is not installed.
        RuntimeError: this version of Keras keeps its masks elsewhere.
        TypeError: `layer` is of another type.
        ValueError: `layer` is not built, or `xs` are not what it was built for.
    """
    shape = tuple(xs.shape)
    first = next(_cells(layer), None)
    features = None if first is None else first.kernel.shape[0]
    if len(shape) != 3 or shape[2] != features:
        raise ValueError(
            f"`xs` must have the axes [B, T, D] with D = {features}, got shape {shape}."
        )
    return _draw(layer, shape[0])


def _draw(layer, batch: int) -> Any:
    if (parts := _parts(layer)) is not None:
        return tuple(_draw(part, batch) for part in parts)
    keras, cell = _keras(), _cell(layer)
    _clear(cell)
    drawn = {
        site: getattr(cell, store.draw)(
            keras.ops.ones((batch, _units(cell, site)), dtype=cell.compute_dtype)
        )
        for site, store in STORES.items()
    }
    return Masks(**{site: _from_keras(masks) for site, masks in drawn.items()})


def _from_keras(masks) -> Any:
    """One array of Keras, or its list of one a gate, as (B, G, U)."""
    if masks is None:
        return None
    gates = masks if isinstance(masks, list) else [masks]
    arrays = [_keras().ops.convert_to_numpy(gate) for gate in gates]
    return jnp.asarray(np.stack(arrays, axis=1), jnp.float32)


def _as_keras(name: str, mask, cell, site: str) -> Any:
    """The mask (B, G, U) as the cell holds it; None where it looks at no mask."""
    mask = np.ones((1, 1, 1)) if mask is None else np.asarray(mask)
    rate = STORES[site].rate
    if getattr(cell, rate) == 0:
        if np.any(mask != 1):
            raise ValueError(
                f"`{name}` must be None or all ones for a layer with {rate}=0, which "
                "looks at no mask there."
            )
        return None
    count = getattr(cell, "dropout_mask_count", None)
    _check_shape(name, mask.shape, count, _units(cell, site))
    convert, dtype = _keras().ops.convert_to_tensor, cell.compute_dtype
    gates = [
        convert(np.ascontiguousarray(mask[:, n % mask.shape[1]]), dtype=dtype)
        for n in range(count or 1)
    ]
    return gates if count else gates[0]


def _check_shape(name: str, shape, count: int | None, units: int) -> None:
    gates = count or 1
    if len(shape) == 3 and shape[1] in (1, gates) and shape[2] in (1, units):
        return
    if len(shape) == 4:
        why = "Keras holds a mask over the sequence and has none of each step"
    elif len(shape) == 3 and gates == 1 < shape[1]:
        why = "this layer has one mask for all gates (implementation=2, or no gates)"
    else:
        why = "each axis whole or 1"
    raise ValueError(
        f"`{name}` must have the axes (B, G, U) = (B, {gates}, {units}), as {why}; got "
        f"shape {shape}."
    )


def _by_cell(name: str, masks, layer) -> Iterator[tuple[str, Masks, Any]]:
    """Every cell with its masks, and the name of these in errors."""
    parts = _parts(layer)
    if parts is None:
        _check_masks(name, masks)
        cell = _cell(layer)
        _clear(cell)
        yield name, masks, cell
        return
    if not isinstance(masks, (list, tuple)) or len(masks) != len(parts):
        got = len(masks) if isinstance(masks, (list, tuple)) else type(masks).__name__
        raise ValueError(
            f"`{name}` must be {len(parts)} Masks, one for each direction of a "
            f"Bidirectional or layer of a list, got {got}."
        )
    for n, (own, part) in enumerate(zip(masks, parts, strict=True)):
        yield from _by_cell(f"{name}[{n}]", own, part)


def _check_masks(name: str, masks) -> None:
    if not isinstance(masks, Masks):
        raise TypeError(f"`{name}` must be Masks, got {type(masks).__name__}.")
    for site in STREAMS:
        if site not in STORES and getattr(masks, site) is not None:
            raise ValueError(
                f"`{name}.{site}` must be None: Keras has masks of inputs and "
                "recurrent only."
            )


def _cells(layer) -> Iterator[Any]:
    parts = _parts(layer)
    if parts is None:
        yield _cell(layer)
        return
    for part in parts:
        yield from _cells(part)


def _parts(layer) -> Any:
    """The layers of a list, the directions of a Bidirectional; None for one layer."""
    if isinstance(layer, (list, tuple)):
        return layer
    if isinstance(layer, _keras().layers.Bidirectional):
        return layer.forward_layer, layer.backward_layer
    return None


def _cell(layer) -> Any:
    layers = _keras().layers
    cell = getattr(layer, "cell", None)
    if not isinstance(cell, (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)):
        raise TypeError(
            "`layer` must be a Keras LSTM, GRU, SimpleRNN or Bidirectional, or a list "
            f"of these, got {type(layer).__name__}."
        )
    if not cell.built:
        raise ValueError(
            "`layer` must be built: call it once, or layer.build((B, T, D)); got "
            f"{type(layer).__name__} {layer.name!r}, which is not."
        )
    for store in STORES.values():
        if (rate := getattr(cell, store.rate)) >= 1:
            raise ValueError(
                f"`layer.{store.rate}` must be below 1, got {rate}: whether Keras has "
                "a mask there depends on layer and backend."
            )
    return cell


def _units(cell, site: str) -> int:
    return cell.kernel.shape[0] if site == "inputs" else cell.units


def _clear(cell) -> None:
    """Clears the masks of a cell; raises where it does not keep them as Keras 3.8."""
    for store in STORES.values():
        reset = getattr(cell, f"reset{store.masks}", None)
        if reset is not None:
            reset()
        if reset is None or not {store.masks, store.draw} <= {*dir(cell)}:
            raise RuntimeError(
                f"Keras {_keras().__version__} does not keep its masks where 3.8 to "
                f"3.15 do: {type(cell).__name__} has no `{store.masks}`."
            )


def _keras() -> ModuleType:
    try:
        import keras
    except ImportError as error:
        raise ImportError("Keras is needed: pip install keras") from error
    if tuple(int(n) for n in keras.__version__.split(".")[:2]) < OLDEST:
        raise RuntimeError(
            "Masks are exchanged with Keras 3.8 and newer, whose masks are those of "
            f"`presets.keras`, got {keras.__version__}."
        )
    return keras
