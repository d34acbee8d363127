"""Selective copying: repeat a few tokens that were hidden among many blanks.

A sequence has `options.window` steps with 8 tokens at random places and blanks between
them, and then 8 cues, at which the network answers with the tokens in their order. The
data are made here, always the same: few sequences for training, so that a network can
learn them by heart, and more for validation and test.

References:
    [1] Gu, Dao. Mamba: linear-time sequence modeling with selective state spaces. 2023.
        arXiv:2312.00752, section 4.1.1.
    [2] BorealisAI/minRNNs, data/selective_copy.py: 16 symbols, 16 tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Score
from experiments.tasks.classify import judge

__all__ = ["inputs", "load", "score"]

TOKENS, COPIED = 8, 8
BLANK, CUE = TOKENS, TOKENS + 1
SIZES = {"train": 1000, "valid": 500, "test": 1000}
SEED = 0


def load(options: Options) -> Data:
    """Makes sequences of `options.window` steps and their cues.

    Raises:
        ConfigError: there is a file, or the window does not hold the tokens.
    """
    if options.data:
        raise ConfigError(
            f"task.data: must be empty for selective_copy, got {options.data!r}."
        )
    if options.window < COPIED:
        raise ConfigError(
            f"task.window: must be at least {COPIED}, got {options.window}."
        )
    rng = np.random.default_rng(SEED)
    train, valid, test = (_make(rng, count, options.window) for count in SIZES.values())
    return Data(
        train=train,
        test=test,
        valid=valid,
        outputs=TOKENS,
        readout="each",
        strata=None,
        units={"nll": "nats per token", "accuracy": ""},
        source=f"made by selective_copy.py: {SIZES['train']} training sequences",
    )


def inputs(batch: Batch) -> Float[Array, "B T D"]:
    """Returns one-hot vectors of tokens, blank and cue."""
    return jax.nn.one_hot(batch.inputs, TOKENS + 2, dtype=jnp.float32)


def score(outputs: Float[Arrays, "B T C"], batch: Batch) -> Score:
    """Judges the answers at the cues by log-likelihood and accuracy."""
    answers, wanted = outputs[:, -COPIED:], batch.targets[:, -COPIED:]
    nll, accuracy = judge(answers, wanted)
    return Score(
        {"nll": nll.mean(axis=1), "accuracy": accuracy.mean(axis=1)},
        jnp.ones(len(nll), nll.dtype),
    )


def _make(rng, count, window) -> Batch:
    """Draws tokens and their places; before the cues, targets are 0 and not judged."""
    tokens = rng.integers(TOKENS, size=(count, COPIED)).astype(np.uint8)
    places = np.sort(rng.random((count, window)).argsort(axis=1)[:, :COPIED], axis=1)
    steps = np.full((count, window + COPIED), BLANK, np.uint8)
    np.put_along_axis(steps, places, tokens, axis=1)
    steps[:, window:] = CUE
    targets = np.zeros_like(steps)
    targets[:, window:] = tokens
    return Batch(steps, np.full(count, window + COPIED, np.int32), targets)
