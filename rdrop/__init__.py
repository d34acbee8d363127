"""rdrop: dropout in recurrent networks as a value that you can name and vmap."""

from rdrop import calibration, cells, montecarlo, presets, schedules, sites
from rdrop.dropout import Dropout, Masks, draw
from rdrop.functional import embedding_dropout, locked_dropout
from rdrop.keys import StreamKeys, stream_keys
from rdrop.linen import (
    RNN,
    Bidirectional,
    Cell,
    GRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    SimpleCell,
    Stack,
)
from rdrop.noise import (
    Add,
    Additive,
    Bernoulli,
    Block,
    Concrete,
    Drift,
    DropConnect,
    Gaussian,
    Mix,
    Site,
    WeightNoise,
    Zoneout,
)
from rdrop.penalties import (
    activation_regulariser,
    concrete_regulariser,
    fraternal,
    r_drop,
    temporal_activation_regulariser,
)
from rdrop.wrapping import wrap

__all__ = [
    "RNN",
    "Add",
    "Additive",
    "Bernoulli",
    "Bidirectional",
    "Block",
    "Cell",
    "Concrete",
    "Drift",
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
    "WeightNoise",
    "Zoneout",
    "activation_regulariser",
    "calibration",
    "cells",
    "concrete_regulariser",
    "draw",
    "embedding_dropout",
    "fraternal",
    "locked_dropout",
    "montecarlo",
    "presets",
    "r_drop",
    "schedules",
    "sites",
    "stream_keys",
    "temporal_activation_regulariser",
    "wrap",
]
__version__ = "0.2.0.dev0"
