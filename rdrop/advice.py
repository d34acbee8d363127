"""Advice: errors for arguments that people bring along from other libraries."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

NO_TRAINING_FLAG = (
    "there is no training flag: pass `keys` in training, and leave them out in "
    "evaluation; without keys there is no noise"
)
NOISE_IS_A_VALUE = (
    "noise is a value that is passed with the call: rdrop.Dropout(inputs=rdrop."
    "Bernoulli(0.2), recurrent=rdrop.Bernoulli(0.5)), or "
    "rdrop.presets.keras(dropout, recurrent_dropout)"
)
ADVICE = {
    **dict.fromkeys(("training", "train", "deterministic"), NO_TRAINING_FLAG),
    "recurrent_dropout": NOISE_IS_A_VALUE,
    "rngs": "pass `rngs` to `module.apply`, or explicit `keys`",
    "mask": "pass `lengths`, the number of valid steps of each sequence",
    "seq_lengths": "the argument is called `lengths`",
    "return_sequences": "a layer returns the final carry and all outputs",
    "return_state": "a layer returns the final carry and all outputs",
    "features": "the size of a cell is called `units`",
    "hidden_size": "the size of a cell is called `units`",
    "go_backwards": "the argument is called `reverse`",
    "batch_first": "the argument is called `time_major`, False by default",
}


def reject_unknown(
    who: str, unknown: Iterable[str] | Mapping[str, Any], known: Iterable[str]
) -> None:
    """Raises a TypeError for the first argument that a function does not have.

    Args:
        who: name of the function or class.
        unknown: names of arguments that it does not have.
        known: names of those that it has.
    """
    for name in unknown:
        close = difflib.get_close_matches(name, known, 1)
        hint = ADVICE.get(name) or (f"did you mean `{close[0]}`?" if close else "")
        raise TypeError(
            f"{who} has no argument `{name}`; it has {', '.join(known)}."
            + (f" Hint: {hint}." if hint else "")
        )


def describe(value: Any) -> str:
    """Returns the type of a value with the package that it comes from."""
    kind = type(value)
    package = kind.__module__.split(".")[0]
    if package == "builtins":
        return repr(value)
    return f"{kind.__module__}.{kind.__qualname__}"
