"""rdrop: dropout in recurrent networks as a value one can name, inspect and vmap."""

from rdrop.cells import LSTMCell
from rdrop.dropout import Dropout, Masks, Site, draw
from rdrop.keys import StreamKeys, stream_keys
from rdrop.layers import RNN
from rdrop.noise import Bernoulli

__all__ = [
    "RNN",
    "Bernoulli",
    "Dropout",
    "LSTMCell",
    "Masks",
    "Site",
    "StreamKeys",
    "draw",
    "stream_keys",
]
__version__ = "0.1.0.dev0"
