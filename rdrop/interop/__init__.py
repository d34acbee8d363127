"""Interop: weights, dropout and masks from and to Keras, PyTorch and flax.

`from_...` and `read_...` return `Ported(module, params, dropout)`: an rdrop layer, the
variables it runs with, and the noise that the layer had. `to_...` takes such variables.
A list of layers of another library corresponds to a `Stack`.

From rdrop to another library and back is bitwise exact. So is from another library to
rdrop and back, if a gate has one bias. Two biases of one gate are added: the sum
becomes the input bias, and the recurrent one is zero, except for the candidate of a
GRU, whose recurrent bias the reset gate multiplies.

`masks_from_keras` and `masks_to_keras` port masks of Keras, `translate_keras` the
arguments of its layers. The compute dtype is not ported; see `dtype` of the cells.
"""

from rdrop.interop.files import read_keras, read_torch
from rdrop.interop.flax import from_flax, to_flax
from rdrop.interop.keras import from_keras, to_keras
from rdrop.interop.keras_arguments import translate_keras
from rdrop.interop.keras_masks import masks_from_keras, masks_to_keras
from rdrop.interop.ported import Ported
from rdrop.interop.torch import from_torch, to_torch

__all__ = [
    "Ported",
    "from_flax",
    "from_keras",
    "from_torch",
    "masks_from_keras",
    "masks_to_keras",
    "read_keras",
    "read_torch",
    "to_flax",
    "to_keras",
    "to_torch",
    "translate_keras",
]
