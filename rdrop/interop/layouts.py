"""Layouts: how each library arranges the weights of a cell, as data.

A layout states the differences: the order of the gates, whether kernels are transposed,
whether the gates' kernels stand side by side, and which gates have which bias. One pair
of functions, `read` and `write`, works from it for all libraries.

Symbols:
    D features, H units, G gates; W kernel [D, G H], U recurrent_kernel [H, G H]. The
    input bias is added to x W, the recurrent bias to h U. A simple recurrence has one
    gate, whose name is empty.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

# Weights of an rdrop cell by name: kernel, recurrent_kernel, bias, recurrent_bias.
Weights: TypeAlias = dict[str, Any]
Gates: TypeAlias = tuple[str, ...]
Array: TypeAlias = Float[np.ndarray, "..."]


class CellLayout(NamedTuple):
    """How a library arranges the weights of one cell.

    Attributes:
        gates: their order; i f g o in an LSTM, z r n in a GRU.
        input_bias: the gates that have an input bias, in order.
        recurrent_bias: the gates that have a recurrent bias, in order.
    """

    gates: Gates
    input_bias: Gates
    recurrent_bias: Gates = ()


class Layout(NamedTuple):
    """How a library arranges the weights of its cells.

    Attributes:
        library: its name.
        cells: layouts of the cells that the library shares with rdrop.
        transposed: whether kernels are [G H, D] rather than [D, G H].
        side_by_side: whether all gates share one array rather than having one each.
        projects: whether its LSTM may have a projection.
    """

    library: str
    cells: Mapping[str, CellLayout]
    transposed: bool = False
    side_by_side: bool = True
    projects: bool = False


class Arrays(NamedTuple):
    """The weights of a cell in a library's order, with the gates side by side.

    Attributes:
        kernel: [D, G H] or [G H, D].
        recurrent_kernel: [H, G H] or [G H, H].
        input_bias: for the gates that have one, [G H]; None for none.
        recurrent_bias: for the gates that have one; None for none.
        projection: [H, P] or [P, H]; None for none.
    """

    kernel: Array
    recurrent_kernel: Array
    input_bias: Array | None = None
    recurrent_bias: Array | None = None
    projection: Array | None = None


LSTM, GRU, GRU_BEFORE, SIMPLE = "LSTM", "GRU", "GRU with reset_after=False", "simple"
ONE: Gates = ("",)
IFGO, ZRN, RZN = tuple("ifgo"), tuple("zrn"), tuple("rzn")

RDROP = Layout(
    "rdrop",
    {
        LSTM: CellLayout(IFGO, IFGO),
        GRU: CellLayout(ZRN, ZRN, ("n",)),
        GRU_BEFORE: CellLayout(ZRN, ZRN),
        SIMPLE: CellLayout(ONE, ONE),
    },
)
KERAS = Layout(
    "Keras",
    {
        LSTM: CellLayout(IFGO, IFGO),
        GRU: CellLayout(ZRN, ZRN, ZRN),
        GRU_BEFORE: CellLayout(ZRN, ZRN),
        SIMPLE: CellLayout(ONE, ONE),
    },
)
TORCH = Layout(
    "PyTorch",
    {
        LSTM: CellLayout(IFGO, IFGO, IFGO),
        GRU: CellLayout(RZN, RZN, RZN),
        SIMPLE: CellLayout(ONE, ONE, ONE),
    },
    transposed=True,
    projects=True,
)
# `nnx.LSTMCell` has this layout as well.
LINEN = Layout(
    "flax.linen",
    {
        LSTM: CellLayout(IFGO, (), IFGO),
        GRU: CellLayout(RZN, RZN, ("n",)),
        SIMPLE: CellLayout(ONE, ONE),
    },
    side_by_side=False,
)
NNX = Layout(
    "flax.nnx",
    {
        LSTM: CellLayout(IFGO, (), IFGO),
        GRU: CellLayout(RZN, RZN),
        SIMPLE: CellLayout(ONE, ONE),
    },
)
LAYOUTS = (RDROP, KERAS, TORCH, LINEN, NNX)


def read(layout: Layout, arrays: Arrays, reset_after: bool = True) -> Weights:
    """Returns the weights of an rdrop cell from a library's arrays.

    Two biases of one gate are added in their own dtype; a missing bias is zero. In a
    GRU with the reset after, the recurrent bias of the candidate stays separate, since
    the reset gate multiplies it.

    Args:
        layout: layout of the library.
        arrays: in the library's order.
        reset_after: the form of a GRU.

    Returns:
        `kernel` [D, G H], `recurrent_kernel` [H, G H], `bias` [G H], and for a GRU with
        the reset after `recurrent_bias` [H]. With a projection to P units
        `recurrent_kernel` [P, G H] and `projection` [H, P].

    Raises:
        ValueError: the shape of the recurrent kernel fits no cell.
    """
    kernels = [a.T if layout.transposed else a for a in arrays[:2]]
    projected = arrays.projection is not None
    name = LSTM if projected else _cell_of(kernels[1].shape, reset_after)
    own, order = layout.cells[name], RDROP.cells[name].gates
    kernel, recurrent_kernel = (_join(_split(k, own.gates), order) for k in kernels)
    first = _split(arrays.input_bias, own.input_bias)
    second = _split(arrays.recurrent_bias, own.recurrent_bias)
    zero = np.zeros_like(kernel[0, : kernel.shape[1] // len(order)])
    separate = {"recurrent_bias": second.pop("n", zero)} if name == GRU else {}
    for gate, bias in second.items():
        first[gate] = first[gate] + bias if gate in first else bias
    bias = _join({gate: first.get(gate, zero) for gate in order}, order)
    weights = {"kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias}
    if arrays.projection is not None:
        across = arrays.projection
        separate["projection"] = across.T if layout.transposed else across
    return weights | separate


def write(layout: Layout, weights: Weights) -> Arrays:
    """Returns a library's arrays from the weights of an rdrop cell.

    If a gate has two biases in the library, the first receives rdrop's bias and the
    second is zero, except for the candidate of a GRU.

    Args:
        layout: layout of the library.
        weights: as `read` returns them.

    Returns:
        NumPy arrays, in the library's order.

    Raises:
        ValueError: the library lacks the cell, or a place for a bias that is not zero.
    """
    name = name_of(weights)
    if name not in layout.cells:
        raise ValueError(f"`params` are for a {name}, which {layout.library} lacks.")
    if "projection" in weights and not layout.projects:
        raise ValueError(f"`params` have a projection, which {layout.library} lacks.")
    own, order = layout.cells[name], RDROP.cells[name].gates
    host = {name: np.asarray(array) for name, array in weights.items()}
    kernel, recurrent_kernel = (
        _join(_split(host[kernel], order), own.gates)
        for kernel in ("kernel", "recurrent_kernel")
    )
    if layout.transposed:
        kernel, recurrent_kernel = kernel.T, recurrent_kernel.T
    first = _split(host["bias"], order)
    second = {gate: np.zeros_like(bias) for gate, bias in first.items()}
    if not own.input_bias:
        first, second = second, first
    if "recurrent_bias" in host:
        second["n"] = host["recurrent_bias"]
        _check_place(layout, own, second["n"])
    input_bias = _join(first, own.input_bias) if own.input_bias else None
    recurrent_bias = _join(second, own.recurrent_bias) if own.recurrent_bias else None
    projection = host.get("projection")
    if projection is not None and layout.transposed:
        projection = projection.T
    return Arrays(kernel, recurrent_kernel, input_bias, recurrent_bias, projection)


def name_of(weights: Mapping[str, Any]) -> str:
    """Returns the name in `RDROP.cells` of the cell that has these weights.

    Raises:
        ValueError: the names or shapes fit no cell of the other libraries.
    """
    required = {"kernel", "recurrent_kernel", "bias"}
    if set(weights) - {"recurrent_bias", "projection"} != required:
        raise ValueError(
            "`params` must be for an LSTMCell, a GRUCell or a SimpleCell, got the "
            f"names {sorted(weights)}."
        )
    shapes = {name: np.shape(array) for name, array in weights.items()}
    if "projection" in weights:
        units, width = shapes["projection"]
        name, columns = LSTM, 4 * units
        if shapes["recurrent_kernel"] != (width, columns):
            raise ValueError(
                f"`recurrent_kernel` must have the shape {(width, columns)}, got "
                f"{shapes['recurrent_kernel']}."
            )
    else:
        name = _cell_of(shapes["recurrent_kernel"], "recurrent_bias" in weights)
        units, columns = shapes["recurrent_kernel"]
    expected: dict[str, tuple[Any, ...]] = {
        "kernel": (*shapes["kernel"][:1], columns),
        "bias": (columns,),
        "recurrent_bias": (units,),
    }
    for weight, shape in expected.items():
        if shapes.get(weight, shape) != shape:
            raise ValueError(
                f"`{weight}` must have the shape {shape}, got {shapes[weight]}."
            )
    return name


def _cell_of(shape: tuple[int, ...], reset_after: bool) -> str:
    """The cell whose recurrent kernel [H, G H] has this shape."""
    cells = {4: LSTM, 3: GRU if reset_after else GRU_BEFORE, 1: SIMPLE}
    for gates, name in cells.items():
        if len(shape) == 2 and shape[1] == gates * shape[0]:
            return name
    raise ValueError(
        "The recurrent kernel must be a matrix with 4 (LSTM), 3 (GRU) or 1 (simple) "
        f"times as many columns as rows, got shape {shape}."
    )


def _split(array: Array | None, gates: Gates) -> dict[str, Array]:
    if array is None or not gates:
        return {}
    return dict(zip(gates, np.split(array, len(gates), axis=-1), strict=True))


def _join(by_gate: Mapping[str, Array], order: Gates) -> Array:
    return np.concatenate([by_gate[gate] for gate in order], axis=-1)


def _check_place(layout: Layout, own: CellLayout, bias: Array) -> None:
    if not own.recurrent_bias and bias.any():
        largest = np.abs(bias.astype(np.float64)).max()
        raise ValueError(
            f"`recurrent_bias` must be zero for {layout.library}, whose GRU has none, "
            f"got up to {largest:.3g}."
        )
