"""The cells and layers as `flax.nnx` modules.

With the same parameters and keys, a module here and the linen module of the same name
give bitwise identical results. Parameters have the same names.

Keys are an argument: `StreamKeys`, or for layers `nnx.Rngs`, of whose streams `inputs`
and `recurrent` one key each is drawn. A cell that is made with a `dropout` owns streams
as well, as `nnx.Dropout` does: in calls without keys it is noisy after `train()`, and
not after `eval()`. It draws its own keys when a sequence begins, which is when
`initialize_carry` is called or a layer is called without a carry (or with
`new_sequence=True`), and counts the steps from there. So masks live as long as their
lifetime says inside `nnx.RNN` too.
"""

from rdrop.nnx.bridge import from_linen, to_linen
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
    SequenceKeys,
    SimpleCell,
    SLSTMCell,
    stream_keys,
)
from rdrop.nnx.layers import RNN, Bidirectional, Stack

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
    "SequenceKeys",
    "SimpleCell",
    "Stack",
    "from_linen",
    "stream_keys",
    "to_linen",
]
