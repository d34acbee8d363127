"""Classification of every step, from a user's file.

See `experiments.tasks.files` for the formats. The network answers at every step with
one logit per class. A sequence is weighted by its number of steps, so metrics of a
split are means over all of its steps.
"""

import jax.numpy as jnp
from jaxtyping import Float

from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Score
from experiments.tasks import files
from experiments.tasks.classify import inputs, judge

__all__ = ["inputs", "load", "score"]


def load(options: Options) -> Data:
    """Reads `options.data`.

    Raises:
        ConfigError: the file cannot be read or is not valid.
    """
    return Data(
        *files.read(options, "label"),
        readout="each",
        strata=None,
        units={"nll": "nats per step", "accuracy": ""},
    )


def score(outputs: Float[Arrays, "B T C"], batch: Batch) -> Score:
    """Judges the logits of the valid steps by log-likelihood and accuracy."""
    nll, accuracy = judge(outputs, batch.targets)
    valid = batch.valid_steps(nll.shape[1])
    count = batch.lengths.astype(nll.dtype)

    def mean(values):
        return jnp.where(valid, values, 0).sum(axis=1) / count

    return Score({"nll": mean(nll), "accuracy": mean(accuracy)}, count)
