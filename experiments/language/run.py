"""Run: the kind of program that trains language models, one lane at a time."""

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from experiments.axes import Lane as Setting
from experiments.classify.train import NEVER
from experiments.config import ConfigError
from experiments.devices import Machine
from experiments.kinds import Loaded, Step
from experiments.language.config import Config
from experiments.language.corpus import UNITS, load, quoted
from experiments.language.optimisers import average, decays, is_non_monotone
from experiments.language.program import Plan, Program, Progress, pace
from experiments.language.train import Pace
from experiments.runs.checkpoints import conditions
from experiments.runs.files import fingerprint
from experiments.runs.records import make_record
from experiments.runs.weights import Keep

SECONDS_PER_STEP = 2.0  # progress is shown, and Ctrl-C heard, after each step
SECONDS_PER_CHECKPOINT = 60.0
SECONDS_TO_MEASURE = 5.0


class LanguageModels:
    """Language models; lanes are trained in turn.

    Args:
        stop_after: windows after which each lane stops, to be resumed; None trains to
            the end.

    Raises:
        ConfigError: `stop_after` is below 1.
    """

    name: ClassVar[str] = "language"
    config: ClassVar[Any] = Config
    keep: ClassVar[Keep] = "all"

    def __init__(self, stop_after: int | None = None):
        if stop_after is not None and stop_after < 1:
            raise ConfigError(f"stop-after: must be 1 or more, got {stop_after}.")
        self.stop_after = stop_after

    def load(self, config: Config) -> Loaded:
        """Loads the text."""
        corpus = load(config.task)
        names = tuple(corpus.vocabulary)
        units = UNITS[config.task.name]
        return Loaded(corpus, units, "", corpus.fingerprint, names)

    def check(self, configs: Sequence[Config], loaded: Loaded) -> None:
        """Traces one lane; raises a ConfigError if it cannot be trained."""
        most = min(len(loaded.data.valid), len(loaded.data.test)) - 1
        for config in configs:
            rows = max(config.evaluation.batch, config.evaluation.test_batch)
            if rows > most:
                raise ConfigError(
                    "evaluation.batch, evaluation.test_batch: must be at most "
                    f"{most:,}, a row per token of the shorter text, got {rows:,}."
                )
        try:
            program = Program(configs, loaded.data)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"The model cannot be built: {reason}") from error
        program.check()

    def compile(
        self,
        lanes: Sequence[Setting],
        loaded: Loaded,
        machine: Machine,
        resident: int | None = None,
    ) -> "ModelProgram":
        """Compiles the program of lanes that share their structure."""
        return ModelProgram(lanes, loaded, self.stop_after)


class ModelProgram:
    """A compiled language model and its lanes."""

    resident = 1
    compiles = 1

    def __init__(
        self, lanes: Sequence[Setting], loaded: Loaded, stop_after: int | None
    ):
        self.settings, self.stop_after = lanes, stop_after
        self.program = Program([lane.config for lane in lanes], loaded.data)
        self.compile_seconds, needed = self.program.compile()
        self.megabytes = needed / 1e6

    def rounds(self, which: Sequence[int]) -> list[Sequence[int]]:
        """Returns one lane per round."""
        return [[n] for n in which]

    def conditions(self, which: Sequence[int]) -> dict[str, Any]:
        """Returns the conditions of a lane's checkpoints."""
        return conditions(self.program.lanes[which[0]].key)

    def begin(self, which: Sequence[int], weights: bool = False) -> "ModelTraining":
        """Returns the training of a lane, whose steps always have weights."""
        return ModelTraining(self, which[0])

    def alone(self, lane: int) -> "ModelTraining":
        """Returns the training of a lane."""
        return ModelTraining(self, lane)

    def seconds(self) -> float:
        """Trains for some seconds; estimates the time of all lanes."""
        training, started = self.alone(0), time.perf_counter()
        epochs = training.advance().epochs  # allocates memory
        started, epochs = time.perf_counter(), 0.0
        while time.perf_counter() - started < SECONDS_TO_MEASURE:
            epochs += training.advance().epochs
            if training.ended:
                break
        took = time.perf_counter() - started
        total = self.program.config.train.epochs * len(self.settings)
        return took * total / epochs if epochs else 0.0


class ModelTraining:
    """A lane in training."""

    def __init__(self, program: ModelProgram, number: int):
        self._program = program.program
        self._setting = program.settings[number]
        self._lane = self._program.lanes[number]
        self._options = self._program.config.train
        self._stop_after = program.stop_after
        self._windows_per_step, self._speed = 1, 0.0
        self._saved_at = time.monotonic()
        self.state: Progress = self._program.start(self._lane)
        self._plan = self._make_plan()
        self._begin_epoch()

    @property
    def number(self) -> int:
        """Windows trained."""
        return int(self.state.state.window)

    @property
    def paused(self) -> bool:
        """Whether it has trained as many windows as were asked for."""
        return self._stop_after is not None and self.number >= self._stop_after

    @property
    def ended(self) -> bool:
        """Whether it is trained, or has diverged."""
        done = int(self.state.epoch) == self._options.epochs
        return done or self._rests() or self._has_diverged()

    def restore(self, state: Progress, number: int) -> float:
        """Continues after a window; returns the epochs done."""
        self.state = state
        self._plan = self._make_plan()
        return int(state.epoch) + int(state.first) / self._plan.used

    def advance(self) -> Step:
        """Reads windows for about two seconds, or to the end of an epoch."""
        first = int(self.state.first)
        most = min(self._windows_per_step, self._left())
        last = min(self._plan.used, first + most)
        started = time.monotonic()
        state = self._program.advance(
            self.state.state,
            self._lane,
            self._program.rows,
            self._plan.windows,
            self._pace(),
            np.int32(first),
            np.int32(last),
        )
        self.state = self.state._replace(state=state, first=jnp.int32(last))
        loss = float(state.nll / state.tokens)
        self._measure(first, last, time.monotonic() - started)
        note = f"train_nll {loss:.4g}, {self._speed:,.0f} tokens/s"
        done = (last - first) / self._plan.used
        step = Step(done, f"{self._seed()}, {note}")
        if last == self._plan.used or self._has_diverged():
            step = self._evaluate(done)
        if time.monotonic() - self._saved_at > SECONDS_PER_CHECKPOINT:
            self._saved_at = time.monotonic()
            step = step._replace(checkpoint=True)
        return step

    def position(self) -> str:
        """Returns the window and the losses so far."""
        state, epoch = self.state.state, int(self.state.epoch) + 1
        loss = float(state.nll / state.tokens) if state.tokens else float("nan")
        return (
            f"{self._seed()}: stopped after window {int(self.state.first)} of "
            f"{self._plan.used} of epoch {epoch}; train_nll {loss:.4g} in it so far, "
            f"{self._speed:,.0f} tokens/s"
        )

    def _make_plan(self) -> Plan:
        seed = self._setting.config.seeds
        return self._program.plan(seed, int(self.state.epoch))

    def _begin_epoch(self) -> None:
        begun = self._program.begin_epoch(self.state.state)
        self.state = self.state._replace(state=begun)

    def _left(self) -> int:
        """Returns the windows that may be trained before it pauses."""
        return (
            self._plan.used
            if self._stop_after is None
            else max(0, self._stop_after - self.number)
        )

    def _measure(self, first: int, last: int, took: float) -> None:
        """Adapts the windows per step to the speed."""
        faster = min(2.0, SECONDS_PER_STEP / took)
        self._windows_per_step = max(1, int(self._windows_per_step * faster))
        tokens = float(self._plan.windows.lengths[first:last].sum())
        self._speed = tokens * self._options.batch / took

    def _pace(self) -> Pace:
        """Returns learning rate and averaging of the epoch, from earlier losses."""
        losses, interval = self._losses().tolist(), self._options.non_monotone
        averages = is_non_monotone(losses, interval)
        return pace(len(losses), self._rate(), averages)

    def _rate(self) -> float:
        """Returns the factor of the learning rate in the next epoch."""
        (figures,) = quoted(self._setting.config.task, self._losses()).values()
        return self._options.decay ** decays(self._options, figures.tolist())

    def _losses(self) -> np.ndarray:
        """Returns the validation loss of each epoch; infinity if it is not a number."""
        losses = np.asarray(self.state.valid)[: int(self.state.epoch)]
        return np.where(np.isnan(losses), np.inf, losses)

    def _rests(self) -> bool:
        """Whether the learning rate has become too low to train on."""
        rate = self._setting.config.train.learning_rate * self._rate()
        return rate < self._options.lowest_rate

    def _evaluate(self, done: float) -> Step:
        """Ends an epoch: evaluates, and starts the next one."""
        weights = {} if self._has_diverged() else self._judge()
        line = self._record()
        metrics = line["metrics"].items()
        shown = {name: values[-1] for name, values in metrics}
        note = ", ".join(
            f"{name} {np.nan if value is None else value:.4g}"
            for name, value in shown.items()
        )
        note = f"{self._seed()}, {note}" + (
            ", diverged" if self._has_diverged() else ""
        )
        epoch = int(self.state.epoch)
        if not self.ended:
            self._plan = self._make_plan()
            self._begin_epoch()
        left = self._options.epochs - epoch if self.ended else 0
        return Step(done + left, note, epoch, {0: line}, weights)

    def _judge(self) -> dict[int, Any]:
        """Evaluates an epoch; returns its parameters if they are kept."""
        progress, program, noise = self.state, self._program, self._lane.noise
        state, epoch = progress.state, int(progress.epoch)
        averaged = average(state.opt_state)
        params = state.params if averaged is None else averaged
        loss = program.evaluate(params, noise, program.valid)
        lowest = np.min(self._losses(), initial=np.inf)
        keeps = self._options.keep == "last" or loss < lowest
        if keeps:
            test = program.evaluate(params, noise, program.test)
            print_ = np.frombuffer(bytes.fromhex(fingerprint(params)), np.uint8)
            progress = progress._replace(hash=jnp.asarray(print_))
        else:
            test = progress.test[epoch - 1]
        kept = loss if keeps else progress.kept[epoch - 1]
        self.state = progress._replace(
            epoch=progress.epoch + 1,
            first=jnp.int32(0),
            train=progress.train.at[epoch].set(state.nll / state.tokens),
            valid=progress.valid.at[epoch].set(loss),
            kept=progress.kept.at[epoch].set(kept),
            test=progress.test.at[epoch].set(test),
        )
        return {0: params} if keeps else {}

    def _record(self) -> dict:
        diverged, epoch = self._has_diverged(), int(self.state.epoch)
        evaluated = self._options.epochs if diverged else epoch
        return make_record(
            self._setting,
            list(range(1, evaluated + 1)),
            {name: v[:evaluated] for name, v in self._metrics().items()},
            int(self.state.state.diverged_at) if diverged else None,
            self._fingerprint() if self.ended else None,
        )

    def _metrics(self) -> dict[str, np.ndarray]:
        """Returns losses per epoch, of the parameters kept, and in quoted units."""
        metrics = {"train_nll": np.asarray(self.state.train)}
        for split, losses in ("valid", "kept"), ("test", "test"):
            values = np.asarray(getattr(self.state, losses))
            both = {"nll": values} | quoted(self._setting.config.task, values)
            metrics |= {f"{split}_{name}": value for name, value in both.items()}
        if self._options.keep == "best":
            metrics["epoch_nll"] = np.asarray(self.state.valid)
        return metrics

    def _fingerprint(self) -> str:
        """Returns the hash of the kept parameters; of the last if none were kept."""
        kept = np.asarray(self.state.hash)
        return (
            kept.tobytes().hex() if kept.any() else fingerprint(self.state.state.params)
        )

    def _has_diverged(self) -> bool:
        return int(self.state.state.diverged_at) != NEVER

    def _seed(self) -> str:
        values = [*self._setting.setting.values(), f"seed {self._setting.config.seeds}"]
        return " ".join(str(value) for value in values)
