"""Classification of sequences from a user's file.

See `experiments.tasks.files` for the formats. The network answers at the last step with
one logit per class.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Score
from experiments.tasks import files


def load(options: Options) -> Data:
    """Reads `options.data`; validation holds out the same share of each class.

    Raises:
        ConfigError: the file cannot be read or is not valid.
    """
    splits = files.read(options, "classify")
    return Data(
        *splits,
        readout="last",
        strata=np.asarray(splits.train.targets),
        units={"nll": "nats per sequence", "accuracy": ""},
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
        logits: one per class.
        classes: the right ones, from 0; integers of any width.

    Returns:
        The negative log-likelihoods, and 1 for each right answer, 0 for a wrong one.
    """
    classes = jnp.asarray(classes).astype(jnp.int32)
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, classes[..., None], axis=-1)[..., 0]
    right = logits.argmax(-1).astype(jnp.int32) == classes
    return nll, right.astype(nll.dtype)
