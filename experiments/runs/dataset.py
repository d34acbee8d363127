"""The results of a run as an `xarray.Dataset`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from experiments.config import ConfigError
from experiments.runs.facts import read_facts
from experiments.runs.files import read_file
from experiments.runs.folder import CONFIG
from experiments.runs.records import RESULTS, read_records

MISSING, NEVER = "missing", -1
SPLITS = ("train_", "valid_", "test_", "epoch_")


class Folder(NamedTuple):
    """The parsed files of a run.

    Attributes:
        records: one record per lane, the lines of `results.jsonl`.
        facts: `run.json`; empty without one.
        config: the text of `config.toml`; empty without one.
    """

    records: list[dict]
    facts: dict[str, Any]
    config: str


class Grid(NamedTuple):
    """The coordinates of the lanes.

    Attributes:
        axes: the values of each axis of the sweep, by its dotted path.
        seeds: of every setting.
        epochs: of the evaluations.
    """

    axes: dict[str, list]
    seeds: list[int]
    epochs: list[int]

    @property
    def lanes(self) -> tuple[int, ...]:
        """The shape of an array with one entry per lane."""
        return (*(len(values) for values in self.axes.values()), len(self.seeds))

    def place(self, record: Mapping) -> tuple[int, ...]:
        """The position of a lane in such an array."""
        setting = record["setting"]
        indices = (values.index(setting[path]) for path, values in self.axes.items())
        return (*indices, self.seeds.index(record["seed"]))


def load_dataset(folder: Path) -> xr.Dataset:
    """Reads a run, see `experiments.runs.load`.

    A metric is NaN if its lane is missing, was interrupted, or is not finite. A lane
    that ended before the others, at its lowest learning rate, keeps its last values.
    Training losses are recorded once per epoch; the data set has them at the evaluated
    epochs.
    """
    files = _read_folder(folder)
    grid = _grid(files, folder)
    lanes = [*grid.axes, "seed"]
    places = [grid.place(record) for record in files.records]
    found = {
        name: ([*lanes, "evaluation"], values)
        for name, values in _metrics(files.records, places, grid).items()
    } | {
        name: (lanes, values)
        for name, values in _states(files.records, places, grid).items()
    }
    coordinates: dict[str, Any] = {p: _column(v) for p, v in grid.axes.items()}
    coordinates["seed"] = np.array(grid.seeds)
    coordinates["epoch"] = ("evaluation", np.array(grid.epochs))
    data = xr.Dataset(found, coordinates, _attributes(files, folder))
    return _label(data, files.facts.get("task", {}).get("units", {}))


def axis_names(data: xr.Dataset) -> list[str]:
    """Returns the axes of the sweep, in its order."""
    return [str(name) for name in data["status"].dims if name != "seed"]


def _read_folder(folder: Path) -> Folder:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder.")
    records = read_records(folder)
    if not records:
        raise ConfigError(f"{folder}: holds no results yet ({RESULTS}).")
    return Folder(records, read_facts(folder), read_file(folder / CONFIG))


def _grid(files: Folder, folder: Path) -> Grid:
    """The planned lanes, or all lanes with a record if the plan is unknown."""
    evaluated: list[list[int]] = [record["evaluated_at"] for record in files.records]
    epochs = max(evaluated, key=len)
    if not epochs:
        raise ConfigError(f"{folder}: holds no finished evaluation.")
    settings = [record["setting"] for record in files.records]
    planned = files.facts.get("axes", {})
    axes = {
        path: list(planned.get(path) or _unique(s[path] for s in settings))
        for path in planned or settings[0]
    }
    seen = sorted({record["seed"] for record in files.records})
    return Grid(axes, list(files.facts.get("seeds") or seen), epochs)


def _metrics(records, places, grid: Grid) -> dict[str, np.ndarray]:
    names = _unique(name for record in records for name in record["metrics"])
    shape = (*grid.lanes, len(grid.epochs))
    found = {name: np.full(shape, np.nan) for name in names}
    for record, place in zip(records, places, strict=True):
        for name, values in record["metrics"].items():
            shown = _at_evaluations(name, values, record["evaluated_at"])
            if record["status"] == "finished":
                shown = shown + shown[-1:] * (len(grid.epochs) - len(shown))
            found[name][place][: len(shown)] = np.array(shown, float)
    return found


def _at_evaluations(name: str, values: list, epochs: list[int]) -> list:
    """The values of a metric at the evaluations of its lane."""
    if not name.startswith("train_"):
        return values
    return [values[epoch - 1] for epoch in epochs if epoch <= len(values)]


def _states(records, places, grid: Grid) -> dict[str, np.ndarray]:
    """How each lane ended."""
    status = np.full(grid.lanes, MISSING, dtype="<U16")
    diverged_at = np.full(grid.lanes, NEVER)
    parameters = np.full(grid.lanes, "", dtype="<U16")
    for record, place in zip(records, places, strict=True):
        step = record.get("diverged_at")
        status[place] = record["status"]
        diverged_at[place] = NEVER if step is None else step
        parameters[place] = record.get("parameters") or ""
    return {"status": status, "diverged_at": diverged_at, "parameters": parameters}


def _column(values: list) -> np.ndarray:
    """The values of an axis as an array of one type; numbers stay numbers."""
    kinds = {type(value) for value in values}
    mixed = len(kinds) > 1 and not kinds <= {int, float}
    return np.array([str(value) for value in values] if mixed else values)


def _attributes(files: Folder, folder: Path) -> dict[str, Any]:
    """The facts of the run, as plain text and numbers."""
    facts = files.facts
    task = facts.get("task", {})
    return {
        "name": folder.resolve().name,
        "folder": folder.as_posix(),
        "command": facts.get("command", ""),
        "task": task.get("name", ""),
        "loss": task.get("loss") or _loss(files.records),
        "data": task.get("data", ""),
        "source": task.get("source", "").removeprefix("Data: "),
        "versions": _environments(files.records, "versions"),
        "platform": _environments(files.records, "platform"),
        "race": facts.get("race", {}).get("until", ""),
        "margin": facts.get("race", {}).get("margin", 0.0),
        "lanes": facts.get("lanes", 0),
        "epochs": facts.get("epochs", 0),
        "programs": json.dumps(facts.get("programs", [])),
        "config": files.config,
    }


def _loss(records: list[dict]) -> str:
    """The name of the loss: "nll" if the metrics are train_nll, test_nll, ..."""
    trained = (m for r in records for m in r["metrics"] if m.startswith("train_"))
    return next(trained, "train_loss").removeprefix("train_")


def _environments(records: list[dict], key: str) -> str:
    """The different versions or platforms, as "jax 0.10.2, numpy 2.0; jax 0.10.3"."""
    found = _unique(record.get(key, {}) for record in records)
    texts = [", ".join(f"{name} {value}" for name, value in f.items()) for f in found]
    return "; ".join(filter(None, texts))


def _label(data: xr.Dataset, units: dict[str, str]) -> xr.Dataset:
    """Adds a unit and a readable name to each metric."""
    for name in map(str, data.data_vars):
        split = next((s for s in SPLITS if name.startswith(s)), "")
        data[name].attrs = {
            "units": units.get(name.removeprefix(split), ""),
            "long_name": name.replace("_", " "),
        }
    return data


def _unique(values: Iterable) -> list:
    """The different values, in the order of their first appearance."""
    found: list = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
