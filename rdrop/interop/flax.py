"""Flax: weights of linen's and nnx's recurrent cells, to and from rdrop.

Checked with flax 0.12.8, flax/linen/recurrent.py and flax/nnx/nn/recurrent.py.
"""

import keyword
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rdrop.interop.layouts import (
    GRU,
    LINEN,
    LSTM,
    NNX,
    SIMPLE,
    Arrays,
    Layout,
    Weights,
    name_of,
    read,
    write,
)
from rdrop.interop.ported import Layer, Ported, layer_of, port, stack

# Parameters of a cell of flax, {name of a dense layer: {"kernel": ..., "bias": ...}}.
Tree: TypeAlias = Mapping[str, Mapping[str, Any]]
NNX_CELLS: dict[str, tuple[str, Layout]] = {
    "LSTMCell": (LSTM, LINEN),
    "OptimizedLSTMCell": (LSTM, NNX),
    "GRUCell": (GRU, NNX),
    "SimpleCell": (SIMPLE, NNX),
}
# Their activations: the names of rdrop, and the defaults.
ACTIVATIONS = {
    "activation_fn": ("activation", (jnp.tanh, jax.nn.tanh)),
    "gate_fn": ("recurrent_activation", (jax.nn.sigmoid,)),
}
# The names that linen and rdrop give to the parts of a Bidirectional.
PAIRS = (("forward_rnn", "backward_rnn"), ("forward", "backward"))


def from_flax(source: Any) -> Ported:
    """Returns the rdrop layer that computes the same as a flax layer.

    Outputs of a reverse RNN stay at the time steps of their inputs, as with flax's
    `keep_order=True`. At padding they are zero; flax continues to compute there.
    Parameters of linen do not state activations, or whether a SimpleCell is residual;
    the defaults are assumed. Flax's cells have no dropout: `dropout` is None.

    Args:
        source: parameters of linen's `LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or
            `SimpleCell`, of an `nn.RNN` or an `nn.Bidirectional` of one, with or
            without the outer {"params": ...}; or a live nnx module of one of these
            names; or a list of such sources, from the input upwards. Cells that are
            created in a compact method store their parameters in the module around
            them: pass `tree["GRUCell_0"]`, or for an `nn.Bidirectional`
            `{"forward": tree["GRUCell_0"], "backward": tree["GRUCell_1"]}`.

    Raises:
        TypeError: a module of another class.
        ValueError: parameters of another cell, a residual SimpleCell, a `merge_fn`
            other than the default, or a reverse RNN without `keep_order` below the top
            of a stack.
    """
    if isinstance(source, (list, tuple)):
        _check_order(source)
        return stack([from_flax(each) for each in source])
    if isinstance(source, Mapping):
        return port(_of_linen(source))
    cells = _cells(source)
    both = isinstance(cells, tuple)
    layer = tuple(map(_nnx_weights, cells)) if both else _nnx_weights(cells)
    options = [_activations(cell) for cell in (cells if both else [cells])]
    reverse = isinstance(source, _nnx().RNN) and source.reverse
    time_major = getattr(source, "time_major", False)
    return port(layer, reverse=reverse, time_major=time_major, options=options)


def to_flax(params: Mapping[str, Any], module: Any = None) -> Any:
    """Returns linen variables, or writes into a live nnx module, in place.

    Args:
        params: variables of an `RNN`, a `Bidirectional` or a `Stack`.
        module: an nnx cell, `nnx.RNN` or `nnx.Bidirectional`, or for a `Stack` a list
            of them, with the shapes and dtypes of `params`.

    Returns:
        Without a module, the variables of a bare cell (an `nn.RNN` stores them as
        "cell" below "params") or of an `nn.Bidirectional`; for a `Stack` a list.

    Raises:
        TypeError: a module of another class.
        ValueError: flax lacks the cell, or a place for a bias that is not zero; or
            `module` does not match `params`.
    """
    layer = layer_of(params)
    if module is None:
        if isinstance(layer, list):
            return [_to_linen(each) for each in layer]
        return _to_linen(layer)
    pairs = _pairs(layer, _cells(module))
    updates = [(cell, _nnx_update(weights, cell)) for weights, cell in pairs]
    for cell, tree in updates:
        _nnx().update(cell, tree)
    return None


def _of_linen(variables: Mapping[str, Any]) -> Layer:
    tree = variables.get("params", variables)
    for pair in PAIRS:
        if set(tree) == set(pair):
            return tuple(_of_linen(tree[name]) for name in pair)
    if set(tree) == {"cell"}:
        return _of_linen(tree["cell"])
    for name in LINEN.cells:
        if set(tree) == {dense for field in _places(LINEN, name) for dense, _ in field}:
            return _read(LINEN, name, tree)
    raise ValueError(
        "`source` must be the parameters of linen's LSTMCell, OptimizedLSTMCell, "
        f"GRUCell or SimpleCell, got the names {sorted(tree)}. Of cells that were "
        'created in a compact method, pass one by name, or {"forward": ..., '
        '"backward": ...}.'
    )


def _to_linen(layer: Layer) -> dict[str, Any]:
    if not isinstance(layer, tuple):
        return {"params": jax.tree.map(jnp.asarray, _write(LINEN, layer))}
    forward, backward = ({"cell": _to_linen(cell)["params"]} for cell in layer)
    return {"params": {"forward_rnn": forward, "backward_rnn": backward}}


def _cells(module: Any) -> Any:
    """The cells of an nnx module: one, a pair, or a list of either."""
    if isinstance(module, (list, tuple)):
        return [_cells(each) for each in module]
    if isinstance(module, _nnx().Bidirectional):
        if module.merge_fn is not type(module).merge_fn:
            raise ValueError(
                f"`merge_fn` must be the default, concatenation, got {module.merge_fn}."
            )
        return _cells(module.forward_rnn), _cells(module.backward_rnn)
    cell = module.cell if isinstance(module, _nnx().RNN) else module
    _check_cell(cell)
    return cell


def _pairs(layer: Layer, cells: Any) -> list[tuple[Weights, Any]]:
    """The weights of each cell, with the nnx cell that receives them."""
    if isinstance(layer, dict) and _is_cell(cells):
        return [(layer, cells)]
    if type(layer) is not type(cells) or len(layer) != len(cells):
        raise ValueError(
            f"`module` must be {_described(layer)}, as `params` are, got "
            f"{_described(cells)}."
        )
    return [pair for both in zip(layer, cells, strict=True) for pair in _pairs(*both)]


def _described(layer: Any) -> str:
    if isinstance(layer, list):
        return f"a list of {len(layer)} layers"
    return "a Bidirectional" if isinstance(layer, tuple) else "one cell"


def _nnx_weights(cell: Any) -> Weights:
    name, layout = NNX_CELLS[type(cell).__name__]
    return _read(layout, name, _nnx_tree(cell))


def _nnx_tree(cell: Any) -> Tree:
    """The parameters of an nnx cell, under linen's names: `if` for `if_`."""
    nnx = _nnx()
    tree = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    return {dense.removesuffix("_"): arrays for dense, arrays in tree.items()}


def _nnx_update(weights: Weights, cell: Any) -> Tree:
    """The parameters that replace an nnx cell's, under its names."""
    name, layout = NNX_CELLS[type(cell).__name__]
    if name != name_of(weights):
        raise ValueError(
            f"`module` must have the cell of `params`, {name_of(weights)}, got "
            f"{type(cell).__name__}."
        )
    new, old = _write(layout, weights), _nnx_tree(cell)
    for place in ((dense, kind) for dense, arrays in new.items() for kind in arrays):
        dense, kind = place
        array, held = new[dense][kind], old[dense][kind]
        if (array.shape, array.dtype) != (held.shape, held.dtype):
            raise ValueError(
                f"`{dense}.{kind}` of `module` is {held.dtype}{list(held.shape)}, but "
                f"`params` have {array.dtype}{list(array.shape)}."
            )
    arrays = jax.tree.map(jnp.asarray, new)
    return {dense + "_" * keyword.iskeyword(dense): a for dense, a in arrays.items()}


def _places(layout: Layout, name: str) -> list[list[tuple[str, str]]]:
    """The places of each field of `Arrays`: (name of a dense layer, kind of array)."""
    own = layout.cells[name]
    fields = (
        ("i", "kernel", own.gates),
        ("h", "kernel", own.gates),
        ("i", "bias", own.input_bias),
        ("h", "bias", own.recurrent_bias),
        ("r", "kernel", ()),  # flax has no projections
    )
    if layout.side_by_side:
        return [[(f"dense_{side}", kind)] if g else [] for side, kind, g in fields]
    return [[(side + gate, kind) for gate in gates] for side, kind, gates in fields]


def _read(layout: Layout, name: str, tree: Tree) -> Weights:
    fields: list[Any] = []
    for places in _places(layout, name):
        arrays = [np.asarray(tree[dense][kind]) for dense, kind in places]
        fields.append(np.concatenate(arrays, axis=-1) if arrays else None)
    return read(layout, Arrays(*fields))


def _write(layout: Layout, weights: Weights) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {}
    arrays = write(layout, weights)
    for places, array in zip(_places(layout, name_of(weights)), arrays, strict=True):
        if array is not None:
            parts = np.split(array, len(places), axis=-1)
            for (dense, kind), part in zip(places, parts, strict=True):
                tree.setdefault(dense, {})[kind] = part
    return tree


def _nnx() -> Any:
    """`flax.nnx`, which takes a while to import and which only its users need."""
    from flax import nnx

    return nnx


def _is_cell(module: Any) -> bool:
    return type(module) in {getattr(_nnx(), name) for name in NNX_CELLS}


def _activations(cell: Any) -> dict[str, Any]:
    """Returns the activations of a cell that are not the defaults."""
    found = {}
    for name, (ours, defaults) in ACTIVATIONS.items():
        function = getattr(cell, name, defaults[0])
        if function not in defaults:
            found[ours] = function
    return found


def _check_cell(cell: Any) -> None:
    if not _is_cell(cell):
        raise TypeError(
            f"A flax module must be an nnx.{', nnx.'.join(NNX_CELLS)}, or an nnx.RNN "
            f"or nnx.Bidirectional of one, got {type(cell).__name__}."
        )
    if getattr(cell, "residual", False):
        raise ValueError("`residual` must be False in a SimpleCell, got True.")


def _check_order(layers: Any) -> None:
    for depth, layer in enumerate(layers[:-1]):
        if getattr(layer, "reverse", False) and not layer.keep_order:
            raise ValueError(
                "`keep_order` must be True in a reverse RNN below the top of a stack, "
                f"got False in layer {depth}."
            )
