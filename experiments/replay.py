"""Replay: one lane of a run, trained again and compared bit by bit."""

import re
from pathlib import Path
from typing import Any

from experiments import folder as folders
from experiments.ablate import Part, divide
from experiments.axes import Sweep
from experiments.config import ConfigError
from experiments.results import FINAL, environment, fingerprint, read, records
from experiments.running import console, watch
from experiments.sweep import compile_sweep
from experiments.tasks import find


def replay(line: str, data_devices: int = 1) -> bool:
    """Trains the lane of one line of results again.

    The program is that of the whole run, of which the one lane alone is trained.

    Args:
        line: as runs/NAME/results.jsonl:17, from 1.
        data_devices: as in the run.

    Returns:
        Whether all figures, and the parameters, are bitwise equal.

    Raises:
        ConfigError: there is no such line, or its lane was not trained to the end.
    """
    folder, there = _find(line)
    sweep = folders.read_sweep(folder)
    part, lane = _place(sweep, there, line)
    for change in _elsewhere(there):
        console.print(f"Not as it was then: {change}.", style="yellow")
    here = _train(sweep, part, lane, folder, data_devices)
    difference = first_difference(there, here)
    if difference is None:
        console.print(f"{line}: bitwise equal.", style="bold", soft_wrap=True)
        return True
    console.print(f"{line}: differs: {difference}.", style="bold", soft_wrap=True)
    return False


def first_difference(there: dict, here: dict) -> str | None:
    """Says where two lines of results first differ in figures; None if nowhere."""
    lengths = [(name, len(values)) for name, values in there["metrics"].items()]
    for at in range(max(length for _, length in lengths)):
        for name, length in lengths:
            if at >= length:
                continue
            old, new = there["metrics"][name][at], here["metrics"][name][at]
            if old != new:
                return f"{name}[{at}] was {old!r}, is {new!r}"
    for name in ("status", "diverged_at", "parameters"):
        if there[name] != here[name]:
            return f"{name} was {there[name]}, is {here[name]}"
    return None


def _train(
    sweep: Sweep, part: Part, lane: int, folder: Path, data_devices: int
) -> dict:
    """Trains one lane of a program; returns its record."""
    task, train = find(sweep.base.task.name), sweep.base.train
    data = task.load(sweep.base.task)
    if folders.read_run(folder)["task"]["data"] != fingerprint(data.splits):
        console.print("Not as it was then: the data.", style="yellow")
    configs = [lane.config for lane in part.lanes]
    with watch(1, train.epochs) as watcher:
        watcher.announce("1 lane", "compiling ...")
        program = compile_sweep(configs, task, data, data_devices=data_devices)
        which = program.rounds()[lane // program.resident]
        placed = program.place(which)
        state = program.start(placed, program.data)
        bounds = program.only(lane - which.start)
        total = train.epochs // train.evaluate_every
        for done in range(total):
            state = program.step(state, placed, bounds, done)
            at = (done + 1) * train.evaluate_every
            watcher.advance("1 lane", 1, train.evaluate_every, at, "")
            if watcher.stopped():
                raise KeyboardInterrupt
    resident = [part.lanes[n] for n in which]
    return records(resident, program.names, state, total)[lane - which.start]


def _find(line: str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of a line, and its record."""
    match = re.fullmatch(r"(.+):([0-9]+)", line)
    if not match or not Path(match[1]).is_file():
        raise ConfigError(
            f"line: must be FILE:NUMBER, as runs/x/results.jsonl:17, got {line}."
        )
    path, number = Path(match[1]), int(match[2])
    lines = read(path)
    if not 1 <= number <= len(lines):
        raise ConfigError(f"{path}: has lines 1 to {len(lines)}, got {number}.")
    record = lines[number - 1]
    if record["status"] not in FINAL:
        raise ConfigError(
            f"{line}: must be a lane that was trained to the end, got one that is "
            f"{record['status']}."
        )
    return path.parent, record


def _place(sweep: Sweep, record: dict[str, Any], line: str) -> tuple[Part, int]:
    """Returns the program of a record's lane, and its place there."""
    wanted = record["setting"], record["seed"]
    for part in divide(sweep.lanes()):
        for place, lane in enumerate(part.lanes):
            if (lane.setting, lane.config.seeds) == wanted:
                return part, place
    raise ConfigError(f"{line}: is of no lane of {sweep.source}.")


def _elsewhere(there: dict) -> list[str]:
    """Names what a record was made with that is another here."""
    return [
        f"{name} was {value}, is {here.get(name)}"
        for kind, here in environment().items()
        for name, value in there[kind].items()
        if here.get(name) != value
    ]
