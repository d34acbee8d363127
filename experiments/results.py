"""Results: the line that is written of each lane, and what it was computed with."""

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rdrop
from experiments.axes import Lane
from experiments.devices import local
from experiments.train import NEVER

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
FINAL = ("finished", "diverged")
WHOLE = "What was stored before is whole; the same command goes on from there."


class StorageError(Exception):
    """What is stored cannot be written or read; its text is the one line to show."""


@functools.cache
def environment() -> dict[str, dict]:
    """What the numbers may depend on besides the config: versions and platform."""
    return {
        "versions": {"python": platform.python_version(), "rdrop": rdrop.__version__}
        | {name: version(name) for name in PACKAGES},
        "platform": {
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "machine": f"{platform.system()} {platform.machine()}",
            "prng": str(jax.random.key_impl(jax.random.key(0))),
        },
    }


def records(
    lanes: Sequence[Lane], names: Sequence[str], state: Any, evaluations: int
) -> dict[int, dict]:
    """Returns a plain record of each lane that this process holds, by its place.

    Args:
        lanes: those of the state; what fills it up behind them has no record.
        names: of the metrics, in the order to write.
        state: `experiments.sweep.State`.
        evaluations: how many of them are done.
    """
    train = lanes[0].config.train
    epochs = evaluations * train.evaluate_every
    models = [model for model in state.models if model is not None]
    steps = [local(model.diverged_at) for model in models]
    history = {name: local(state.history[name]) for name in names}
    whole = epochs == train.epochs
    prints = fingerprints([m.params for m in models], len(lanes)) if whole else {}

    def line(place):
        diverged = [int(s[place]) for s in steps if s[place] != NEVER]
        metrics = {name: history[name][place][:evaluations] for name in names}
        at = [(n + 1) * train.evaluate_every for n in range(evaluations)]
        ended = prints.get(place)
        return record(lanes[place], at, metrics, min(diverged, default=None), ended)

    return {place: line(place) for place in steps[0] if place < len(lanes)}


def record(
    lane: Lane,
    evaluated_at: list[int],
    metrics: Mapping[str, Any],
    diverged_at: int | None,
    parameters: str | None,
) -> dict:
    """Returns a plain record of a lane.

    Args:
        lane: which.
        evaluated_at: the epoch of each evaluation.
        metrics: arrays of figures by name.
        diverged_at: the step at which it did.
        parameters: their fingerprint if it has ended.
    """
    return {
        "setting": lane.setting,
        "seed": lane.config.seeds,
        "status": _status(parameters is not None, diverged_at),
        "diverged_at": diverged_at,
        "epochs": evaluated_at[-1] if evaluated_at else 0,
        "evaluated_at": evaluated_at,
        "metrics": {name: _plain(values) for name, values in metrics.items()},
        "parameters": parameters,
    } | environment()


def fingerprints(params: Any, count: int) -> dict[int, str]:
    """Returns a hash of the parameters of each of the first lanes that are here."""
    rows = [local(leaf) for leaf in jax.tree.leaves(params)]
    return {
        place: fingerprint([row[place] for row in rows])
        for place in rows[0]
        if place < count
    }


def fingerprint(values: Any) -> str:
    """Returns a hash of a pytree of arrays."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(values)]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()[:16]


def write(path: Path, lines: Iterable[dict]) -> None:
    """Writes JSON lines; the file is the old one or the new one, never half of it.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all; raises as `write`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all; raises as `write`."""
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = f"cannot be written: {error.strerror}."
        raise StorageError(f"{path}: {reason} {WHOLE}") from None


def read(path: Path) -> list[dict]:
    """Reads JSON lines; none where there is no file yet.

    Raises:
        StorageError: a line is not JSON.
    """
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            raise StorageError(f"{path}:{number}: not a line of JSON.") from None
    return lines


class Store:
    """The lines of a run on disk, each at the place of its lane.

    Each process writes a file of its own; `merge` makes one of them.
    """

    def __init__(self, folder: Path, lanes: Sequence[Lane]):
        """Reads the lines there are; those of lanes that ended stay as they are."""
        self.folder = folder
        self._places = {
            _identity(lane.setting, lane.config.seeds): place
            for place, lane in enumerate(lanes)
        }
        self.ended: dict[int, dict] = {}
        self._own: dict[int, dict] = {}
        for path in self._paths():
            found = self._read(path)
            ended = {p: line for p, line in found.items() if line["status"] in FINAL}
            self.ended |= ended
            if _owner(path) == jax.process_index():
                self._own |= ended

    def keep(self, lines: Mapping[int, dict]) -> None:
        """Stores the lines of some lanes, by place, beside those of the others."""
        self._own |= lines
        self.ended |= {p: line for p, line in lines.items() if line["status"] in FINAL}
        name = f"results.{jax.process_index()}.jsonl"
        path = self.folder / (name if jax.process_count() > 1 else "results.jsonl")
        write(path, [self._own[place] for place in sorted(self._own)])

    def merge(self) -> None:
        """Makes one file of those of all processes, which are removed then."""
        whole, *parts = self._paths()
        if not parts:
            return
        lines: dict[int, dict] = {}
        for path in (whole, *parts):
            lines |= self._read(path)
        write(whole, [lines[place] for place in sorted(lines)])
        for path in parts:
            path.unlink()

    def _read(self, path: Path) -> dict[int, dict]:
        """The lines of a file by the places of their lanes."""
        return {
            self._places[_identity(line["setting"], line["seed"])]: line
            for line in read(path)
        }

    def _paths(self):
        return [
            self.folder / "results.jsonl",
            *sorted(self.folder.glob("results.*.jsonl")),
        ]


def _owner(path: Path) -> int:
    """The process that writes a file; the first, where that takes no part any more."""
    number = path.suffixes[0].removeprefix(".")
    there = number.isdecimal() and int(number) < jax.process_count()
    return int(number) if there else 0


def _identity(setting: dict, seed: int) -> str:
    return json.dumps([setting, seed], sort_keys=True)


def _status(whole: bool, diverged_at: int | None) -> str:
    if not whole:
        return "interrupted"
    return "finished" if diverged_at is None else "diverged"


def _plain(values) -> list[float | None]:
    """The shortest decimals that read back as the same float32; None if not finite."""
    flat = np.asarray(values, np.float32).reshape(-1)
    return [float(str(value)) if np.isfinite(value) else None for value in flat]
