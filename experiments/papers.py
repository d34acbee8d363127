"""Published results: the table `[paper]` of a config, and our measurements.

A config that reproduces a row of a paper states the published figures in `[paper]`.
The command `reproduce` trains it, evaluates it by the paper's protocol and compares; a
kept result is a JSON file in `results/`, next to the config.
"""

import json
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from experiments.axes import PAPER, load_toml
from experiments.classify.model import CELLS
from experiments.config import ConfigError, NotNegative
from experiments.language.config import Config
from experiments.language.model import sizes
from experiments.runs.facts import Seconds
from experiments.runs.files import parse, read_file, write_text

REASONS = {"missing": "is missing", "unexpected_keyword_argument": "unknown field"}
CLOSE = 1.5  # percent; a larger difference is not a reproduction
Figure = Annotated[float, Field(allow_inf_nan=False)]


@with_config({"strict": True, "extra": "forbid"})
@dataclass(frozen=True)
class Paper:
    """The table `[paper]`; lower figures are better.

    Attributes:
        title: authors, year and arXiv number.
        row: the row of its table, in a few words.
        source: of its figures and of its recipe.
        kind: the kind of program that trains it.
        valid: published figure of the validation data; 0: none.
        test: of the test data; 0: none.
        montecarlo: of the test data, by Monte Carlo dropout; 0: none.
        data: hash of the data that these figures are of; "": not checked.
        differences: known differences to the paper or its code, one sentence each.
    """

    title: str
    row: str
    source: str
    kind: Literal["language", "sequences"] = "language"
    valid: NotNegative = 0.0
    test: NotNegative = 0.0
    montecarlo: NotNegative = 0.0
    data: str = ""
    differences: tuple[str, ...] = ()


@with_config({"strict": True, "extra": "forbid"})
class Result(TypedDict):
    """Our measurements.

    Attributes:
        command: the command line.
        unit: of the figures, such as "perplexity".
        seeds: of the trainings that ended well.
        diverged: seeds of the others.
        valid, test: one figure per seed, by the paper's protocol.
        montecarlo: the same by Monte Carlo dropout; empty without such passes.
        curves: of each seed, the validation figure of each evaluation in training.
        seconds: of training, per seed.
        device: in a few words.
        data: hash of the data.
        versions: of Python and packages.
    """

    command: str
    unit: str
    seeds: list[int]
    diverged: NotRequired[list[int]]
    valid: list[Figure]
    test: list[Figure]
    montecarlo: list[Figure]
    curves: list[list[float | None]]
    seconds: Seconds
    device: str
    data: NotRequired[str]
    versions: dict[str, str]


class Comparison(NamedTuple):
    """A published figure and ours.

    Attributes:
        name: valid, test or montecarlo.
        published: the published figure; 0: none.
        mean, sd: of ours over seeds; the standard deviation is NaN for one seed.
        percent: how much ours is higher; NaN without a published figure.
    """

    name: str
    published: float
    mean: float
    sd: float
    percent: float


ADAPTER = TypeAdapter(Paper)
RESULT = TypeAdapter(Result)


def read_paper(path: Path) -> Paper | None:
    """Reads the table `[paper]` of a config; None if it has none.

    Raises:
        ConfigError: the config cannot be read, or the table is not valid.
    """
    table = load_toml(path).get(PAPER)
    if table is None:
        return None
    try:
        return ADAPTER.validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (PAPER, *first["loc"])))
        reason = REASONS.get(first["type"]) or (
            first["msg"].replace("Input should be", "must be")
            + f", got {reprlib.repr(first['input'])}"
        )
        raise ConfigError(f"{path}: {where}: {reason}.") from None


def result_path(config: Path) -> Path:
    """Returns the path of the kept result of a config."""
    return config.parent / "results" / f"{config.stem}.json"


def read_result(config: Path) -> dict | None:
    """Reads the kept result of a config; None if it was not run.

    Raises:
        StorageError: the file is damaged.
    """
    path = result_path(config)
    if not path.exists():
        return None
    return parse(RESULT, read_file(path), str(path), name="a result")


def write_result(config: Path, result: dict) -> Path:
    """Keeps the result of a config.

    Raises:
        StorageError: it is not a result, or cannot be written.
    """
    path, text = result_path(config), json.dumps(result, indent=1) + "\n"
    parse(RESULT, text, str(path), name="a result")
    write_text(path, text)
    return path


def compare(paper: Paper, result: dict) -> list[Comparison]:
    """Returns each published figure with ours; ours alone if none is published."""
    compared = []
    for name in ("valid", "test", "montecarlo"):
        published, ours = getattr(paper, name), np.array(result[name])
        if ours.size:
            mean, sd = ours.mean(), ours.std(ddof=1) if ours.size > 1 else np.nan
            percent = 100 * (mean / published - 1) if published else np.nan
            compared.append(Comparison(name, published, mean, sd, percent))
    return [each for each in compared if each.published] or compared


def verdict(compared: list[Comparison]) -> str:
    """Returns a verdict on the test figure, or on the validation figure without one.

    Monte Carlo figures have no verdict of their own.
    """
    figures = {each.name: each.percent for each in compared if each.published}
    percent = figures.get("test", figures.get("valid"))
    if percent is None:
        return "no verdict without a published test or validation figure"
    if abs(percent) <= CLOSE:
        return "reproduced"
    return "better than published" if percent < 0 else "worse than published"


def flops(config: Config, tokens: int, tested: int, vocabulary: int) -> float:
    """Returns the floating-point operations of a row: training, and Monte Carlo passes.

    A product of a weight and an activation costs two operations forward and four
    backward; everything else is left out.

    Args:
        config: of the row.
        tokens: of the training text.
        tested: tokens of the test text.
        vocabulary: number of token types.
    """
    model, weights = config.model, 0
    below = model.embedding or vocabulary
    for units in sizes(model):
        made = CELLS[model.cell](units).equations.parameters(below)
        shapes = {name: shape for name, (_, shape) in made.items()}
        weights += sum(
            math.prod(shape) for name, shape in shapes.items() if "kernel" in name
        )
        below = units
    if model.tied and below != model.embedding:
        weights += below * model.embedding
        below = model.embedding
    weights += below * vocabulary
    passes = 1 if config.second_pass.penalty == "none" else 2
    trained = 6.0 * tokens * config.train.epochs * passes
    return weights * (trained + 2.0 * tested * config.evaluation.passes)
