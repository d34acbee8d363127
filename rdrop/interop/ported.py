"""Ported: an rdrop layer with the parameters that another library's layer had.

Between the libraries a layer is plain data, `Layer`: the weights of one cell, a pair of
them (forward, backward), or a list of layers from the input upwards. `port` makes a
module and variables of it, `weights_of` makes it of variables.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rdrop.cells import Cell, GRUCell, LSTMCell, SimpleCell
from rdrop.interop.layouts import Weights, name_of
from rdrop.layers import RNN, Bidirectional, Stack

# Weights of a cell, a pair of them, or a list of either.
Layer: TypeAlias = Any

CELLS: dict[str, Callable[..., Cell]] = {
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "GRU with the reset before": partial(GRUCell, reset_after=False),
    "simple": SimpleCell,
}


class Ported(NamedTuple):
    """An rdrop layer, and the variables that it runs with.

    Attributes:
        module: `RNN`, `Bidirectional` or `Stack`; `module.clone(...)` changes a field.
        params: linen variables, {"params": ...}.
    """

    module: RNN | Bidirectional | Stack
    params: dict[str, Any]


def port(layer: Layer, reverse: bool = False, time_major: bool = False) -> Ported:
    """Returns the rdrop layer of the weights of a cell or of a pair.

    Args:
        layer: the weights of a cell, or a pair (forward, backward).
        reverse: whether a single cell runs from the last step to the first.
        time_major: whether sequences are [T, B, D].
    """
    on_device = jax.tree.map(jnp.asarray, layer)
    if isinstance(layer, tuple):
        forward, backward = on_device
        module = Bidirectional(_cell(forward), _cell(backward), time_major)
        both = {"forward": forward, "backward": backward}
        return Ported(module, {"params": both})
    rnn = RNN(_cell(on_device), time_major, reverse)
    return Ported(rnn, {"params": on_device})


def stack(layers: Sequence[Ported]) -> Ported:
    """Returns layers, from the input upwards, as one.

    Raises:
        ValueError: there are none.
    """
    if not layers:
        raise ValueError("A stack must have at least one layer, got none.")
    params = {f"layers_{n}": layer.params["params"] for n, layer in enumerate(layers)}
    modules: Any = [layer.module for layer in layers]
    return Ported(Stack(modules), {"params": params})


def weights_of(params: Mapping[str, Any]) -> Layer:
    """Returns the weights in the variables of an `RNN`, `Bidirectional` or `Stack`.

    Raises:
        ValueError: they are the variables of something else.
    """
    if not isinstance(params, Mapping) or "params" not in params:
        got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            '`params` must be the variables of an rdrop layer, {"params": ...}, got '
            f"{got}."
        )
    tree = params["params"]
    if "layers_0" in tree:
        return [_of_layer(tree[f"layers_{n}"]) for n in range(len(tree))]
    return _of_layer(tree)


def map_cells(function: Callable[[Weights], Any], layer: Layer) -> Layer:
    """Returns what a function makes of each cell's weights, in pairs and lists."""
    if isinstance(layer, (list, tuple)):
        return type(layer)(map_cells(function, each) for each in layer)
    return function(layer)


def _of_layer(tree):
    if set(tree) == {"forward", "backward"}:
        return _of_layer(tree["forward"]), _of_layer(tree["backward"])
    name_of(tree)
    return dict(tree)


def _cell(weights: Weights) -> Cell:
    build = CELLS[name_of(weights)]
    kernel = weights["recurrent_kernel"]
    return build(kernel.shape[0], param_dtype=kernel.dtype)
