"""Regression of K numbers per sequence, from a user's file.

See `experiments.tasks.files` for the formats. The network answers at the last step.
Targets are standardised by the mean and the standard deviation of the training
sequences. The loss "mse" is computed there, so it has no unit, and the training mean as
the constant answer scores 1. The mean absolute error "mae" is in the units of the file.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Score
from experiments.tasks import files
from experiments.tasks.classify import inputs

__all__ = ["inputs", "load", "score"]


def load(options: Options) -> Data:
    """Reads `options.data`.

    Returns:
        Data with targets [N, 2, K]: the standardised numbers, and the standard
        deviations, which convert errors to the units of the file.

    Raises:
        ConfigError: the file cannot be read or is not valid.
    """
    splits = files.read(options, "regress")
    mean = splits.train.targets.mean(axis=0)
    sd = splits.train.targets.std(axis=0)

    def scaled(batch):
        targets = (batch.targets - mean) / sd
        both = np.stack([targets, np.broadcast_to(sd, targets.shape)], axis=1)
        with np.errstate(over="ignore"):  # a task checks the result
            return batch._replace(targets=both.astype(np.float32))

    return Data(
        train=scaled(splits.train),
        test=scaled(splits.test),
        valid=splits.valid and scaled(splits.valid),
        outputs=splits.outputs,
        readout="last",
        strata=None,
        units={"mse": "training variances", "mae": "units of the file"},
    )


def score(outputs: Float[Arrays, "B K"], batch: Batch) -> Score:
    """Judges standardised answers; both errors are means over the K numbers."""
    targets, sd = batch.targets[:, 0], batch.targets[:, 1]
    error = outputs - targets
    mse = jnp.mean(error**2, axis=-1)
    mae = jnp.mean(jnp.abs(error) * sd, axis=-1)
    return Score({"mse": mse, "mae": mae}, jnp.ones_like(mse))
