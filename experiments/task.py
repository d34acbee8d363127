"""The protocol of a task: three functions of a module.

    load(options) -> Data              the sequences to learn from
    inputs(batch) -> [B, T, D]         the input of the network
    score(outputs, batch) -> Score     metrics of each sequence, the loss first

A task that predicts normal distributions may have a fourth function, with which
`evaluate` averages passes and networks:

    normal(outputs, batch) -> Normal   the distributions; None if they are others

`load` is plain NumPy and runs once; JAX traces the other two. Splits, training, sweep
and report are the same for all tasks. `experiments.tasks.load_task` checks the data and
the functions before anything is compiled.
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

    Numbers are finite, and the same dtype and shape of a step serve all splits.

    Attributes:
        inputs: [N, T, ...], from which `inputs` computes features.
        lengths: valid steps of each sequence, 1 to T; integers of any width.
        targets: [N, ...], with which `score` compares outputs. Integers [N] for the
            readout "last", or [N, T] for "each", are classes 0 to `outputs` - 1 if
            there are several outputs.
    """

    inputs: Arrays
    lengths: Integer[Arrays, "N"]
    targets: Arrays

    def valid_steps(self, time: int) -> Bool[Array, "N T"]:
        """Returns which of T steps are not padding."""
        steps = jnp.arange(time, dtype=jnp.int32)
        return steps[None] < jnp.asarray(self.lengths).astype(jnp.int32)[:, None]


class Data(NamedTuple):
    """The sequences of a task, and facts about them.

    Attributes:
        train: sequences for training.
        test: sequences for reported metrics, which choose nothing.
        valid: sequences for choosing among settings. With None, each seed holds out
            some of `train`, and a second model trains on all of `train` for the test
            metrics.
        outputs: size of the readout.
        readout: whether the network answers at the "last" step, [B, outputs], or at
            "each", [B, T, outputs].
        strata: the group of each training sequence; the same share of each group is
            held out. None: one group.
        units: the unit of each value of `score`, in the same order, such as
            {"nll": "nats"}. A loss in nats or bits belongs to logits of classes.
        source: origin and licence of the data; may be empty.
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
        """The sequences for training, test and validation."""
        return self.train, self.test, self.valid

    def with_splits(self, splits: tuple[Batch, Batch, Batch | None]) -> "Data":
        """Returns the same facts with other sequences."""
        train, test, valid = splits
        return self._replace(train=train, test=test, valid=valid)


class Score(NamedTuple):
    """Metrics of each sequence of a batch.

    Attributes:
        values: by name, [B] each; the first is the loss. Lower is better, except for
            "accuracy".
        weight: weight of each sequence in the mean over a split, such as 1 or its
            number of steps.
    """

    values: dict[str, Float[Arrays, "B"]]
    weight: Float[Arrays, "B"]


class Normal(NamedTuple):
    """Normal distributions that a network predicts, and the observed numbers.

    Attributes:
        mean: of each distribution, [B].
        log_variance: of each distribution, [B].
        observed: the numbers, [B], at the same scale.
        scale: units of the file per unit of this scale, [B].
    """

    mean: Float[Arrays, "B"]
    log_variance: Float[Arrays, "B"]
    observed: Float[Arrays, "B"]
    scale: Float[Arrays, "B"]


@runtime_checkable
class Task(Protocol):
    """A module with the three functions."""

    def load(self, options: Options) -> Data:
        """Reads the data; raises a ConfigError if something is wrong with them."""

    def inputs(self, batch: Batch) -> Float[Arrays, "B T D"]:
        """Returns the input of the network."""

    def score(self, outputs: Float[Arrays, "B *T O"], batch: Batch) -> Score:
        """Scores outputs [B, O], or [B, T, O]; padded steps must not count."""
