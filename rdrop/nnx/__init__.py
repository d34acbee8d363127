"""nnx: cells and layers as `flax.nnx` modules, on the same pure functions.

A module here owns parameters, and hands them to the equations of the linen cell of the
same name and to the functions of `rdrop.unroll`; with the same parameters and keys both
give the same bits. Parameters have the names of the linen face.

Keys are an argument, as everywhere: `StreamKeys`, or for layers `nnx.Rngs`, of whose
streams `inputs` and `recurrent` one key each is drawn. A cell that is made with a
`dropout` has streams of its own besides, as `nnx.Dropout` has: without an argument it
is noisy after `train()`, and not after `eval()`. Its own keys are drawn when a sequence
begins, which is when `initialize_carry` is called or a layer is given no carry, and the
steps are counted from there. So masks live as long as they say inside `nnx.RNN` too.
"""

from rdrop.nnx.bridge import from_linen, to_linen
from rdrop.nnx.cells import (
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    SequenceKeys,
    SimpleCell,
    stream_keys,
)
from rdrop.nnx.layers import RNN, Bidirectional, Stack

__all__ = [
    "RNN",
    "Bidirectional",
    "Cell",
    "GRUCell",
    "LSTMCell",
    "LayerNormLSTMCell",
    "MinGRUCell",
    "SequenceKeys",
    "SimpleCell",
    "Stack",
    "from_linen",
    "stream_keys",
    "to_linen",
]
