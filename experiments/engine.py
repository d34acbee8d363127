"""Engine: runs every kind of program from its config to a report.

A kind of program (classifiers of sequences, language models) loads data, and compiles
one program for all lanes that share their static fields. The engine opens the folder,
trains the programs in turn, stores records, weights and checkpoints, and resumes after
any interruption with bitwise identical results.
"""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from experiments.axes import Lane, Sweep
from experiments.devices import HERE, Machine
from experiments.kinds import Kind, Loaded, Program, Step
from experiments.progress import Watch, console, watch
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.facts import check_data, read_facts, write_facts
from experiments.runs.folder import CHECKPOINTS, open_run
from experiments.runs.records import Store, read_records
from experiments.runs.weights import Keep, prune_weights, save_weights, weights_path

COMPILED = "compiled"  # XLA's programs, so that a resumed run need not compile


class Part(NamedTuple):
    """The lanes of one program.

    Attributes:
        structure: the values that they share.
        first: place of the first lane in the sweep.
        lanes: all of them.
    """

    structure: dict[str, Any]
    first: int
    lanes: list[Lane]

    @property
    def places(self) -> range:
        """The places of the lanes in the sweep."""
        return range(self.first, self.first + len(self.lanes))

    @property
    def configs(self) -> list[Any]:
        """The configs of the lanes."""
        return [lane.config for lane in self.lanes]

    def __str__(self) -> str:
        values = " ".join(str(value) for value in self.structure.values())
        count = len(self.lanes)
        return f"{values} ({count} lane{'s' * (count > 1)})".strip()


@dataclass(frozen=True)
class Options:
    """Options of a run that do not change its results."""

    machine: Machine = HERE
    command: str = ""
    keep: Keep | None = None
    conclude: Callable[[Path], None] = lambda folder: None


def run(kind: Kind, sweep: Sweep, folder: Path, options: Options = Options()) -> bool:
    """Trains all lanes of a sweep into a folder, and concludes with a report.

    If the folder has an interrupted run of the same config, it is resumed. Ctrl-C and
    SIGTERM stop it at the next step; a second signal stops it at once.

    Args:
        kind: the kind of program.
        sweep: the lanes.
        folder: of the run.
        options: everything that does not change results: the machine; the command line
            for the report; which weights to keep (None: as usual for the kind); and a
            function of the folder that writes the report.

    Returns:
        Whether all lanes are trained.

    Raises:
        ConfigError: the config does not suit the data, or the folder belongs to another
            run or process.
        StorageError: a file of the run is damaged or cannot be written.
    """
    lanes = sweep.lanes()
    loaded = kind.load(sweep.base)
    parts = divide(lanes)
    for part in parts:
        kind.check(part.configs, loaded)
    with contextlib.ExitStack() as stack:
        if _is_first():
            stack.enter_context(open_run(folder, sweep))
        _wait("opened")
        store = Store(folder, lanes)
        work = _Run(kind, sweep, folder, options, loaded, store)
        stack.enter_context(_cached_programs(folder / COMPILED))
        with watch(len(lanes), sweep.base.train.epochs) as watcher:
            done = all(work.train(part, n, watcher) for n, part in enumerate(parts))
        _wait("trained")
        if _is_first():
            store.merge()
            work.finish(done)
    return done


def divide(lanes: list[Lane]) -> list[Part]:
    """Returns the lanes by their program, in order."""
    groups = itertools.groupby(range(len(lanes)), lambda n: lanes[n].structure)
    parts = []
    for structure, group in groups:
        places = list(group)
        parts.append(Part(structure, places[0], [lanes[n] for n in places]))
    return parts


@dataclass
class _Run:
    """A run in progress."""

    kind: Kind
    sweep: Sweep
    folder: Path
    options: Options
    loaded: Loaded
    store: Store

    def __post_init__(self):
        """Starts, or continues an earlier run; raises a StorageError for other data."""
        self.facts = read_facts(self.folder) or self._new_facts()
        check_data(self.folder, self.facts, self.loaded.fingerprint)
        self.keep = self.options.keep or self.kind.keep
        self._write()

    def train(self, part: Part, number: int, watcher: Watch) -> bool:
        """Trains the lanes of one program; returns whether all are done."""
        if self.store.ended.keys() >= set(part.places):
            watcher.advance(len(part.lanes) * watcher.epochs)
            return True
        if watcher.stopped():
            return False
        watcher.announce(str(part), "compiling ...")
        resident = self.facts["resident"].get(str(number))
        machine = self.options.machine
        program = self.kind.compile(part.lanes, self.loaded, machine, resident)
        # A checkpoint has as many lanes as were trained together.
        self.facts["resident"][str(number)] = program.resident
        self._write()
        started, done = time.perf_counter(), True
        for which in program.rounds():
            done = done and self._round(part, program, which, watcher)
        self._add(part, program, time.perf_counter() - started)
        return done

    def finish(self, done: bool) -> None:
        """Removes files that are needed no longer, and writes the report."""
        records = read_records(self.folder)
        if done:
            loss = f"valid_{self.facts['task']['loss']}"
            prune_weights(self.folder, records, loss, self.keep)
            shutil.rmtree(self.folder / COMPILED, ignore_errors=True)
        if records:
            self.options.conclude(self.folder)
        else:
            console.print("Stopped before the first evaluation: nothing to report.")
        if not done:
            console.print("Stopped. The same command resumes.")

    def _round(self, part: Part, program: Program, which: range, watcher) -> bool:
        """Trains the lanes of one round; returns whether they are done."""
        places = [part.first + n for n in which]
        if self.store.ended.keys() >= set(places):
            watcher.advance(len(which) * watcher.epochs)
            return True
        if watcher.stopped():
            return False
        training = program.begin(which, self.keep != "none")
        folder = self.folder / CHECKPOINTS / str(places[0])
        with Checkpoints(folder, program.conditions(which)) as saved:
            state, number = saved.restore(training.state)
            if number:
                watcher.advance(training.restore(state, number))
            while not (training.ended or training.paused or watcher.stopped()):
                step = training.advance()
                self._keep(step, places)
                self._show(step, str(part), watcher)
                if step.checkpoint and not training.ended:
                    saved.save(training.number, training.state)
            if not training.ended and training.number:
                saved.save(training.number, training.state)
        if training.ended:
            saved.remove()
        elif position := training.position():
            console.print(position)
        return training.ended

    def _keep(self, step: Step, places: Sequence[int]) -> None:
        """Stores weights and records; a lane has ended only once its weights are."""
        lanes = self.store.lanes
        for n, params in step.weights.items():
            save_weights(
                weights_path(self.folder, places[n]),
                lanes[places[n]],
                params,
                self.loaded.fingerprint,
                self.loaded.names,
            )
        if step.records:
            self.store.keep({places[n]: line for n, line in step.records.items()})

    def _show(self, step: Step, name: str, watcher: Watch) -> None:
        watcher.advance(step.epochs)
        if step.epoch is None:
            watcher.announce(name, step.note)
        else:
            watcher.report(name, step.epoch, step.note)

    def _new_facts(self) -> dict[str, Any]:
        sweep, units = self.sweep, self.loaded.units
        return {
            "kind": self.kind.name,
            "command": self.options.command,
            "task": {
                "name": sweep.base.task.name,
                "loss": next(iter(units)),
                "units": units,
                "source": self.loaded.source,
                "data": self.loaded.fingerprint,
            },
            "axes": {path: list(values) for path, values in sweep.axes.items()},
            "seeds": list(sweep.seeds),
            "lanes": len(self.store.lanes),
            "epochs": sweep.base.train.epochs,
            "programs": [],
            "resident": {},
        }

    def _add(self, part: Part, program: Program, seconds: float) -> None:
        """Adds time and memory of a program to run.json."""
        used = {
            "setting": part.structure,
            "lanes": len(part.lanes),
            "resident": program.resident,
            "compiles": program.compiles,
            "compile_seconds": round(program.compile_seconds, 2),
            "train_seconds": round(seconds, 2),
            "megabytes": round(program.megabytes, 1),
        }
        self.facts["programs"].append(used)
        self._write()

    def _write(self) -> None:
        if _is_first():
            write_facts(self.folder, self.facts)


@contextlib.contextmanager
def _cached_programs(folder: Path) -> Iterator[None]:
    """Stores compiled programs in a folder of the run, unless the user has a cache."""
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if cache or jax.process_count() > 1:
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def _is_first() -> bool:
    """Whether this process writes the files that all processes share."""
    return jax.process_index() == 0


def _wait(name: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
