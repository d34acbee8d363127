"""Task: what is learned from, as three functions.

A task is a module with

    load(options) -> Data              the sequences to learn from
    inputs(batch) -> [B, T, D]         what the network reads
    score(outputs, batch) -> Score     how each sequence went, the loss first

`load` is plain NumPy and runs once; the other two are traced by JAX. Everything else,
the splits, the training, the sweep and the report, is the same for all tasks.
"""

from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from experiments.config import Task as Options

Arrays: TypeAlias = jax.Array | np.ndarray


class Batch(NamedTuple):
    """N sequences, padded with zeros to T steps.

    Attributes:
        inputs: [N, T, ...]; what `inputs` makes features of.
        lengths: valid steps of each, at least 1; integers of any width.
        targets: [N, ...]; what `score` compares with.
    """

    inputs: Arrays
    lengths: Integer[Arrays, "N"]
    targets: Arrays

    def valid_steps(self, time: int) -> Bool[Array, "N T"]:
        """Returns which of T steps are not padding."""
        steps = jnp.arange(time, dtype=jnp.int32)
        return steps[None] < jnp.asarray(self.lengths).astype(jnp.int32)[:, None]


class Data(NamedTuple):
    """What a task learns from.

    Attributes:
        train: sequences to train on.
        test: sequences that are reported and never chosen by.
        valid: sequences to choose by. None holds some of `train` out, anew for each
            seed; then a second model trains on all of `train` for the test figures.
        outputs: size of the readout.
        readout: whether the network answers at the "last" step, [B, outputs], or at
            "each", [B, T, outputs].
        strata: the group of each training sequence; each group is held out from in
            proportion. None makes no groups.
        units: the unit of each value of `score`, in its order, as {"nll": "nats"}.
        source: where the data come from, and their licence, if they are to be named.
    """

    train: Batch
    test: Batch
    valid: Batch | None
    outputs: int
    readout: Literal["last", "each"]
    strata: Int[np.ndarray, "N"] | None
    units: dict[str, str]
    source: str = ""

    @property
    def splits(self) -> tuple[Batch, Batch, Batch | None]:
        """The sequences: those for training, test and validation."""
        return self.train, self.test, self.valid

    def with_splits(self, splits: tuple[Batch, Batch, Batch | None]) -> "Data":
        """Returns the same task with other sequences, or other arrays of them."""
        train, test, valid = splits
        return self._replace(train=train, test=test, valid=valid)


class Score(NamedTuple):
    """How each sequence of a batch went.

    Attributes:
        values: by name, [B] each; the first is the loss. Lower is better, but for
            "accuracy".
        weight: of each sequence in the mean over a split: 1, or its number of steps.
    """

    values: dict[str, Float[Arrays, "B"]]
    weight: Float[Arrays, "B"]


@runtime_checkable
class Task(Protocol):
    """A module with the three functions."""

    def load(self, options: Options) -> Data:
        """Reads and checks the data; raises a ConfigError that says what is wrong."""

    def inputs(self, batch: Batch) -> Float[Arrays, "B T D"]:
        """Returns what the network reads."""

    def score(self, outputs: Float[Arrays, "B *T O"], batch: Batch) -> Score:
        """Judges outputs [B, O], or [B, T, O]; padded steps must not count."""
