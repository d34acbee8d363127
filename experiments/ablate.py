"""Ablate: a sweep from its config to a report, through whatever may end it."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import folder as folders
from experiments import report
from experiments.axes import Lane, Sweep
from experiments.checkpoints import Checkpoints, conditions
from experiments.config import ConfigError
from experiments.results import Store, fingerprint, records
from experiments.running import Watch, console, watch
from experiments.sweep import Program, check, compile_sweep
from experiments.task import Data, Task
from experiments.tasks import find


@dataclass(frozen=True)
class Machine:
    """What a sweep runs on; results do not depend on it, but for rounding."""

    data_devices: int = 1
    """Devices that share each batch of a lane, for large models."""
    memory: float | None = None
    """GB that a device may use; by default what is free on it."""
    distributed: bool = False
    """Whether other processes take part; what is not given is detected."""
    coordinator: str | None = None
    """Address of the first process, as host:port."""
    processes: int | None = None
    """How many take part."""
    process: int | None = None
    """Which of them this is, from 0."""


HERE = Machine()


class Part(NamedTuple):
    """The lanes of one program.

    Attributes:
        structure: the values that they share.
        first: the place of the first in the sweep.
        lanes: all of them.
    """

    structure: dict[str, Any]
    first: int
    lanes: list[Lane]


def ablate(
    sweep: Sweep,
    folder: Path,
    machine: Machine = HERE,
    command: str = "",
    events: bool = False,
) -> bool:
    """Trains all lanes and writes config, results, figures and report into `folder`.

    A folder in which a run of this config was ended is gone on with. Ctrl-C and SIGTERM
    end it after the current evaluation; a second one at once.

    Args:
        sweep: what is trained.
        folder: of the run.
        machine: what it is trained on.
        command: the command line, for the report.
        events: whether to write TensorBoard's event files as well.

    Returns:
        Whether it ran to the end.

    Raises:
        ConfigError: the config does not suit the data, or the folder is of another run.
        StorageError: results or checkpoints cannot be written.
    """
    lanes = sweep.lanes()
    task = find(sweep.base.task.name)
    data = task.load(sweep.base.task)
    parts = divide(lanes)
    for part in parts:
        check([lane.config for lane in part.lanes], task, data)
    _alone(folders.open_run, folder, sweep)
    _in_step("opened")
    store = Store(folder, lanes)
    known = facts(sweep, data.units, data.splits, command, len(lanes), data.source)
    run = _Run(sweep, folder, machine, task, data, store, known)
    with watch(len(lanes), sweep.base.train.epochs) as watcher:
        done = all(
            run.train(part, number, watcher) for number, part in enumerate(parts)
        )
    _in_step("trained")
    _alone(store.merge)
    _alone(conclude, folder, events)
    return done


def divide(lanes: list[Lane]) -> list[Part]:
    """Returns the lanes by their program, in order."""
    places = itertools.groupby(range(len(lanes)), lambda n: lanes[n].structure)
    parts = []
    for structure, group in places:
        mine = list(group)
        parts.append(Part(structure, mine[0], [lanes[n] for n in mine]))
    return parts


@dataclass
class _Run:
    """A sweep under way."""

    sweep: Sweep
    folder: Path
    machine: Machine
    task: Task
    data: Data
    store: Store
    facts: dict[str, Any]

    def __post_init__(self):
        """Begins, or goes on with what an earlier command began.

        Raises:
            ConfigError: that had other data.
        """
        earlier = folders.read_run(self.folder)
        self.programs = earlier.get("programs", [])
        self.resident = earlier.get("resident", {})
        if not earlier:
            self._write()
        elif earlier["task"]["data"] != self.facts["task"]["data"]:
            raise ConfigError(
                f"{self.folder}: was begun with other data; name another by --out."
            )

    def train(self, part: Part, number: int, watcher: Watch) -> bool:
        """Trains the lanes of one program; returns whether they are all done."""
        name = _name(part)
        epochs = self.sweep.base.train.epochs
        wanted = range(part.first, part.first + len(part.lanes))
        if self.store.ended.keys() >= set(wanted):
            watcher.skip(len(part.lanes), epochs)
            return True
        if watcher.stopped():
            return False
        watcher.announce(name, "compiling ...")
        program = compile_sweep(
            [lane.config for lane in part.lanes],
            self.task,
            self.data,
            resident=self.resident.get(str(number)),
            data_devices=self.machine.data_devices,
            memory=self.machine.memory and self.machine.memory * 1e9,
        )
        # Checkpoints are of as many lanes as fitted when they were made.
        self.resident |= {str(number): program.resident}
        self._write()
        begun, done = time.perf_counter(), True
        for which in program.rounds():
            done = done and self._round(part, program, which, number, watcher)
        self._note(part, program, time.perf_counter() - begun)
        return done

    def _round(self, part, program, which, number, watcher) -> bool:
        """Trains the lanes that are resident at once; returns whether they are done."""
        train = self.sweep.base.train
        places = {place: part.first + n for place, n in enumerate(which)}
        if self.store.ended.keys() >= set(places.values()):
            watcher.skip(len(which), train.epochs)
            return True
        if watcher.stopped():
            return False
        lanes = [part.lanes[n] for n in which]
        placed = program.place(which)
        folder = self.folder / folders.CHECKPOINTS / f"{number}-{which.start}"
        devices = {"devices": program.mesh.size, "resident": program.resident}
        with Checkpoints(folder, conditions(program.lanes.key, **devices)) as saved:
            state, done = saved.restore(program.start(placed, program.data))
            watcher.skip(len(which), done * train.evaluate_every)
            total = train.epochs // train.evaluate_every
            while done < total and not watcher.stopped():
                state = program.step(state, placed, program.all_of(which), done)
                done += 1
                lines = records(lanes, program.names, state, done)
                self.store.keep({places[n]: line for n, line in lines.items()})
                at = done * train.evaluate_every
                due = at % train.checkpoint_every < train.evaluate_every
                if due and done < total:
                    saved.save(done, state)
                note = _progress(program.names, lines)
                watcher.advance(_name(part), len(which), train.evaluate_every, at, note)
            if done < total:
                saved.save(done, state)
        if done == total:
            saved.remove()
        return done == total

    def _note(self, part: Part, program: Program, seconds: float) -> None:
        """Adds what a program took to run.json."""
        took = folders.took(
            part.structure,
            lanes=len(part.lanes),
            resident=program.resident,
            compiles=program.compiles,
            compile_seconds=program.compile_seconds,
            train_seconds=seconds,
            needed=program.needed * program.mesh.local_mesh.size,
        )
        self.programs = [*self.programs, took]
        self._write()

    def _write(self) -> None:
        """Writes run.json."""
        here = {"programs": self.programs, "resident": self.resident}
        _alone(folders.write_run, self.folder, self.facts | here)


def facts(
    sweep: Sweep,
    units: dict[str, str],
    data: Any,
    command: str,
    lanes: int,
    source: str = "",
) -> dict[str, Any]:
    """Returns what run.json says of a run before it begins.

    Args:
        sweep: what is trained.
        units: of each metric, the loss first.
        data: pytree of the arrays that are learned from.
        command: the command line.
        lanes: how many.
        source: where the data come from.
    """
    return {
        "command": command,
        "task": {
            "name": sweep.base.task.name,
            "loss": next(iter(units)),
            "units": units,
            "source": source,
            "data": fingerprint(data),
        },
        "axes": sweep.axes,
        "seeds": sweep.seeds,
        "lanes": lanes,
        "epochs": sweep.base.train.epochs,
    }


def conclude(folder: Path, events: bool) -> None:
    """Reports on what there is of a run."""
    if not (folder / folders.RESULTS).exists():
        console.print("Stopped before the first evaluation: nothing to report.")
        return
    path = report.write([folder])
    report.summary(folder)
    if events:
        # It imports torch where there is one, which takes a second.
        from experiments.report import tensorboard

        tensorboard.write(folder)
    console.print(f"Report: {path}", style="bold", soft_wrap=True)


def _name(part: Part) -> str:
    values = " ".join(str(value) for value in part.structure.values())
    return f"{values} ({len(part.lanes)} lanes)".strip()


def _progress(names: Sequence[str], lines: Mapping[int, dict]) -> str:
    """The mean losses of the lanes that are well."""

    def mean(name):
        last = [line["metrics"][name][-1] for line in lines.values()]
        return np.mean([value for value in last if value is not None] or [np.nan])

    train, valid = names[:2]
    diverged = sum(line["diverged_at"] is not None for line in lines.values())
    note = f"{train} {mean(train):.4g}, {valid} {mean(valid):.4g}"
    return note + f", {diverged} diverged" * bool(diverged)


def _alone(function, *arguments) -> Any:
    """Calls a function in the first of the processes only."""
    return function(*arguments) if jax.process_index() == 0 else None


def _in_step(name: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
