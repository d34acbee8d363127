"""Sequences from the arrays of a NumPy archive, `.npz`.

    x        numbers [N, T, D], or [N, T] for one feature
    y        [N] classes, [N] or [N, K] numbers, or [N, T] classes, by the task
    lengths  [N], from 1 to T; without it all T steps of every sequence are valid

The arrays hold all sequences, to be split, or are named train_x, test_x and, if there
are validation sequences, valid_x, and so on.
"""

import zipfile
import zlib
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Int

from experiments.config import ConfigError
from experiments.tasks.files.parts import Kind, Part
from experiments.tasks.finite import first_bad

FIELDS = ("x", "y", "lengths")
BROKEN = (
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


def read(file: BinaryIO, data: str, kind: Kind) -> dict[str, Part]:
    """Reads the parts of an archive.

    Args:
        file: the archive.
        data: its name, for errors.
        kind: the kind of targets.

    Returns:
        The parts by name: "train", "test" and perhaps "valid", or only "all".

    Raises:
        ConfigError: an array is missing, or has a wrong dtype, shape or value.
    """
    arrays = _load(file, data)
    prefixes = _prefixes(data, arrays)
    parts = {
        split: _part(data, arrays, prefix, kind) for split, prefix in prefixes.items()
    }
    first = next(iter(prefixes))
    for split, prefix in prefixes.items():
        _same_width(data, prefix + "x", parts[split].x, parts[first].x)
        if kind == "regress":
            _same_width(data, prefix + "y", parts[split].y, parts[first].y)
    return parts


def _load(file, data) -> dict[str, np.ndarray]:
    """Reads all arrays; pickled ones are refused."""
    try:
        archive = np.load(file, allow_pickle=False)
    except BROKEN:
        archive = None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ConfigError(f"{data}: must be an archive as np.savez writes it.")
    with archive:
        return {name: _array(data, archive, name) for name in archive.files}


def _array(data, archive, name) -> np.ndarray:
    try:
        array = archive[name]
    except BROKEN as error:
        if "allow_pickle" in str(error):
            raise ConfigError(
                f"{data}: {name} must be numbers or text, got Python objects, which "
                "are not unpickled."
            ) from None
        what = " ".join(f"{name} cannot be read: {error}".split())
        raise ConfigError(f"{data}: {what}.") from None
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{data}: {name} must be an array as np.savez writes it.")
    return array


def _prefixes(data, names) -> dict[str, str]:
    """Returns the prefix of the arrays of each part."""
    there = ", ".join(sorted(names)) or "none"
    if not {"x", "train_x"} & set(names):
        raise ConfigError(f"{data}: must have an array train_x or x, got {there}.")
    prefixes = {"all": ""}
    if "x" not in names:
        prefixes = {"train": "train_", "test": "test_"}
        if any(name.startswith("valid_") for name in names):
            prefixes["valid"] = "valid_"
    for prefix in prefixes.values():
        for field in ("x", "y"):
            if prefix + field not in names:
                raise ConfigError(
                    f"{data}: must have an array {prefix + field}, got {there}."
                )
    known = [prefix + field for prefix in prefixes.values() for field in FIELDS]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{data}: unknown array {name}; there may be {', '.join(known)}."
            )
    return prefixes


def _part(data, arrays, prefix, kind) -> Part:
    x = arrays[prefix + "x"]
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3):
        raise ConfigError(
            f"{data}: {prefix}x must be numbers of shape [N, T, D] or [N, T], got "
            f"{_what(x)}."
        )
    if 0 in x.shape:
        raise ConfigError(
            f"{data}: {prefix}x must have a sequence, a step and a feature at least, "
            f"got shape {x.shape}."
        )
    lengths = _lengths(data, prefix + "lengths", arrays, *x.shape[:2])
    inside = np.arange(x.shape[1]) < lengths[:, None]
    if (bad := first_bad(x, inside)) is not None:
        axes = ("sequence", "step", "feature")[: x.ndim]
        raise ConfigError(
            f"{data}: {prefix}x{list(bad)} ({', '.join(axes)}) must be a finite "
            f"float32 number, got {x[bad]}."
        )
    features = x if x.ndim == 3 else x[..., None]
    zeroed = np.where(inside[..., None], features, 0).astype(np.float64)
    y = _targets(data, prefix + "y", arrays[prefix + "y"], x.shape, kind)
    return Part(zeroed, lengths, y, list(range(len(x))), prefix + "y")


def _lengths(data, name, arrays, count, time) -> Int[np.ndarray, "N"]:
    lengths = arrays.get(name, np.full(count, time))
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise ConfigError(
            f"{data}: {name} must be integers of shape ({count},), got "
            f"{_what(lengths)}."
        )
    outside = np.flatnonzero((lengths < 1) | (lengths > time))
    if len(outside):
        raise ConfigError(
            f"{data}: {name}[{outside[0]}] must lie in 1 to {time}, got "
            f"{lengths[outside[0]]}."
        )
    return lengths.astype(np.int64)


def _targets(data, name, y, shape, kind) -> np.ndarray:
    count, time = shape[:2]
    if kind == "regress":
        return _numbers(data, name, y, count)
    expected = (count,) if kind == "classify" else (count, time)
    if y.dtype.kind not in "biuU" or y.shape != expected:
        raise ConfigError(
            f"{data}: {name} must be integers or text of shape {expected}, got "
            f"{_what(y)}."
        )
    return y


def _numbers(data, name, y, count) -> Float[np.ndarray, "N K"]:
    columns = y[:, None] if y.ndim == 1 else y
    if y.dtype.kind not in "biuf" or columns.ndim != 2 or len(y) != count or not y.size:
        raise ConfigError(
            f"{data}: {name} must be numbers of shape ({count},) or ({count}, K), got "
            f"{_what(y)}."
        )
    if (bad := first_bad(y)) is not None:
        raise ConfigError(
            f"{data}: {name}{list(bad)} must be a finite float32 number, got {y[bad]}."
        )
    return columns.astype(np.float64)


def _same_width(data, name, values, of_first) -> None:
    if values.shape[-1] != of_first.shape[-1]:
        raise ConfigError(
            f"{data}: {name} must have {of_first.shape[-1]} columns as in training, "
            f"got {values.shape[-1]}."
        )


def _what(array) -> str:
    return f"{array.dtype} of shape {array.shape}"
