"""Config: what one lane of an experiment is, as data.

Frozen dataclasses with one value a field; `experiments.axes` reads the TOML files, in
which a field may have several values. Unknown keys, wrong types and impossible values
are refused here, before anything is compiled.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    with_config,
)

from experiments.methods import METHODS

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
StateKind = Literal["zoneout", "bernoulli", "gaussian", "concrete"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ConfigError(Exception):
    """A config or data that cannot be run; its text is the one line that says why."""


def _known_method(name: str) -> str:
    if name not in ("none", *METHODS):
        raise ValueError(f"no such method; there are none, {', '.join(METHODS)}")
    return name


def check_sites(names: str, sites: Sequence[str]) -> str:
    """Returns names with spaces between them; raises a ValueError if one is no site."""
    if unknown := [name for name in names.split() if name not in sites]:
        raise ValueError(f"no such site {unknown[0]}; there are {', '.join(sites)}")
    return names


def _known_sites(names: str) -> str:
    sites = [f.name for f in fields(Dropout) if f.name not in ("method", "rate")]
    return check_sites(names, sites)


def _whole_evaluations(train: "Train") -> "Train":
    if train.epochs % train.evaluate_every:
        raise ValueError(
            f"evaluate_every = {train.evaluate_every} must divide "
            f"epochs = {train.epochs}"
        )
    return train


@with_config(STRICT)
@dataclass(frozen=True)
class Task:
    """What is learned from."""

    name: str = "japanese_vowels"
    """The shipped japanese_vowels; classify, regress, label or characters, which read
    `data`; or the path of a .py file with a task of your own."""
    data: str = ""
    """A file of yours: .npz or .csv, text for characters."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sequences that is set aside for test where a file has no split."""
    window: Count = 100
    """Characters a sequence, for the task characters."""


@with_config(STRICT)
@dataclass(frozen=True)
class Model:
    """Recurrent layers and a linear readout."""

    cell: Literal["lstm", "layernorm_lstm", "gru", "simple", "mingru"] = "lstm"
    """The recurrence."""
    units: Count = 64
    """Units of each layer."""
    layers: Count = 1
    """Layers of the stack."""


@with_config(STRICT)
@dataclass(frozen=True)
class Noise:
    """Noise on one arrow of the unrolled network, in every layer."""

    kind: Literal["bernoulli", "gaussian", "concrete"] = "bernoulli"
    """How a mask is drawn."""
    rate: Rate = 0.0
    """Rate, in [0, 1]; at 0 throughout, the site is left out."""
    per: Literal["sequence", "step"] = "sequence"
    """Lifetime of a mask: one a sequence, or a new one at each time step."""
    drift: Rate = 1.0
    """With per = "step": probability that a unit's number is drawn anew at a step."""
    gates: Literal["shared", "each"] = "shared"
    """Whether the gates that read the site share a mask."""
    batch: Literal["each", "shared"] = "each"
    """Whether each example has its own mask."""
    scale: Literal["inverted", "expectation"] = "inverted"
    """Whether training divides by 1 - rate, or evaluation multiplies by it."""
    temperature: Positive = 0.1
    """Of kind = "concrete": the lower, the nearer its masks are to Bernoulli's."""
    learn: bool = False
    """Whether `rate` is where gradient descent on it starts; for kind = "concrete"."""
    length_scale: Positive = 1e-2
    """Of the prior over the weights, where the rate is learned: Gal's l."""


@with_config(STRICT)
@dataclass(frozen=True)
class StateNoise(Noise):
    """Noise on a state that is handed on in time."""

    kind: StateKind = "zoneout"  # type: ignore[assignment]
    """How a mask is drawn; zoneout mixes the old state with the new one."""
    per: Literal["sequence", "step"] = "step"
    """Lifetime of a mask: one a sequence, or a new one at each time step."""


@with_config(STRICT)
@dataclass(frozen=True)
class WeightNoise:
    """DropConnect: weights of a kernel are dropped, once a batch."""

    rate: Rate = 0.0
    """Rate, in [0, 1]; at 0 throughout, the kernel is left alone."""
    by: Literal["weight", "row"] = "weight"
    """Whether each weight is dropped by itself, or all of a pre-activation."""


@with_config(STRICT)
@dataclass(frozen=True)
class Dropout:
    """A method by its name and one rate, or noise at each site."""

    method: Annotated[str, AfterValidator(_known_method)] = "none"
    """What a paper or library calls dropout: one of `experiments/methods.py`."""
    rate: Rate = 0.0
    """Rate of the method, in [0, 1]."""
    inputs: Noise = field(default_factory=Noise)
    """x_t into the cell, the vertical arrows; Keras `dropout`."""
    outputs: Noise = field(default_factory=Noise)
    """y_t on its way up."""
    input_weights: WeightNoise = field(default_factory=WeightNoise)
    """The input kernel W."""
    recurrent: Noise = field(default_factory=Noise)
    """h_{t-1} into the cell, the horizontal arrows; Keras `recurrent_dropout`."""
    update: Noise = field(default_factory=Noise)
    """The candidate that is added to the memory."""
    gates: Noise = field(default_factory=Noise)
    """The gates after their sigmoid."""
    cell_state: StateNoise = field(default_factory=StateNoise)
    """The memory c_t."""
    hidden_state: StateNoise = field(default_factory=StateNoise)
    """The h_t that is handed on."""
    recurrent_weights: WeightNoise = field(default_factory=WeightNoise)
    """The recurrent kernel U."""


@with_config(STRICT)
@dataclass(frozen=True)
class SecondPass:
    """A second pass over each batch, and the price of its difference to the first."""

    penalty: Literal["none", "fraternal", "r_drop", "expectation_linear"] = "none"
    """How outputs are compared. fraternal and r_drop draw new masks and learn from the
    mean label loss of both passes; expectation_linear has no noise in the second, and
    learns from the labels in the first. With none, there is no second pass."""
    weight: NotNegative = 0.15
    """Of the penalty; at 0 the outputs are not compared."""
    shares: Annotated[str, AfterValidator(_known_sites)] = ""
    """Sites, with spaces between them, whose masks are those of the first pass."""


@with_config(STRICT)
@dataclass(frozen=True)
class Train:
    """How each lane is trained."""

    epochs: Count = 60
    """Passes over the training split."""
    batch: Count = 30
    """Sequences a batch; an incomplete last batch is dropped."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training sequences that is held out to choose by, where the task has
    no validation split; a second model trains on all of them for the test figures."""
    learning_rate: Positive = 3e-3
    """Learning rate of Adam."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW), as a share of the learning rate."""
    evaluate_every: Count = 4
    """Epochs between evaluations, a divisor of `epochs`."""
    checkpoint_every: Count = 20
    """Epochs after which the next evaluation is followed by a checkpoint."""


@with_config(STRICT)
@dataclass(frozen=True)
class Config:
    """One lane: a network, its noise, and how it is trained on what."""

    SEEDS: ClassVar[int] = 4  # of a sweep that does not say

    seeds: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seeds of every setting: one number is how many, several are which. Lanes of one
    seed share initialisation, data order and the numbers behind their masks."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Root of all random numbers."""
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    dropout: Dropout = field(default_factory=Dropout)
    second_pass: SecondPass = field(default_factory=SecondPass)
    train: Annotated[Train, AfterValidator(_whole_evaluations)] = field(
        default_factory=Train
    )


def validate(raw: dict, source: str, kind: type = Config) -> Any:
    """Builds a config of a kind from plain data.

    Raises:
        ConfigError: a field is unknown, of a wrong type or impossible; its text starts
            with `source`.
    """
    try:
        # JSON has TOML's few types, and there pydantic's strict mode takes an integer
        # for a number but never text.
        return _adapter(kind).validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from None


@functools.cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _one_line(error: ValidationError) -> str:
    details = error.errors()
    first = details[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown field{more}."
    message = first["msg"].removeprefix("Value error, ")
    of_fields = first["type"] == "value_error" and isinstance(first["input"], dict)
    got = "" if of_fields else f", got {first['input']!r}"
    return f"{where}: {message}{got}{more}."
