"""Prediction of the next character of a text file, at each step.

The text is cut in order into 90 % for training, 5 % for validation and 5 % for test,
and each part into windows; the network reads every window with a new carry. The last
window of a part may be shorter. The vocabulary has the characters of the training part
and one symbol for all others.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Batch, Data
from experiments.tasks.label import score
from experiments.text import read_text

__all__ = ["inputs", "load", "score"]


def load(options: Options) -> Data:
    """Reads the UTF-8 text `options.data` in windows of `options.window` characters.

    Raises:
        ConfigError: the file cannot be read, or is too short for the window.
    """
    if options.window < 2:
        raise ConfigError(f"task.window: must be at least 2, got {options.window}.")
    parts = _cut(_read(options.data))
    shortest = min(map(len, parts))
    if shortest <= options.window:
        raise ConfigError(
            f"{options.data}: validation, 5 % of the text, must have at least window "
            f"+ 1 = {options.window + 1} characters, got {shortest}."
        )
    vocabulary = np.unique(parts[0])
    if len(vocabulary) < 2:
        raise ConfigError(
            f"{options.data}: must have at least two different characters, got only "
            f"{chr(vocabulary[0])!r}."
        )
    train, valid, test = (
        _windows(_number(part, vocabulary), options.window, len(vocabulary) + 1)
        for part in parts
    )
    return Data(
        train=train,
        test=test,
        valid=valid,
        outputs=len(vocabulary) + 1,
        readout="each",
        strata=None,
        units={"nll": "nats per character", "accuracy": ""},
    )


def inputs(batch: Batch) -> Float[Array, "B T D"]:
    """Returns one-hot vectors, padded with zeros to a multiple of eight."""
    return jnp.unpackbits(jnp.asarray(batch.inputs), axis=-1).astype(jnp.float32)


def _read(data: str) -> str:
    if not data:
        raise ConfigError("task.data: must name a text file, got ''.")
    return read_text(Path(data))


def _cut(text: str) -> list[Int[np.ndarray, "_"]]:
    """Returns the code points of the parts for training, validation and test."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
    return np.split(points, [len(points) * 90 // 100, len(points) * 95 // 100])


def _number(
    points: Int[np.ndarray, "n"], vocabulary: Int[np.ndarray, "V"]
) -> Int[np.ndarray, "n"]:
    """Returns the place of each character in the vocabulary, V if it is not there."""
    places = np.searchsorted(vocabulary, points)
    found = vocabulary[np.minimum(places, len(vocabulary) - 1)] == points
    return np.where(found, places, len(vocabulary))


def _windows(symbols: Int[np.ndarray, "n"], window: int, outputs: int) -> Batch:
    """Cuts symbols into windows that predict their next ones.

    Inputs are stored as the bits of one-hot vectors: they are small, and the width of
    the network's input follows from the shape.
    """
    steps = len(symbols) - 1
    starts = np.arange(0, steps, window)
    lengths = np.minimum(window, steps - starts).astype(np.int32)
    inside = np.arange(window) < lengths[:, None]
    bits = np.packbits(np.eye(outputs, dtype=np.uint8), axis=1)
    packed = np.zeros((*inside.shape, bits.shape[1]), np.uint8)
    packed[inside] = bits[symbols[:-1]]
    targets = np.zeros(inside.shape, np.int32)
    targets[inside] = symbols[1:]
    return Batch(packed, lengths, targets)
