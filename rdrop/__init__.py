"""rdrop: dropout in recurrent networks as a value one can name, inspect and vmap."""

from rdrop import presets, schedules
from rdrop.cells import (
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    SimpleCell,
)
from rdrop.dropout import Dropout, Masks, draw
from rdrop.functional import (
    concrete_regulariser,
    embedding_dropout,
    locked_dropout,
)
from rdrop.keys import StreamKeys, stream_keys
from rdrop.layers import RNN, Bidirectional, Stack
from rdrop.noise import (
    Bernoulli,
    Concrete,
    DropConnect,
    Gaussian,
    Mix,
    Site,
    Zoneout,
)

__all__ = [
    "RNN",
    "Bernoulli",
    "Bidirectional",
    "Cell",
    "Concrete",
    "DropConnect",
    "Dropout",
    "GRUCell",
    "Gaussian",
    "LSTMCell",
    "LayerNormLSTMCell",
    "Masks",
    "MinGRUCell",
    "Mix",
    "SimpleCell",
    "Site",
    "Stack",
    "StreamKeys",
    "Zoneout",
    "concrete_regulariser",
    "draw",
    "embedding_dropout",
    "locked_dropout",
    "presets",
    "schedules",
    "stream_keys",
]
__version__ = "0.1.0.dev0"
