"""Sequences from a table in long form, `.csv`, one row per step.

    sequence  the name of the sequence; its rows are its steps in order
    split     train, valid or test, the same in a whole sequence; optional
    target    the class, or the number, or the class of the step, by the task
    ...       every other column is a feature, a number

A target is the same in all rows of a sequence, except classes of steps. To learn
several numbers at once, name their columns target_...

Classes are integers if all of them are written as Python writes integers; otherwise
their names stay text, so that "01" and "1" are two classes.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.config import ConfigError
from experiments.tasks.files.parts import Kind, Part
from experiments.tasks.finite import LARGEST

SPLITS = ("train", "valid", "test")
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # of 64 bits
DIGITS = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = ("nan", "inf", "infinity")


class Columns(NamedTuple):
    """The place in a row of each column, by its name."""

    width: int
    sequence: int
    split: dict[str, int]
    targets: dict[str, int]
    features: dict[str, int]


class SequenceRows(NamedTuple):
    """The rows of a sequence so far.

    Attributes:
        fixed: values that all rows share, by column.
        features: of each row.
        labels: classes of the steps.
    """

    fixed: dict[str, str | float]
    features: list[list[float]]
    labels: list[str]


def read(file: BinaryIO, data: str, kind: Kind) -> dict[str, Part]:
    """Reads the parts of a table.

    Args:
        file: the table.
        data: its name, for errors.
        kind: the kind of targets.

    Returns:
        The parts by name: "train", "test" and perhaps "valid", or only "all".

    Raises:
        ConfigError: the table has another form, or a wrong value.
    """
    rows = read_rows(file, data)
    _, header = next(rows, (0, []))
    columns = _columns(data, read_header(data, header), kind)
    sequences: dict[str, SequenceRows] = {}
    for line, cells in rows:
        _add(sequences, columns, cells, f"{data}:{line}", kind)
    if not sequences:
        raise ConfigError(f"{data}: must have rows below its header.")
    whole = _part(data, sequences, columns, kind)
    if not columns.split:
        return {"all": whole}
    return _split(data, sequences, whole)


def read_rows(file: BinaryIO, data: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each row's line, and its cells; empty rows are skipped."""
    reader = csv.reader(_decoded(file, data))
    try:
        for cells in reader:
            if any(cells):
                yield reader.line_num, [cell.strip(" \t") for cell in cells]
    except csv.Error as error:
        raise ConfigError(f"{data}:{reader.line_num}: not a .csv: {error}.") from None


def _decoded(file: BinaryIO, data: str) -> Iterator[str]:
    """Yields the lines as text; a byte order mark may precede the first one."""
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{data}:{number}: must be UTF-8 text, got byte "
                f"{error.object[error.start]:#04x}."
            ) from None
        if "\0" in text:
            raise ConfigError(f"{data}:{number}: must be UTF-8 text, got byte 0x00.")
        yield text


def read_header(data: str, cells: list[str]) -> list[str]:
    """Returns the names of the columns, of which some span several lines.

    Raises:
        ConfigError: the file is empty, has one column, or repeats a name.
    """
    if not cells:
        raise ConfigError(f"{data}: must have a header, got an empty file.")
    if len(cells) == 1:
        raise ConfigError(
            f"{data}: must have commas between the columns of its header, got "
            f"{cells[0]!r}."
        )
    header = [re.sub(r"[ \r\n]+", " ", name) for name in cells]
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise ConfigError(
                f"{data}: column {place + 1} must have a name of its own, got {name!r}."
            )
    return header


def _columns(data: str, header: list[str], kind: Kind) -> Columns:
    places = {name: place for place, name in enumerate(header)}
    targets = [name for name in header if name.split("_")[0] == "target"]
    features = [n for n in header if n not in {"sequence", "split", *targets}]
    for name, there in (
        ("sequence", "sequence" in places),
        ("target", targets),
        ("of features", features),
    ):
        if not there:
            raise ConfigError(
                f"{data}: must have a column {name}, got {_listed(header)}."
            )
    if kind != "regress" and targets != ["target"]:
        raise ConfigError(
            f"{data}: must have one column target, got {_listed(targets)}."
        )
    return Columns(
        width=len(header),
        sequence=places["sequence"],
        split={name: places[name] for name in ("split",) if name in places},
        targets={name: places[name] for name in targets},
        features={name: places[name] for name in features},
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names).replace("\t", "\\t")


def _add(sequences, columns, cells, place, kind) -> None:
    """Adds a row to its sequence."""
    if len(cells) != columns.width:
        one = f": {cells[0]!r}" if len(cells) == 1 else ""
        raise ConfigError(
            f"{place}: must have {columns.width} cells, as the header has, separated "
            f"by commas, got {len(cells)}{one}."
        )
    fixed: dict[str, str | float] = {
        name: _split_name(cells[at], place) for name, at in columns.split.items()
    }
    targets = {
        name: _target(cells[at], name, place, kind)
        for name, at in columns.targets.items()
    }
    if kind != "label":
        fixed |= targets
    name = cells[columns.sequence]
    if not name:
        raise ConfigError(f"{place}: sequence must have a name, got an empty cell.")
    sequence = sequences.setdefault(name, SequenceRows(fixed, [], []))
    for column, value in fixed.items():
        if value != sequence.fixed[column]:
            raise ConfigError(
                f"{place}: {column} must be the same in all rows of sequence {name!r}, "
                f"got {value!r} after {sequence.fixed[column]!r}."
            )
    sequence.features.append(
        [
            read_number(cells[at], column, place)
            for column, at in columns.features.items()
        ]
    )
    sequence.labels.extend(targets.values() if kind == "label" else ())


def _split_name(cell, place) -> str:
    if cell not in SPLITS:
        raise ConfigError(
            f"{place}: split must be one of {', '.join(SPLITS)}, got {cell!r}."
        )
    return cell


def _target(cell, column, place, kind) -> str | float:
    if kind == "regress":
        return read_number(cell, column, place)
    if not cell:
        raise ConfigError(f"{place}: {column} must name a class, got an empty cell.")
    return cell


def read_number(cell: str, column: str, place: str) -> float:
    """Returns the number in a cell; raises a ConfigError if it is not finite."""
    number = float(cell) if NUMBER.fullmatch(cell) else np.nan
    if not abs(number) <= LARGEST:
        raise ConfigError(
            f"{place}: {column} must be a finite float32 number, got {cell!r}."
        )
    return number


def _part(data, sequences, columns, kind) -> Part:
    rows = sequences.values()
    lengths = np.array([len(row.features) for row in rows])
    inside = np.arange(lengths.max()) < lengths[:, None]
    x = np.zeros((*inside.shape, len(columns.features)))
    x[inside] = np.concatenate([row.features for row in rows])
    if kind == "regress":
        y = np.array([[row.fixed[name] for name in columns.targets] for row in rows])
    elif kind == "classify":
        y = _classes(data, [row.fixed["target"] for row in rows], list(sequences))
    else:
        labels = [label for row in rows for label in row.labels]
        named = _classes(data, labels, np.repeat(list(sequences), lengths).tolist())
        y = np.zeros(inside.shape, named.dtype)
        y[inside] = named
    return Part(x, lengths, y, list(sequences), "target")


def _classes(data: str, names: list[str], sequences: Sequence[str]) -> np.ndarray:
    """Returns the names of classes, as integers if all of them are."""
    if all(INTEGER.fullmatch(name) for name in names):
        return np.array([int(name) for name in names])
    others = [n for n, name in enumerate(names) if not DIGITS.fullmatch(name)]
    if others and all(_is_number(name) for name in names):
        raise ConfigError(
            f"{data}: target of sequence {str(sequences[others[0]])!r} must be an "
            f"integer or text, got {names[others[0]]!r}."
        )
    return np.array(names)


def _is_number(name: str) -> bool:
    return bool(NUMBER.fullmatch(name)) or name.lower().lstrip("+-") in NOT_FINITE


def _split(data, sequences, whole) -> dict[str, Part]:
    of = np.array([sequence.fixed["split"] for sequence in sequences.values()])
    for split in ("train", "test"):
        if split not in of:
            raise ConfigError(
                f"{data}: split must be {split} for at least one sequence, got "
                f"{', '.join(sorted(set(of.tolist())))}."
            )
    return {
        split: whole.take(np.flatnonzero(of == split))
        for split in SPLITS
        if split in of
    }
