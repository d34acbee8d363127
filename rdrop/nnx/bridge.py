"""Conversion of linen modules with their parameters to nnx modules, and back.

Parameters keep their names and stay bitwise identical; `layers_0` of a linen Stack is
`layers[0]` of an nnx one.
"""

import dataclasses
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import nnx

from rdrop import linen
from rdrop.nnx.cells import (
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LRUCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    RGLRUCell,
    S5Cell,
    SimpleCell,
    SLSTMCell,
)
from rdrop.nnx.layers import RNN, Bidirectional, Stack

Module: TypeAlias = Cell | RNN | Bidirectional | Stack
Linen: TypeAlias = linen.Cell | linen.RNN | linen.Bidirectional | linen.Stack
CELLS = (
    LSTMCell,
    LayerNormLSTMCell,
    GRUCell,
    SimpleCell,
    MinGRUCell,
    MinLSTMCell,
    RGLRUCell,
    LRUCell,
    S5Cell,
    SLSTMCell,
)
TO_NNX: dict[type, type[Cell]] = {getattr(linen, cell.__name__): cell for cell in CELLS}
TO_LINEN = {cell: module for module, cell in TO_NNX.items()}


def from_linen(module: Linen, params: Any, rngs: nnx.Rngs | None = None) -> Any:
    """Returns the nnx module of a linen one, with its parameters.

    Args:
        module: a cell or a layer of rdrop.
        params: its variables, {"params": ...}.
        rngs: for the streams of cells that have a `dropout` of their own.

    Raises:
        TypeError: `module` is not a module of rdrop.
        ValueError: a cell has a `dropout`, and `rngs` are missing.

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
    if isinstance(module, linen.Stack):
        return Stack(
            [
                _module(layer, params[f"layers_{n}"], rngs)
                for n, layer in enumerate(module.layers)
            ]
        )
    if isinstance(module, linen.Bidirectional):
        pair = ("forward", "backward")
        ways = (_cell(getattr(module, way), params[way], rngs) for way in pair)
        return Bidirectional(*ways, time_major=module.time_major, loop=module.loop)
    if isinstance(module, linen.RNN):
        cell = _cell(module.cell, params, rngs)
        options = {n: getattr(module, n) for n in ("time_major", "reverse", "loop")}
        return RNN(cell, **options)
    return _cell(module, params, rngs)


def _cell(cell, params, rngs):
    if type(cell) not in TO_NNX:
        raise TypeError(
            f"`module` must be made of rdrop's cells, got {type(cell).__name__}."
        )
    if cell.dropout is not None and rngs is None:
        raise ValueError("`rngs` must be given for a cell with a `dropout`, got None.")
    made = TO_NNX[type(cell)](
        params["kernel"].shape[0],
        cell.units,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
        **_options(cell),
    )
    for name, value in params.items():
        setattr(made, name, nnx.Param(jnp.asarray(value)))
    return made


def _options(cell):
    """Returns the attributes of a linen cell other than its size."""
    names = {field.name for field in dataclasses.fields(cell)}
    return {n: getattr(cell, n) for n in names - {"units", "parent", "name"}}


def _linen(module):
    if isinstance(module, Stack):
        pairs = [_linen(layer) for layer in module.layers]
        params = {f"layers_{n}": params for n, (_, params) in enumerate(pairs)}
        return linen.Stack([layer for layer, _ in pairs]), params
    if isinstance(module, Bidirectional):
        (forward, ahead), (backward, back) = (
            _linen(rnn.cell) for rnn in (module.forward, module.backward)
        )
        rnn = module.forward
        both = linen.Bidirectional(forward, backward, rnn.time_major, rnn.loop)
        return both, {"forward": ahead, "backward": back}
    if isinstance(module, RNN):
        cell, params = _linen(module.cell)
        rnn = linen.RNN(cell, module.time_major, module.reverse, module.loop)
        return rnn, params
    fields = dataclasses.fields(module.equations)
    options = {field.name: getattr(module.equations, field.name) for field in fields}
    cell = TO_LINEN[type(module)](**options, dropout=module.dropout)
    return cell, module.parameters()
