"""Evaluations: trained lanes opened again, and evaluations.jsonl."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pydantic import TypeAdapter

from experiments.axes import Lane, alone, differences, make_sweep, to_toml
from experiments.config import ConfigError
from experiments.kinds import Kind, Loaded
from experiments.runs.facts import check_data, read_facts
from experiments.runs.files import StorageError, parse, read_file, write_lines
from experiments.runs.folder import read_sweep
from experiments.runs.records import RESULTS, environment, read_records
from experiments.runs.weights import load_weights, weights_path

EVALUATIONS = "evaluations.jsonl"
Evaluation: TypeAlias = dict[str, Any]
ADAPTER = TypeAdapter(Evaluation)


class TrainedLane(NamedTuple):
    """A lane with its kept parameters.

    Attributes:
        config: its config.
        params: nested dicts of arrays.
        loaded: its data, unchanged since the training.
    """

    config: Any
    params: dict[str, Any]
    loaded: Loaded


def open_lanes(folder: Path, lines: Sequence[int], kind: Kind) -> list[TrainedLane]:
    """Opens the lanes of lines of results.jsonl, from 1; their data are loaded once.

    Raises:
        ConfigError: the folder is not a run of this kind, has no such line, or kept no
            weights of a lane.
        StorageError: the data have changed since the training, or a file is damaged.
    """
    sweep, facts = read_sweep(folder, kind.config), read_facts(folder)
    records = read_records(folder)
    if not facts or not records:
        raise ConfigError(f"{folder}: has no results yet.")
    lanes, found = sweep.lanes(), []
    for line in lines:
        record = _record(records, line)
        wanted = record["setting"], record["seed"]
        there = [(lane.setting, lane.config.seeds) == wanted for lane in lanes]
        if not any(there):
            raise ConfigError(f"{folder}: line {line} is not a lane of its config.")
        place = there.index(True)
        params = _params_of(folder, place, lanes[place], facts["task"]["data"])
        found.append((lanes[place].config, params))
    loaded = kind.load(sweep.base)  # the lanes of a run have one task
    check_data(folder, facts, loaded.fingerprint)
    return [TrainedLane(*lane, loaded) for lane in found]


def _params_of(folder: Path, place: int, lane: Lane, data: str) -> dict[str, Any]:
    """Returns the kept parameters of a lane.

    Raises:
        ConfigError: the run did not keep them.
        StorageError: the file is damaged, or is not of this lane and these data.
    """
    path = weights_path(folder, place)
    weights = load_weights(path)
    kind, texts = type(lane.config), (weights.config, to_toml(alone(lane)))
    before, now = map(tomllib.loads, texts)
    seeds = before.pop("seeds"), now.pop("seeds")
    differ = differences(*(make_sweep(raw, str(path), kind) for raw in (before, now)))
    if seeds[0] != seeds[1]:
        differ.append("another seed")
    if weights.data != data:
        differ.append(f"data had the hash {weights.data}, have {data}")
    if differ:
        raise StorageError(
            f"{path}: has the parameters of another lane than line {place + 1} of "
            f"{RESULTS} ({'; '.join(differ)})."
        )
    return weights.params


def other_seeds(folder: Path, line: int) -> list[int]:
    """Returns the other lines of results.jsonl with the setting of a line.

    Raises:
        ConfigError: the run lacks this line.
    """
    records = read_records(folder)
    setting = _record(records, line)["setting"]
    lines = range(1, len(records) + 1)
    return [n for n in lines if n != line and records[n - 1]["setting"] == setting]


def _record(records: Sequence[dict], line: int) -> dict:
    if not 1 <= line <= len(records):
        raise ConfigError(f"lane: must be 1 to {len(records)}, got {line}.")
    return records[line - 1]


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Reads the evaluations of a run; none if it has no such file.

    Raises:
        StorageError: a line is damaged.
    """
    path = folder / EVALUATIONS
    texts = read_file(path).splitlines()
    return [
        parse(ADAPTER, text, f"{path}:{n}", name="an evaluation")
        for n, text in enumerate(texts, 1)
    ]


def add_evaluations(folder: Path, found: Sequence[Evaluation]) -> None:
    """Adds evaluations, with versions and platform, to the file of a run.

    One that is there already is moved to the end.

    Raises:
        StorageError: the file is damaged or cannot be written.
    """
    added = [each | environment() for each in found]
    earlier = [line for line in read_evaluations(folder) if line not in added]
    write_lines(folder / EVALUATIONS, [*earlier, *added])
