"""A complete task: the adding problem (Hochreiter and Schmidhuber 1997).

Each step has a random number and a mark. Two steps are marked, and the answer is the
sum of their numbers; always answering 1, the mean, scores a squared error of 1/6.

    python -m experiments ablate configs/regress.toml --task.name examples/own_task.py
"""

import jax.numpy as jnp
import numpy as np

from experiments.task import Batch, Data, Score

STEPS = 30


def load(options):
    """Returns 2000 sequences for training, 500 for validation and 500 for test."""
    rng = np.random.default_rng(0)
    return Data(
        train=_sequences(rng, 2000),
        valid=_sequences(rng, 500),
        test=_sequences(rng, 500),
        outputs=1,
        readout="last",
        strata=None,
        units={"mse": ""},
    )


def inputs(batch):
    """Returns the inputs of the network, [B, T, 2]."""
    return batch.inputs


def score(outputs, batch):
    """Returns the squared error of the answers [B, 1]; all sequences weigh the same."""
    mse = (outputs[:, 0] - batch.targets) ** 2
    return Score(values={"mse": mse}, weight=jnp.ones_like(mse))


def _sequences(rng, count):
    numbers = rng.uniform(size=(count, STEPS))
    marks = np.zeros((count, STEPS))
    for row in marks:
        row[rng.choice(STEPS, size=2, replace=False)] = 1
    return Batch(
        inputs=np.stack([numbers, marks], axis=-1).astype(np.float32),
        lengths=np.full(count, STEPS, np.int32),
        targets=(numbers * marks).sum(axis=1).astype(np.float32),
    )
