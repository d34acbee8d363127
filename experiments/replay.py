"""Replay: one lane of a run, trained again and compared bitwise."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.axes import Sweep
from experiments.config import ConfigError
from experiments.devices import Machine
from experiments.engine import Part, divide
from experiments.kinds import Kind
from experiments.progress import console, watch
from experiments.runs.facts import read_facts
from experiments.runs.folder import read_sweep
from experiments.runs.records import FINAL, RESULTS, environment, read_records


def replay(line: str, kinds: dict[str, Kind], data_devices: int = 1) -> bool:
    """Trains the lane of one line of results again.

    The program is the one of the whole run, with only this lane trained.

    Args:
        line: for example runs/NAME/results.jsonl:17, from 1.
        kinds: the kinds of program by name.
        data_devices: as in the run.

    Returns:
        Whether all metrics and the parameters are bitwise identical.

    Raises:
        ConfigError: the line does not exist, or its lane was not trained to the end.
        StorageError: a file of the run is damaged.
    """
    folder, before = _find(line)
    facts = read_facts(folder)
    if not facts:
        raise ConfigError(f"{folder}: is not the folder of a run: no run.json.")
    kind = kinds[facts["kind"]]
    sweep = read_sweep(folder, kind.config)
    part, number = _place(sweep, before, line)
    for change in _changes(before):
        console.print(f"Changed since the run: {change}.", style="yellow")
    now = _train(kind, sweep, part, number, facts, data_devices)
    difference = first_difference(before, now)
    if difference is None:
        console.print(f"{line}: bitwise identical.", style="bold", soft_wrap=True)
        return True
    console.print(f"{line}: differs: {difference}.", style="bold", soft_wrap=True)
    return False


def first_difference(before: dict, now: dict) -> str | None:
    """Returns the first difference of two records in words; None if there is none."""
    lengths = [(name, len(values)) for name, values in before["metrics"].items()]
    for at in range(max((length for _, length in lengths), default=0)):
        for name, length in lengths:
            if at >= length:
                continue
            old, new = before["metrics"][name][at], now["metrics"][name][at]
            if old != new:
                return f"{name}[{at}] was {old!r}, is {new!r}"
    for name in ("status", "diverged_at", "parameters"):
        if before[name] != now[name]:
            return f"{name} was {before[name]}, is {now[name]}"
    return None


def _train(
    kind: Kind, sweep: Sweep, part: Part, number: int, facts: dict, data_devices: int
) -> dict:
    """Trains one lane of a program; returns its record."""
    loaded = kind.load(sweep.base)
    if facts["task"]["data"] != loaded.fingerprint:
        console.print("Changed since the run: the data.", style="yellow")
    with watch(1, sweep.base.train.epochs) as watcher:
        watcher.announce("1 lane", "compiling ...")
        program = kind.compile(part.lanes, loaded, Machine(data_devices))
        training = program.alone(number)
        found: Mapping[int, dict] = {}
        while not training.ended:
            step = training.advance()
            watcher.advance(step.epochs)
            watcher.announce("1 lane", step.note)
            found = step.records or found
            if watcher.stopped():
                raise KeyboardInterrupt
    return found[number % program.resident]


def _find(line: str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of a line, and its record."""
    match = re.fullmatch(r"(.+):([0-9]{1,9})", line)
    if not match or Path(match[1]).name != RESULTS or not Path(match[1]).is_file():
        raise ConfigError(
            f"line: must be FILE:NUMBER, such as runs/x/results.jsonl:17, got {line}."
        )
    path, number = Path(match[1]), int(match[2])
    records = read_records(path.parent)
    if not 1 <= number <= len(records):
        raise ConfigError(f"{path}: has lanes 1 to {len(records)}, got {number}.")
    record = records[number - 1]
    if record["status"] not in FINAL:
        raise ConfigError(
            f"{line}: must be a lane that has ended, got an interrupted one."
        )
    return path.parent, record


def _place(sweep: Sweep, record: dict[str, Any], line: str) -> tuple[Part, int]:
    """Returns the program of a record's lane, and its number there."""
    wanted = record["setting"], record["seed"]
    for part in divide(sweep.lanes()):
        for number, lane in enumerate(part.lanes):
            if (lane.setting, lane.config.seeds) == wanted:
                return part, number
    raise ConfigError(f"{line}: is not a lane of {sweep.source}.")


def _changes(before: dict) -> list[str]:
    """Returns the versions and devices that have changed since a record."""
    return [
        f"{name} was {value}, is {here.get(name)}"
        for group, here in environment().items()
        for name, value in before[group].items()
        if here.get(name) != value
    ]
