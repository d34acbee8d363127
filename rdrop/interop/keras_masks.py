"""Masks to and from Keras: a Keras layer and an rdrop layer with the same noise.

A live layer of Keras 3 draws its masks at the start of a call, stores them in private
attributes of its cell, and clears them at the end. If they are stored already, it does
not draw. This module reads and writes those attributes, which Keras does not document;
a version that stores its masks elsewhere is rejected.

    masks of Keras      `implementation=1`: a list with one [B, U] per gate
                        `implementation=2`, or SimpleRNN: one array [B, U]
    masks of rdrop      one array (B, G, U), G = 1 if the gates share it

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
from rdrop.interop.keras import NEWEST, release_of
from rdrop.sites import SITES


class Store(NamedTuple):
    """Attributes of a Keras cell for one site: its rate, its masks, and a method."""

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
    """Makes a Keras layer use these masks in its next call.

    Make that call directly, with training=True: a call with training=False clears the
    masks unused, and a compiled program does not see them.

    Args:
        masks: `Masks` (B, G, U) held over the sequence, of the sites `inputs` and
            `recurrent`; None at a site disables its noise, whatever the layer's rate.
            For a Bidirectional a pair (forward, backward), for a list one per layer.
        layer: a live, built Keras LSTM, GRU, SimpleRNN, or Bidirectional of one; or a
            list of such layers. Its own rates determine which masks it reads.

    Raises:
        ImportError: Keras is not installed.
        RuntimeError: this version of Keras stores its masks elsewhere.
        TypeError: `layer` or `masks` have another type.
        ValueError: masks that Keras cannot use: of other sites, per step, per gate if
            it has one for all, at a rate of 0, or of the wrong size.
    """
    values = [
        (cell, store.masks, _as_keras(f"{name}.{site}", getattr(own, site), cell, site))
        for name, own, cell in _by_cell("masks", masks, layer)
        for site, store in STORES.items()
    ]
    for cell, _, _ in values:
        _clear(cell)
    for cell, attribute, value in values:
        setattr(cell, attribute, value)


def masks_from_keras(layer: Any, xs: Any) -> Any:
    """Draws the masks of a Keras layer's next call, and returns them.

    They come from the layer's own seed, as the call would draw them. As for
    `masks_to_keras`, make the call directly and with training=True.

    Args:
        layer: as in `masks_to_keras`.
        xs: inputs of the (first) layer, [B, T, D]; only their shape matters.

    Returns:
        float32 `Masks`, for `rnn.apply(params, xs, masks)`; for a Bidirectional a pair
        (forward, backward), for a list a tuple of one per layer. A site whose rate is 0
        has None.

    Raises:
        ImportError: Keras is not installed.
        RuntimeError: this version of Keras stores its masks elsewhere.
        TypeError: `layer` has another type.
        ValueError: `layer` is not built, or was built for another shape of `xs`.
    """
    cells, shape = _cells(layer), tuple(xs.shape)
    first = cells
    while isinstance(first, tuple):
        first = first[0]
    features = first.kernel.shape[0]
    if len(shape) != 3 or shape[2] != features:
        raise ValueError(
            f"`xs` must have the axes [B, T, D] with D = {features}, got shape {shape}."
        )
    return _draw(cells, shape[0])


def _draw(cells: Any, batch: int) -> Any:
    if isinstance(cells, tuple):
        return tuple(_draw(each, batch) for each in cells)
    _clear(cells)
    ones, drawn = _keras().ops.ones, {}
    for site, store in STORES.items():
        like = ones((batch, _units(cells, site)), dtype=cells.compute_dtype)
        drawn[site] = _as_rdrop(getattr(cells, store.draw)(like))
    return Masks(**drawn)


def _as_rdrop(masks: Any) -> Any:
    """One array of Keras, or a list with one per gate, as (B, G, U)."""
    if masks is None:
        return None
    gates = masks if isinstance(masks, list) else [masks]
    arrays = [_keras().ops.convert_to_numpy(gate) for gate in gates]
    return jnp.asarray(np.stack(arrays, axis=1), jnp.float32)


def _as_keras(name: str, mask: Any, cell: Any, site: str) -> Any:
    """The mask (B, G, U) as the cell stores it; None if the cell does not read it."""
    mask = np.ones((1, 1, 1)) if mask is None else np.asarray(mask)
    rate = STORES[site].rate
    if getattr(cell, rate) == 0:
        if np.any(mask != 1):
            raise ValueError(
                f"`{name}` must be None or all ones for a layer with {rate}=0, which "
                "does not read it."
            )
        return None
    count = getattr(cell, "dropout_mask_count", None)
    _check_shape(name, mask.shape, count or 1, _units(cell, site))
    gates = [
        _keras().ops.convert_to_tensor(
            np.ascontiguousarray(mask[:, n % mask.shape[1]]), dtype=cell.compute_dtype
        )
        for n in range(count or 1)
    ]
    return gates if count else gates[0]


def _check_shape(name: str, shape: tuple[int, ...], gates: int, units: int) -> None:
    if len(shape) != 3 or shape[1] not in (1, gates) or shape[2] not in (1, units):
        raise ValueError(
            f"`{name}` must have the axes (B, G, U) = (B, {gates}, {units}), each of "
            f"full size or 1, got shape {shape}. Keras has no masks per step, and "
            "masks per gate only with recurrent_dropout or implementation=1."
        )


def _by_cell(name: str, masks: Any, layer: Any) -> Iterator[tuple[str, Masks, Any]]:
    """Every cell with its masks, and their name in errors."""
    parts = _parts(layer)
    if parts is None:
        _check_masks(name, masks)
        yield name, masks, _cells(layer)
        return
    if not isinstance(masks, (list, tuple)) or len(masks) != len(parts):
        got = len(masks) if isinstance(masks, (list, tuple)) else type(masks).__name__
        raise ValueError(
            f"`{name}` must be {len(parts)} Masks, one per direction of a "
            f"Bidirectional or layer of a list, got {got}."
        )
    for n, (own, part) in enumerate(zip(masks, parts, strict=True)):
        yield from _by_cell(f"{name}[{n}]", own, part)


def _check_masks(name: str, masks: Any) -> None:
    if not isinstance(masks, Masks):
        raise TypeError(f"`{name}` must be Masks, got {type(masks).__name__}.")
    for site in SITES:
        if site not in STORES and getattr(masks, site) is not None:
            raise ValueError(
                f"`{name}.{site}` must be None: Keras has masks of inputs and "
                "recurrent only."
            )


def _parts(layer: Any) -> Any:
    """The layers of a list, the directions of a Bidirectional; None for one layer."""
    if isinstance(layer, (list, tuple)):
        return layer
    if isinstance(layer, _keras().layers.Bidirectional):
        return layer.forward_layer, layer.backward_layer
    return None


def _cells(layer: Any) -> Any:
    """The cell of a layer, or nested tuples of cells."""
    if (parts := _parts(layer)) is not None:
        return tuple(_cells(part) for part in parts)
    layers, cell = _keras().layers, getattr(layer, "cell", None)
    if not isinstance(cell, (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)):
        raise TypeError(
            "`layer` must be a Keras LSTM, GRU, SimpleRNN or Bidirectional, or a list "
            f"of these, got {type(layer).__name__}."
        )
    if not cell.built:
        raise ValueError(
            "`layer` must be built: call it once, or layer.build((B, T, D)); "
            f"{layer.name!r} is not."
        )
    for store in STORES.values():
        if (rate := getattr(cell, store.rate)) >= 1:
            raise ValueError(
                f"`layer.{store.rate}` must lie in [0, 1), got {rate}: Keras ignores 1 "
                "in some layers and backends."
            )
    return cell


def _units(cell: Any, site: str) -> int:
    return cell.kernel.shape[0] if site == "inputs" else cell.units


def _clear(cell: Any) -> None:
    """Clears the masks of a cell; raises if it does not store them as Keras 3.8."""
    for store in STORES.values():
        reset = getattr(cell, f"reset{store.masks}", None)
        if reset is not None:
            reset()
        if reset is None or not {store.masks, store.draw} <= {*dir(cell)}:
            raise RuntimeError(
                f"Keras {_keras().__version__} does not store its masks as 3.8 to 3.15 "
                f"do: {type(cell).__name__} has no `{store.masks}`."
            )


def _keras() -> ModuleType:
    try:
        import keras
    except ImportError as error:
        raise ImportError("Keras is not installed: pip install keras.") from error
    if release_of(keras.__version__) < NEWEST:
        raise RuntimeError(
            "Masks need Keras 3.8 or newer, whose masks equal those of "
            f"`presets.keras`, got {keras.__version__}."
        )
    return keras
