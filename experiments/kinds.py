"""Kinds of program: the interface between the engine and a kind of model."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from experiments.axes import Lane
from experiments.devices import Machine
from experiments.runs.weights import Keep


class Loaded(NamedTuple):
    """The data of a run.

    Attributes:
        data: in the form of its kind of program.
        units: unit of each metric, the loss first.
        source: where the data come from, and their licence; may be empty.
        fingerprint: hash of the arrays.
        names: of the classes or tokens by number; may be empty.
    """

    data: Any
    units: dict[str, str]
    source: str
    fingerprint: str
    names: tuple[str, ...] = ()


class Step(NamedTuple):
    """A piece of training, from a tenth of a second to some minutes.

    Attributes:
        epochs: summed over lanes.
        note: metrics for the progress bar.
        epoch: the epoch that was evaluated; None between evaluations.
        records: of the lanes by their number in the round, after an evaluation.
        weights: parameters to keep, by the same numbers.
        checkpoint: whether to save the state.
    """

    epochs: float
    note: str
    epoch: int | None = None
    records: Mapping[int, dict] = {}
    weights: Mapping[int, Any] = {}
    checkpoint: bool = False


@runtime_checkable
class Training(Protocol):
    """A round of lanes in training.

    Attributes:
        state: pytree of arrays from which the training resumes.
        number: number of the next checkpoint; larger after each step.
        paused: whether to stop here without a request.
    """

    state: Any

    @property
    def number(self) -> int:
        """The number of the next checkpoint."""

    @property
    def paused(self) -> bool:
        """Whether to stop here."""

    def restore(self, state: Any, number: int) -> float:
        """Continues from a checkpoint; returns the epochs done, summed over lanes."""

    @property
    def ended(self) -> bool:
        """Whether all lanes are trained."""

    def advance(self) -> Step:
        """Trains on."""

    def position(self) -> str:
        """Returns how far the training is, in words; may be empty."""


@runtime_checkable
class Program(Protocol):
    """The compiled program of lanes that share their static fields.

    Attributes:
        compiles: programs that were compiled.
        compile_seconds: how long that took.
        megabytes: memory that it needs on this machine.
        resident: lanes that are trained at a time.
    """

    compiles: int
    compile_seconds: float
    megabytes: float
    resident: int

    def rounds(self, which: Sequence[int]) -> list[Sequence[int]]:
        """Divides lanes into rounds, by their numbers in the program."""

    def conditions(self, which: Sequence[int]) -> dict[str, Any]:
        """Returns the conditions of a round's checkpoints."""

    def begin(self, which: Sequence[int], weights: bool = False) -> Training:
        """Returns the training of a round, with or without weights in its steps."""

    def alone(self, lane: int) -> Training:
        """Returns a training of one lane, by its number, as in its round."""

    def seconds(self) -> float:
        """Trains a little; returns the estimated time of training all lanes."""


@runtime_checkable
class Kind(Protocol):
    """A kind of program.

    Attributes:
        name: in run.json.
        config: dataclass of a lane's config.
        keep: the weights that are kept by default.
    """

    name: ClassVar[str]
    config: ClassVar[Any]
    keep: ClassVar[Keep]

    def load(self, config: Any) -> Loaded:
        """Loads the data; raises a ConfigError for data that cannot be used."""

    def check(self, configs: Sequence[Any], loaded: Loaded) -> None:
        """Raises a ConfigError if lanes of one program cannot be trained."""

    def compile(
        self,
        lanes: Sequence[Lane],
        loaded: Loaded,
        machine: Machine,
        resident: int | None = None,
    ) -> Program:
        """Compiles a program, with at most `resident` lanes trained at a time."""
