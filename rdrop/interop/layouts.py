"""Layouts: how each library arranges the weights of a cell, as data.

A layout says what differs: the order of the gates, whether a kernel is transposed,
whether the gates' kernels stand side by side, and which gates have which bias. One pair
of functions, `read` and `write`, works from it for all libraries; the table of the
package's docstring shows it.

Symbols:
    D features, H units, G gates; W kernel [D, G H], U recurrent_kernel [H, G H]. The
    input bias is added to x W, the recurrent bias to h U. A simple recurrence has one
    gate, whose name is empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

Weights: TypeAlias = dict[str, Any]
Gates: TypeAlias = tuple[str, ...]
Array: TypeAlias = Float[np.ndarray, "..."]


class CellLayout(NamedTuple):
    """How a library arranges the weights of one cell.

    Attributes:
        gates: their order; i f g o of an LSTM, z r n of a GRU.
        input_bias: the gates that have an input bias, in the order in which they stand.
        recurrent_bias: the gates that have a recurrent bias.
    """

    gates: Gates
    input_bias: Gates
    recurrent_bias: Gates


class Layout(NamedTuple):
    """How a library arranges the weights of its cells.

    Attributes:
        library: its name.
        transposed: whether kernels are [G H, D] rather than [D, G H].
        side_by_side: whether the gates share one array rather than have one each.
        cells: those of rdrop's that the library has.
    """

    library: str
    transposed: bool
    side_by_side: bool
    cells: Mapping[str, CellLayout]


class Arrays(NamedTuple):
    """The weights of a cell in a library's own order, the gates side by side.

    Attributes:
        kernel: [D, G H] or [G H, D].
        recurrent_kernel: [H, G H] or [G H, H].
        input_bias: of the gates that have one, [G H]; None for none.
        recurrent_bias: of the gates that have one; None for none.
    """

    kernel: Array
    recurrent_kernel: Array
    input_bias: Array | None = None
    recurrent_bias: Array | None = None


ONE: Gates = ("",)
IFGO, ZRN, RZN = tuple("ifgo"), tuple("zrn"), tuple("rzn")

RDROP = Layout(
    "rdrop",
    transposed=False,
    side_by_side=True,
    cells={
        "LSTM": CellLayout(IFGO, IFGO, ()),
        "GRU": CellLayout(ZRN, ZRN, ("n",)),
        "GRU with the reset before": CellLayout(ZRN, ZRN, ()),
        "simple": CellLayout(ONE, ONE, ()),
    },
)
KERAS = Layout(
    "Keras",
    transposed=False,
    side_by_side=True,
    cells={
        "LSTM": CellLayout(IFGO, IFGO, ()),
        "GRU": CellLayout(ZRN, ZRN, ZRN),
        "GRU with the reset before": CellLayout(ZRN, ZRN, ()),
        "simple": CellLayout(ONE, ONE, ()),
    },
)
TORCH = Layout(
    "PyTorch",
    transposed=True,
    side_by_side=True,
    cells={
        "LSTM": CellLayout(IFGO, IFGO, IFGO),
        "GRU": CellLayout(RZN, RZN, RZN),
        "simple": CellLayout(ONE, ONE, ONE),
    },
)
LINEN = Layout(
    "flax.linen",
    transposed=False,
    side_by_side=False,
    cells={
        "LSTM": CellLayout(IFGO, (), IFGO),
        "GRU": CellLayout(RZN, RZN, ("n",)),
        "simple": CellLayout(ONE, ONE, ()),
    },
)
# nnx.LSTMCell alone has a kernel a gate; its layout is that of linen.
NNX = Layout(
    "flax.nnx",
    transposed=False,
    side_by_side=True,
    cells={
        "LSTM": CellLayout(IFGO, (), IFGO),
        "GRU": CellLayout(RZN, RZN, ()),
        "simple": CellLayout(ONE, ONE, ()),
    },
)
LAYOUTS = (RDROP, KERAS, TORCH, LINEN, NNX)


def cell_of(gates: int, reset_after: bool = True) -> str:
    """Returns the name in `RDROP.cells` of the cell with so many gates.

    Raises:
        ValueError: no cell has.
    """
    by_gates = {4: "LSTM", 3: "GRU", 1: "simple"}
    if gates not in by_gates:
        raise ValueError(
            "The recurrent kernel must have 4 (LSTM), 3 (GRU) or 1 (simple) times as "
            f"many columns as rows, got {gates} times."
        )
    name = by_gates[gates]
    return "GRU with the reset before" if gates == 3 and not reset_after else name


def read(layout: Layout, arrays: Arrays, reset_after: bool = True) -> Weights:
    """Returns the weights of an rdrop cell from those of a library's.

    Where a gate has both biases they add up, in their own dtype; a missing one is zero.
    The recurrent bias of a GRU's candidate stays apart with the reset after, as the
    reset gate multiplies it.

    Args:
        layout: of the library.
        arrays: in the library's order.
        reset_after: the form of a GRU.

    Returns:
        `kernel` [D, G H], `recurrent_kernel` [H, G H], `bias` [G H], and of a GRU with
        the reset after `recurrent_bias` [H].

    Raises:
        ValueError: shapes that are those of no cell.
    """
    name = cell_of(_gates(layout, arrays.recurrent_kernel), reset_after)
    own, order = layout.cells[name], RDROP.cells[name].gates
    kernels = [
        _join(_split(array.T if layout.transposed else array, own.gates), order)
        for array in (arrays.kernel, arrays.recurrent_kernel)
    ]
    biases = (
        _split(arrays.input_bias, own.input_bias),
        _split(arrays.recurrent_bias, own.recurrent_bias),
    )
    zero = np.zeros_like(kernels[1][:, 0])
    apart = {}
    if name == "GRU":
        apart["recurrent_bias"] = biases[1].pop("n", zero)
    sums = {gate: _sum(gate, biases, zero) for gate in order}
    weights = dict(zip(("kernel", "recurrent_kernel"), kernels, strict=True))
    return weights | {"bias": _join(sums, order)} | apart


def write(layout: Layout, weights: Weights) -> Arrays:
    """Returns the weights of a library's cell from those of an rdrop cell.

    Where a gate has both biases, that of rdrop becomes the input bias, and the
    recurrent one is zero, but for that of a GRU's candidate.

    Args:
        layout: of the library.
        weights: as `read` returns them.

    Returns:
        NumPy arrays, in the library's order.

    Raises:
        ValueError: the library has no such cell, or no place for a bias that is not 0.
    """
    name = name_of(weights)
    if name not in layout.cells:
        raise ValueError(f"{layout.library} has no {name}, as `params` are of.")
    own, order = layout.cells[name], RDROP.cells[name].gates
    host = {name: np.asarray(array) for name, array in weights.items()}
    kernels = [
        _join(_split(host[name], order), own.gates)
        for name in ("kernel", "recurrent_kernel")
    ]
    first = _split(host["bias"], order)
    second = {gate: np.zeros_like(first[gate]) for gate in order}
    if not own.input_bias:
        first, second = second, first
    if "recurrent_bias" in host:
        second["n"] = host["recurrent_bias"]
        _check_place(layout, own, second["n"])
    kernel, recurrent_kernel = (k.T if layout.transposed else k for k in kernels)
    return Arrays(
        kernel,
        recurrent_kernel,
        _join(first, own.input_bias) if own.input_bias else None,
        _join(second, own.recurrent_bias) if own.recurrent_bias else None,
    )


def name_of(weights: Mapping[str, Any]) -> str:
    """Returns the name in `RDROP.cells` of the rdrop cell that has these weights.

    Raises:
        ValueError: no cell of the other libraries has such weights.
    """
    names = {"kernel", "recurrent_kernel", "bias"}
    optional = {"recurrent_bias"}
    if not names <= set(weights) <= names | optional:
        raise ValueError(
            "`params` must be those of an LSTMCell, a GRUCell or a SimpleCell, got "
            f"{_described(weights)}."
        )
    units, columns = np.shape(weights["recurrent_kernel"])
    name = cell_of(columns // units, "recurrent_bias" in weights)
    check_shapes(weights, units)
    return name


def check_shapes(weights: Mapping[str, Any], units: int) -> None:
    """Raises a ValueError where the weights of an rdrop cell do not fit together."""
    shapes = {name: np.shape(array) for name, array in weights.items()}
    columns = shapes["recurrent_kernel"][1]
    features = shapes["kernel"][0] if len(shapes["kernel"]) == 2 else "D"
    expected: dict[str, tuple[Any, ...]] = {
        "kernel": (features, columns),
        "recurrent_kernel": (units, columns),
        "bias": (columns,),
        "recurrent_bias": (units,),
    }
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise ValueError(
                f"`{name}` must have the shape {expected[name]}, got {shape}."
            )


def check_like(name: str, new: Array, old: Array | Float[jax.Array, "..."]) -> None:
    """Raises a ValueError where an array could not take the place of another.

    Args:
        name: of the place.
        new: the array.
        old: what is there.
    """
    if (new.shape, new.dtype) != (old.shape, old.dtype):
        raise ValueError(
            f"`params` must have {old.dtype}{list(old.shape)} for {name}, as is there, "
            f"got {new.dtype}{list(new.shape)}."
        )


def _described(weights) -> str:
    """What cannot be converted, by the name of the cell where it is one of rdrop's."""
    if "cell_gain" in weights:
        return "those of a LayerNormLSTMCell"
    if set(weights) == {"kernel", "bias"}:
        return "those of a MinGRUCell"
    return f"the names {sorted(weights)}"


def _gates(layout, recurrent_kernel) -> int:
    shape = recurrent_kernel.shape
    if len(shape) != 2:
        raise ValueError(f"The recurrent kernel must be a matrix, got shape {shape}.")
    units, columns = reversed(shape) if layout.transposed else shape
    return columns // units if columns % units == 0 else 0


def _split(array: Array | None, gates: Gates) -> dict[str, Array]:
    if array is None or not gates:
        return {}
    return dict(zip(gates, np.split(array, len(gates), axis=-1), strict=True))


def _join(by_gate: Mapping[str, Array], order: Gates) -> Array:
    return np.concatenate([by_gate[gate] for gate in order], axis=-1)


def _sum(gate: str, biases: Sequence[Mapping[str, Array]], zero: np.ndarray):
    """The sum of the biases that a gate has; one alone keeps its bits."""
    first, *rest = [each[gate] for each in biases if gate in each] or [zero]
    return first + rest[0] if rest else first


def _check_place(layout, own, bias) -> None:
    if not own.recurrent_bias and bias.any():
        raise ValueError(
            f"`recurrent_bias` must be zero for {layout.library}, whose GRU has none, "
            f"got up to {np.abs(bias.astype(np.float64)).max():.3g}."
        )
