"""Flax: weights of linen's and nnx's recurrent cells, to and from rdrop.

Parameters of linen do not say which activations, or whether a SimpleCell is residual;
they are taken to be the defaults. A module of nnx does say, and is refused.

Checked with flax 0.12.8, flax/linen/recurrent.py and flax/nnx/nn/recurrent.py.
"""

import itertools
import keyword
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdrop.interop.layouts import (
    LINEN,
    NNX,
    Array,
    Arrays,
    Layout,
    Weights,
    check_like,
    name_of,
    read,
    write,
)
from rdrop.interop.ported import Layer, Ported, map_cells, port, stack, weights_of

# The cells of nnx, as `RDROP.cells` names them.
NNX_CELLS = {
    "LSTMCell": "LSTM",
    "OptimizedLSTMCell": "LSTM",
    "GRUCell": "GRU",
    "SimpleCell": "simple",
}
ACTIVATIONS = {
    "activation_fn": (jnp.tanh, jax.nn.tanh),
    "gate_fn": (jax.nn.sigmoid,),
}


def from_flax(source: Any) -> Ported:
    """Returns the rdrop layer that computes what one of flax does.

    Outputs of a reverse RNN stay at the time steps of their inputs, as with flax's
    `keep_order=True`; at padding they are zero, where flax goes on computing.

    Args:
        source: parameters of linen's `LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or
            `SimpleCell`, of `nn.RNN` or `nn.Bidirectional` around them, with or without
            the outer {"params": ...}; or a live module of nnx of one of those names; or
            a list of either, from the input upwards.

    Raises:
        TypeError: a module of another class.
        ValueError: parameters of another cell, other activations, a residual
            SimpleCell, or a `merge_fn` other than the default.
    """
    if isinstance(source, (list, tuple)):
        _check_order(source)
        return stack([from_flax(each) for each in source])
    if isinstance(source, Mapping):
        return port(_of_linen(source))
    return _of_nnx(source)


def to_flax(params: Mapping[str, Any], module: Any = None) -> Any:
    """Returns linen variables, or writes into a live module of nnx, in place.

    Args:
        params: variables of an `RNN`, a `Bidirectional` or a `Stack`.
        module: an nnx cell, `nnx.RNN`, `nnx.Bidirectional`, or for a `Stack` a list of
            them; what it holds has the shapes and dtypes of `params`.

    Returns:
        Without a module, the variables of a bare cell (an `nn.RNN` has them under
        {"params": {"cell": ...}}), of an `nn.Bidirectional`, or for a `Stack` a list.

    Raises:
        TypeError: a module of another class.
        ValueError: flax has no such cell, no place for a bias that is not zero, or the
            module is another than `params` are of.
    """
    layer = weights_of(params)
    if module is None:
        return _to_linen(layer)
    for variable, array in _pairs(layer, _cells(module)):
        variable[...] = jnp.asarray(array)
    return None


def _of_linen(variables: Mapping[str, Any]) -> Layer:
    tree = variables.get("params", variables)
    if set(tree) == {"forward_rnn", "backward_rnn"}:
        return _of_linen(tree["forward_rnn"]), _of_linen(tree["backward_rnn"])
    if set(tree) == {"cell"}:
        return _of_linen(tree["cell"])
    return _read(LINEN, _linen_cell(tree), lambda dense, what: tree[dense][what])


def _linen_cell(tree: Mapping[str, Any]) -> str:
    """The cell, of `RDROP.cells`, that has parameters of these names."""
    for name in LINEN.cells:
        places = itertools.chain(*_places(LINEN, name))
        if set(tree) == {dense for dense, _ in places}:
            return name
    raise ValueError(
        "`source` must be the parameters of linen's LSTMCell, OptimizedLSTMCell, "
        f"GRUCell or SimpleCell, got the names {sorted(tree)}."
    )


def _to_linen(layer: Layer) -> Any:
    if isinstance(layer, list):
        return [_to_linen(each) for each in layer]
    trees = map_cells(_linen_tree, layer)
    if isinstance(layer, tuple):
        cells = ({"cell": tree} for tree in trees)
        trees = dict(zip(("forward_rnn", "backward_rnn"), cells, strict=True))
    return {"params": trees}


def _linen_tree(weights: Weights) -> dict[str, dict[str, jax.Array]]:
    tree: dict[str, dict[str, jax.Array]] = {}
    for (dense, what), array in _placed(LINEN, weights).items():
        tree.setdefault(dense, {})[what] = jnp.asarray(array)
    return tree


def _of_nnx(module) -> Ported:
    layer = map_cells(_nnx_weights, _cells(module))
    time_major = getattr(module, "time_major", False)
    reverse = isinstance(module, _nnx().RNN) and module.reverse
    return port(layer, reverse, time_major)


def _cells(module) -> Any:
    """The cells of a module of nnx: one, a pair, or a list."""
    if isinstance(module, (list, tuple)):
        return [_cells(each) for each in module]
    if isinstance(module, _nnx().Bidirectional):
        _check_merge(module)
        return _cells(module.forward_rnn), _cells(module.backward_rnn)
    return module.cell if isinstance(module, _nnx().RNN) else module


def _nnx_weights(cell) -> Weights:
    _check_cell(cell)
    layout, name = _nnx_layout(cell), NNX_CELLS[type(cell).__name__]
    return _read(layout, name, lambda dense, what: _variable(cell, dense, what)[...])


def _nnx_layout(cell) -> Layout:
    return LINEN if type(cell).__name__ == "LSTMCell" else NNX


def _variable(cell, dense: str, what: str) -> Any:
    """A parameter of a cell of nnx, where the gate of the name `if` is `if_`."""
    return getattr(getattr(cell, dense + "_" * keyword.iskeyword(dense)), what)


def _pairs(layer: Layer, cells: Any) -> list[tuple[Any, Array]]:
    """The variables of cells of nnx, each with the array to be written into it."""
    if not isinstance(layer, (list, tuple)):
        return _pairs_of_cell(layer, cells)
    if type(cells) is not type(layer) or len(cells) != len(layer):
        what = "a Bidirectional" if isinstance(layer, tuple) else "a list of layers"
        raise ValueError(
            f"`module` must be {what} of {len(layer)}, as `params` are of, got "
            f"{_described(cells)}."
        )
    return [pair for both in zip(layer, cells, strict=True) for pair in _pairs(*both)]


def _described(cells) -> str:
    several = isinstance(cells, (list, tuple))
    return f"{len(cells)} layers" if several else f"one {type(cells).__name__}"


def _pairs_of_cell(weights: Weights, cell) -> list[tuple[Any, Array]]:
    _check_cell(cell)
    name = type(cell).__name__
    if NNX_CELLS[name] != name_of(weights):
        raise ValueError(
            f"`module` must have the cell of `params`, {name_of(weights)}, got {name}."
        )
    pairs = []
    for (dense, what), array in _placed(_nnx_layout(cell), weights).items():
        variable = _variable(cell, dense, what)
        check_like(f"{dense}.{what}", array, variable[...])
        pairs.append((variable, array))
    return pairs


def _places(layout: Layout, name: str) -> list[list[tuple[str, str]]]:
    """Where flax has each field of `Arrays`: (name of a dense layer, which array)."""
    own = layout.cells[name]
    fields = (
        ("i", "kernel", own.gates),
        ("h", "kernel", own.gates),
        ("i", "bias", own.input_bias),
        ("h", "bias", own.recurrent_bias),
    )
    if layout.side_by_side:
        return [[(f"dense_{side}", what)] if g else [] for side, what, g in fields]
    return [[(side + gate, what) for gate in gates] for side, what, gates in fields]


def _read(layout: Layout, name: str, get: Callable[[str, str], Any]) -> Weights:
    """The weights of a cell whose arrays `get` knows by their places."""
    fields: list[Any] = [
        np.concatenate([np.asarray(get(*place)) for place in places], axis=-1)
        if places
        else None
        for places in _places(layout, name)
    ]
    return read(layout, Arrays(*fields))


def _placed(layout: Layout, weights: Weights) -> dict[tuple[str, str], Array]:
    """The arrays of a library's cell by their places."""
    arrays = write(layout, weights)
    found: dict[tuple[str, str], Array] = {}
    for places, array in zip(_places(layout, name_of(weights)), arrays, strict=True):
        if array is not None:
            parts = np.split(array, len(places), axis=-1)
            found.update(zip(places, parts, strict=True))
    return found


def _nnx() -> Any:
    """`flax.nnx`, which takes a while to import and which only its users need."""
    from flax import nnx

    return nnx


def _check_cell(cell) -> None:
    if type(cell) not in {getattr(_nnx(), name) for name in NNX_CELLS}:
        raise TypeError(
            f"A module of flax must be an nnx.{', nnx.'.join(NNX_CELLS)}, or an "
            f"nnx.RNN or nnx.Bidirectional around one, got {type(cell).__name__}."
        )
    for name, defaults in ACTIVATIONS.items():
        function = getattr(cell, name, defaults[0])
        if function not in defaults:
            raise ValueError(
                f"`{name}` must be the default, {defaults[0].__name__}, got {function}."
            )
    if getattr(cell, "residual", False):
        raise ValueError("`residual` must be False in a SimpleCell, got True.")


def _check_merge(module) -> None:
    if module.merge_fn is not type(module).merge_fn:
        raise ValueError(
            f"`merge_fn` must be the default, concatenation, got {module.merge_fn}."
        )


def _check_order(layers) -> None:
    """Raises where flax would hand a reversed sequence to the next layer."""
    for depth, layer in enumerate(layers[:-1]):
        if getattr(layer, "reverse", False) and not layer.keep_order:
            raise ValueError(
                "`keep_order` must be True in a reverse RNN below the top of a stack, "
                f"got False in layer {depth}."
            )
