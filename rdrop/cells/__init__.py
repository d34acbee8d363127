"""Cells: the equations of one step of a recurrence, as the papers write them.

A cell is a frozen value without arrays, and its step a function of weights, carry,
projected input and masks. `rdrop.linen` and `rdrop.nnx` make modules of cells.

Symbols:
    B batch, D features, H units, G gates, T time; W kernel [D, G H], U recurrent_kernel
    [H, G H], b bias [G H]; m_x, m_h, ... the masks of the sites inputs, recurrent, ...
"""

from rdrop.cells.affine import Affine
from rdrop.cells.diagonal import LRU, S5, Diagonal
from rdrop.cells.gru import GRU
from rdrop.cells.lstm import LSTM, LayerNormLSTM
from rdrop.cells.masking import (
    Weights,
    mask_gates,
    mask_units,
    next_hidden,
    next_state,
)
from rdrop.cells.minimal import MinGRU, MinLSTM, linear, positive
from rdrop.cells.recurrence import Carry, Initialiser, Recurrence
from rdrop.cells.rg_lru import RGLRU
from rdrop.cells.simple import Simple
from rdrop.cells.slstm import SLSTM
from rdrop.cells.tape import Activation, Tape

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "S5",
    "SLSTM",
    "Activation",
    "Affine",
    "Carry",
    "Diagonal",
    "Initialiser",
    "LayerNormLSTM",
    "MinGRU",
    "MinLSTM",
    "Recurrence",
    "Simple",
    "Tape",
    "Weights",
    "linear",
    "mask_gates",
    "mask_units",
    "next_hidden",
    "next_state",
    "positive",
]
