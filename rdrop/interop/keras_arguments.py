"""Keras' arguments in rdrop: `LSTM(units, dropout=a, ...)` translated one by one.

The table keras_arguments.md lists the counterpart of each argument. Its rows are the
notes on a layer, and docs/howto/keras.md includes it.

References:
    [1] keras/src/layers/rnn, lstm.py, gru.py, simple_rnn.py, rnn.py, and layer.py, of
        Keras 3.15.
    [2] tf_keras/layers/rnn, lstm.py, gru.py, simple_rnn.py, base_rnn.py, of Keras 2.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rdrop.interop.keras import (
    ACTIVATIONS,
    GATED,
    NEWEST,
    Release,
    Settings,
    activations_of,
    check_settings,
    describe,
    dropout_of,
    functions_of,
    live_settings,
    preset_of,
    release_of,
)
from rdrop.interop.ported import Noise
from rdrop.linen import RNN, Bidirectional, Cell, GRUCell, LSTMCell, SimpleCell

RELEASES = {"2": "2.15", "3": ".".join(map(str, NEWEST))}
# Arguments that not all layers, or not both versions of Keras, have.
LAYERS = {
    **dict.fromkeys(("recurrent_activation", "implementation", "use_cudnn"), GATED),
    "unit_forget_bias": ("LSTM",),
    "reset_after": ("GRU",),
}
VERSIONS = {
    "use_cudnn": 3,
    **dict.fromkeys(("time_major", "input_length", "batch_size"), 2),
    "batch_input_shape": 2,
}
CELLS: dict[str, type[Cell]] = {
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "SimpleRNN": SimpleCell,
}
REDUCED = ("float16", "bfloat16")
POLICIES = ("float32", "float64", *REDUCED, *(f"mixed_{name}" for name in REDUCED))


class Note(NamedTuple):
    """The value of one argument, its counterpart in rdrop, and a difference."""

    value: Any
    becomes: str
    differs: str = ""


class Translation(NamedTuple):
    """A Keras layer in rdrop; `print` it for a readable account.

    Attributes:
        module: the layer.
        dropout: its noise, to be passed to `module.apply`; for a Bidirectional whose
            directions differ a pair; None if there is none.
        code: source text that builds both, and a function that returns the same as the
            Keras layer.
        notes: by argument: the given arguments, and those that a live layer sets.
    """

    module: RNN | Bidirectional
    dropout: Noise
    code: str
    notes: dict[str, Note]

    def __str__(self) -> str:
        rows = [
            f"| `{name}={describe(note.value)}` | {note.becomes} | {note.differs} |"
            for name, note in self.notes.items()
        ]
        header = ["| argument | in rdrop | difference |", "|---|---|---|"]
        return "\n".join([self.code, *header, *rows, ""])


def translate_keras(
    layer: Any = "LSTM",
    units: int | None = None,
    *,
    keras: str | int | None = None,
    **arguments: Any,
) -> Translation:
    """Translates the arguments of a recurrent Keras layer.

    Args:
        layer: "LSTM", "GRU" or "SimpleRNN"; or a live layer of one of these classes, or
            a Bidirectional of one, for its own arguments.
        units: H. Like all `arguments` it overrides that argument of a live layer.
        keras: the version of Keras, such as "3.5"; 3 for 3.8 and newer, 2 for tf.keras
            up to TensorFlow 2.15 and tf_keras. By default a live layer's own, or 3.
        arguments: arguments of the layer, under their names in Keras.

    Returns:
        The layer, its noise, source text, and notes on the arguments.

    Raises:
        TypeError: the layer lacks such an argument, or `layer` is of another type.
        ValueError: a value that rdrop lacks, such as an activation that JAX lacks.

    Example:
        >>> translate_keras("LSTM", 8, recurrent_dropout=0.5).module.cell.units
        8
    """
    release = _release(keras)
    given = arguments if units is None else {"units": units} | arguments
    own = _settings(layer)
    settings = [_complete(each, given, release) for each in own]
    noise = [dropout_of(each) for each in settings]
    both = noise[0] if noise[0] == noise[-1] else tuple(noise)
    notes = _notes(settings[0], given)
    if settings[1:]:
        second = _notes(settings[1], given)
        differing = {n: note for n, note in second.items() if note != notes.get(n)}
        notes |= {f"backward_layer.{n}": note for n, note in differing.items()}
    return Translation(_module(settings), both, _code(settings), notes)


def _settings(layer: Any) -> list[Settings]:
    """The settings of a live layer; of a name none."""
    if isinstance(layer, str):
        check_settings({"kind": layer})
        return [{"kind": layer, "keras": NEWEST}]
    return live_settings(layer)


def _release(keras: str | int | None) -> Release | None:
    """The release that is asked for; None for the layer's own."""
    if keras is None:
        return None
    text = RELEASES.get(str(keras), str(keras))
    if isinstance(keras, float) or not re.match(r"[23]\.\d+(\.|$)", text):
        raise ValueError(
            f'`keras` must be 2, 3, or a version such as "3.5", got {keras!r}.'
        )
    return release_of(text)


def _complete(
    own: Settings, given: Mapping[str, Any], asked: Release | None
) -> Settings:
    """The settings of a live layer and those that are given, checked."""
    release = asked or own["keras"]
    for argument in given:
        _check_known(argument, own["kind"], release[0])
    settings = {"units": None, **own, **given, "keras": release}
    check_settings(settings)
    _check_values(settings)
    return settings


@functools.cache
def _rows() -> dict[str, list[str]]:
    """The table: by argument its counterpart in rdrop, and a difference."""
    table = resources.files("rdrop.interop").joinpath("keras_arguments.md")
    rows: dict[str, list[str]] = {}
    for line in table.read_text(encoding="utf-8").splitlines()[2:]:
        names, *row = (column.strip() for column in line.split("|")[1:-1])
        rows |= {name.strip("`"): row for name in names.split(", ")}
    return rows


def _notes(settings: Settings, given: Mapping[str, Any]) -> dict[str, Note]:
    return {
        name: Note(settings[name], *row)
        for name, row in _rows().items()
        if name in given or settings.get(name)
    }


def _check_known(argument: str, kind: str, keras: int) -> None:
    layers, version = LAYERS.get(argument, (kind,)), VERSIONS.get(argument, keras)
    if argument not in _rows():
        close = difflib.get_close_matches(argument, _rows(), 1, cutoff=0)
        why = f"the closest name is `{close[0]}`"
    elif kind not in layers:
        why = f"only {' and '.join(layers)} has it"
    elif keras != version:
        why = f"only Keras {version} has it"
    else:
        return
    raise TypeError(f"{kind} of Keras {keras} has no argument `{argument}`: {why}.")


def _check_values(settings: Settings) -> None:
    units, implementation = settings["units"], settings.get("implementation", 2)
    if isinstance(units, bool) or not isinstance(units, int) or units < 1:
        raise ValueError(f"`units` must be a positive integer, got {units!r}.")
    if implementation not in (1, 2):
        raise ValueError(f"`implementation` must be 1 or 2, got {implementation!r}.")
    if (dtype := _policy(settings)) not in POLICIES:
        raise ValueError(f"`dtype` must be one of {POLICIES}, got {dtype!r}.")


def _policy(settings: Settings) -> str:
    """The name of a layer's dtype or dtype policy, in any notation."""
    dtype = settings.get("dtype")
    if isinstance(dtype, Mapping):
        return dtype["config"]["name"]
    if dtype is None or isinstance(dtype, str):
        return dtype or "float32"
    return getattr(dtype, "name", None) or np.dtype(dtype).name


def _cell_options(settings: Settings) -> dict[str, Any]:
    """Options of the cell that differ from the defaults; functions as source text."""
    options: dict[str, Any] = dict(activations_of(settings))
    if not settings.get("use_bias", True):
        options["use_bias"] = False
    elif settings["kind"] == "LSTM" and not settings.get("unit_forget_bias", True):
        options["forget_bias"] = None
    if not settings.get("reset_after", True):
        options["reset_after"] = False
    if (dtype := _policy(settings)) != "float32":
        options["dtype"] = dtype.removeprefix("mixed_")
        if not dtype.startswith("mixed_"):
            options["param_dtype"] = dtype
    return options


def _module(settings: Sequence[Settings]) -> RNN | Bidirectional:
    cells = []
    for each in settings:
        options = _cell_options(each)
        dtypes = {n: jnp.dtype(v) for n, v in options.items() if n.endswith("dtype")}
        options |= dtypes | functions_of(each)
        cells.append(CELLS[each["kind"]](each["units"], **options))
    time_major = settings[0].get("time_major", False)
    forward, *backward = cells
    if backward:
        return Bidirectional(forward, backward[0], time_major)
    return RNN(forward, time_major, settings[0].get("go_backwards", False))


def _code(settings: Sequence[Settings]) -> str:
    """Source text that runs by itself, on sequences of ones."""
    first = settings[0]
    noise = [_noise_code(each) for each in settings]
    both = noise[0] if noise[0] == noise[-1] else f"({', '.join(noise)})"
    axes = "T, B, D" if first.get("time_major") else "B, T, D"
    carry, returned = _returned(settings)
    lines = [
        "import jax",
        "import jax.numpy as jnp",
        "import rdrop",
        "",
        f"rnn = {_module_code(settings)}",
        f"dropout = {both}",
        "",
        "def layer(params, xs, noise=None, keys=None, **options):",
        f"    {carry}, ys = rnn.apply(params, xs, noise, keys, **options)",
        f"    return {returned}",
        "",
        f"xs = jnp.ones((4, 7, 3))  # [{axes}]",
        "params = rnn.init(jax.random.key(0), xs)",
        f"keys = rdrop.stream_keys(jax.random.key({first.get('seed') or 0}))",
        "trained = layer(params, xs, dropout, keys)  # new keys at each training step",
        "evaluated = layer(params, xs, dropout)",
    ]
    return "\n".join(lines) + "\n"


def _module_code(settings: Sequence[Settings]) -> str:
    cells = []
    for each in settings:
        options = (
            f"{n}={v if n in ACTIVATIONS else repr(v)}"
            for n, v in _cell_options(each).items()
        )
        inner = ", ".join([str(each["units"]), *options])
        cells.append(f"rdrop.{CELLS[each['kind']].__name__}({inner})")
    layer = "Bidirectional" if len(cells) == 2 else "RNN"
    flags = {"time_major": "time_major", "go_backwards": "reverse"}
    given = (f"{flag}=True" for name, flag in flags.items() if settings[0].get(name))
    return f"rdrop.{layer}({', '.join([*cells, *given])})"


def _noise_code(settings: Settings) -> str:
    preset, rates = preset_of(settings)
    if not any(rates):
        return "None"
    return f"rdrop.presets.{preset}({', '.join(map(repr, rates))})"


def _returned(settings: Sequence[Settings]) -> tuple[str, str]:
    """The carry as the code names it, and the expression that Keras returns."""
    first, both = settings[0], len(settings) == 2
    suffixes = zip(settings, ("", "_back"), strict=False)
    states = [
        [f"h{suffix}", *([f"c{suffix}"] if each["kind"] == "LSTM" else [])]
        for each, suffix in suffixes
    ]
    carries = [f"({c[0]}, {h})" if c else h for h, *c in states]
    carry = f"({', '.join(carries)})" if both else carries[0]
    output = "jnp.concatenate([h, h_back], axis=-1)" if both else "h"
    if first.get("return_sequences"):
        flip = "[::-1]" if first.get("time_major") else "[:, ::-1]"
        output = f"ys{flip}" if first.get("go_backwards") else "ys"
    if first.get("return_state"):
        every = [state for each in states for state in each]
        output = f"({', '.join([output, *every])})"
    return carry, f"{output}, {carry}" if first.get("stateful") else output
