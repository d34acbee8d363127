"""Keras' arguments, one by one: what each becomes in rdrop, and what differs.

`ARGUMENTS` is data for `keras_arguments.translate_keras`: every argument with its
default, the layers and versions of Keras that have it, and a note that depends on the
other arguments, as the meaning of some does.

References:
    [1] keras/src/layers/rnn, lstm.py, gru.py, simple_rnn.py, rnn.py, and layer.py, of
        Keras 3.15.
    [2] tf_keras/layers/rnn, lstm.py, gru.py, simple_rnn.py, base_rnn.py, of Keras 2.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Settings: TypeAlias = Mapping[str, Any]  # every argument by name; `layer` and `keras`
Text: TypeAlias = tuple[str, str]  # what it becomes, what differs
GATED, ALL = ("LSTM", "GRU"), ("LSTM", "GRU", "SimpleRNN")


class Argument(NamedTuple):
    """An argument of Keras.

    Attributes:
        default: its value where it is not given.
        note: what it becomes and what differs, for the settings of a layer.
        layers: those that have it.
        versions: of Keras, that have it.
    """

    default: Any
    note: Callable[[Settings], Text]
    layers: tuple[str, ...] = ALL
    versions: tuple[int, ...] = (2, 3)


def describe(value: Any) -> str:
    """The name of a value, whether text, function, object or config of Keras."""
    if isinstance(value, Mapping) and "class_name" in value:
        name, config = value["class_name"], value["config"]
    elif hasattr(value, "get_config"):
        name, config = type(value).__name__, value.get_config()
    else:
        return getattr(value, "__name__", None) or str(value)
    if not isinstance(config, Mapping):
        return str(config)
    told = {k: v for k, v in config.items() if v is not None and (k, v) != ("gain", 1)}
    inner = ", ".join(f"{k}={v}" for k, v in told.items())
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return f"{snake}({inner})" if inner else snake


def policy(settings: Settings) -> str:
    """The name of a layer's dtype or dtype policy, however it is written."""
    dtype = settings["dtype"]
    if isinstance(dtype, Mapping):
        return dtype["config"]["name"]
    if dtype is None or isinstance(dtype, str):
        return dtype or "float32"
    return getattr(dtype, "name", None) or np.dtype(dtype).name


def noise(settings: Settings) -> tuple[str, tuple[float, ...]]:
    """The name of the preset that a layer's noise is, and the rates it is given."""
    inputs, recurrent = settings["dropout"], settings["recurrent_dropout"]
    if settings["layer"] == "SimpleRNN":
        return ("gal", (inputs, recurrent)) if recurrent else ("keras", (inputs,))
    if recurrent:
        return "keras" if settings["keras"] == 3 else "keras2", (inputs, recurrent)
    if _is_fused(settings):
        return "keras2_fused", (inputs,)
    if settings["implementation"] == 1:
        return "keras2", (inputs, 0.0)
    return "keras", (inputs,)


def _is_fused(settings) -> bool:
    """Whether Keras 2 takes its fused kernel, with an input mask of each step [2]."""
    return (
        settings["keras"] == 2
        and settings["layer"] in GATED
        and not settings["recurrent_dropout"]
        and not settings["unroll"]
        and settings["use_bias"]
        and settings.get("reset_after", True)
    )


def _says(becomes: str, differs: str = "") -> Callable[[Settings], Text]:
    return lambda settings: (becomes, differs)


def _units(settings: Settings) -> Text:
    return f"the cell's `units`, {settings['units']}", ""


def _dropout(settings: Settings) -> Text:
    preset, _ = noise(settings)
    if not settings["dropout"]:
        return "no noise on x_t", ""
    gated = settings["layer"] in GATED
    lifetime = "anew at each step" if preset == "keras2_fused" else "held over time"
    each = gated and (settings["recurrent_dropout"] or preset == "keras2")
    sharing = "one mask a gate" if each else "one mask for all gates" * gated
    mask = ", ".join(filter(None, [lifetime, sharing]))
    return f"site `inputs`: x_t before W, {mask}", _dropout_differs(settings, preset)


def _dropout_differs(settings: Settings, preset: str) -> str:
    if preset == "keras2_fused":
        return "any `recurrent_dropout`, or Keras 3, would hold the mask"
    if settings["layer"] in GATED and not settings["recurrent_dropout"]:
        return "in Keras, any `recurrent_dropout` gives each gate its own mask of x_t"
    return ""


def _recurrent_dropout(settings: Settings) -> Text:
    if not settings["recurrent_dropout"]:
        return "no noise on h_{t-1}", ""
    sharing = ", one mask a gate" if settings["layer"] in GATED else ""
    old = "Keras 3.0 to 3.7 shared the masks among the gates, and masked h in the leak "
    differs = f"{old}path of a GRU" if settings["keras"] == 3 and sharing else ""
    return f"site `recurrent`: h_{{t-1}} before U, held over time{sharing}", differs


def _implementation(settings: Settings) -> Text:
    if settings["recurrent_dropout"]:
        return "nothing", "Keras takes 1 beside `recurrent_dropout`, whatever is given"
    if settings["implementation"] == 2 or not settings["dropout"]:
        return "nothing: rdrop has one implementation", ""
    if _is_fused(settings):
        return "nothing", "the fused kernel of Keras 2 does not look at it"
    crash = "Keras 3.15 fails here in training unless `use_cudnn=False`"
    return '`gates="each"`', crash if settings["keras"] == 3 else ""


def _use_bias(settings: Settings) -> Text:
    if settings["use_bias"]:
        return "`bias`", ""
    return "`bias` of zeros", "keep it out of training, such as by `optax.masked`"


def _unit_forget_bias(settings: Settings) -> Text:
    if settings["unit_forget_bias"] or not settings["use_bias"]:
        return "built in: the bias of the forget gate starts at one", ""
    return "`bias` set to zeros after `init`", "rdrop starts the forget gate's at one"


def _initializer(name: str, default: str) -> Callable[[Settings], Text]:
    def note(settings: Settings) -> Text:
        if describe(settings[name]) == default:
            return "built in", ""
        return "write it into `params`", f"rdrop's is {default}"

    return note


def _regularizer(name: str) -> Callable[[Settings], Text]:
    weight = name.removesuffix("_regularizer")
    weight = "recurrent_kernel" if weight == "recurrent" else weight

    def note(settings: Settings) -> Text:
        if settings[name] is None:
            return "nothing", ""
        two = weight == "bias" and settings.get("reset_after", False)
        both = "; a GRU of Keras has two biases, penalised one by one" * two
        return (
            f'a term of your loss, over `params["params"]["{weight}"]`',
            f"Keras adds it to the loss by itself{both}",
        )

    return note


def _constraint(name: str) -> Callable[[Settings], Text]:
    def note(settings: Settings) -> Text:
        if settings[name] is None:
            return "nothing", ""
        return "a projection of `params` after each update", "Keras does so by itself"

    return note


def _activity_regularizer(settings: Settings) -> Text:
    if settings["activity_regularizer"] is None:
        return "nothing", ""
    mean = "Keras divides by the batch size; `rdrop.activation_regulariser` is a mean"
    return "a term of your loss, over the outputs", mean


def _return_sequences(settings: Settings) -> Text:
    if settings["return_sequences"]:
        return "`ys`", ""
    padded = "with `lengths` not `ys[:, -1]`, which is zero in padding"
    return "h of the final carry", f"`ys` is computed anyway; {padded}"


def _return_state(settings: Settings) -> Text:
    if not settings["return_state"]:
        return "nothing: the carry is always returned", ""
    order = "Keras returns h, c; the carry is (c, h)"
    return "the final carry", order if settings["layer"] == "LSTM" else ""


def _go_backwards(settings: Settings) -> Text:
    if not settings["go_backwards"]:
        return "nothing", ""
    order = "Keras returns outputs in the order computed, last step first"
    return "`RNN(..., reverse=True)`", f"{order}; rdrop leaves them at their time steps"


def _stateful(settings: Settings) -> Text:
    if not settings["stateful"]:
        return "nothing", ""
    return (
        "`initial_carry=` the carry returned by the call before",
        "Keras draws new masks at each call; so do new keys. The same keys, with "
        "`keys.replace(step=steps so far)`, hold the masks on",
    )


def _zero_output(settings: Settings) -> Text:
    zero, sequences = settings["zero_output_for_mask"], settings["return_sequences"]
    if zero == sequences:
        return "built in" if zero else "nothing", ""
    if zero:
        return "nothing", "where padding is last, Keras on JAX returns zeros; rdrop h"
    return "nothing", "in padding rdrop's outputs are zero, Keras' of the step before"


def _unroll(settings: Settings) -> Text:
    if settings["keras"] == 3 or not settings["unroll"]:
        return "nothing: no result depends on it", ""
    held = "without it Keras 2 takes its fused kernel, whose mask of x_t is not held"
    return "nothing", held if _is_fused({**settings, "unroll": False}) else ""


def _reset_after(settings: Settings) -> Text:
    if settings["reset_after"]:
        return "the default", ""
    return "`GRUCell(..., reset_after=False)`", ""


def _seed(settings: Settings) -> Text:
    if not any(noise(settings)[1]):
        return "nothing", ""
    return (
        f"`rdrop.stream_keys(jax.random.key({settings['seed'] or 0}))`",
        "other numbers than Keras', which draws both masks from one generator, also in "
        "evaluation; rdrop has a stream for each, and new masks are new keys",
    )


def _dtype(settings: Settings) -> Text:
    name = policy(settings)
    if name == "float32":
        return "the default", ""
    if name.startswith("mixed_"):
        kept = "; the c of an LSTM is kept in float32" * (settings["layer"] == "LSTM")
        return f'`dtype="{name.removeprefix("mixed_")}"`', f"parameters float32{kept}"
    x64 = "needs `jax_enable_x64`" if name == "float64" else ""
    return f'`dtype="{name}", param_dtype="{name}"`', x64


def _trainable(settings: Settings) -> Text:
    if settings["trainable"]:
        return "nothing", ""
    return "not here", "keep `params` out of training, such as by `optax.masked`"


def _time_major(settings: Settings) -> Text:
    return "`RNN(..., time_major=True)`" * settings["time_major"] or "nothing", ""


_shape = _says("nothing: `init` takes the shape from `xs`")
_no_result = _says("nothing: no result depends on it")

ARGUMENTS: dict[str, Argument] = {
    "units": Argument(None, _units),
    "activation": Argument("tanh", _says("built in")),
    "recurrent_activation": Argument("sigmoid", _says("built in"), GATED),
    "use_bias": Argument(True, _use_bias),
    "kernel_initializer": Argument(
        "glorot_uniform", _initializer("kernel_initializer", "glorot_uniform")
    ),
    "recurrent_initializer": Argument(
        "orthogonal", _initializer("recurrent_initializer", "orthogonal")
    ),
    "bias_initializer": Argument("zeros", _initializer("bias_initializer", "zeros")),
    "unit_forget_bias": Argument(True, _unit_forget_bias, ("LSTM",)),
    **{
        f"{weight}_regularizer": Argument(None, _regularizer(f"{weight}_regularizer"))
        for weight in ("kernel", "recurrent", "bias")
    },
    "activity_regularizer": Argument(None, _activity_regularizer),
    **{
        f"{weight}_constraint": Argument(None, _constraint(f"{weight}_constraint"))
        for weight in ("kernel", "recurrent", "bias")
    },
    "dropout": Argument(0.0, _dropout),
    "recurrent_dropout": Argument(0.0, _recurrent_dropout),
    "seed": Argument(None, _seed),
    "implementation": Argument(2, _implementation, GATED),
    "reset_after": Argument(True, _reset_after, ("GRU",)),
    "return_sequences": Argument(False, _return_sequences),
    "return_state": Argument(False, _return_state),
    "go_backwards": Argument(False, _go_backwards),
    "stateful": Argument(False, _stateful),
    "time_major": Argument(False, _time_major, ALL, (2,)),
    "zero_output_for_mask": Argument(False, _zero_output),
    "unroll": Argument(False, _unroll),
    "use_cudnn": Argument("auto", _no_result, GATED, (3,)),
    "dtype": Argument(None, _dtype),
    "autocast": Argument(True, _says("nothing: cast `xs` yourself")),
    "trainable": Argument(True, _trainable),
    "name": Argument(None, _no_result),
    "input_shape": Argument(None, _shape),
    "input_dim": Argument(None, _shape),
    "input_length": Argument(None, _shape, ALL, (2,)),
    "batch_size": Argument(None, _shape, ALL, (2,)),
    "batch_input_shape": Argument(None, _shape, ALL, (2,)),
}
