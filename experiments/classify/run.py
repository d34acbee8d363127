"""Sequences: the kind of program that trains classifiers, taggers and regressors."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from experiments.axes import Lane
from experiments.classify.program import Program, check, compile_sweep, make_lanes
from experiments.classify.train import NEVER
from experiments.config import Config
from experiments.devices import Machine, local
from experiments.kinds import Loaded, Step
from experiments.runs.checkpoints import conditions
from experiments.runs.files import fingerprint
from experiments.runs.records import make_record
from experiments.runs.weights import Keep
from experiments.task import Data
from experiments.tasks import load_task


class Sequences:
    """Networks that read sequences; all lanes of a structure are trained together."""

    name: ClassVar[str] = "sequences"
    config: ClassVar[Any] = Config
    keep: ClassVar[Keep] = "none"

    def load(self, config: Config) -> Loaded:
        """Loads the data of the task."""
        task, data = load_task(config.task)
        arrays = fingerprint(data.splits)
        return Loaded((task, data), data.units, data.source, arrays)

    def check(self, configs: Sequence[Config], loaded: Loaded) -> None:
        """Traces one lane; raises a ConfigError if it cannot be trained."""
        check(configs, *loaded.data)

    def compile(
        self,
        lanes: Sequence[Lane],
        loaded: Loaded,
        machine: Machine,
        resident: int | None = None,
    ) -> "SequencesProgram":
        """Compiles the program of lanes that share their structure."""
        task, data = loaded.data
        program = compile_sweep(
            [lane.config for lane in lanes],
            task,
            data,
            resident=resident,
            data_devices=machine.data_devices,
            memory=machine.bytes,
        )
        return SequencesProgram(program, lanes, data)


class SequencesProgram:
    """A compiled sweep and its lanes.

    Args:
        program: the compiled sweep.
        lanes: its lanes.
        data: the data of the task.
    """

    def __init__(self, program: Program, lanes: Sequence[Lane], data: Data):
        self.program, self.lanes, self.data = program, lanes, data
        self.compiles = program.compiles
        self.compile_seconds = program.compile_seconds
        self.megabytes = program.needed * program.mesh.local_mesh.size / 1e6
        self.resident = program.resident

    def of(self, lanes: Sequence[Lane]) -> "SequencesProgram":
        """Returns the same compiled program for other lanes.

        The same sites have noise as in the lane that was compiled first.
        """
        first = self.lanes[0].config
        made = make_lanes([first, *(lane.config for lane in lanes)], self.data)
        others = jax.tree.map(lambda leaf: leaf[1:], made)
        return SequencesProgram(self.program._replace(lanes=others), lanes, self.data)

    def rounds(self, which: Sequence[int]) -> list[Sequence[int]]:
        """Divides lanes into rounds."""
        return self.program.rounds(which)

    def conditions(self, which: Sequence[int]) -> dict[str, Any]:
        """Returns the conditions of a round's checkpoints."""
        sizes = {"devices": self.program.mesh.size, "resident": self.resident}
        return conditions(self.program.lanes.key, **sizes, lanes=len(which))

    def begin(self, which: Sequence[int], weights: bool = False) -> "SequencesTraining":
        """Returns the training of a round."""
        return SequencesTraining(self, which, weights)

    def alone(self, lane: int) -> "SequencesTraining":
        """Returns the training of a round in which only one lane is trained."""
        which = self._all_rounds()[lane // self.resident]
        return SequencesTraining(self, which, False, only=which.index(lane))

    def seconds(self) -> float:
        """Trains one group to its first evaluation; estimates the time of all lanes."""
        training = self.alone(0)
        started = time.perf_counter()
        training.advance()
        took = time.perf_counter() - started
        groups = -(-self.program.share // self.program.group)
        return took * training.total * groups * len(self._all_rounds())

    def _all_rounds(self) -> list[Sequence[int]]:
        return self.rounds(range(len(self.lanes)))


class SequencesTraining:
    """A round of lanes in training."""

    def __init__(
        self,
        program: SequencesProgram,
        which: Sequence[int],
        weights: bool,
        only: int | None = None,
    ):
        compiled = program.program
        self._program, self._weights = compiled, weights
        self._lanes = [program.lanes[n] for n in which]
        self._which, self._slots = list(which), compiled.slots(len(which))
        self._placed = compiled.place(which)
        self._bounds = (
            compiled.all_of(len(which))
            if only is None
            else compiled.only(int(self._slots[only]))
        )
        self._train = self._lanes[0].config.train
        self.state = compiled.start(self._placed, compiled.data)
        self.number = 0
        self.total = self._train.epochs // self._train.evaluate_every
        self.paused = False

    @property
    def ended(self) -> bool:
        """Whether the lanes are trained."""
        return self.number == self.total

    def restore(self, state: Any, number: int) -> float:
        """Continues after an evaluation; returns the epochs done, over lanes."""
        self.state, self.number = state, number
        return float(number * self._train.evaluate_every * len(self._lanes))

    def keep(self, which: Sequence[int]) -> None:
        """Trains only some of the lanes from now on, by their numbers in the round."""
        compiled, slots = self._program, self._slots[[*which]]
        self._lanes = [self._lanes[n] for n in which]
        self._which = [self._which[n] for n in which]
        self._slots = compiled.slots(len(which))
        self._placed = compiled.place(self._which)
        self._bounds = compiled.all_of(len(which))
        self.state = compiled.move(self.state, slots, self._slots)

    def advance(self) -> Step:
        """Trains until the next evaluation."""
        self.state = self._program.step(
            self.state, self._placed, self._bounds, self.number
        )
        self.number += 1
        every = self._train.evaluate_every
        epoch = self.number * every
        found = self.records()
        return Step(
            epochs=every * len(self._lanes),
            note=_note(self._program.names, found),
            epoch=epoch,
            records=found,
            weights=self._final_weights() if self.ended and self._weights else {},
            checkpoint=epoch % self._train.checkpoint_every < every,
        )

    def position(self) -> str:
        """Returns nothing: progress lines say it."""
        return ""

    def records(self) -> dict[int, dict]:
        """Returns the record of each lane that this process holds."""
        models = [model for model in self.state.models if model is not None]
        steps = [local(model.diverged_at) for model in models]
        history = {n: local(self.state.history[n]) for n in self._program.names}
        prints = self._fingerprints([m.params for m in models]) if self.ended else {}
        every = self._train.evaluate_every
        at = [(n + 1) * every for n in range(self.number)]

        def record(lane, slot):
            diverged = [int(s[slot]) for s in steps if s[slot] != NEVER]
            metrics = {n: values[slot][: self.number] for n, values in history.items()}
            first = min(diverged, default=None)
            return make_record(lane, at, metrics, first, prints.get(slot))

        return {n: record(self._lanes[n], slot) for n, slot in self._here(steps[0])}

    def _here(self, rows: Mapping[int, Any]) -> list[tuple[int, int]]:
        """Returns number and slot of each lane whose row this process holds."""
        return [
            (n, slot) for n, slot in enumerate(self._slots.tolist()) if slot in rows
        ]

    def _fingerprints(self, params: Any) -> dict[int, str]:
        """Returns a hash of the parameters of each lane that is here, by its slot."""
        rows = [local(leaf) for leaf in jax.tree.leaves(params)]
        here = [slot for _, slot in self._here(rows[0])]
        return {slot: fingerprint([row[slot] for row in rows]) for slot in here}

    def _final_weights(self) -> dict[int, Any]:
        """Returns the parameters of each lane that is here, of the reported model."""
        params = self.state.models.full.params
        tree = params["network"] | (
            {"rates": params["rates"]} if params["rates"] else {}
        )
        leaves, structure = jax.tree.flatten(tree)
        rows = [local(leaf) for leaf in leaves]
        return {
            n: jax.tree.unflatten(structure, [np.asarray(row[slot]) for row in rows])
            for n, slot in self._here(rows[0])
        }


def _note(names: Sequence[str], lines: Mapping[int, dict]) -> str:
    """Returns the mean losses of all lanes except diverged ones."""

    def mean(name):
        last = [line["metrics"][name][-1] for line in lines.values()]
        return np.mean([value for value in last if value is not None] or [np.nan])

    train, valid = names[:2]
    diverged = sum(line["diverged_at"] is not None for line in lines.values())
    note = f"{train} {mean(train):.4g}, {valid} {mean(valid):.4g}"
    return note + (f", {diverged} diverged" if diverged else "")
