"""PyTorch: weights of nn.LSTM, nn.GRU and nn.RNN, to and from rdrop.

A state_dict says all but two things: whether sequences are batch first, and the
nonlinearity of an nn.RNN, which is taken to be tanh. Dropout between the layers is not
part of the weights; see `rdrop.presets.torch`.

Checked with PyTorch 2.13, torch/nn/modules/rnn.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rdrop.interop.layouts import TORCH, Array, Arrays, Weights, name_of, read, write
from rdrop.interop.ported import Layer, Ported, port, stack, weights_of

MODULES = ("LSTM", "GRU", "RNN")
# In the order of `Arrays`.
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def from_torch(source: Any, prefix: str = "") -> Ported:
    """Returns the rdrop layer that computes what one of PyTorch does without dropout.

    Args:
        source: an nn.LSTM, nn.GRU or nn.RNN, or a state_dict, of tensors or arrays. The
            layer of a module takes sequences as the module does, [T, B, D] unless it is
            `batch_first`; that of a state_dict takes [B, T, D].
        prefix: of the names in a state_dict, for example "encoder.lstm.".

    Returns:
        An `RNN`, or a `Bidirectional`; of more than one layer a `Stack`.

    Raises:
        TypeError: a module of another class.
        ValueError: names that are missing, projections, or a nonlinearity other than
            tanh.
    """
    if isinstance(source, Mapping):
        return _of_state(source, prefix)
    _check_module(source, prefix)
    return _of_state(source.state_dict(), "", time_major=not source.batch_first)


def to_torch(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns tensors for a module's `load_state_dict`.

    Of the two biases, that of the hidden state is zero but for a GRU's candidate. The
    module has as many layers as the variables, and biases.

    Args:
        params: variables of an `RNN`, a `Bidirectional` or a `Stack` of layers alike.
        prefix: of the names.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: PyTorch has no such cell, or the layers differ in their cell, their
            units or their directions.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "`to_torch` needs PyTorch (pip install torch); `write_torch` does not."
        ) from error

    def tensor(array):
        if array.dtype == jnp.bfloat16:
            return torch.tensor(array.astype(np.float32), dtype=torch.bfloat16)
        return torch.tensor(array)

    arrays = to_arrays(params, prefix)
    return {name: tensor(array) for name, array in arrays.items()}


def to_arrays(params: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
    """Returns what `to_torch` does, as NumPy arrays."""
    layer = weights_of(params)
    layers = layer if isinstance(layer, list) else [layer]
    _check_alike(layers)
    state = {}
    for depth, each in enumerate(layers):
        for suffix, weights in zip(("", "_reverse"), _cells(each), strict=False):
            arrays = write(TORCH, weights)
            for name, array in zip(NAMES, arrays, strict=True):
                place = f"{prefix}{name}_l{depth}{suffix}"
                state[place] = np.ascontiguousarray(array)
    return state


def _of_state(state, prefix, time_major=False) -> Ported:
    layers = [port(layer, time_major=time_major) for layer in _layers(state, prefix)]
    if not layers:
        raise ValueError(
            f"`prefix` must be one of {_prefixes(state)}, those of recurrent layers, "
            f"got {prefix!r}."
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


def _weights(state, prefix, place) -> Weights:
    if f"{prefix}weight_hr{place}" in state:
        raise ValueError(
            f"`source` must have no projection (`proj_size`), got {prefix}weight_hr"
            f"{place}."
        )
    found = [state.get(f"{prefix}{name}{place}") for name in NAMES]
    if found[1] is None or (found[2] is None) != (found[3] is None):
        missing = [
            f"{prefix}{name}{place}"
            for name, array in zip(NAMES, found, strict=True)
            if array is None
        ]
        raise ValueError(f"`source` must have {' and '.join(missing)}, got none.")
    return read(TORCH, Arrays(*map(_array, found)))


def _array(tensor) -> Any:
    """A tensor or an array as one of NumPy, which has no bfloat16 of its own."""
    if tensor is None or not hasattr(tensor, "detach"):
        return tensor if tensor is None else np.asarray(tensor)
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def _prefixes(state) -> list[str]:
    end = "weight_ih_l0"
    return sorted(name.removesuffix(end) for name in state if name.endswith(end))


def _check_module(module, prefix) -> None:
    name = type(module).__name__
    if name not in MODULES:
        raise TypeError(
            "`source` must be an nn.LSTM, nn.GRU or nn.RNN, or a state_dict, got "
            f"{name}."
        )
    if prefix:
        raise ValueError(
            f'`prefix` must be "" with a module, whose names have none, got {prefix!r}.'
        )
    nonlinearity = getattr(module, "nonlinearity", "tanh")
    if nonlinearity != "tanh":
        raise ValueError(f'`nonlinearity` must be "tanh", got {nonlinearity!r}.')


def _cells(layer: Layer) -> tuple[Weights, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


def _check_alike(layers: list[Layer]) -> None:
    """Raises where layers could not be those of one module of PyTorch."""
    kinds = [
        [(name_of(cell), len(cell["recurrent_kernel"])) for cell in _cells(layer)]
        for layer in layers
    ]
    one = kinds[0][0]
    if any(kind != [one] * len(kinds[0]) for kind in kinds):
        raise ValueError(
            "`params` must have one cell, one number of units and as many directions "
            f"in all layers, as PyTorch has, got {kinds}."
        )
