"""Run: language models from their config to a report, through whatever may end it.

The lanes of a config are trained one after the other, those of one structure by one
compiled program. A training that was ended goes on in the midst of an epoch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import folder as folders
from experiments.ablate import Part, conclude, divide, facts
from experiments.axes import Lane as Setting
from experiments.axes import Sweep
from experiments.checkpoints import Checkpoints, conditions
from experiments.config import ConfigError
from experiments.language import parameters
from experiments.language.corpus import UNITS, load, quoted
from experiments.language.optimisers import average, decays, is_non_monotone
from experiments.language.program import Plan, Program, Progress, pace
from experiments.language.train import Lane, Pace
from experiments.results import Store, fingerprint, record
from experiments.running import Watch, console, watch
from experiments.train import NEVER

SECONDS_A_CALL = 2.0  # after which progress is shown, and Ctrl-C heard
SECONDS_A_CHECKPOINT = 60.0
MOST_WINDOWS = 2**31 - 1


def train(
    sweep: Sweep,
    folder: Path,
    command: str = "",
    events: bool = False,
    stop_after: int | None = None,
) -> bool:
    """Trains all lanes and writes config, results, parameters and report to `folder`.

    A folder in which a run of this config was ended is gone on with. Ctrl-C and SIGTERM
    end it within seconds; a second one at once.

    Args:
        sweep: of configs of language models.
        folder: of the run.
        command: the command line, for the report.
        events: whether to write TensorBoard's event files as well.
        stop_after: windows of a lane after which it stops as if somebody asked; None
            trains to the end.

    Returns:
        Whether it ran to the end.

    Raises:
        ConfigError: the config does not suit the text, the folder is of another run, or
            `stop_after` is below 1.
        StorageError: results, parameters or checkpoints cannot be written.
    """
    if stop_after is not None and stop_after < 1:
        raise ConfigError(f"stop-after: must be 1 or more, got {stop_after}.")
    lanes = sweep.lanes()
    corpus = load(sweep.base.task)
    parts = divide(lanes)
    programs = [Program([ln.config for ln in part.lanes], corpus) for part in parts]
    for program in programs:
        program.check()
    folders.open_run(folder, sweep)
    units = UNITS[sweep.base.task.name]
    known = facts(sweep, units, corpus[1:], command, len(lanes))
    run = _Run(folder, Store(folder, lanes), known, stop_after)
    with watch(len(lanes), sweep.base.train.epochs) as watcher:
        done = all(
            run.train(part, program, watcher)
            for part, program in zip(parts, programs, strict=True)
        )
    conclude(folder, events)
    return done


@dataclass
class _Run:
    """A run under way."""

    folder: Path
    store: Store
    facts: dict[str, Any]
    stop_after: int | None

    def __post_init__(self):
        """Begins, or goes on with what an earlier command began.

        Raises:
            ConfigError: that had another text.
        """
        earlier = folders.read_run(self.folder)
        self.programs = earlier.get("programs", [])
        if earlier and earlier["task"]["data"] != self.facts["task"]["data"]:
            raise ConfigError(
                f"{self.folder}: was begun with another text; name another by --out."
            )
        self._write()

    def train(self, part: Part, program: Program, watcher: Watch) -> bool:
        """Trains the lanes of one program; returns whether they are all done."""
        epochs = program.config.train.epochs
        wanted = range(part.first, part.first + len(part.lanes))
        left = [place for place in wanted if place not in self.store.ended]
        watcher.skip(len(part.lanes) - len(left), epochs)
        if not left or watcher.stopped():
            return not left
        name = " ".join(str(value) for value in part.structure.values())
        watcher.announce(name, "compiling ...")
        compiling, needed = program.compile()
        begun = time.perf_counter()
        done = all(self._lane(part, place, program, watcher) for place in left)
        took = folders.took(
            part.structure,
            lanes=len(part.lanes),
            resident=1,
            compiles=1,
            compile_seconds=compiling,
            train_seconds=time.perf_counter() - begun,
            needed=needed,
        )
        self.programs = [*self.programs, took]
        self._write()
        return done

    def _lane(self, part, place, program, watcher) -> bool:
        """Trains one lane; returns whether it is done."""
        if watcher.stopped():
            return False
        lane = program.lanes[place - part.first]
        folder = self.folder / folders.CHECKPOINTS / str(place)
        with Checkpoints(folder, conditions(lane.key)) as saved:
            progress, _ = saved.restore(program.start(lane))
            done = _Training(
                part.lanes[place - part.first],
                lane,
                program,
                parameters.path_of(self.folder, place),
                lambda line: self.store.keep({place: line}),
                saved,
                watcher,
                progress,
                self.stop_after or MOST_WINDOWS,
            ).run()
        if done:
            saved.remove()
        return done

    def _write(self) -> None:
        folders.write_run(self.folder, self.facts | {"programs": self.programs})


@dataclass
class _Training:
    """The training of one lane under way.

    Attributes:
        setting: the lane, as data; lane: as arrays.
        path: of its parameters.
        keep: takes the line of its results.
        saved: its checkpoints.
        progress: how far it is.
        stop_after: windows at which it stops.
    """

    setting: Setting
    lane: Lane
    program: Program
    path: Path
    keep: Callable[[dict], None]
    saved: Checkpoints
    watcher: Watch
    progress: Progress
    stop_after: int

    def __post_init__(self):
        self.options = self.program.config.train
        self.windows_a_call, self.speed = 1, 0.0
        self.saved_at = time.monotonic()

    def run(self) -> bool:
        """Trains until it is done, or somebody stops it; returns which."""
        plan, epoch = self._plan(), int(self.progress.epoch)
        self.watcher.skip(1, epoch + int(self.progress.first) / plan.used)
        while epoch < self.options.epochs and not self._has_diverged():
            if not self._epoch(plan):
                self._save()
                self._say_where(plan)
                return False
            plan, epoch = self._plan(), int(self.progress.epoch)
        return True

    def _plan(self) -> Plan:
        return self.program.plan(self.setting.config.seeds, int(self.progress.epoch))

    def _epoch(self, plan: Plan) -> bool:
        """Trains to the end of an epoch and judges it; False if stopped before."""
        if self.progress.first == 0:
            begun = self.program.begin_epoch(self.progress.state)
            self.progress = self.progress._replace(state=begun)
        speed = self._pace()
        while self.progress.first < plan.used and not self._has_diverged():
            if self.watcher.stopped() or self._left() <= 0:
                return False
            if time.monotonic() - self.saved_at > SECONDS_A_CHECKPOINT:
                self._save()
            self._read(plan, speed)
        if not self._has_diverged():
            self._judge()
        self._store()
        return True

    def _read(self, plan: Plan, speed: Pace) -> None:
        """Reads as many windows as take about `SECONDS_A_CALL`."""
        first, begun = int(self.progress.first), time.monotonic()
        most = min(self.windows_a_call, self._left())
        last = min(plan.used, first + most)
        state = self.program.advance(
            self.progress.state,
            self.lane,
            self.program.rows,
            plan.windows,
            speed,
            np.int32(first),
            np.int32(last),
        )
        self.progress = self.progress._replace(state=state, first=jnp.int32(last))
        nll = float(state.nll / state.tokens)
        took = time.monotonic() - begun
        faster = min(2.0, SECONDS_A_CALL / took)
        self.windows_a_call = max(1, int(self.windows_a_call * faster))
        tokens = float(plan.windows.lengths[first:last].sum()) * self.options.batch
        self.watcher.skip(1, (last - first) / plan.used)
        self.speed = tokens / took
        self.watcher.announce(
            self._name(), f"train_nll {nll:.4g}, {self.speed:,.0f} tokens/s"
        )

    def _say_where(self, plan: Plan) -> None:
        """Shows where it stopped."""
        state, epoch = self.progress.state, int(self.progress.epoch) + 1
        nll = float(state.nll / state.tokens) if state.tokens else float("nan")
        console.print(
            f"{self._name()}: stopped after window {int(self.progress.first)} of "
            f"{plan.used} of epoch {epoch}; train_nll {nll:.4g} in it so far, "
            f"{self.speed:,.0f} tokens/s"
        )

    def _left(self) -> int:
        """Windows to be read before it stops."""
        return self.stop_after - int(self.progress.state.window)

    def _pace(self) -> Pace:
        """What the epoch is trained at, by the losses of those before it."""
        epoch = int(self.progress.epoch)
        losses = np.asarray(self.progress.valid)[:epoch].tolist()
        rate = self.options.decay ** decays(self.options, losses)
        return pace(epoch, rate, is_non_monotone(losses, self.options.non_monotone))

    def _judge(self) -> None:
        """Ends an epoch: evaluates its parameters, and keeps them if they are to be."""
        progress, program, noise = self.progress, self.program, self.lane.noise
        state, epoch = progress.state, int(progress.epoch)
        averaged = average(state.opt_state)
        params = state.params if averaged is None else averaged
        loss = program.evaluate(params, noise, program.valid)
        before = np.asarray(progress.valid)[:epoch]
        if self.options.keep == "last" or loss < np.min(before, initial=np.inf):
            test = program.evaluate(params, noise, program.test)
            parameters.save(self.path, params)
            kept = loss
        else:
            kept, test = progress.kept[epoch - 1], progress.test[epoch - 1]
        self.progress = Progress(
            state,
            epoch=progress.epoch + 1,
            first=jnp.int32(0),
            train=progress.train.at[epoch].set(state.nll / state.tokens),
            valid=progress.valid.at[epoch].set(loss),
            kept=progress.kept.at[epoch].set(kept),
            test=progress.test.at[epoch].set(test),
        )

    def _store(self) -> None:
        """Stores the line of the lane, and shows its figures."""
        diverged, epoch = self._has_diverged(), int(self.progress.epoch)
        evaluated = self.options.epochs if diverged else epoch
        ended = evaluated == self.options.epochs
        metrics = {name: v[:evaluated] for name, v in self._metrics().items()}
        line = record(
            self.setting,
            list(range(1, evaluated + 1)),
            metrics,
            int(self.progress.state.diverged_at) if diverged else None,
            self._fingerprint() if ended else None,
        )
        self.keep(line)
        shown = {name: values[-1] for name, values in metrics.items()}
        note = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.watcher.advance(self._name(), 1, 0, epoch, note + ", diverged" * diverged)

    def _metrics(self) -> dict[str, np.ndarray]:
        """The losses of each epoch, of the parameters kept; and what people quote."""
        metrics = {"train_nll": np.asarray(self.progress.train)}
        for split, losses in ("valid", "kept"), ("test", "test"):
            values = np.asarray(getattr(self.progress, losses))
            both = {"nll": values} | quoted(self.setting.config.task, values)
            metrics |= {f"{split}_{name}": value for name, value in both.items()}
        if self.options.keep == "best":
            metrics["epoch_nll"] = np.asarray(self.progress.valid)
        return metrics

    def _fingerprint(self) -> str:
        """That of the parameters kept; of the last where there are none."""
        if self.path.exists():
            return fingerprint(parameters.load(self.path))
        return fingerprint(self.progress.state.params)

    def _has_diverged(self) -> bool:
        return int(self.progress.state.diverged_at) != NEVER

    def _name(self) -> str:
        values = [*self.setting.setting.values(), f"seed {self.setting.config.seeds}"]
        return " ".join(str(value) for value in values)

    def _save(self) -> None:
        self.saved.save(int(self.progress.state.window), self.progress)
        self.saved_at = time.monotonic()
