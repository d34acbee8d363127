"""The cells and layers as `flax.linen` modules.

A linen module holds no parameters: `params = module.init(key, xs)` makes them, and
`module.apply(params, xs, dropout, keys)` runs the module with them.
"""

from rdrop.linen.cells import (
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
from rdrop.linen.layers import RNN, Bidirectional, Stack

__all__ = [
    "RNN",
    "Bidirectional",
    "Cell",
    "GRUCell",
    "LRUCell",
    "LSTMCell",
    "LayerNormLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "RGLRUCell",
    "S5Cell",
    "SLSTMCell",
    "SimpleCell",
    "Stack",
]
