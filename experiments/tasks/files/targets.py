"""Targets of a file as classes from 0, or as numbers that vary."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from experiments.config import ConfigError
from experiments.tasks.files.parts import Part


def classes(data: str, parts: dict[str, Part]) -> tuple[dict[str, Part], int]:
    """Numbers the classes of the training part from 0, in sorted order.

    Returns:
        The parts with int32 targets, 0 in padding, and the number of classes.

    Raises:
        ConfigError: training has fewer than two classes, or another part has a class
            that training lacks.
    """
    train = parts["train"]
    names = sorted(set(train.y[_counted(train)].tolist()))
    if len(names) < 2:
        raise ConfigError(
            f"{data}: {train.target} must have at least two classes in training, got "
            f"only {names[0]!r}."
        )
    number = {name: i for i, name in enumerate(names)}
    return {name: _code(data, part, number) for name, part in parts.items()}, len(names)


def numbers(data: str, parts: dict[str, Part]) -> tuple[dict[str, Part], int]:
    """Returns the parts and the count K of numbers, each of which must vary.

    Raises:
        ConfigError: a number is the same for all training sequences, or nearly so.
    """
    train = parts["train"]
    constant = np.flatnonzero(train.y.min(axis=0) == train.y.max(axis=0))
    if len(constant):
        raise ConfigError(
            f"{data}: {train.target} must vary among training sequences, got only "
            f"{train.y[0, constant[0]]} for number {constant[0]}."
        )
    sd = train.y.std(axis=0)
    if len(tiny := np.flatnonzero(sd.astype(np.float32) == 0)):
        raise ConfigError(
            f"{data}: {train.target} must vary among training sequences by more than "
            f"float32 can hold, got a standard deviation of {sd[tiny[0]]:g} for number "
            f"{tiny[0]}."
        )
    return parts, train.y.shape[1]


def _counted(part: Part) -> Bool[np.ndarray, "..."]:
    """Returns which targets are not padding."""
    return part.inside if part.y.ndim == 2 else np.ones(part.y.shape, bool)


def _code(data: str, part: Part, number: dict[Any, int]) -> Part:
    counted = _counted(part)
    names = part.y[counted].tolist()
    for name, place in zip(names, np.argwhere(counted), strict=True):
        if name not in number:
            step = f", step {place[1]}," if len(place) == 2 else ""
            raise ConfigError(
                f"{data}: {part.target} of sequence {part.ids[place[0]]!r}{step} must "
                f"be a class of the training sequences, got {name!r}."
            )
    coded = np.zeros(part.y.shape, np.int32)
    coded[counted] = [number[name] for name in names]
    return part._replace(y=coded)
