"""PyTorch: weights and dropout of nn.LSTM, nn.GRU and nn.RNN, to and from rdrop.

Checked with PyTorch 2.13, torch/nn/modules/rnn.py.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdrop import presets
from rdrop.interop.layouts import TORCH, Array, Arrays, Weights, name_of, read, write
from rdrop.interop.ported import Layer, Ported, cells_of, layer_of, port, stack

MODULES = ("LSTM", "GRU", "RNN")
# In the order of `Arrays`.
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def from_torch(source: Any, prefix: str = "") -> Ported:
    """Returns the rdrop layer that computes the same as a PyTorch layer.

    Its `dropout` is `rdrop.presets.torch` of the module's rate. A state_dict contains
    weights only: `dropout` is None, sequences are [B, T, D], and the nonlinearity of an
    nn.RNN is taken to be tanh.

    Args:
        source: an nn.LSTM, nn.GRU or nn.RNN, or a state_dict of tensors or arrays. The
            port of a module takes sequences as the module does: [T, B, D] unless it is
            `batch_first`.
        prefix: prefix of the names in a state_dict, for example "encoder.lstm.".

    Returns:
        An `RNN` or a `Bidirectional`; for more than one layer a `Stack`.

    Raises:
        TypeError: `source` is another module.
        ValueError: names are missing.
    """
    if isinstance(source, Mapping):
        return _of_state(source, prefix)
    _check_module(source, prefix)
    function = getattr(source, "nonlinearity", "tanh")
    options = {"activation": jax.nn.relu} if function == "relu" else {}
    state, time_major = source.state_dict(), not source.batch_first
    ported = _of_state(state, "", time_major, options)
    if not source.dropout or source.num_layers == 1:
        return ported
    return ported._replace(dropout=presets.torch(source.dropout, source.num_layers))


def to_torch(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns tensors for the `load_state_dict` of a module with biases.

    rdrop's bias becomes the input bias, and the hidden bias is zero, except for the
    candidate of a GRU, which has both.

    Args:
        params: variables of an `RNN`, of a `Bidirectional`, or of a `Stack` whose
            layers have the same cell, units and number of directions.
        prefix: prefix of the names.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: PyTorch lacks the cell, or the layers differ.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("`to_torch` needs PyTorch: pip install torch.") from error

    def tensor(array: Array) -> Any:
        if array.dtype == jnp.bfloat16:
            return torch.tensor(array.astype(np.float32), dtype=torch.bfloat16)
        return torch.tensor(array)

    layer = layer_of(params)
    layers = layer if isinstance(layer, list) else [layer]
    _check_alike(layers)
    return {
        f"{prefix}{name}_l{depth}{suffix}": tensor(np.ascontiguousarray(array))
        for depth, each in enumerate(layers)
        for suffix, weights in zip(("", "_reverse"), cells_of(each), strict=False)
        for name, array in zip(NAMES, write(TORCH, weights), strict=True)
        if array is not None
    }


def _of_state(
    state: Mapping[str, Any],
    prefix: str,
    time_major: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Ported:
    layers = [
        port(layer, time_major=time_major, options=[options] * 2)
        for layer in _layers(state, prefix)
    ]
    if not layers:
        end = "weight_ih_l0"
        found = sorted(name.removesuffix(end) for name in state if name.endswith(end))
        raise ValueError(
            f"`prefix` must be the prefix of a recurrent layer, one of {found}, got "
            f"{prefix!r}."
        )
    return layers[0] if len(layers) == 1 else stack(layers)


def _layers(state: Mapping[str, Any], prefix: str) -> Iterator[Layer]:
    """The layers of a state_dict, from the input upwards."""
    depth = 0
    while f"{prefix}weight_ih_l{depth}" in state:
        place = f"_l{depth}"
        forward = _weights(state, prefix, place)
        if f"{prefix}weight_ih{place}_reverse" in state:
            yield forward, _weights(state, prefix, place + "_reverse")
        else:
            yield forward
        depth += 1


def _weights(state: Mapping[str, Any], prefix: str, place: str) -> Weights:
    names = [f"{prefix}{name}{place}" for name in NAMES]
    needed = names[:4] if any(name in state for name in names[2:4]) else names[:2]
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"`source` lacks {' and '.join(missing)}.")
    kernels = (_array(state[name]) for name in names[:2])
    others = (_array(state[name]) if name in state else None for name in names[2:])
    return read(TORCH, Arrays(*kernels, *others))


def _array(tensor: Any) -> Array:
    """A tensor or an array as a NumPy array; NumPy lacks torch's bfloat16."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def _check_module(module: Any, prefix: str) -> None:
    name = type(module).__name__
    if name not in MODULES:
        raise TypeError(
            "`source` must be an nn.LSTM, nn.GRU or nn.RNN, or a state_dict, got "
            f"{name}."
        )
    if prefix:
        raise ValueError(f'`prefix` must be "" for a module, got {prefix!r}.')


def _check_alike(layers: list[Layer]) -> None:
    """Raises unless the layers can form one PyTorch module."""
    kinds = [
        [(name_of(cell), *cell["recurrent_kernel"].shape) for cell in cells_of(layer)]
        for layer in layers
    ]
    if any(kind != [kinds[0][0]] * len(kinds[0]) for kind in kinds):
        raise ValueError(
            "`params` must have the same cell, units and number of directions in all "
            f"layers, got {kinds}."
        )
