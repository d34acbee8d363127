"""Config: one lane of an experiment as data.

Frozen dataclasses with one value per field; `experiments.axes` reads the TOML files, in
which a field may have several values. Unknown fields, wrong types and impossible values
are rejected before anything is compiled.
"""

import dataclasses
import functools
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_type_hints

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    with_config,
)

import rdrop
from experiments.classify.methods import METHODS

SITES = rdrop.sites.SITES

DESCRIBED = ConfigDict(use_attribute_docstrings=True)
STRICT = ConfigDict(strict=True)
MOST = 2**31 - 1  # of every integer: they become int32
Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=MOST)]
StateKind = Literal["zoneout", "bernoulli", "gaussian", "concrete", "additive"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MOST)]


class ConfigError(Exception):
    """A config, option or data set that cannot be used; its text is one line."""


def _known_method(name: str) -> str:
    if name not in ("none", *METHODS):
        raise ValueError(f"must be one of none, {', '.join(METHODS)}")
    return name


def check_sites(names: str, sites: Sequence[str]) -> str:
    """Returns names separated by spaces; raises a ValueError for an unknown site."""
    if any(name not in sites for name in names.split()):
        raise ValueError(f"must be names of sites ({', '.join(sites)})")
    return names


def _known_sites(names: str) -> str:
    return check_sites(names, [*SITES])


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Task:
    """The data to learn from."""

    name: str = "japanese_vowels"
    """The shipped japanese_vowels; classify, regress, label, characters or piano_roll,
    which read `data`; forecast, which reads `data` or a shipped series; selective_copy,
    which is made; or the path of a .py file with your own task."""
    data: str = ""
    """Your file: .npz or .csv, text for characters, or .mat for piano_roll."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sequences held out for testing, if the file has no split; forecast
    holds out the same share for validation."""
    window: Count = 100
    """Characters per sequence, for the task characters; steps before the cues, for
    selective_copy; steps that are read, for forecast."""
    horizon: Count = 1
    """Steps from the end of a window to the value that forecast predicts."""
    head: Literal["gaussian", "quantiles"] = "gaussian"
    """The distribution that forecast predicts: a mean and a log variance, or seven
    quantiles."""


CellName: TypeAlias = Literal[
    "lstm",
    "layernorm_lstm",
    "slstm",
    "gru",
    "gru_reset_before",
    "simple",
    "mingru",
    "minlstm",
    "rg_lru",
    "lru",
    "s5",
]


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Model:
    """Recurrent layers and a linear readout."""

    cell: CellName = "lstm"
    """The recurrence; gru_reset_before is the GRU of Cho et al. 2014, and gru that of
    Keras and PyTorch."""
    units: Count = 64
    """Units of each layer."""
    layers: Count = 1
    """Layers of the stack."""
    block: Literal["none", "glu", "mlp"] = "none"
    """Whether each layer is a residual block: normalisation, recurrence, and a gated
    linear unit or a perceptron, whose result is added to the input of the block."""
    forget_bias: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Initial bias of the forget gates of an LSTM."""

    def __post_init__(self):
        """Checks that only an LSTM has another bias of its forget gates."""
        if self.forget_bias != 1 and self.cell != "lstm":
            raise ValueError(
                f'model.forget_bias: must be 1 unless model.cell is "lstm", got '
                f"{self.forget_bias:g}"
            )


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Noise:
    """Noise on one arrow of the unrolled network, in every layer."""

    kind: Literal["bernoulli", "gaussian", "concrete"] = "bernoulli"
    """Distribution of the mask."""
    rate: Rate = 0.0
    """Rate, in [0, 1]; with 0 in every lane, the site has no noise."""
    per: Literal["sequence", "step"] = "sequence"
    """Lifetime of a mask: one per sequence, or a new one per time step."""
    drift: Rate = 1.0
    """With per = "step": probability that a unit's number is drawn again at a step."""
    gates: Literal["shared", "each"] = "shared"
    """Whether the gates that read the site share a mask."""
    batch: Literal["each", "shared"] = "each"
    """Whether each example has its own mask."""
    scale: Literal["inverted", "expectation"] = "inverted"
    """Whether training divides by 1 - rate, or evaluation multiplies by it."""
    temperature: Positive = 0.1
    """For kind = "concrete"; lower temperatures are closer to Bernoulli masks."""
    learn: bool = False
    """Whether gradient descent learns the rate, from `rate`; for kind = "concrete"."""
    length_scale: Positive = 1e-2
    """Gal's l: the scale of the prior over the weights, if the rate is learned."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class StateNoise(Noise):
    """Noise on a state that is carried over in time."""

    kind: StateKind = "zoneout"  # type: ignore[assignment]
    """Distribution of the mask; zoneout mixes the old state with the new one, additive
    adds Gaussian noise of standard deviation `rate`."""
    per: Literal["sequence", "step"] = "step"
    """Lifetime of a mask: one per sequence, or a new one per time step."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class WeightNoise:
    """Noise on the weights of a kernel, drawn once per batch."""

    kind: Literal["dropconnect", "weight_noise"] = "dropconnect"
    """Whether weights are dropped, or Gaussian noise is added, of standard deviation
    `rate`."""
    rate: Rate = 0.0
    """Rate, in [0, 1]; with 0 in every lane, the kernel has no noise."""
    by: Literal["weight", "row"] = "weight"
    """Whether single weights are dropped, or all weights of a pre-activation; for kind
    = "dropconnect"."""


def site_field(
    name: str, site: rdrop.sites.NoiseSite, kind: Any = None
) -> tuple[str, Any, Any]:
    """Returns the config field of a noise site, for `dataclasses.make_dataclass`."""
    usual = StateNoise if "zoneout" in site.kinds else Noise
    kind = kind or (WeightNoise if site.on_weights else usual)
    text = re.sub(r" \[[\d, ]+\]", "", site.text)
    return name, Annotated[kind, Field(description=text)], field(default_factory=kind)


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Method:
    """A method by its name and one rate."""

    method: Annotated[str, AfterValidator(_known_method)] = "none"
    """The dropout of a paper or library, by its name."""
    rate: Rate = 0.0
    """Rate of the method, in [0, 1]."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Depth:
    """Stochastic depth: a residual block is left out for a sequence."""

    rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate, in [0, 1); a block that stays is divided by 1 - rate."""


Dropout: Any = dataclasses.make_dataclass(
    "Dropout",
    [
        *(site_field(name, site) for name, site in SITES.items()),
        ("depth", Depth, field(default_factory=Depth)),
    ],
    bases=(Method,),
    frozen=True,
)
Dropout.__doc__ = """A method by its name and one rate, or noise at each site."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class SecondPass:
    """A second pass over each batch, and a penalty on its difference to the first."""

    penalty: Literal["none", "fraternal", "r_drop", "expectation_linear"] = "none"
    """How outputs are compared. fraternal and r_drop draw new masks and train on the
    mean label loss of both passes; expectation_linear has no noise in the second pass
    and trains on the label loss of the first. With none, there is one pass."""
    weight: NotNegative = 0.15
    """Weight of the penalty; with 0 the outputs are not compared."""
    shares: Annotated[str, AfterValidator(_known_sites)] = ""
    """Sites whose masks are shared with the first pass, separated by spaces."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Train:
    """How each lane is trained."""

    epochs: Count = 60
    """Passes over the training split."""
    batch: Count = 30
    """Sequences per batch; an incomplete last batch is dropped."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training sequences held out for validation, if the task has no
    validation split; a second model trains on all of them for the test figures."""
    per: Literal["weight", "sequence"] = "weight"
    """Whether the loss of a batch is the mean over sequences weighted as the task says,
    or the mean of each sequence's loss times its weight. With weights that are steps,
    it is a mean over steps, or a sum over the steps of a sequence."""
    learning_rate: Positive = 3e-3
    """Learning rate of Adam."""
    clip: NotNegative = 0.0
    """Largest global norm of the gradients; 0: no clipping."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW), as a share of the learning rate."""
    evaluate_every: Count = 4
    """Epochs between evaluations, a divisor of `epochs`."""
    checkpoint_every: Count = 20
    """Epochs between checkpoints, which are saved after an evaluation."""

    def __post_init__(self):
        """Checks that evaluations divide the epochs."""
        if self.epochs % self.evaluate_every:
            raise ValueError(
                f"train.evaluate_every: must divide train.epochs, got "
                f"{self.evaluate_every} and {self.epochs}"
            )


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Config:
    """One lane: a network, its noise, its data and its training."""

    SEEDS: ClassVar[int] = 4  # the default number in a sweep

    seeds: Seed = 0
    """Seeds of every setting: one number is how many, several are which. Lanes of one
    seed share initialisation, data order and the numbers behind their masks."""
    seed: Seed = 0
    """Root of all random numbers."""
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    dropout: Dropout = field(default_factory=Dropout)
    second_pass: SecondPass = field(default_factory=SecondPass)
    train: Train = field(default_factory=Train)


@functools.cache
def leaves(kind: Any, prefix: str = "") -> dict[str, TypeAdapter]:
    """Returns a validator for each field of a kind of config, by its dotted path."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, TypeAdapter] = {}
    for each in dataclasses.fields(kind):
        path, hint = f"{prefix}{each.name}", hints[each.name]
        plain: Any = getattr(hint, "__origin__", hint)
        if is_table(plain):
            found |= leaves(plain, f"{path}.")
        else:
            found[path] = TypeAdapter(hint, config=STRICT)
    return found


def is_table(kind: Any) -> bool:
    """Whether a field of this type is a table of fields."""
    return dataclasses.is_dataclass(kind)


def check_value(kind: Any, path: str, value: Any, source: str) -> Any:
    """Returns the value of a field, an integer as a number if the field has one.

    Raises:
        ConfigError: it is of a wrong type or impossible.
    """
    try:
        return leaves(kind)[path].validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        reason = reason.replace("Input should be", "must be")
        got = reprlib.repr(value)
        raise ConfigError(f"{source}: {path}: {reason}, got {got}.") from None


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a config with other values of some fields, by their dotted paths.

    Raises:
        ValueError: values that do not go together; its text is one line.
    """
    changes: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            tables.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    for name, inner in tables.items():
        changes[name] = with_values(getattr(config, name), inner)
    return dataclasses.replace(config, **changes)
