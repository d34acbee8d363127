"""Linen: the cells and layers as `flax.linen` modules."""

from rdrop.cells import (
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    SimpleCell,
)
from rdrop.layers import RNN, Bidirectional, Stack

__all__ = [
    "RNN",
    "Bidirectional",
    "Cell",
    "GRUCell",
    "LSTMCell",
    "LayerNormLSTMCell",
    "MinGRUCell",
    "SimpleCell",
    "Stack",
]
