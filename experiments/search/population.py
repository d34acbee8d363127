"""Population: the trials that are trained together, one compiled program per structure.

With successive halving (Jamieson and Talwalkar 2016), all trials are trained to the
first rung; the best part of them is moved to the first slots of the same programs and
trained to the next rung, and so on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.axes import value_text
from experiments.classify.run import Sequences, SequencesProgram, SequencesTraining
from experiments.config import ConfigError, Train
from experiments.devices import HERE
from experiments.kinds import Loaded
from experiments.progress import Watch
from experiments.search.space import Space
from experiments.search.study import Result, loss_of
from experiments.wording import count_text

Setting = Mapping[str, Any]


def rungs(train: Train, halving: int) -> list[int]:
    """Returns the epochs at which trials are compared, the last epoch last.

    Each is a `halving`th of the next one, rounded up to an evaluation.
    """
    every, found = train.evaluate_every, [train.epochs]
    while halving and found[0] > every:
        found.insert(0, math.ceil(found[0] / halving / every) * every)
    return found


class Population:
    """Trains settings of a space.

    Args:
        space: of the settings.
        loaded: the data.
        size: the most settings at a time.
        halving: one of so many is trained on at each rung; 0: all are.
    """

    def __init__(self, space: Space, loaded: Loaded, size: int, halving: int):
        self.space, self.loaded, self.size, self.halving = space, loaded, size, halving
        self.loss = next(iter(loaded.units))
        self._programs: dict[str, SequencesProgram] = {}

    def train(
        self, settings: Mapping[int, Setting], watcher: Watch
    ) -> list[Result] | None:
        """Returns the results of settings by number; None if a stop was requested."""
        groups = [
            _Group(self, name, found, watcher) for name, found in self._by(settings)
        ]
        results: list[Result] = []
        for rung in (found := rungs(self.space.sweep.base.train, self.halving)):
            for group in groups:
                if not group.train_to(rung):
                    return None
            scores = {n: s for group in groups for n, s in group.scores().items()}
            left = len(scores) if rung == found[-1] else -(-len(scores) // self.halving)
            # Of equal trials the earlier one stays.
            kept = sorted(sorted(scores), key=scores.__getitem__)[:left]
            results += [line for group in groups for line in group.cut_to(kept)]
            groups = [group for group in groups if group.numbers]
        return results + [line for group in groups for line in group.cut_to([])]

    def program(
        self, structure: str, setting: Setting, watcher: Watch
    ) -> SequencesProgram:
        """Returns the program of a structure, compiled for a whole population.

        Raises:
            ConfigError: the population does not fit into memory.
        """
        if structure not in self._programs:
            watcher.announce(structure, "compiling ...")
            lanes = self.space.inside(setting) * self.size
            program = Sequences().compile(lanes, self.loaded, HERE)
            if program.resident < len(lanes):
                most = program.resident // len(self.space.sweep.seeds)
                raise ConfigError(
                    f"population: must be at most {most} to fit into memory, got "
                    f"{self.size}."
                )
            self._programs[structure] = program
        return self._programs[structure]

    def _by(self, settings: Mapping[int, Setting]):
        """Returns the settings of each structure, by its name."""
        groups: dict[str, dict[int, Setting]] = {}
        for number, setting in settings.items():
            name = " ".join(value_text(setting[p]) for p in self.space.choices)
            groups.setdefault(name, {})[number] = setting
        return groups.items()


@dataclass
class _Group:
    """The trials of one structure in training.

    Attributes:
        population: to which they belong.
        name: of the structure.
        settings: by the number of the trial.
        watcher: the progress bar.
        numbers: the trials that are still trained.
    """

    population: Population
    name: str
    settings: Mapping[int, Setting]
    watcher: Watch
    numbers: list[int] = field(init=False)

    def __post_init__(self) -> None:
        space = self.population.space
        self.numbers = list(self.settings)
        lanes = [a for s in self.settings.values() for a in space.sweep.lanes_of(s)]
        structure = {p: self.settings[self.numbers[0]][p] for p in space.choices}
        program = self.population.program(self.name, structure, self.watcher)
        self._training: SequencesTraining = program.of(lanes).begin(range(len(lanes)))
        self._records: list[dict] = []

    @property
    def epoch(self) -> int:
        """The epochs done."""
        return self._records[0]["epochs"] if self._records else 0

    def train_to(self, epoch: int) -> bool:
        """Trains to an epoch; returns whether it was reached."""
        while self.epoch < epoch:
            if self.watcher.stopped():
                return False
            step = self._training.advance()
            self._records = [step.records[n] for n in sorted(step.records)]
            self.watcher.advance(step.epochs)
            name = f"{self.name} ({count_text(len(self.numbers), 'trial')})".strip()
            self.watcher.report(name, self.epoch, step.note)
        return True

    def scores(self) -> dict[int, float]:
        """Returns the mean validation loss of each trial; infinite if it diverged."""
        return {
            n: loss_of(self._result(n, found)) for n, found in self._trials().items()
        }

    def cut_to(self, kept: Sequence[int]) -> list[Result]:
        """Keeps some of the trials, and returns the results of the others."""
        count = len(self.population.space.sweep.seeds)
        trials = self._trials()
        ended = [n for n in self.numbers if n not in kept]
        results = [self._result(n, trials[n]) for n in ended]
        stay = [place for place, n in enumerate(self.numbers) if n in kept]
        lanes = [place * count + seed for place in stay for seed in range(count)]
        if ended and stay:
            self._training.keep(lanes)
        self._records = [self._records[lane] for lane in lanes]
        self.numbers = [self.numbers[place] for place in stay]
        return results

    def _trials(self) -> dict[int, list[dict]]:
        """Returns the records of each trial, one per seed."""
        count = len(self.population.space.sweep.seeds)
        parts = range(0, len(self._records), count)
        found = [self._records[part : part + count] for part in parts]
        return dict(zip(self.numbers, found, strict=True))

    def _curve(self, records: Sequence[dict]) -> list[float | None]:
        """Returns the mean validation loss over seeds at each evaluation."""
        rows = [r["metrics"][f"valid_{self.population.loss}"] for r in records]
        return [
            None if None in losses else float(np.mean(losses))
            for losses in zip(*rows, strict=True)
        ]

    def _result(self, number: int, records: Sequence[dict]) -> Result:
        train = self.population.space.sweep.base.train
        loss = self.population.loss
        at = records[0]["evaluated_at"]
        curve = dict(zip(map(str, at), self._curve(records), strict=True))
        lost = any(r["diverged_at"] is not None for r in records)
        early = self.epoch < train.epochs
        return Result(
            trial=number,
            setting=dict(self.settings[number]),
            status="diverged" if lost else "pruned" if early else "finished",
            epochs=self.epoch,
            seeds=list(self.population.space.sweep.seeds),
            valid=[r["metrics"][f"valid_{loss}"][-1] for r in records],
            test=[r["metrics"][f"test_{loss}"][-1] for r in records],
            curve=curve,
        )
