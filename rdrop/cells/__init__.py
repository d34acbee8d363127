"""Cells: one step of a recurrence, as the papers write it.

The equations are pure functions of projected input, carry, masks and weights. The linen
modules own the parameters and turn a `Dropout` and explicit keys into masks.

Symbols:
    B batch, D features, H units, G gates, T time; W kernel [D, G H], U recurrent_kernel
    [H, G H], b bias [G H]; m_x, m_h, ... the masks of the sites inputs, recurrent, ...
"""

from rdrop.cells.base import Cell
from rdrop.cells.gru import GRUCell, gru
from rdrop.cells.lstm import LayerNormLSTMCell, LSTMCell, layer_norm_lstm, lstm
from rdrop.cells.masking import Weights, mask_units
from rdrop.cells.min_gru import MinGRUCell, min_gru
from rdrop.cells.simple import SimpleCell, simple

__all__ = [
    "Cell",
    "GRUCell",
    "LSTMCell",
    "LayerNormLSTMCell",
    "MinGRUCell",
    "SimpleCell",
    "Weights",
    "gru",
    "layer_norm_lstm",
    "lstm",
    "mask_units",
    "min_gru",
    "simple",
]
