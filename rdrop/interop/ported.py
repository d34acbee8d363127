"""Ported layers: an rdrop module, its parameters and its noise.

Between the libraries the weights of a layer are plain data, a `Layer`: the weights of
one cell, a pair of them (forward, backward), or a list of layers from the input
upwards. `port` and `stack` make modules of data, `layer_of` makes data of variables.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rdrop.dropout import Dropout
from rdrop.interop.layouts import GRU_BEFORE, LSTM, SIMPLE, Weights, name_of
from rdrop.linen import RNN, Bidirectional, Cell, GRUCell, LSTMCell, SimpleCell, Stack

# Weights of a cell, a pair of them, or a list of either.
Layer: TypeAlias = Any
# One for all, a pair of one per direction, or a tuple of one per layer.
Noise: TypeAlias = Dropout | tuple[Any, ...] | None


class Ported(NamedTuple):
    """An rdrop layer, the variables it runs with, and its noise.

    Training: `module.apply(params, xs, dropout, keys)`.

    Attributes:
        module: `RNN`, `Bidirectional` or `Stack`; `module.clone(...)` changes a field.
        params: linen variables, {"params": ...}.
        dropout: the noise that the layer had, as the presets of its library return it;
            for a `Stack` a tuple of one per layer, for a `Bidirectional` whose
            directions differ a pair. None if the layer had none, or if the source has
            weights only.
    """

    module: RNN | Bidirectional | Stack
    params: dict[str, Any]
    dropout: Noise = None


def port(
    layer: Layer,
    dropout: Noise = None,
    *,
    reverse: bool = False,
    time_major: bool = False,
    options: Sequence[Mapping[str, Any]] = ({}, {}),
) -> Ported:
    """Returns the rdrop layer with the weights of a cell or of a pair.

    Args:
        layer: the weights of a cell, or a pair (forward, backward).
        dropout: the noise of the layer.
        reverse: whether a single cell runs from the last step to the first.
        time_major: whether sequences are [T, B, D].
        options: of each cell, such as its activation.
    """
    weights = jax.tree.map(jnp.asarray, layer)
    if isinstance(layer, tuple):
        forward, backward = map(_cell, weights, options)
        both = Bidirectional(forward, backward, time_major)
        tree = dict(zip(("forward", "backward"), weights, strict=True))
        return Ported(both, {"params": tree}, dropout)
    rnn = RNN(_cell(weights, options[0]), time_major, reverse)
    return Ported(rnn, {"params": weights}, dropout)


def stack(layers: Sequence[Ported]) -> Ported:
    """Joins layers, from the input upwards, into one.

    Raises:
        ValueError: `layers` is empty.
    """
    if not layers:
        raise ValueError("A stack must have at least one layer, got none.")
    params = {f"layers_{n}": layer.params["params"] for n, layer in enumerate(layers)}
    modules: Any = [layer.module for layer in layers]
    noise = tuple(layer.dropout for layer in layers)
    return Ported(Stack(modules), {"params": params}, noise if any(noise) else None)


def layer_of(params: Mapping[str, Any]) -> Layer:
    """Returns the weights in the variables of an `RNN`, `Bidirectional` or `Stack`.

    Raises:
        ValueError: they are the variables of another module.
    """
    if not isinstance(params, Mapping) or "params" not in params:
        got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            '`params` must be the variables of an rdrop layer, {"params": ...}, got '
            f"{got}."
        )
    tree = params["params"]
    if "layers_0" in tree:
        return [_of_tree(tree[f"layers_{n}"]) for n in range(len(tree))]
    return _of_tree(tree)


def cells_of(layer: Layer) -> tuple[Weights, ...]:
    """Returns the cells of a layer of one or two directions."""
    return layer if isinstance(layer, tuple) else (layer,)


def _of_tree(tree: Mapping[str, Any]) -> Layer:
    if set(tree) == {"forward", "backward"}:
        return _of_tree(tree["forward"]), _of_tree(tree["backward"])
    name_of(tree)
    return dict(tree)


def _cell(weights: Weights, options: Mapping[str, Any]) -> Cell:
    name, kernel = name_of(weights), weights["recurrent_kernel"]
    units, options = kernel.shape[0], {"param_dtype": kernel.dtype, **options}
    if "projection" in weights:
        units, width = weights["projection"].shape
        return LSTMCell(units, projection=width, **options)
    if name == LSTM:
        return LSTMCell(units, **options)
    if name == SIMPLE:
        return SimpleCell(units, **options)
    return GRUCell(units, reset_after=name != GRU_BEFORE, **options)
