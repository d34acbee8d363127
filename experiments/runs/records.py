"""Records: results.jsonl, one line per lane."""

import functools
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

import rdrop
from experiments.axes import Lane
from experiments.runs.files import StorageError, parse, read_file, write_lines

RESULTS = "results.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
FINAL = ("finished", "diverged")

Value = bool | int | float | str
Epoch = Annotated[int, Field(ge=1)]


@with_config({"strict": True, "extra": "forbid"})
class Record(TypedDict):
    """One line: the results of a lane so far.

    Attributes:
        setting, seed: which lane.
        status: "finished" and "diverged" lanes are not trained again.
        diverged_at: training step at which it diverged.
        epochs: epochs done.
        evaluated_at: epoch of each evaluation.
        metrics: one value per evaluation, or per epoch for training losses; None if not
            finite.
        parameters: fingerprint of the final parameters.
        versions, platform: environment of the training.
    """

    setting: dict[str, Value]
    seed: int
    status: Literal["finished", "diverged", "interrupted"]
    diverged_at: int | None
    epochs: Annotated[int, Field(ge=0)]
    evaluated_at: list[Epoch]
    metrics: dict[str, list[float | None]]
    parameters: str | None
    versions: dict[str, str]
    platform: dict[str, str | int]


RECORD = TypeAdapter(Record)


@functools.cache
def environment() -> dict[str, dict]:
    """Returns versions and platform, on which numbers may depend."""
    return {
        "versions": {"python": platform.python_version(), "rdrop": rdrop.__version__}
        | {name: version(name) for name in PACKAGES},
        "platform": {
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "machine": f"{platform.system()} {platform.machine()}",
            "prng": str(jax.random.key_impl(jax.random.key(0))),
        },
    }


def make_record(
    lane: Lane,
    evaluated_at: list[int],
    metrics: Mapping[str, Any],
    diverged_at: int | None,
    parameters: str | None,
) -> dict:
    """Returns the record of a lane.

    Args:
        lane: the lane.
        evaluated_at: epoch of each evaluation.
        metrics: arrays by name.
        diverged_at: training step at which it diverged.
        parameters: fingerprint of the final parameters; None before it ends.
    """
    return {
        "setting": lane.setting,
        "seed": lane.config.seeds,
        "status": _status(parameters is not None, diverged_at),
        "diverged_at": diverged_at,
        "epochs": evaluated_at[-1] if evaluated_at else 0,
        "evaluated_at": evaluated_at,
        "metrics": {name: _plain(values) for name, values in metrics.items()},
        "parameters": parameters,
    } | environment()


def read_records(folder: Path) -> list[dict]:
    """Reads the records of a run; none if it has no results yet.

    Raises:
        StorageError: a line is not a record; the text names file and line.
    """
    return _read_lines(folder / RESULTS)


class Store:
    """The records of a run on disk, in the order of the lanes.

    Each process writes its own file; `merge` joins them.

    Args:
        folder: the run.
        lanes: all lanes of the run.

    Raises:
        StorageError: a line is not a record, or its lane is not in the run.
    """

    def __init__(self, folder: Path, lanes: Sequence[Lane]):
        self.folder, self.lanes = folder, lanes
        self._places = {
            _identity(lane.setting, lane.config.seeds): place
            for place, lane in enumerate(lanes)
        }
        self.ended: dict[int, dict] = {}
        self._own: dict[int, dict] = {}
        for path in self._paths():
            found = self._read(path)
            ended = {p: line for p, line in found.items() if line["status"] in FINAL}
            self.ended |= ended
            if _owner(path) == jax.process_index():
                self._own |= ended

    def keep(self, lines: Mapping[int, dict]) -> None:
        """Stores the records of some lanes by their places; the others stay."""
        self._own |= lines
        self.ended |= {p: line for p, line in lines.items() if line["status"] in FINAL}
        name = f"results.{jax.process_index()}.jsonl"
        path = self.folder / (name if jax.process_count() > 1 else RESULTS)
        write_lines(path, [self._own[place] for place in sorted(self._own)])

    def merge(self) -> None:
        """Joins the files of all processes, which are removed."""
        whole, *parts = self._paths()
        if not parts:
            return
        lines: dict[int, dict] = {}
        for path in (whole, *parts):
            lines |= self._read(path)
        write_lines(whole, [lines[place] for place in sorted(lines)])
        for path in parts:
            path.unlink()

    def _read(self, path: Path) -> dict[int, dict]:
        """Returns the records of a file by the places of their lanes."""
        found: dict[int, dict] = {}
        for number, line in enumerate(_read_lines(path), 1):
            place = self._places.get(_identity(line["setting"], line["seed"]))
            if place is None or place in found:
                problem = "its lane is not in the run's config"
                again = "its lane has another line"
                reason = problem if place is None else again
                raise StorageError(f"{path}:{number}: {reason}.")
            found[place] = line
        return found

    def _paths(self) -> list[Path]:
        others = sorted(self.folder.glob("results.*.jsonl"))
        return [self.folder / RESULTS, *others]


def _read_lines(path: Path) -> list[dict]:
    texts = read_file(path).split("\n")
    if texts[-1] == "":
        texts.pop()
    return [_parse(text, f"{path}:{n}") for n, text in enumerate(texts, 1)]


def _parse(text: str, place: str) -> dict:
    record = parse(RECORD, text, place, name="a record of a lane")
    evaluations = len(record["evaluated_at"])
    lengths = {len(v) for k, v in record["metrics"].items() if k[:6] != "train_"}
    if lengths - {evaluations}:
        raise StorageError(
            f"{place}: not a record of a lane: metrics must have {evaluations} values, "
            f"one per evaluation, got {max(lengths - {evaluations})}."
        )
    return record


def _owner(path: Path) -> int:
    """Returns the process that writes a file; the first if that one is not running."""
    number = path.suffixes[0].removeprefix(".")
    there = number.isdecimal() and int(number) < jax.process_count()
    return int(number) if there else 0


def _identity(setting: dict, seed: int) -> str:
    return json.dumps([setting, seed], sort_keys=True)


def _status(ended: bool, diverged_at: int | None) -> str:
    if not ended:
        return "interrupted"
    return "finished" if diverged_at is None else "diverged"


def _plain(values: Any) -> list[float | None]:
    """Returns the shortest decimals of float32 values; None if not finite."""
    flat = np.asarray(values, np.float32).reshape(-1)
    return [float(str(value)) if np.isfinite(value) else None for value in flat]
