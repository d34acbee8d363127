"""Cells of other libraries: how they are run, and where their kernels are."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from rdrop.advice import describe
from rdrop.linen.cells import Cell

# (params, carry, x) -> (carry, y), for a batch.
Step: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Any]]


class Known(NamedTuple):
    """What `wrap` knows of a cell of a library.

    Attributes:
        states: sites of the leaves of its carry, in order; the output is h.
        kernels: paths of the input kernels and of the recurrent kernels.
    """

    states: tuple[str, ...]
    kernels: tuple[tuple[str, ...], tuple[str, ...]]


def _dense(gates: str) -> Any:
    """The paths of kernels that flax.linen names by side and gate."""
    return tuple(tuple(f"params/{s}{g}/kernel" for g in gates) for s in "ih")


C_H, H = ("cell_state", "hidden_state"), ("hidden_state",)
_SIDES: Any = (("dense_i/kernel",), ("dense_h/kernel",))
_NNX_LSTM: Any = tuple(
    tuple(f"{gate}/kernel" for gate in gates)
    for gates in (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho"))
)
_EQUINOX: Any = (("weight_ih",), ("weight_hh",))
KNOWN: dict[str, dict[str, Known]] = {
    "linen": {
        "LSTMCell": Known(C_H, _dense("ifgo")),
        "OptimizedLSTMCell": Known(C_H, _dense("ifgo")),
        "ConvLSTMCell": Known(C_H, (("params/ih/kernel",), ("params/hh/kernel",))),
        "GRUCell": Known(H, _dense("zrn")),
        "MGUCell": Known(H, _dense("fn")),
        "SimpleCell": Known(H, (("params/i/kernel",), ("params/h/kernel",))),
    },
    "nnx": {
        "LSTMCell": Known(C_H, _NNX_LSTM),
        "OptimizedLSTMCell": Known(C_H, _SIDES),
        "GRUCell": Known(H, _SIDES),
        "SimpleCell": Known(H, _SIDES),
    },
    "equinox": {
        "LSTMCell": Known(C_H[::-1], _EQUINOX),
        "GRUCell": Known(H, _EQUINOX),
    },
}


class Library(NamedTuple):
    """How the cells of a library are run.

    Attributes:
        name: the library.
        step: of a batch.
        carry: (params, shape of x) -> the carry before the first step.
        transposed: whether its kernels are [out, in].
    """

    name: str
    step: Step
    carry: Callable[[Any, tuple[int, ...]], Any]
    transposed: bool = False


def library_of(cell: Any) -> Library:
    """Returns how a cell is run; raises a TypeError if it is none."""
    kind = type(cell)
    if isinstance(cell, Cell) or kind.__module__.startswith("rdrop."):
        raise TypeError(
            f"`cell` must be of another library, got {describe(cell)}: rdrop's own "
            "cells have all sites, in rdrop.RNN."
        )
    if kind.__module__.startswith("equinox.nn") and kind.__name__ in KNOWN["equinox"]:
        return Library("equinox", _equinox_step, _equinox_carry, transposed=True)
    nnx: Any = sys.modules.get("flax.nnx")  # imported by its users only
    linen = isinstance(cell, nn.Module)
    if not linen and not (nnx is not None and isinstance(cell, nnx.Module)):
        if callable(cell):
            return Library("function", cell, _no_carry)
        raise TypeError(
            "`cell` must be a recurrent cell of flax or equinox, or a function of "
            f"(params, carry, x), got {describe(cell)}."
        )
    if not hasattr(cell, "initialize_carry"):
        raise TypeError(
            f"`cell` must be a recurrent cell, got {describe(cell)}, which has no "
            "`initialize_carry`."
        )
    if linen:
        return Library(
            "linen",
            lambda params, carry, x: cell.apply(params, carry, x),
            lambda _, shape: cell.initialize_carry(jax.random.key(0), shape),
        )
    return Library(
        "nnx",
        lambda own, carry, x: own(carry, x),
        lambda own, shape: own.initialize_carry(shape, nnx.Rngs(0)),
    )


def _equinox_step(cell, carry, x):
    new = jax.vmap(cell)(x, carry)
    return new, jax.tree.leaves(new)[0]


def _equinox_carry(cell, shape):
    zeros = jnp.zeros((shape[0], cell.hidden_size), cell.weight_hh.dtype)
    return (zeros, zeros) if type(cell).__name__ == "LSTMCell" else zeros


def _no_carry(params, shape):
    raise ValueError(
        "`carry` must be given to `wrap` for a function: (params, shape of x) -> the "
        "carry before the first step."
    )


def split_params(
    params: Any,
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]:
    """Returns the arrays of parameters by path, and the way back."""
    nnx = sys.modules.get("flax.nnx")
    graph = state = None
    if nnx is not None and isinstance(params, nnx.Module):
        graph, state = nnx.split(params)
        params = nnx.to_pure_dict(state)
    found, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in found]
    leaves = dict(zip(names, (leaf for _, leaf in found), strict=True))

    def rebuild(arrays):
        tree = jax.tree.unflatten(treedef, (leaves | dict(arrays)).values())
        if nnx is None or state is None:
            return tree
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, tree)
        return nnx.merge(graph, own)

    return {n: leaf for n, leaf in leaves.items() if hasattr(leaf, "dtype")}, rebuild
