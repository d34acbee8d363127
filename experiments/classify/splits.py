"""Validation splits: the training sequences that a seed holds out."""

import numpy as np
from jaxtyping import Int

from experiments.config import ConfigError, Train
from experiments.task import Data


def split(
    data: Data, share: float, seed: tuple[int, ...]
) -> tuple[Int[np.ndarray, "fit"], Int[np.ndarray, "valid"]]:
    """Splits the training sequences at random into those to fit and to validate on.

    Args:
        data: the data; the same share of each stratum is held out.
        share: in (0, 1).
        seed: seed of the split.

    Returns:
        Ascending indices of the two parts.
    """
    strata = _strata(data)
    order = np.random.default_rng(seed).permutation(len(strata))
    groups = [order[strata[order] == group] for group in np.unique(strata)]
    held_out = [group[: _count(group, share)] for group in groups]
    valid = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(strata)), valid), valid


def check_sizes(train: Train, data: Data) -> None:
    """Raises a ConfigError if there are too few sequences for the config."""
    total = left = len(data.train.lengths)
    if data.valid is None:
        _, sizes = np.unique(_strata(data), return_counts=True)
        held_out = sum(_count(range(size), train.validation) for size in sizes)
        if not 0 < held_out < total:
            raise ConfigError(
                f"train.validation: must hold out some of {total} training sequences "
                f"and leave some, got {train.validation:g}, which is {held_out}."
            )
        left -= held_out
    if train.batch > left:
        raise ConfigError(
            f"train.batch: must be at most {left}, the sequences left to train on, "
            f"got {train.batch}."
        )


def _strata(data: Data) -> Int[np.ndarray, "N"]:
    return (
        np.zeros(len(data.train.lengths), int) if data.strata is None else data.strata
    )


def _count(group, share: float) -> int:
    return round(len(group) * share)
