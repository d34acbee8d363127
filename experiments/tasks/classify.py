"""Classify: one class a sequence, from a file of the user's.

The formats are those of `experiments.tasks.files`. The network answers at the last step
with a logit for each class.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Score
from experiments.tasks import files


def load(options: Options) -> Data:
    """Reads `options.data`; each class is held out from in proportion.

    Raises:
        ConfigError: the file cannot be learned from.
    """
    splits = files.read(options, "classify")
    return Data(
        *splits,
        readout="last",
        strata=np.asarray(splits.train.targets),
        units={"nll": "nats a sequence", "accuracy": ""},
    )


def inputs(batch: Batch) -> Float[Arrays, "B T D"]:
    """Returns the standardised features."""
    return batch.inputs


def score(outputs: Float[Arrays, "B C"], batch: Batch) -> Score:
    """Judges logits by their negative log-likelihood and their accuracy."""
    nll, accuracy = judge(outputs, batch.targets)
    return Score({"nll": nll, "accuracy": accuracy}, jnp.ones_like(nll))


def judge(
    logits: Float[Arrays, "*N C"], classes: Integer[Arrays, "*N"]
) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
    """Returns -log softmax(logits)[class], in nats, and whether the largest is right.

    Args:
        logits: one for each class.
        classes: the right ones, from 0; integers of any width.

    Returns:
        The negative log-likelihoods, and 1 where the answer is right, 0 elsewhere.
    """
    classes = jnp.asarray(classes).astype(jnp.int32)
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, classes[..., None], axis=-1)[..., 0]
    right = logits.argmax(-1).astype(jnp.int32) == classes
    return nll, right.astype(nll.dtype)
