"""Engine: runs every kind of program from its config to a report.

A kind of program (classifiers of sequences, language models) loads data, and compiles
one program for all lanes that share their static fields. The engine opens the folder,
trains the programs in turn, stores records, weights and checkpoints, and resumes after
any interruption with bitwise identical results.
"""

import bisect
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

from experiments.axes import Lane, Sweep, to_toml, value_text
from experiments.config import ConfigError
from experiments.devices import HERE, Machine, device_text
from experiments.kinds import Kind, Loaded, Program, Step
from experiments.progress import Watch, console, watch
from experiments.race import Race, next_round, race_text
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.facts import FACTS, check_data, read_facts, write_facts
from experiments.runs.files import StorageError, write_text
from experiments.runs.folder import CHECKPOINTS, CONFIG, open_run
from experiments.runs.records import Store, read_records
from experiments.runs.weights import Keep, prune_weights, save_weights, weights_path
from experiments.wording import count_text

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

    def numbers(self, places: Sequence[int]) -> list[int]:
        """Returns those ascending places that are here, counted from `first`."""
        begin = bisect.bisect_left(places, self.first)
        end = bisect.bisect_left(places, self.first + len(self.lanes))
        return [place - self.first for place in places[begin:end]]

    @property
    def configs(self) -> list[Any]:
        """The configs of the lanes."""
        return [lane.config for lane in self.lanes]

    def named(self, lanes: int) -> str:
        """Returns the structure and a number of lanes as text."""
        values = " ".join(map(value_text, self.structure.values()))
        return f"{values} ({count_text(lanes, 'lane')})".strip()


@dataclass(frozen=True)
class Options:
    """Options of a run that do not change its results."""

    machine: Machine = HERE
    command: str = ""
    keep: Keep | None = None
    race: Race | None = None
    conclude: Callable[[Path], None] = lambda folder: None


def run(kind: Kind, sweep: Sweep, folder: Path, options: Options = Options()) -> bool:
    """Trains all lanes of a sweep into a folder, and concludes with a report.

    If the folder has an interrupted run of the same config, it is resumed; a run of
    one setting that is trained may get more seeds, and only those are trained. Ctrl-C
    and SIGTERM stop it at the next step; a second signal stops it at once.

    Args:
        kind: the kind of program.
        sweep: the lanes.
        folder: of the run.
        options: everything that does not change the results of a lane: the machine; the
            command line for the report; which weights to keep (None: as usual for the
            kind); a race, which trains only some of the lanes; and a function of the
            folder that writes the report.

    Returns:
        Whether all lanes are trained, or the race is over.

    Raises:
        ConfigError: the config does not suit the data, or the folder belongs to another
            run or process.
        StorageError: a file of the run is damaged or cannot be written.
        KeyboardInterrupt: it was stopped in its last step, so that nothing is left.
    """
    if options.race:
        _check_race(options, sweep)
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
        with watch(0, sweep.base.train.epochs) as watcher:
            done = all(
                work.train(part, n, which, watcher)
                for places in work.rounds(watcher)
                for n, part in enumerate(parts)
                if (which := part.numbers(places))
            )
            stopped = watcher.stopped()
        _wait("trained")
        if _is_first():
            store.merge()
            work.finish(done)
    if done and stopped:
        raise KeyboardInterrupt
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
        """Starts, or continues an earlier run.

        Raises:
            ConfigError: it was a race and is none now, or the other way round.
            StorageError: it has other data, or lanes but no facts.
        """
        before = read_facts(self.folder)
        if self.store.ended and not before:
            raise StorageError(
                f"{self.folder}: has results of lanes but no {FACTS}, which says how "
                "they were made; use another folder with --out."
            )
        self.facts = before or self._new_facts()
        check_data(self.folder, self.facts, self.loaded.fingerprint)
        self._check_race()
        self._add_seeds()
        self.keep = self.options.keep or self.kind.keep
        self.programs: dict[int, Program] = {}
        self._begun = time.monotonic()
        self._write()

    def rounds(self, watcher: Watch) -> Iterator[Sequence[int]]:
        """Yields the places of the lanes to train: all at once, or those of a race."""
        lanes, race = self.store.lanes, self.options.race
        if race is None:
            places = range(self.facts.get("earlier", 0), len(lanes))
            watcher.expect(len(places))
            yield places
            return
        loss = self.facts["task"]["loss"]
        watcher.expect(len(self.store.ended))
        watcher.advance(len(self.store.ended) * watcher.epochs)
        while (found := next_round(lanes, self.store.ended, loss, race)).places:
            if race.minutes and time.monotonic() - self._begun > 60 * race.minutes:
                console.print("The minutes are used up.")
                return
            console.print(f"{found}.")
            watcher.expect(len(set(found.places) - self.store.ended.keys()))
            yield found.places

    def train(
        self, part: Part, number: int, which: Sequence[int], watcher: Watch
    ) -> bool:
        """Trains lanes of one program, by their numbers in it; returns whether done."""
        left = [n for n in which if part.first + n not in self.store.ended]
        if not left:
            self._count(len(which), watcher)
            return True
        if watcher.stopped():
            return False
        new = number not in self.programs
        program = self._program(part, number, len(which), watcher)
        self._add(part, program, new, len(which))
        done = True
        for some in program.rounds(which):
            done = done and self._round(part, program, some, watcher)
        self._time()
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

    def _program(self, part: Part, number: int, lanes: int, watcher: Watch) -> Program:
        """Compiles the program of a part; a race uses it again in later rounds."""
        if number in self.programs:
            return self.programs[number]
        watcher.announce(part.named(lanes), "compiling ...")
        resident = self.facts["resident"].get(str(number))
        program = self.kind.compile(
            part.lanes, self.loaded, self.options.machine, resident or lanes
        )
        # A checkpoint has as many lanes as were trained together.
        self.facts["resident"][str(number)] = program.resident
        self._write()
        if self.options.race:
            self.programs[number] = program
        return program

    def _count(self, lanes: int, watcher: Watch) -> None:
        """Counts lanes that had ended before; a race has counted them."""
        if not self.options.race:
            watcher.advance(lanes * watcher.epochs)

    def _check_race(self) -> None:
        """Raises a ConfigError if the run was, or was not, a race of that margin."""
        race = self.options.race
        before, now = self.facts.get("race"), race.facts if race else None
        if before != now:
            raise ConfigError(
                f"{self.folder}: was started {race_text(before)}, not "
                f"{race_text(now)}; use another folder with --out."
            )

    def _add_seeds(self) -> None:
        """Takes seeds into the facts that the run did not have before."""
        if (before := len(self.facts["seeds"])) < len(self.sweep.seeds):
            if _is_first():
                write_text(self.folder / CONFIG, to_toml(self.sweep))
            self.facts |= {
                "command": self.options.command,
                "seeds": list(self.sweep.seeds),
                "lanes": len(self.store.lanes),
                "earlier": before,
                "resident": {},
            }

    def _round(
        self, part: Part, program: Program, which: Sequence[int], watcher
    ) -> bool:
        """Trains the lanes of one round; returns whether they are done."""
        places = [part.first + n for n in which]
        if self.store.ended.keys() >= set(places):
            self._count(len(which), watcher)
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
                self._show(step, part.named(len(which)), watcher)
                if step.checkpoint and not training.ended:
                    self._time()
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
            self._time()

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
        } | ({"race": race.facts} if (race := self.options.race) else {})

    def _add(self, part: Part, program: Program, new: bool, lanes: int) -> None:
        """Adds a program, which may be new, to run.json, before it trains."""
        used = {
            "setting": part.structure,
            "lanes": lanes,
            "resident": program.resident,
            "compiles": program.compiles if new else 0,
            "compile_seconds": round(program.compile_seconds, 2) if new else 0.0,
            "train_seconds": 0.0,
            "megabytes": round(program.megabytes, 1),
            "device": device_text(),
        }
        self.facts["programs"].append(used)
        self._started = time.perf_counter()
        self._write()

    def _time(self) -> None:
        """Writes for how long the last program has trained."""
        took = time.perf_counter() - self._started
        self.facts["programs"][-1]["train_seconds"] = round(took, 2)
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


def _check_race(options: Options, sweep: Sweep) -> None:
    """Raises a ConfigError if a race is not possible."""
    assert options.race is not None
    options.race.check(sweep)
    if jax.process_count() > 1:
        raise ConfigError("until: must be trained for a run of several processes.")
    if options.keep not in (None, "none"):
        raise ConfigError(f"keep: must be none in a race, got {options.keep}.")


def _is_first() -> bool:
    """Whether this process writes the files that all processes share."""
    return jax.process_index() == 0


def _wait(name: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
