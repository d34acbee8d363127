"""Table: sequences from a `.csv` in long form, one row a step.

    sequence  the name of the sequence; its rows are its steps in order
    split     train, valid or test, the same in a whole sequence; may be left out
    target    the class, or the number, or the class of the step, by the task
    ...       every other column is a feature, a number

A sequence's target is the same in all its rows, but where each step has a class. To
learn several numbers at once, call their columns target_...
"""

import csv
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.config import ConfigError
from experiments.tasks.files.parts import LARGEST, Kind, Part

SPLITS = ("train", "valid", "test")


class Columns(NamedTuple):
    """The columns of a table by their names: where each stands in a row."""

    width: int
    sequence: int
    split: dict[str, int]
    targets: dict[str, int]
    features: dict[str, int]


class Sequence(NamedTuple):
    """The rows of a sequence so far.

    `fixed` holds, by column, what must be the same in all of them.
    """

    fixed: dict[str, str | float]
    features: list[list[float]]
    labels: list[str]


def read(file: BinaryIO, data: str, kind: Kind) -> dict[str, Part]:
    """Reads the parts of a table.

    Args:
        file: the table.
        data: its name, for messages.
        kind: what the targets are.

    Returns:
        The parts by name: "train", "test" and perhaps "valid", or only "all".

    Raises:
        ConfigError: the table is not as this module says.
    """
    rows = _rows(file, data)
    _, header = next(rows, (0, []))
    names = [" ".join(name.split()) for name in header]  # some span several lines
    columns = _columns(data, names, kind)
    sequences: dict[str, Sequence] = {}
    for line, cells in rows:
        _add(sequences, columns, cells, f"{data}:{line}", kind)
    if not sequences:
        raise ConfigError(f"{data}: must have rows below its header.")
    whole = _part(data, sequences, columns, kind)
    if not columns.split:
        return {"all": whole}
    return _split(data, sequences, whole)


def _rows(file, data) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each row's line, and its cells; empty rows are left out."""
    reader = csv.reader(line.decode("utf-8-sig") for line in file)
    try:
        for cells in reader:
            if any(cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{data}:{reader.line_num + 1}: must be UTF-8 text, got byte "
            f"{error.object[error.start]:#04x}."
        ) from None
    except csv.Error as error:
        raise ConfigError(f"{data}:{reader.line_num}: not a .csv: {error}.") from None


def _columns(data, header, kind) -> Columns:
    if not header:
        raise ConfigError(f"{data}: must have a header, got an empty file.")
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise ConfigError(
                f"{data}: column {place + 1} must have a name of its own, got {name!r}."
            )
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
                f"{data}: must have a column {name}, got {', '.join(header)}."
            )
    if kind != "regress" and targets != ["target"]:
        raise ConfigError(
            f"{data}: must have one column target, got {', '.join(targets)}."
        )
    return Columns(
        width=len(header),
        sequence=places["sequence"],
        split={name: places[name] for name in ("split",) if name in places},
        targets={name: places[name] for name in targets},
        features={name: places[name] for name in features},
    )


def _add(sequences, columns, cells, place, kind) -> None:
    """Adds a row to its sequence."""
    if len(cells) != columns.width:
        raise ConfigError(
            f"{place}: must have {columns.width} cells as the header has, got "
            f"{len(cells)}."
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
    sequence = sequences.setdefault(name, Sequence(fixed, [], []))
    for column, value in fixed.items():
        if value != sequence.fixed[column]:
            raise ConfigError(
                f"{place}: {column} must be the same in all rows of sequence {name!r}, "
                f"got {value!r} after {sequence.fixed[column]!r}."
            )
    sequence.features.append(
        [_number(cells[at], column, place) for column, at in columns.features.items()]
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
        return _number(cell, column, place)
    if not cell:
        raise ConfigError(f"{place}: {column} must name a class, got an empty cell.")
    return cell


def _number(cell, column, place) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = float("nan")
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
        named = _classes(data, labels, np.repeat(list(sequences), lengths))
        y = np.zeros(inside.shape, named.dtype)
        y[inside] = named
    return Part(x, lengths, y, list(sequences), "target")


def _classes(data, names, sequences) -> np.ndarray:
    """Returns the names of classes, as integers where all of them are."""
    try:
        return np.array([int(name) for name in names])
    except ValueError:
        pass
    if all(_is_number(name) for name in names):
        first = next(
            i for i, name in enumerate(names) if not name.lstrip("+-").isdigit()
        )
        raise ConfigError(
            f"{data}: target of sequence {str(sequences[first])!r} must be an integer "
            f"or text, got {names[first]!r}."
        )
    return np.array(names)


def _is_number(text) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
