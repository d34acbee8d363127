"""Keras: weights of LSTM, GRU, SimpleRNN and Bidirectional, to and from rdrop.

Keras is not imported: a layer is known by its class's name and its `get_config()`,
which an archive holds as well. Its dropout is not part of its weights; see
`rdrop.presets.keras`.

Checked with Keras 3.15, keras/src/layers/rnn/{lstm,gru,simple_rnn,bidirectional}.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdrop.interop.layouts import KERAS, Array, Arrays, Weights, read, write
from rdrop.interop.ported import Layer, Ported, port, stack, weights_of

CELLS = ("LSTM", "GRU", "SimpleRNN")
ACTIVATIONS = {"activation": "tanh", "recurrent_activation": "sigmoid"}


def from_keras(layer: Any) -> Ported:
    """Returns the rdrop layer that computes what a layer of Keras does without noise.

    Outputs of a layer that goes backwards stay at the time steps of their inputs here;
    Keras hands them out in reverse order. Keras repeats the last output at padding
    unless `zero_output_for_mask`; here it is zero.

    Args:
        layer: a built LSTM, GRU, SimpleRNN, or Bidirectional around one, or a list of
            those from the input upwards.

    Raises:
        TypeError: a layer of another class.
        ValueError: a layer that is not built, or computes what rdrop does not: other
            activations, or a `merge_mode` other than "concat".
    """
    if isinstance(layer, (list, tuple)):
        check_order([_is_backwards(each) for each in layer])
        return stack([from_keras(each) for each in layer])
    config = _checked(layer)
    if not layer.built:
        raise ValueError(f"`layer` must be built, got {layer.name!r}, which is not.")
    if type(layer).__name__ != "Bidirectional":
        weights = read_weights(_held(layer), config)
        return port(weights, reverse=config["go_backwards"])
    parts = (layer.forward_layer, layer.backward_layer)
    pairs = zip(parts, configs_of_both(config), strict=True)
    return port(tuple(read_weights(_held(part), each) for part, each in pairs))


def to_keras(params: Mapping[str, Any]) -> list[Any]:
    """Returns the arrays for a layer's `set_weights`.

    They are `[kernel, recurrent_kernel, bias]`; of a GRU with the reset after the bias
    is [2, 3H], whose second row is zero but for the candidate. A layer without biases
    takes the first two.

    Args:
        params: variables of an `RNN`, a `Bidirectional` or a `Stack`.

    Returns:
        A list of arrays; of a `Bidirectional` forward's, then backward's; of a `Stack`
        a list of one such list a layer.

    Raises:
        ValueError: the variables are not those of a layer that Keras has.
    """
    layer = weights_of(params)
    return [_flat(each) for each in layer] if isinstance(layer, list) else _flat(layer)


def write_weights(weights: Weights) -> list[Array]:
    """Returns the arrays that Keras has for the weights of an rdrop cell."""
    kernel, recurrent_kernel, *biases = write(KERAS, weights)
    rows = [row for row in biases if row is not None]
    return [kernel, recurrent_kernel, np.stack(rows) if len(rows) > 1 else rows[0]]


def read_weights(arrays: Sequence[Array], config: Mapping[str, Any]) -> Weights:
    """Returns the weights of an rdrop cell.

    Args:
        arrays: kernel [D, GH], recurrent_kernel [H, GH], and bias, [GH] or [2, GH],
            if there is one.
        config: of the layer; only `reset_after` is looked at, without which the bias
            of a GRU tells, or Keras's default.
    """
    kernel, recurrent_kernel, *biases = arrays
    rows = [row for bias in biases for row in np.atleast_2d(bias)]
    in_two = [bias.ndim == 2 for bias in biases]
    reset_after = config.get("reset_after", all(in_two))
    return read(KERAS, Arrays(kernel, recurrent_kernel, *rows), reset_after)


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Raises where a layer of Keras computes something that rdrop does not.

    Args:
        name: of the layer's class.
        config: of the layer, as `get_config` returns it or an archive holds it.

    Raises:
        TypeError: a layer of another class.
        ValueError: a setting that rdrop has not.
    """
    if name == "Bidirectional":
        return _check_both(config)
    if name not in CELLS:
        raise TypeError(
            f"`layer` must be one of {', '.join(CELLS)} and Bidirectional around one, "
            f"got {config.get('name', 'one')!r} of class {name}."
        )
    for setting, default in ACTIVATIONS.items():
        if config.get(setting, default) != default:
            raise ValueError(
                f'`{setting}` must be "{default}", got {config[setting]!r} in '
                f"{config['name']!r}."
            )


def configs_of_both(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the configs of a Bidirectional's two layers, forward and backward."""
    return [config[part]["config"] for part in ("layer", "backward_layer")]


def check_order(backwards: Sequence[bool]) -> None:
    """Raises a ValueError where a layer below the top one goes backwards.

    Keras hands its outputs to the next layer in reverse order; an rdrop `Stack` leaves
    them at their time steps.
    """
    if any(backwards[:-1]):
        raise ValueError(
            "`layer` must not go backwards below the top of a stack, as it reverses "
            f"the sequence for the next one, got layer {list(backwards).index(True)}."
        )


def _checked(layer) -> Mapping[str, Any]:
    name = type(layer).__name__
    if not hasattr(layer, "get_config"):
        raise TypeError(f"`layer` must be a layer of Keras, got {name}.")
    config = layer.get_config()
    check_config(name, config)
    return config


def _check_both(config) -> None:
    if config["merge_mode"] != "concat":
        raise ValueError(
            f'`merge_mode` must be "concat", got {config["merge_mode"]!r} in '
            f"{config['name']!r}."
        )
    for part in ("layer", "backward_layer"):
        check_config(config[part]["class_name"], config[part]["config"])
    directions = [each["go_backwards"] for each in configs_of_both(config)]
    if directions != [False, True]:
        raise ValueError(
            "`go_backwards` must be False in the forward and True in the backward "
            f"layer of {config['name']!r}, got {directions}."
        )


def _is_backwards(layer) -> bool:
    return bool(getattr(layer, "go_backwards", False))


def _held(layer) -> list[Array]:
    return [np.asarray(variable) for variable in layer.weights]


def _flat(layer: Layer) -> list[Array]:
    cells = layer if isinstance(layer, tuple) else (layer,)
    return [array for cell in cells for array in write_weights(cell)]
