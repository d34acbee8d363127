"""rdrop: dropout in recurrent networks as a value one can name, inspect and vmap."""

from rdrop import calibration, montecarlo, presets, schedules
from rdrop.cells import (
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    SimpleCell,
)
from rdrop.consistency import fraternal, r_drop
from rdrop.dropout import Dropout, Masks, draw
from rdrop.functional import (
    activation_regulariser,
    concrete_regulariser,
    embedding_dropout,
    locked_dropout,
    temporal_activation_regulariser,
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
    "activation_regulariser",
    "calibration",
    "concrete_regulariser",
    "draw",
    "embedding_dropout",
    "fraternal",
    "locked_dropout",
    "montecarlo",
    "presets",
    "r_drop",
    "schedules",
    "stream_keys",
    "temporal_activation_regulariser",
]
__version__ = "0.1.0"
