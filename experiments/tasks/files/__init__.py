"""Sequences from a user's file, checked, split and standardised.

There are two formats, which the README of `experiments.tasks` shows: `.npz`, arrays of
padded sequences, and `.csv`, one row per step. Errors in a file are reported in one
line with their location; sequences and steps are counted from 0, lines from 1.

Features are standardised by the mean and the standard deviation of all training steps;
a feature that is constant in training is only centred.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Batch
from experiments.tasks.files import npz, table
from experiments.tasks.files.parts import Kind, Part
from experiments.tasks.files.targets import classes, numbers

READERS = {".npz": npz.read, ".csv": table.read}


class Splits(NamedTuple):
    """The first four fields of `Data`; `valid` is None if the file has no such part.

    Targets are classes 0 to C - 1 in the sorted order of their names, [N] or [N, T], or
    numbers [N, K] in the units of the file. `outputs` is C or K.
    """

    train: Batch
    test: Batch
    valid: Batch | None
    outputs: int


def read(options: Options, kind: Kind) -> Splits:
    """Reads the sequences of a file.

    Args:
        options: `data` is the file; `test` the share of the sequences to set aside for
            test if the file has no splits, always the same ones.
        kind: "classify" for one class per sequence, "regress" for K numbers per
            sequence, "label" for one class per step.

    Raises:
        ConfigError: the file cannot be read or is not valid.
    """
    parts = _read(options.data, kind)
    if "all" in parts:
        parts = _set_aside(options, parts["all"], kind)
    code = numbers if kind == "regress" else classes
    parts, outputs = code(options.data, parts)
    batches = _standardise(parts)
    return Splits(batches["train"], batches["test"], batches.get("valid"), outputs)


def _read(data: str, kind: Kind) -> dict[str, Part]:
    if not data:
        raise ConfigError("task.data: must name a .npz or .csv file, got ''.")
    path = Path(data)
    try:
        with path.open("rb") as file:
            if path.suffix.lower() not in READERS:
                raise ConfigError(f"{data}: must be a .npz or .csv file.")
            return READERS[path.suffix.lower()](file, data, kind)
    except OSError as error:
        raise ConfigError(f"{data}: {error.strerror or error}.") from None
    except ValueError as error:  # no file has such a name
        raise ConfigError(f"{data!r}: {error}.") from None


def _set_aside(options: Options, part: Part, kind: Kind) -> dict[str, Part]:
    """Splits into training and test; if sequences have classes, by class."""
    groups = np.zeros(len(part.lengths), np.int64)
    if kind == "classify":
        groups = np.unique(part.y, return_inverse=True)[1]
    test = _choose(groups, options.test)
    if not len(test):
        raise ConfigError(
            f"{options.data}: task.test must set aside at least one of "
            f"{len(groups)} sequences, got {options.test}."
        )
    train = np.setdiff1d(np.arange(len(groups)), test)
    return {"train": part.take(train), "test": part.take(test)}


def _choose(groups: Int[np.ndarray, "N"], share: float) -> Int[np.ndarray, "n"]:
    """Chooses a share of each group at random, the same at every call.

    Returns:
        Ascending indices. One of each group is never chosen.
    """
    order = np.random.default_rng(0).permutation(len(groups))
    rank = np.empty(len(groups))  # among its group, from 0 to 1
    for group in np.unique(groups):
        members = order[groups[order] == group]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        rank[members[-1]] = np.inf
    count = min(round(share * len(groups)), int(np.isfinite(rank).sum()))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def _standardise(parts: dict[str, Part]) -> dict[str, Batch]:
    train = parts["train"]
    steps = train.x[train.inside]
    mean, sd = steps.mean(axis=0), steps.std(axis=0)
    constant = (steps.min(axis=0) == steps.max(axis=0)) | (sd == 0)
    sd = np.where(constant, 1, sd)
    batches = {}
    with np.errstate(over="ignore"):  # a task checks the result
        for name, part in parts.items():
            scaled = np.where(part.inside[..., None], (part.x - mean) / sd, 0)
            lengths = part.lengths.astype(np.int32)
            batches[name] = Batch(scaled.astype(np.float32), lengths, part.y)
    return batches
