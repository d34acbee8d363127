"""Evaluation of a trained network of sequences on a split of its data."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from experiments.classify.model import dropout_of
from experiments.classify.run import Sequences
from experiments.classify.splits import split
from experiments.classify.train import evaluate as scores_of
from experiments.classify.train import make_training, take
from experiments.runs.evaluations import Evaluation, add_evaluations, open_lane
from experiments.task import Batch, Data


def evaluate_sequences(
    folder: Path, line: int = 1, part: Literal["valid", "test"] = "test"
) -> Evaluation:
    """Evaluates a lane without noise, and adds its scores to the run.

    Args:
        folder: the run.
        line: of results.jsonl, from 1.
        part: of the data; without a validation split, "valid" are the sequences that
            the lane held out, which the kept model was trained on.

    Returns:
        The mean of each score.

    Raises:
        ConfigError: the run kept no such lane.
        StorageError: the data have changed since the training, or a file is damaged.
    """
    lane = open_lane(folder, line, Sequences())
    task, data = lane.loaded.data
    rates = lane.params.pop("rates", {})
    params = {"network": lane.params, "rates": rates}
    dropout = jax.tree.map(lambda leaf: leaf[0], dropout_of([lane.config]))
    data = data.with_splits(jax.tree.map(jnp.asarray, data.splits))
    training = make_training(lane.config, task, data)
    batch = data.test if part == "test" else _validation(data, lane.config)
    scores = jax.jit(lambda p: scores_of(training, p, dropout, batch))(params)
    found = {"lane": line, "split": part}
    found |= {name: float(value) for name, value in scores.items()}
    add_evaluations(folder, [found])
    return found


def _validation(data: Data, config) -> Batch:
    """Returns the validation split, or the sequences that a lane held out."""
    if data.valid is not None:
        return data.valid
    _, held_out = split(data, config.train.validation, (config.seed, config.seeds))
    return take(data.train, held_out)
