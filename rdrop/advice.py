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
SIZE = "the size of a cell is called `units`"
RESULTS = "a layer returns the final carry and all outputs"
KEYS = "pass `keys`, which rdrop.stream_keys(key) makes of one key"
CALLED = {
    "kernel_init": ("kernel_initializer",),
    "recurrent_init": ("recurrent_initializer", "recurrent_kernel_init"),
    "bias_init": ("bias_initializer",),
    "use_bias": ("bias",),
    "activation": ("activation_fn", "nonlinearity"),
    "recurrent_activation": ("gate_fn",),
    "forget_bias": ("unit_forget_bias",),
    "projection": ("proj_size",),
    "reverse": ("go_backwards",),
    "lengths": ("seq_lengths",),
}
ADVICE = {
    **{
        name: f"the argument is called `{ours}`"
        for ours, theirs in CALLED.items()
        for name in theirs
    },
    **dict.fromkeys(("training", "train", "deterministic"), NO_TRAINING_FLAG),
    **dict.fromkeys(("dropout", "recurrent_dropout"), NOISE_IS_A_VALUE),
    **dict.fromkeys(("features", "hidden_features", "hidden_size"), SIZE),
    **dict.fromkeys(("return_sequences", "return_state", "return_carry"), RESULTS),
    **dict.fromkeys(("key", "rng"), KEYS),
    "rngs": "pass `rngs` to `apply` of a linen module, and nnx.Rngs to an nnx layer as "
    "`keys`",
    "drift": "masks that drift slowly have per=rdrop.Drift(probability)",
    "mask": "pass `lengths`, the number of valid steps of each sequence",
    "batch_first": "the argument is called `time_major`, False by default",
    "merge_mode": "the outputs of both directions are concatenated",
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
        hint = f" Did you mean `{close[0]}`?" if close else ""
        if name in ADVICE:
            hint = f" Hint: {ADVICE[name]}."
        raise TypeError(
            f"{who} has no argument `{name}`; it has {', '.join(known)}.{hint}"
        )


def describe(value: Any) -> str:
    """Returns the type of a value with the package that it comes from."""
    kind = type(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (list, tuple)):
        return f"{kind.__name__} of {', '.join(map(describe, value)) or 'nothing'}"
    package = kind.__module__.split(".")[0]
    if package == "builtins":
        return repr(value)
    return f"{kind.__module__}.{kind.__qualname__}"
