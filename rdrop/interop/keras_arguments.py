"""Keras' arguments in rdrop: `LSTM(units, dropout=a, ...)` translated one by one.

Some arguments say what is computed, and become part of the layer, of its `Dropout` or
of the few lines around them. Others belong to the training loop here (regularisers,
constraints, `trainable`), or change no result (`name`, `unroll`). The meaning of
`dropout` depends on other arguments and on the version of Keras.
What each argument becomes is in `keras_notes`.
"""

import difflib
from typing import Any, NamedTuple

import jax.numpy as jnp

from rdrop import presets
from rdrop.cells import Cell, GRUCell, LSTMCell, SimpleCell
from rdrop.dropout import Dropout
from rdrop.interop.keras_notes import ARGUMENTS, Settings, describe, noise, policy
from rdrop.layers import RNN

CELLS: dict[str, type[Cell]] = {
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "SimpleRNN": SimpleCell,
}
REDUCED = ("float16", "bfloat16")
POLICIES = ("float32", "float64", *REDUCED, *(f"mixed_{name}" for name in REDUCED))


class Note(NamedTuple):
    """What one argument becomes, and what differs then."""

    value: Any
    becomes: str
    differs: str = ""


class Translation(NamedTuple):
    """A layer of Keras in rdrop; `print` it for a readable account.

    Attributes:
        module: the layer.
        dropout: its noise, to be passed to `module.apply`.
        code: source text that builds both, and a function that returns what the layer
            of Keras returns.
        notes: by argument: those given, and those whose default needs a word.
    """

    module: RNN
    dropout: Dropout
    code: str
    notes: dict[str, Note]

    def __str__(self) -> str:
        rows = [
            ("argument", "in rdrop", "what differs"),
            ("---", "---", "---"),
            *(
                (f"`{name}={describe(note.value)}`", note.becomes, note.differs)
                for name, note in self.notes.items()
            ),
        ]
        return self.code + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def translate_keras(
    layer: Any = "LSTM", units: int | None = None, *, keras: int = 3, **arguments: Any
) -> Translation:
    """Translates the arguments of a recurrent layer of Keras.

    Args:
        layer: "LSTM", "GRU" or "SimpleRNN"; or a live layer, for its own arguments.
        units: H, as all `arguments` under its name in Keras; over those of a live one.
        keras: 3, for Keras 3.8 and newer, or 2, for tf.keras up to TensorFlow 2.15 and
            tf_keras.
        arguments: of the layer, as Keras takes them.

    Returns:
        The layer, its noise, source text, and a note on each argument.

    Raises:
        TypeError: the layer has no such argument, or `layer` is of another type.
        ValueError: a value that rdrop does not have, such as another activation.

    Example:
        >>> translate_keras("LSTM", 8, recurrent_dropout=0.5).module.cell.units
        8
    """
    if keras not in (2, 3):
        raise ValueError(f"`keras` must be 2 or 3, got {keras!r}.")
    name, own = _read(layer)
    given = own | ({} if units is None else {"units": units}) | arguments
    known = {n: a for n, a in ARGUMENTS.items() if name in a.layers}
    for argument in given:
        _check_known(argument, name, keras, known)
    settings = {n: a.default for n, a in known.items()} | given
    settings |= {"layer": name, "keras": keras}
    _check_values(settings)
    notes = {
        argument: Note(settings[argument], *entry.note(settings))
        for argument, entry in known.items()
        if keras in entry.versions
    }
    told = {n: note for n, note in notes.items() if n in given or note.differs}
    preset, rates = noise(settings)
    dropout = getattr(presets, preset)(*rates) if any(rates) else Dropout()
    return Translation(_module(settings), dropout, _code(settings), told)


def _read(layer) -> tuple[str, dict[str, Any]]:
    """The name of a layer, and its arguments if it is a live one."""
    live = hasattr(layer, "get_config") and not isinstance(layer, type)
    name = type(layer).__name__ if live else layer
    if name not in list(CELLS):
        raise TypeError(
            f"`layer` must be one of {', '.join(CELLS)}, by name or live, got {name!r}."
        )
    if not live:
        return name, {}
    hidden = {"implementation": layer.cell, "seed": layer.cell, "use_cudnn": layer}
    config = {
        argument: getattr(owner, argument)
        for argument, owner in hidden.items()
        if hasattr(owner, argument)
    }
    return name, config | layer.get_config()


def _check_known(argument: str, layer: str, keras: int, known) -> None:
    if argument in known and keras in known[argument].versions:
        return
    if argument in known:
        why = f"it is one of keras={known[argument].versions[0]}"
    elif argument in ARGUMENTS:
        why = f"{' and '.join(ARGUMENTS[argument].layers)} alone has it"
    else:
        close = difflib.get_close_matches(argument, known, 1, cutoff=0)
        why = f"the closest name is `{close[0]}`"
    raise TypeError(f"{layer} of Keras {keras} has no argument `{argument}`: {why}.")


def _check_values(settings: Settings) -> None:
    units = settings["units"]
    if isinstance(units, bool) or not isinstance(units, int) or units < 1:
        raise ValueError(f"`units` must be a positive integer, got {units!r}.")
    for argument, only in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if describe(settings.get(argument, only)) != only:
            got = describe(settings[argument])
            raise ValueError(f"`{argument}` must be {only} in rdrop, got {got}.")
    for argument in ("dropout", "recurrent_dropout"):
        rate = settings[argument]
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(
                f"`{argument}` must be a number in [0, 1), got {rate!r}: Keras clips "
                "others, and ignores 1 in some layers and backends."
            )
    if settings.get("implementation", 2) not in (1, 2):
        got = settings["implementation"]
        raise ValueError(f"`implementation` must be 1 or 2, got {got!r}.")
    if (dtype := policy(settings)) not in POLICIES:
        raise ValueError(f"`dtype` must be one of {POLICIES}, got {dtype!r}.")


def _options(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the cell and of `RNN` that are not their defaults."""
    cell: dict[str, Any] = {}
    if not settings.get("reset_after", True):
        cell["reset_after"] = False
    if (dtype := policy(settings)) != "float32":
        cell["dtype"] = dtype.removeprefix("mixed_")
        if not dtype.startswith("mixed_"):
            cell["param_dtype"] = dtype
    layer = {"time_major": settings["time_major"], "reverse": settings["go_backwards"]}
    return cell, {name: True for name, value in layer.items() if value}


def _module(settings: Settings) -> RNN:
    cell, layer = _options(settings)
    dtypes = {n: jnp.dtype(v) for n, v in cell.items() if n.endswith("dtype")}
    return RNN(CELLS[settings["layer"]](settings["units"], **(cell | dtypes)), **layer)


def _code(settings: Settings) -> str:
    """Source text; it runs by itself, on sequences of ones."""
    name, cell = settings["layer"], CELLS[settings["layer"]].__name__
    own, options = _options(settings)
    inner = ", ".join([str(settings["units"]), *(_option(*o) for o in own.items())])
    outer = ", ".join([f"rdrop.{cell}({inner})", *(f"{n}=True" for n in options)])
    preset, rates = noise(settings)
    drawn = f"presets.{preset}({', '.join(map(repr, rates))})"
    axes = "T, B, D" if settings["time_major"] else "B, T, D"
    carry = "(c, h)" if name == "LSTM" else "h"
    lines = [
        "import jax",
        "import jax.numpy as jnp",
        "import rdrop",
        "",
        f"rnn = rdrop.RNN({outer})",
        f"dropout = rdrop.{drawn if any(rates) else 'Dropout()'}",
        "",
        "def layer(params, xs, noise=None, keys=None, **options):",
        f"    {carry}, ys = rnn.apply(params, xs, noise, keys, **options)",
        f"    return {_returned(settings, carry)}",
        "",
        f"xs = jnp.ones((4, 7, 3))  # [{axes}]",
        "params = rnn.init(jax.random.key(0), xs)",
        *_biases(settings),
        f"keys = rdrop.stream_keys(jax.random.key({settings['seed'] or 0}))",
        "trained = layer(params, xs, dropout, keys)  # new keys at each training step",
        "evaluated = layer(params, xs, dropout)",
    ]
    return "\n".join(lines) + "\n"


def _option(name: str, value: Any) -> str:
    return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"


def _returned(settings: Settings, carry: str) -> str:
    """What Keras returns; of a stateful layer, what it keeps as well."""
    output = "h"
    if settings["return_sequences"]:
        steps = "[::-1]" if settings["time_major"] else "[:, ::-1]"
        output = f"ys{steps * settings['go_backwards']}"
    if settings["return_state"]:
        output = (
            f"({output}, h, c)" if settings["layer"] == "LSTM" else f"({output}, h)"
        )
    return f"{output}, {carry}" if settings["stateful"] else output


def _biases(settings: Settings) -> list[str]:
    """A line where the biases of rdrop do not start as those of Keras."""
    if settings["use_bias"] and settings.get("unit_forget_bias", True):
        return []
    if settings["layer"] != "LSTM":
        return []
    return ['params["params"]["bias"] = jnp.zeros_like(params["params"]["bias"])']
