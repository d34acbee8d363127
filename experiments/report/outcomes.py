"""Outcomes: what a finished or interrupted run left in its folder, as arrays.

Only files are read: `results.jsonl`, a line a lane, and where they are there `run.json`
and `config.toml`. Settings are chosen by validation figures; test figures are reported.

Shapes:
    S settings in the order of the sweep, N seeds, E evaluations, or epochs for training
    losses. NaN stands where a lane is missing, stopped earlier, or is not finite.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from experiments.config import ConfigError

Value: TypeAlias = float | int | str
Setting: TypeAlias = dict[str, Value]
RATE = re.compile(r"dropout\.([^.]+\.)?rate")
PLANE = ("dropout.inputs.rate", "dropout.recurrent.rate")


class Trouble(NamedTuple):
    """A lane without a final figure.

    Attributes:
        setting, seed: its indices.
        at: the training step it diverged at, or the epoch it stopped after; None where
            that is not known.
    """

    setting: int
    seed: int
    at: int | None


@dataclass(frozen=True)
class Outcomes:
    """The lanes of one run, laid out by setting and seed.

    Attributes:
        folder: where they were read from.
        config: text of the resolved config.
        run: what `run.json` says: command, task, programs.
        axes: values of each field that has several, by its dotted path.
        settings: the value of each axis, S of them.
        seeds: N of them.
        evaluated_at: epoch of each evaluation.
        metrics: by name, [S, N, E].
        diverged: lanes that diverged; their final figures do not count.
        stopped: lanes that ended before the last evaluation of the run, or are missing.
        interrupted: whether somebody stopped the run.
        environments: versions and platforms the lanes were trained with.
    """

    folder: Path
    config: str
    run: dict[str, Any]
    axes: dict[str, tuple[Value, ...]]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    evaluated_at: Int[np.ndarray, "E"]
    metrics: dict[str, Float[np.ndarray, "S N _"]]
    diverged: tuple[Trouble, ...]
    stopped: tuple[Trouble, ...]
    interrupted: bool
    environments: tuple[dict, ...]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def task(self) -> dict[str, Any]:
        """What `run.json` says of the task."""
        return self.run.get("task", {})

    @property
    def loss(self) -> str:
        """The name of the loss: "nll" where the metrics are train_nll, test_nll, ..."""
        trained = (m for m in self.metrics if m.startswith("train_"))
        return self.task.get("loss") or next(trained).removeprefix("train_")

    def epochs(self, metric: str) -> Int[np.ndarray, "E"]:
        """The epoch of each figure of a metric; training metrics have one an epoch."""
        if metric.startswith("train_"):
            return np.arange(1, self.metrics[metric].shape[-1] + 1)
        return self.evaluated_at

    def final(self, metric: str) -> Float[np.ndarray, "S N"]:
        """The last evaluation of every lane; NaN for those that diverged."""
        values = self.metrics[metric][..., -1].copy()
        for lane in self.diverged:
            values[lane.setting, lane.seed] = np.nan
        return values

    def best(self, among: Iterable[int] | None = None) -> int | None:
        """Chooses the setting with the lowest mean validation loss.

        Args:
            among: indices of the candidates; None are all.

        Returns:
            Its index; None where no candidate has a finite loss at every seed.
        """
        loss = self.final(f"valid_{self.loss}").mean(axis=1)
        candidates = range(len(self.settings)) if among is None else among
        finite = [s for s in candidates if np.isfinite(loss[s])]
        return min(finite, key=loss.__getitem__, default=None)

    def lowest_rates(self) -> Setting:
        """The rate axes, each with its value in a baseline: 0, or else its lowest."""
        numeric = {p: _numbers(v) for p, v in self.axes.items() if RATE.fullmatch(p)}
        return {p: 0 if 0 in v else min(v) for p, v in numeric.items() if v}

    def baseline(self, setting: int) -> int | None:
        """The setting that differs from this one by having the lowest rates.

        Without a rate axis it is the first setting of all.

        Returns:
            Its index, that of `setting` itself if it is one; None if it is missing.
        """
        lowest = self.lowest_rates()
        return self.index(self.settings[setting] | lowest) if lowest else 0

    def index(self, setting: Setting) -> int | None:
        """The index of a setting, None if the run has none like it."""
        return next((s for s, v in enumerate(self.settings) if v == setting), None)

    def numeric(self) -> list[str]:
        """The axes whose values are all numbers."""
        return [p for p, values in self.axes.items() if values == _numbers(values)]

    def split(self, *paths: str) -> list[tuple[Setting, list[int]]]:
        """Groups the settings that differ in nothing but the axes `paths`.

        Returns:
            For each group, the axes it has in common and the indices of its settings.
        """
        groups: list[tuple[Setting, list[int]]] = []
        for s, setting in enumerate(self.settings):
            rest = {p: v for p, v in setting.items() if p not in paths}
            for common, members in groups:
                if common == rest:
                    members.append(s)
                    break
            else:
                groups.append((rest, [s]))
        return groups

    def is_plane(self) -> bool:
        """Whether exactly the two rates of the plane are swept, both from 0."""
        zeros = all(0 in values for values in self.axes.values())
        return set(self.axes) == set(PLANE) and zeros


def read(folder: Path) -> Outcomes:
    """Reads a folder.

    Raises:
        ConfigError: there is no such folder, or nothing in it that can be read.
    """
    lines = read_lines(folder)
    run = _read_json(folder / "run.json")
    settings = _unique(line["setting"] for line in lines)
    seeds = sorted({line["seed"] for line in lines})
    evaluations: list[list[int]] = [line["evaluated_at"] for line in lines]
    evaluated_at = max(evaluations, key=len, default=[])
    if not evaluated_at:
        raise ConfigError(f"{folder}: holds no finished evaluation.")
    places = [(settings.index(li["setting"]), seeds.index(li["seed"])) for li in lines]
    return Outcomes(
        folder=folder,
        config=_read_text(folder / "config.toml"),
        run=run,
        axes=_axes(settings, run.get("axes", {})),
        settings=tuple(settings),
        seeds=tuple(seeds),
        evaluated_at=np.array(evaluated_at),
        metrics=_metrics(lines, places, (len(settings), len(seeds))),
        diverged=_diverged(lines, places),
        stopped=_stopped(lines, places, (len(settings), len(seeds)), len(evaluated_at)),
        interrupted=any(line["status"] == "interrupted" for line in lines),
        environments=tuple(
            _unique(
                {k: li.get(k, {}) for k in ("versions", "platform")} for li in lines
            )
        ),
    )


def read_lines(folder: Path) -> list[dict]:
    """Reads `results.jsonl`, a record a lane.

    Raises:
        ConfigError: there is no such folder or file, or a line is not a lane.
    """
    path = folder / "results.jsonl"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder.")
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no results.jsonl.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_lane(line, f"{path}:{n}") for n, line in enumerate(lines, 1)]


def _lane(text: str, where: str) -> dict:
    needed = {"setting", "seed", "status", "evaluated_at", "metrics"}
    try:
        lane = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}.") from None
    if not isinstance(lane, dict) or not needed <= lane.keys():
        raise ConfigError(f"{where}: not a lane; needs {', '.join(sorted(needed))}.")
    return lane


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_read_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error}.") from None


def _axes(settings: Sequence[Setting], declared: dict) -> dict[str, tuple[Value, ...]]:
    """The values of each axis in the order of the config, or of the settings."""
    return {
        path: tuple(declared.get(path) or _unique(s[path] for s in settings))
        for path in settings[0]
    }


def _metrics(lines, places, shape) -> dict[str, Float[np.ndarray, "S N _"]]:
    lengths: dict[str, int] = {}
    for line in lines:
        for name, values in line["metrics"].items():
            lengths[name] = max(lengths.get(name, 0), len(values))
    metrics = {name: np.full((*shape, n), np.nan) for name, n in lengths.items()}
    for line, place in zip(lines, places, strict=True):
        for name, values in line["metrics"].items():
            metrics[name][place][: len(values)] = np.array(values, float)
    return metrics


def _diverged(lines, places) -> tuple[Trouble, ...]:
    return tuple(
        Trouble(setting, seed, line.get("diverged_at"))
        for line, (setting, seed) in zip(lines, places, strict=True)
        if _has_diverged(line)
    )


def _stopped(lines, places, shape, evaluations: int) -> tuple[Trouble, ...]:
    present = dict(zip(places, lines, strict=True))
    found = []
    for setting, seed in np.ndindex(shape):
        missing = {"status": "missing", "evaluated_at": []}
        line = present.get((setting, seed), missing)
        if not _has_diverged(line) and len(line["evaluated_at"]) < evaluations:
            found.append(Trouble(setting, seed, line.get("epochs")))
    return tuple(found)


def _has_diverged(line: dict) -> bool:
    return line["status"] == "diverged" or line.get("diverged_at") is not None


def _numbers(values: Iterable[Value]) -> tuple[float | int, ...]:
    return tuple(
        v for v in values if isinstance(v, int | float) and not isinstance(v, bool)
    )


def _unique(values: Iterable) -> list:
    """The different values, in the order of their first appearance."""
    found: list = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
