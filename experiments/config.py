"""Config: what an experiment is, as data.

A TOML file is read into frozen dataclasses; any field may then be overridden on the
command line. Unknown keys, wrong types and impossible values are refused here, before
anything is compiled.
"""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    with_config,
)

from experiments.methods import METHODS

STRICT = ConfigDict(extra="forbid", strict=True)
Rate = Annotated[float, Field(ge=0, le=1)]


def _with_baseline(rates: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(rates)) < len(rates) or 0 not in rates:
        raise ValueError("must differ from each other and include the baseline 0")
    return rates


def _known_methods(methods: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"no such method as {unknown[0]}; there are {list(METHODS)}")
    if not methods or len(set(methods)) < len(methods):
        raise ValueError("must name at least one method, and each once")
    return methods


def _whole_chunks(train: "Train") -> "Train":
    if train.epochs % train.evaluate_every:
        raise ValueError(
            f"evaluate_every = {train.evaluate_every} must divide "
            f"epochs = {train.epochs}"
        )
    return train


class ConfigError(Exception):
    """A config that cannot be run; its text is the one line that says why."""


@with_config(STRICT)
@dataclass(frozen=True)
class Noise:
    """Bernoulli noise on one arrow of the unrolled network: an axis of the plane."""

    rate: Annotated[tuple[Rate, ...], AfterValidator(_with_baseline)] = (
        0.0,
        0.15,
        0.3,
        0.5,
        0.7,
    )
    """Rates of the axis, in [0, 1]; 0 is the baseline without this noise."""
    per: Literal["sequence", "step"] = "sequence"
    """Lifetime of a mask: one a sequence, or a new one at each time step."""
    gates: Literal["shared", "each"] = "shared"
    """Whether the four gates share a mask."""
    batch: Literal["each", "shared"] = "each"
    """Whether each example has its own mask."""
    scale: Literal["inverted", "expectation"] = "inverted"
    """Whether training divides by 1 - rate, or evaluation multiplies by it."""


@with_config(STRICT)
@dataclass(frozen=True)
class Plane:
    """The two axes of the plane; every pair of rates is a cell."""

    inputs: Noise = field(default_factory=Noise)
    """Noise on x_t into the cell, the vertical arrows; Keras `dropout`."""
    recurrent: Noise = field(default_factory=Noise)
    """Noise on h_{t-1} into the cell, the horizontal arrows; `recurrent_dropout`."""


@with_config(STRICT)
@dataclass(frozen=True)
class Model:
    """Recurrent layers and a linear readout of their last output."""

    units: Annotated[int, Field(ge=1)] = 64
    """Units of each layer."""
    layers: Annotated[int, Field(ge=1)] = 1
    """Layers of the stack."""


@with_config(STRICT)
@dataclass(frozen=True)
class Train:
    """How each lane, one setting of the dropout at one seed, is trained."""

    epochs: Annotated[int, Field(ge=1)] = 60
    """Passes over the training split."""
    batch: Annotated[int, Field(ge=1)] = 30
    """Utterances a batch; an incomplete last batch is dropped."""
    validation: Annotated[int, Field(ge=1)] = 6
    """Training utterances of each speaker that are held out to choose by; a second
    model trains on all of them for the test figures."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-3
    """Learning rate of Adam."""
    evaluate_every: Annotated[int, Field(ge=1)] = 4
    """Epochs between evaluations, a divisor of `epochs`."""


@with_config(STRICT)
@dataclass(frozen=True)
class PlaneConfig:
    """One ablation: a plane of rates, trained at several seeds."""

    task: Literal["japanese_vowels"] = "japanese_vowels"
    """The data set, shipped with the experiments."""
    seeds: Annotated[int, Field(ge=1)] = 4
    """Seeds of each cell; lanes of one seed share initialisation and data order."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Root of all random numbers."""
    model: Model = field(default_factory=Model)
    dropout: Plane = field(default_factory=Plane)
    train: Annotated[Train, AfterValidator(_whole_chunks)] = field(
        default_factory=Train
    )


@with_config(STRICT)
@dataclass(frozen=True)
class MethodsConfig:
    """One comparison: methods of dropout, each at several rates and seeds."""

    task: Literal["japanese_vowels"] = "japanese_vowels"
    """The data set, shipped with the experiments."""
    seeds: Annotated[int, Field(ge=1)] = 5
    """Seeds of each rate; lanes of one seed share initialisation and data order."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Root of all random numbers."""
    methods: Annotated[tuple[str, ...], AfterValidator(_known_methods)] = tuple(METHODS)
    """Names of the methods, as in `experiments/methods.py`."""
    rate: Annotated[tuple[Rate, ...], AfterValidator(_with_baseline)] = (
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
    )
    """Rates of every method, in [0, 1]; 0 is the baseline without dropout."""
    model: Model = field(default_factory=lambda: Model(units=32, layers=2))
    train: Annotated[Train, AfterValidator(_whole_chunks)] = field(
        default_factory=Train
    )


C = TypeVar("C", PlaneConfig, MethodsConfig)


def load(path: Path, kind: type[C]) -> C:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, or a field is unknown, of a wrong
            type or impossible.
    """
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}.") from None
    return validate(raw, kind, str(path))


def validate(raw: dict, kind: type[C], source: str) -> C:
    """Builds a config from plain data.

    Raises:
        ConfigError: a field is unknown, of a wrong type or impossible; its text starts
            with `source`.
    """
    try:
        # JSON has TOML's few types, and there pydantic's strict mode takes a list for
        # a tuple but never text for a number.
        return TypeAdapter(kind).validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from None


def to_toml(config: PlaneConfig | MethodsConfig) -> str:
    """The inverse of `load`: the text of a TOML file."""
    return tomli_w.dumps(TypeAdapter(type(config)).dump_python(config, mode="json"))


def _one_line(error: ValidationError) -> str:
    details = error.errors()
    first = details[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown field{more}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}, got {first['input']!r}{more}."
