"""Interop: weights to and from Keras, PyTorch, and flax, linen and nnx.

A reader, `from_...` or `read_...`, returns `Ported(module, params)`: an rdrop layer and
the variables it runs with. A writer, `to_...` or `write_...`, takes such variables. A
list of layers of another library stands for a `Stack`.

How the libraries arrange the weights, of D features, H units and G gates:

| library    | gates side by side | kernel  | recurrent kernel |
|------------|--------------------|---------|------------------|
| rdrop      | yes                | [D, GH] | [H, GH]          |
| Keras      | yes                | [D, GH] | [H, GH]          |
| PyTorch    | yes                | [GH, D] | [GH, H]          |
| flax.linen | no                 | [D, H]  | [H, H]           |
| flax.nnx   | yes                | [D, GH] | [H, GH]          |

| library    | cell                      | gates | input bias | recurrent bias |
|------------|---------------------------|-------|------------|----------------|
| rdrop      | LSTM                      | ifgo  | ifgo       | -              |
| rdrop      | GRU                       | zrn   | zrn        | n              |
| rdrop      | GRU with the reset before | zrn   | zrn        | -              |
| rdrop      | simple                    | one   | one        | -              |
| Keras      | LSTM                      | ifgo  | ifgo       | -              |
| Keras      | GRU                       | zrn   | zrn        | zrn            |
| Keras      | GRU with the reset before | zrn   | zrn        | -              |
| Keras      | simple                    | one   | one        | -              |
| PyTorch    | LSTM                      | ifgo  | ifgo       | ifgo           |
| PyTorch    | GRU                       | rzn   | rzn        | rzn            |
| PyTorch    | simple                    | one   | one        | one            |
| flax.linen | LSTM                      | ifgo  | -          | ifgo           |
| flax.linen | GRU                       | rzn   | rzn        | n              |
| flax.linen | simple                    | one   | one        | -              |
| flax.nnx   | LSTM                      | ifgo  | -          | ifgo           |
| flax.nnx   | GRU                       | rzn   | rzn        | -              |
| flax.nnx   | simple                    | one   | one        | -              |

`nnx.LSTMCell` is as in flax.linen; the row of flax.nnx is `nnx.OptimizedLSTMCell`. A
GRU has the reset after, but where it says otherwise.

From rdrop to another library and back is exact to the bit. So is from another library
to rdrop and back where a gate has one bias. Where it has two, their sum lands in the
input bias and the recurrent one is zero, but for that of a GRU's candidate, which the
reset gate multiplies.

`masks_from_keras` and `masks_to_keras` port the masks of Keras, `translate_keras` the
arguments of its layers.

Not ported: dropout (see `rdrop.presets`), and the compute dtype (see `dtype` of the
cells).
"""

from rdrop.interop.files import read_keras, read_torch, write_keras, write_torch
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
    "write_keras",
    "write_torch",
]
