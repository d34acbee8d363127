"""Bridge: linen modules with their parameters to nnx ones, and back.

Parameters keep their names and bits; a Stack's `layers_0` is `layers[0]` here.
"""

import dataclasses
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import nnx

from rdrop import cells, layers
from rdrop.nnx.cells import (
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    SimpleCell,
)
from rdrop.nnx.layers import RNN, Bidirectional, Stack

Module: TypeAlias = Cell | RNN | Bidirectional | Stack
Linen: TypeAlias = cells.Cell | layers.RNN | layers.Bidirectional | layers.Stack
CELLS: dict[type, type[Cell]] = {
    cell.LINEN: cell
    for cell in (LSTMCell, LayerNormLSTMCell, GRUCell, SimpleCell, MinGRUCell)
}


def from_linen(module: Linen, params: Any, rngs: nnx.Rngs | None = None) -> Any:
    """Returns the nnx module of a linen one, with its parameters.

    Args:
        module: a cell or a layer of rdrop.
        params: its variables, {"params": ...}.
        rngs: for the streams of cells that have a `dropout` of their own.

    Raises:
        TypeError: `module` is no module of rdrop.
        ValueError: a cell has a `dropout`, and there are no `rngs`.

    Example:
        >>> import jax
        >>> import rdrop
        >>> module, xs = rdrop.RNN(rdrop.GRUCell(8)), jnp.ones((2, 5, 3))
        >>> rnn = from_linen(module, module.init(jax.random.key(0), xs))
        >>> rnn.cell.kernel.shape
        (3, 24)
    """
    return _module(module, params["params"], rngs)


def to_linen(module: Module) -> tuple[Any, dict]:
    """Returns the linen module of an nnx one, and its variables.

    Example:
        >>> module, params = to_linen(SimpleCell(3, 8, rngs=nnx.Rngs(0)))
        >>> type(module).__name__, params["params"]["kernel"].shape
        ('SimpleCell', (3, 8))
    """
    linen, params = _linen(module)
    return linen, {"params": params}


def _module(module, params, rngs):
    if isinstance(module, layers.Stack):
        return Stack(
            [
                _module(layer, params[f"layers_{n}"], rngs)
                for n, layer in enumerate(module.layers)
            ]
        )
    if isinstance(module, layers.Bidirectional):
        pair = ("forward", "backward")
        ways = (_cell(getattr(module, way), params[way], rngs) for way in pair)
        return Bidirectional(*ways, time_major=module.time_major, loop=module.loop)
    if isinstance(module, layers.RNN):
        cell = _cell(module.cell, params, rngs)
        options = {n: getattr(module, n) for n in ("time_major", "reverse", "loop")}
        return RNN(cell, **options)
    return _cell(module, params, rngs)


def _cell(cell, params, rngs):
    if type(cell) not in CELLS:
        raise TypeError(
            f"`module` must be made of rdrop's cells, got {type(cell).__name__}."
        )
    if cell.dropout is not None and rngs is None:
        raise ValueError("`rngs` must be given for a cell with a `dropout`, got None.")
    made = CELLS[type(cell)](
        params["kernel"].shape[0],
        cell.units,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
        **_options(cell),
    )
    for name, value in params.items():
        setattr(made, name, nnx.Param(jnp.asarray(value)))
    return made


def _options(cell):
    """The attributes of a linen cell besides its size."""
    names = {field.name for field in dataclasses.fields(cell)}
    return {n: getattr(cell, n) for n in names - {"units", "parent", "name"}}


def _linen(module):
    if isinstance(module, Stack):
        pairs = [_linen(layer) for layer in module.layers]
        params = {f"layers_{n}": params for n, (_, params) in enumerate(pairs)}
        return layers.Stack([layer for layer, _ in pairs]), params
    if isinstance(module, Bidirectional):
        (forward, ahead), (backward, back) = (
            _linen(rnn.cell) for rnn in (module.forward, module.backward)
        )
        rnn = module.forward
        both = layers.Bidirectional(forward, backward, rnn.time_major, rnn.loop)
        return both, {"forward": ahead, "backward": back}
    if isinstance(module, RNN):
        cell, params = _linen(module.cell)
        rnn = layers.RNN(cell, module.time_major, module.reverse, module.loop)
        return rnn, params
    return module.equations.clone(dropout=module.dropout), module.parameters()
