"""Keras: weights and dropout of LSTM, GRU, SimpleRNN and Bidirectional.

Keras is not imported: a layer is identified by the name of its class and by its
`get_config()`, which an archive contains as well.

Checked with Keras 3.15, keras/src/layers/rnn/{lstm,gru,simple_rnn,bidirectional}.py.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rdrop import presets
from rdrop.dropout import Dropout
from rdrop.interop.layouts import KERAS, Array, Arrays, Weights, read, write
from rdrop.interop.ported import Layer, Ported, cells_of, layer_of, port, stack

# The arguments of one LSTM, GRU or SimpleRNN, with its class name under "kind" and the
# release of Keras under "keras".
Settings: TypeAlias = Mapping[str, Any]
Release: TypeAlias = tuple[int, int]
NEWEST = (3, 8)  # or newer: the rates mean the same
LIBRARIES = ("keras", "tf_keras")
KINDS = ("LSTM", "GRU", "SimpleRNN")
GATED = ("LSTM", "GRU")
ACTIVATIONS = {"activation": "tanh", "recurrent_activation": "sigmoid"}
# The functions of JAX that activations of Keras are.
FUNCTIONS = {
    "tanh": "jnp.tanh",
    "exponential": "jnp.exp",
    "linear": "jax.nn.identity",
    "None": "jax.nn.identity",
    "softsign": "jax.nn.soft_sign",
    "swish": "jax.nn.silu",
    "hard_swish": "jax.nn.hard_silu",
    **{
        name: f"jax.nn.{name}"
        for name in (
            *("sigmoid", "relu", "relu6", "elu", "selu", "silu", "softplus", "mish"),
            *("hard_sigmoid", "hard_silu", "softmax", "log_softmax"),
        )
    },
}
RATES = ("dropout", "recurrent_dropout")
HIDDEN = ("implementation", "seed", "use_cudnn")  # not in every `get_config()`


def from_keras(layer: Any) -> Ported:
    """Returns the rdrop layer that computes the same as a Keras layer.

    Its `dropout` is the preset of the layer's arguments in its version of Keras:
    `rdrop.presets.keras` in most cases. Outputs of a layer that goes backwards stay at
    the time steps of their inputs; Keras returns them in reverse order. Outputs at
    padding are zero; Keras repeats the last output unless `zero_output_for_mask`.

    Args:
        layer: a built LSTM, GRU, SimpleRNN, or Bidirectional of one; or a list of such
            layers from the input upwards.

    Raises:
        TypeError: a layer of another class.
        ValueError: a layer that is not built, or that rdrop cannot represent: an
            activation that JAX lacks, a rate of 1, a `merge_mode` other than "concat",
            or a layer that goes backwards below another one.
    """
    if isinstance(layer, (list, tuple)):
        return join([from_keras(each) for each in layer])
    settings = live_settings(layer)
    if not layer.built:
        raise ValueError(f"`layer` must be built, got {layer.name!r}, which is not.")
    both = [layer.forward_layer, layer.backward_layer] if settings[1:] else [layer]
    weights = [[np.asarray(variable) for variable in each.weights] for each in both]
    return build(settings, weights)


def to_keras(params: Mapping[str, Any]) -> list[Any]:
    """Returns the arrays for a layer's `set_weights`.

    They are `[kernel, recurrent_kernel, bias]`. For a GRU with the reset after, the
    bias is [2, 3H], and its second row is zero except for the candidate. For a layer
    without biases take the first two.

    Args:
        params: variables of an `RNN`, a `Bidirectional` or a `Stack`.

    Returns:
        A list of arrays; for a `Bidirectional` the forward ones, then the backward
        ones; for a `Stack` a list with one such list per layer.

    Raises:
        ValueError: Keras lacks the cell.
    """
    layer = layer_of(params)
    return [_flat(each) for each in layer] if isinstance(layer, list) else _flat(layer)


def build(settings: Sequence[Settings], arrays: Sequence[Sequence[Array]]) -> Ported:
    """Returns the rdrop layer of one direction or of two (forward, backward).

    Args:
        settings: of each direction; empty if they are unknown, as in a file of weights.
        arrays: for each direction kernel [D, G H], recurrent_kernel [H, G H], and, if
            there is one, bias [G H] or [2, G H].
    """
    weights = [_weights(*pair) for pair in zip(arrays, settings, strict=True)]
    noise = [dropout_of(each) for each in settings]
    options = [functions_of(each) for each in settings]
    if len(weights) == 1:
        reverse = settings[0].get("go_backwards", False)
        return port(weights[0], noise[0], reverse=reverse, options=options)
    both = noise[0] if noise[0] == noise[1] else tuple(noise)
    return port(tuple(weights), both, options=options)


def functions_of(settings: Settings) -> dict[str, Any]:
    """Returns the activations of a layer that are not the defaults of a cell."""
    modules = {"jnp": jnp, "jax.nn": jax.nn}
    functions = {}
    for argument, code in activations_of(settings).items():
        module, name = code.rsplit(".", 1)
        functions[argument] = getattr(modules[module], name)
    return functions


def activations_of(settings: Settings) -> dict[str, str]:
    """Returns the same as source text, such as "jax.nn.relu"."""
    named = {
        argument: describe(settings.get(argument, usual))
        for argument, usual in ACTIVATIONS.items()
    }
    return {
        argument: FUNCTIONS[name]
        for argument, name in named.items()
        if name != ACTIVATIONS[argument]
    }


def join(layers: Sequence[Ported]) -> Ported:
    """Stacks layers that are ported from Keras.

    Raises:
        ValueError: there are none, or a layer below the top goes backwards: Keras
            passes its outputs on in reverse order, an rdrop `Stack` does not.
    """
    for depth, layer in enumerate(layers[:-1]):
        if getattr(layer.module, "reverse", False):
            raise ValueError(
                "A layer below the top of a stack must not go backwards, since Keras "
                f"reverses the sequence for the next one; layer {depth} does."
            )
    return stack(layers)


def live_settings(layer: Any) -> list[Settings]:
    """Returns the settings of a live layer's directions: of one, or of two.

    Raises:
        TypeError: `layer` is not a layer of Keras, or of another class.
        ValueError: a setting that rdrop lacks.
    """
    return settings_of(type(layer).__name__, _config(layer), _release(layer))


def release_of(version: str) -> Release:
    """Returns the release of a version of Keras, such as "3.5.0"."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def settings_of(
    kind: str, config: Mapping[str, Any], release: Release = NEWEST
) -> list[Settings]:
    """Returns the settings of a layer's directions: of one, or of two.

    Args:
        kind: name of the layer's class.
        config: as `get_config` returns it or an archive contains it.
        release: the version of Keras, which decides what the rates mean.

    Raises:
        TypeError: a layer of another class.
        ValueError: a setting that rdrop lacks.
    """
    if kind != "Bidirectional":
        settings = {**config, "kind": kind, "keras": release}
        check_settings(settings)
        return [settings]
    if config["merge_mode"] != "concat":
        got = config["merge_mode"]
        raise ValueError(f'`merge_mode` must be "concat", got {got!r}.')
    parts = (config[part] for part in ("layer", "backward_layer"))
    both = [settings_of(p["class_name"], p["config"], release)[0] for p in parts]
    directions = [each["go_backwards"] for each in both]
    if directions != [False, True]:
        raise ValueError(
            "`go_backwards` must be False in the forward and True in the backward "
            f"layer of a Bidirectional, got {directions}."
        )
    return both


def check_settings(settings: Settings) -> None:
    """Raises if rdrop lacks the layer, its activations or its rates.

    Raises:
        TypeError: a layer of another class.
        ValueError: an activation that JAX lacks, or a rate outside [0, 1).
    """
    if settings["kind"] not in KINDS:
        raise TypeError(
            f"`layer` must be one of {', '.join(KINDS)}, a Bidirectional of one, or a "
            f"list of these (a model's other layers stay outside), got "
            f"{settings['kind']!r}."
        )
    for argument, usual in ACTIVATIONS.items():
        got = describe(settings.get(argument, usual))
        if got not in FUNCTIONS:
            known = ", ".join(name for name in FUNCTIONS if name != "None")
            raise ValueError(f"`{argument}` must be one of {known}, got {got}.")
        if got == "hard_sigmoid" and settings.get("keras", NEWEST) < (3, 0):
            raise ValueError(
                f"`{argument}` must not be hard_sigmoid of Keras 2, which is another "
                "function than that of Keras 3 and JAX."
            )
    for argument in RATES:
        rate = settings.get(argument, 0)
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(
                f"`{argument}` must be a number in [0, 1), got {rate!r}: Keras clips "
                "others, and ignores 1 in some layers and backends."
            )


def dropout_of(settings: Settings) -> Dropout | None:
    """Returns the noise of a layer; None if it has none."""
    preset, rates = preset_of(settings)
    return getattr(presets, preset)(*rates) if any(rates) else None


def preset_of(settings: Settings) -> tuple[str, tuple[float, ...]]:
    """Returns the name of the preset that equals a layer's noise, and its rates."""
    inputs, recurrent = (float(settings.get(name, 0)) for name in RATES)
    is_simple = settings.get("kind") == "SimpleRNN"
    release = settings.get("keras", NEWEST)
    shares = (3, 0) <= release < NEWEST  # the gates share both masks
    if recurrent and shares:
        return "keras3_0", (inputs, inputs if release < (3, 2) else recurrent)
    if recurrent and is_simple:
        return "gal", (inputs, recurrent)
    if recurrent:
        return "keras" if release >= NEWEST else "keras2", (inputs, recurrent)
    if not is_simple and _is_fused(settings):
        return "keras2_fused", (inputs,)
    if not (is_simple or shares) and settings.get("implementation") == 1:
        return "keras2", (inputs, 0.0)
    return "keras", (inputs,)


def describe(value: Any) -> str:
    """Returns the name of a value: a text, function, object or config of Keras."""
    if isinstance(value, Mapping) and "class_name" in value:
        name, config = value["class_name"], value["config"]
    elif hasattr(value, "get_config") and not isinstance(value, type):
        name, config = type(value).__name__, value.get_config()
    else:
        return getattr(value, "__name__", None) or str(value)
    if not isinstance(config, Mapping):
        return str(config)
    told = {k: v for k, v in config.items() if v is not None and (k, v) != ("gain", 1)}
    inner = ", ".join(f"{k}={v}" for k, v in told.items())
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return f"{snake}({inner})" if inner else snake


def _config(layer: Any) -> dict[str, Any]:
    """A live layer's `get_config()`, with the arguments that it leaves out."""
    if not hasattr(layer, "get_config") or isinstance(layer, type):
        raise TypeError(f"`layer` must be a Keras layer, got {describe(layer)}.")
    config = layer.get_config()
    if type(layer).__name__ == "Bidirectional":
        both = {"layer": layer.forward_layer, "backward_layer": layer.backward_layer}
        return config | {
            part: {"class_name": type(each).__name__, "config": _config(each)}
            for part, each in both.items()
        }
    owners = (layer, getattr(layer, "cell", None))
    held = ((n, getattr(owner, n, None)) for owner in owners for n in HIDDEN)
    return config | {name: value for name, value in held if value is not None}


def _release(layer: Any) -> Release:
    """The release of the library that a live layer is from."""
    roots = (kind.__module__.partition(".")[0] for kind in type(layer).__mro__)
    library = next((root for root in roots if root in LIBRARIES), None)
    return release_of(sys.modules[library].__version__) if library else NEWEST


def _is_fused(settings: Settings) -> bool:
    """Whether Keras 2 uses its fused kernel, which draws an input mask per step."""
    return (
        settings.get("keras", NEWEST) < (3, 0)
        and not settings.get("unroll")
        and settings.get("use_bias", True)
        and settings.get("reset_after", True)
    )


def _weights(arrays: Sequence[Array], settings: Settings) -> Weights:
    kernel, recurrent_kernel, *biases = arrays
    rows = [row for bias in biases for row in np.atleast_2d(bias)]
    in_two = all(bias.ndim == 2 for bias in biases)
    reset_after = settings.get("reset_after", in_two)
    return read(KERAS, Arrays(kernel, recurrent_kernel, *rows), reset_after)


def _flat(layer: Layer) -> list[Array]:
    flat: list[Array] = []
    for weights in cells_of(layer):
        kernel, recurrent_kernel, *biases = write(KERAS, weights)
        rows = [row for row in biases if row is not None]
        bias = np.stack(rows) if len(rows) > 1 else rows[0]
        flat += [kernel, recurrent_kernel, bias]
    return flat
