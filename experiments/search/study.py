"""Study: the trials of a search on disk, shared by any number of processes.

Optuna keeps the trials in study.sqlite3 and suggests new ones; trials.jsonl has a line
for each trial that has ended. Several processes may work at one study, and any of them
may die: each holds a locked file that names its trials, and a trial whose process is
gone is tried again by another one. Everything is read and written under one lock.

The suggestion for a trial depends on the seed of the study and on the trials before it,
so that a study of one process ends with the same bytes however often it was stopped.
"""

import contextlib
import fcntl
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, TypeAdapter, with_config
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import TypedDict

from experiments import axes
from experiments.axes import Sweep
from experiments.config import ConfigError
from experiments.runs.files import (
    StorageError,
    parse,
    read_file,
    write_lines,
)
from experiments.runs.folder import LOCK, keep_config, make_folder
from experiments.search.space import Space

SUGGESTED_DIGITS = 3  # of a suggested number in a text
STUDY = "study.sqlite3"
TRIALS = "trials.jsonl"
CONFIG = "search.toml"
PROCESSES = "processes"
SamplerName: TypeAlias = Literal["tpe", "cmaes", "random"]
Loss: TypeAlias = float | None


@with_config({"strict": True, "extra": "forbid"})
class Result(TypedDict):
    """One line of trials.jsonl: a trial that has ended.

    Attributes:
        trial: its place in the study.
        setting: a value by path.
        status: "pruned" trials were stopped before the last epoch.
        epochs: epochs that each seed was trained.
        seeds: the seeds of the setting.
        valid, test: the loss of each seed at the end; None if not finite.
        curve: by epoch, the mean validation loss over seeds; None if not finite.
    """

    trial: Annotated[int, Field(ge=0)]
    setting: dict[str, bool | int | float | str]
    status: Literal["finished", "pruned", "diverged"]
    epochs: Annotated[int, Field(ge=1)]
    seeds: list[int]
    valid: list[Loss]
    test: list[Loss]
    curve: dict[str, Loss]


RESULT = TypeAdapter(Result)


class Rules(NamedTuple):
    """What a study does, from its first to its last trial.

    Attributes:
        sampler: suggests the settings.
        halving: at each rung, one of so many trials is trained on; 0: all are.
        loss: the metric that is minimised, on validation data.
        data: fingerprint of the data.
    """

    sampler: SamplerName
    halving: int
    loss: str
    data: str


class Study:
    """A study that is open in this process.

    Args:
        folder: of the study.
        space: what may be tried.
        rules: how.

    Raises:
        ConfigError: the folder is another study, or no study.
        StorageError: a file of it is damaged, or cannot be read or written.
    """

    def __init__(self, folder: Path, space: Space, rules: Rules):
        self.folder, self.space, self.rules = folder, space, rules
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        make_folder(folder, CONFIG, "study")
        with self._alone():
            keep_config(folder / CONFIG, space.sweep, "study")
            self._storage = RDBStorage(f"sqlite:///{folder.absolute() / STUDY}")
            try:
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name="search",
                    sampler=RandomSampler(),
                    load_if_exists=True,
                )
                self._check_rules()
                self._check_files()
            finally:
                self._close()

    def __enter__(self) -> "Study":
        folder = self.folder / PROCESSES
        folder.mkdir(exist_ok=True)
        self._path = folder / uuid.uuid4().hex
        with self._alone():
            self._file = self._path.open("w+", encoding="utf-8")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._hold([])
        return self

    def __exit__(self, *_) -> None:
        """Leaves the unfinished trials of this process to the others."""
        with self._alone():
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._close()

    def claim(self, most: int, lanes: float | int) -> dict[int, Trial]:
        """Returns trials for this process to train, by their places in the study.

        Args:
            most: at most so many.
            lanes: that the whole study may train; lanes in part count as such.
        """
        with self._alone():
            results = read_results(self.folder)
            ended = {line["trial"] for line in results}
            claimed = self._claimed()
            self._drop_halves(claimed)
            known = self._trials()
            self._end_again(known, results)
            elsewhere = {n for n, t in enumerate(known) if t.number in claimed} - ended
            spent = self._lanes(results) + len(elsewhere) * self._each
            count = min(most, int((lanes - spent) / self._each + 1e-9))
            left = [n for n in range(len(known)) if n not in ended | elsewhere]
            trials = {n: self._take(known[n]) for n in left[:count]}
            for place in range(len(known), len(known) + count - len(trials)):
                trials[place] = self._ask(place)
            self._hold([trial.number for trial in trials.values()])
            return trials

    def tell(self, trials: Mapping[int, Trial], results: Sequence[Result]) -> None:
        """Stores the results of some trials, which are given by their places."""
        with self._alone():
            lines = sorted([*read_results(self.folder), *results], key=_place)
            write_lines(self.folder / TRIALS, [{**line} for line in lines])
            for line in results:
                self._end(trials[line["trial"]], line)

    def _close(self) -> None:
        """Closes the connections; the next use opens one."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _trials(self) -> list[FrozenTrial]:
        """Returns the trials in their order, without those that were dropped."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.FAIL]

    def _ask(self, place: int) -> Trial:
        """Returns a new trial."""
        self._study.sampler = self._sampler(place)
        return self._study.ask(self.space.distributions)

    def _take(self, trial: FrozenTrial) -> Trial:
        """Returns a trial whose process is gone."""
        self._study.sampler = RandomSampler()  # it has all of its parameters
        return Trial(self._study, trial._trial_id)  # optuna has no public way

    def _drop_halves(self, claimed: set[int]) -> None:
        """Drops a trial whose process was gone before all of it was suggested.

        The parameters that it has would not be drawn again, and so the next ones would
        be other numbers. Another trial takes its place.
        """
        for trial in self._trials():
            whole = trial.params.keys() == self.space.distributions.keys()
            if not whole and trial.number not in claimed:
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _sampler(self, place: int) -> BaseSampler:
        """Returns the sampler of a trial."""
        words = np.random.SeedSequence((self.space.sweep.base.seed, place))
        return make_sampler(self.rules.sampler, int(words.generate_state(1)[0]))

    def _end(self, trial: Trial, line: Result) -> None:
        """Tells optuna the result of a trial."""
        for epoch, loss in line["curve"].items():
            trial.report(np.inf if loss is None else loss, int(epoch))
        if line["status"] == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, loss_of(line))

    def _end_again(
        self, known: Sequence[FrozenTrial], results: Sequence[Result]
    ) -> None:
        """Tells the results of a process that died before it could."""
        for line in results:
            trial = known[line["trial"]]
            if trial.state == TrialState.RUNNING:
                self._end(self._take(trial), line)

    def _lanes(self, results: Sequence[Result]) -> float:
        """Returns the lanes that trials have cost."""
        return spent_lanes(results, self.space.sweep.base.train.epochs)

    @property
    def _each(self) -> int:
        """The lanes of a whole trial."""
        return len(self.space.sweep.seeds)

    def _claimed(self) -> set[int]:
        """Returns the trials of the other processes; files of dead ones are removed."""
        found: set[int] = set()
        for path in (self.folder / PROCESSES).iterdir():
            if path == self._path:
                continue
            with path.open("r+", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found |= set(json.loads(file.read()))
                    continue
                path.unlink()
        return found

    def _hold(self, numbers: Sequence[int]) -> None:
        """Names the trials of this process to the others."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(numbers))
        self._file.flush()

    def _check_rules(self) -> None:
        """Stores the rules, in one piece, or checks them."""
        now = self.rules._asdict()
        before = self._study.user_attrs.get("rules")
        if before is None:
            self._study.set_user_attr("rules", now)
            return
        if before["data"] != now["data"]:
            raise ConfigError(
                f"{self.folder}: was searched on other data (hash {before['data']}, "
                f"now {now['data']}); restore the data, or use another folder with "
                "--out."
            )
        for name, value in now.items():
            if before[name] != value:
                raise ConfigError(
                    f"{self.folder}: is a study with {name} {before[name]}, not "
                    f"{value}; use another folder with --out."
                )

    def _check_files(self) -> None:
        """Checks that both files have the same trials.

        A result is written before optuna is told.
        """
        known, listed = self._trials(), [a["trial"] for a in read_results(self.folder)]
        told = [n for n, trial in enumerate(known) if trial.state.is_finished()]
        if [n for n in listed if n >= len(known)] or len(set(listed)) < len(listed):
            lacking = STUDY
        elif set(told) - set(listed):
            lacking = TRIALS
        else:
            return
        raise StorageError(
            f"{self.folder / lacking}: lacks trials that the other file of the study "
            "has; restore it, or use another folder with --out."
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process reads or writes."""
        with (self.folder / LOCK).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            except (SQLAlchemyError, StorageInternalError) as error:
                reason = " ".join(str(error.__cause__ or error).split())[:120]
                raise StorageError(
                    f"{self.folder / STUDY}: cannot be read or written: {reason}."
                ) from None


def make_sampler(name: SamplerName, seed: int) -> BaseSampler:
    """Returns a sampler of optuna; those that learn know the trials in training."""
    if name == "random":
        return RandomSampler(seed)
    if name == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return TPESampler(seed=seed)


def read_results(folder: Path) -> list[Result]:
    """Reads the trials of a study that have ended, by number.

    Raises:
        StorageError: a line is not a trial; the text names file and line.
    """
    path = folder / TRIALS
    lines = read_file(path).splitlines()
    return [
        parse(RESULT, line, f"{path}:{n}", name="a trial")
        for n, line in enumerate(lines, 1)
    ]


def read_study(folder: Path) -> tuple[Sweep, list[Result]]:
    """Reads the space of a study and the trials that have ended.

    Raises:
        ConfigError: the folder is not a study.
        StorageError: a file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: is not the folder of a study: no {CONFIG}.")
    sweep = axes.make_sweep(axes.read_toml(path), str(path))
    return sweep, read_results(folder)


def spent_lanes(results: Sequence[Result], epochs: int) -> float:
    """Returns the cost of trials, in lanes of so many epochs."""
    return sum(line["epochs"] * len(line["seeds"]) for line in results) / epochs


def loss_of(line: Result) -> float:
    """Returns the mean validation loss of a trial; infinite if a seed diverged."""
    if line["status"] == "diverged":
        return np.inf
    values = [np.inf if loss is None else loss for loss in line["valid"]]
    return float(np.mean(values))


def best_first(results: Sequence[Result]) -> list[Result]:
    """Returns the trials that were trained to the end, the lowest loss first."""
    done = [line for line in results if line["status"] == "finished"]
    return sorted(done, key=loss_of)


def _place(line: Result) -> int:
    return line["trial"]
