"""Searched: the texts, table and pictures of a study."""

import itertools
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.axes import TRACED, Sweep, value_text
from experiments.config import ConfigError
from experiments.report.figures import Drawing
from experiments.report.lanes import describe
from experiments.report.panels import Panel, draw_axes
from experiments.report.scales import fit_scale, spans_decades
from experiments.report.scene import Dot, Label, Mark, Scene, Stroke
from experiments.report.sentences import plain
from experiments.report.tables import Row, Table
from experiments.search.space import LOGARITHMIC
from experiments.search.study import (
    SUGGESTED_DIGITS,
    Result,
    best_first,
    loss_of,
    read_study,
    spent_lanes,
)
from experiments.wording import count_text, mean_sd

LEFT, TOP = 62.0, 30.0
COLOURS = {"finished": "inputs", "pruned": "plain", "diverged": "recurrent"}


class Found(NamedTuple):
    """A study as far as it went.

    Attributes:
        folder: where it is.
        sweep: the config and its axes.
        trials: those that have ended, in order.
        best: those that were trained to the end, the lowest loss first.
    """

    folder: Path
    sweep: Sweep
    trials: list[Result]
    best: list[Result]

    @property
    def lanes(self) -> float:
        """The lanes that they have cost."""
        return spent_lanes(self.trials, self.sweep.base.train.epochs)


def read_found(folder: Path) -> Found:
    """Reads a study.

    Raises:
        ConfigError: no trial was trained to the end.
        StorageError: a file of it is damaged.
    """
    sweep, trials = read_study(folder)
    best = best_first(trials)
    if not best:
        raise ConfigError(f"{folder}: no trial was trained to the end yet.")
    return Found(folder, sweep, trials, best)


def heading(found: Found) -> str:
    """Returns the heading of the page."""
    return f"Search: {found.folder.name}"


def compared(found: Found) -> str:
    """Returns what was searched."""
    axes = ", ".join(_range(path, values) for path, values in found.sweep.axes.items())
    seeds = count_text(len(found.sweep.seeds), "seed")
    return (
        f"{count_text(len(found.trials), 'trial')} of {seeds} each, at the cost of "
        f"{found.lanes:.4g} lanes: {axes}."
    )


def verdict(found: Found) -> str:
    """Returns the best setting in words."""
    text = describe(found.best[0]["setting"], SUGGESTED_DIGITS)
    return f"The lowest validation loss, {loss_of(found.best[0]):.4f}, has {text}."


def advice(found: Found) -> str:
    """Returns how to measure it."""
    return (
        "To measure it on seeds that the search has not seen: `python -m experiments "
        f"ablate {shlex.quote(f'{found.folder}/best.toml')} --seed "
        f"{found.sweep.base.seed + 1} --seeds 16 --out "
        f"{shlex.quote(f'{found.folder}_best')}`."
    )


def best_table(found: Found, most: int) -> Table:
    """Returns the best trials."""
    rows = [
        Row(
            [value_text(value, SUGGESTED_DIGITS) for value in line["setting"].values()],
            [_losses(line["valid"]), _losses(line["test"]), f"{line['trial']}"],
            [],
            line is found.best[0],
        )
        for line in found.best[:most]
    ]
    names = [path.removeprefix("dropout.") for path in found.sweep.axes]
    return Table(names, ["valid", "test", "trial"], [], rows)


def drawings(found: Found) -> dict[str, Drawing]:
    """Returns the pictures of a study by name."""
    dots = (
        "Filled: trained to the end; hollow: stopped early or diverged. Loss: mean "
        "validation loss over the seeds at the last epoch that was trained, lower is "
        "better."
    )
    return {
        "search": Drawing(
            "The search",
            f"A dot per trial, and the best so far. {dots}",
            partial(_progress, found),
            1,
        ),
        "slices": Drawing(
            "The trials by each field",
            f"The same trials against what was searched. {dots}",
            partial(_slices, found),
            3,
        ),
    }


def _progress(found: Found) -> list[Scene]:
    epochs = found.sweep.base.train.epochs
    cost = (spent_lanes([line], epochs) for line in found.trials)
    at = list(itertools.accumulate(cost))
    ended = [
        loss_of(line) if line["status"] == "finished" else np.inf
        for line in found.trials
    ]
    lowest = np.minimum.accumulate(ended)
    line = [(x, float(y)) for x, y in zip(at, lowest, strict=True) if np.isfinite(y)]
    alt = (
        f"Validation loss of each trial against lanes; the lowest is {lowest[-1]:.4f}."
    )
    size = (640.0, 230.0)
    return [_dots(found, "The best so far", "lanes", at, size, alt, line)]


def _slices(found: Found) -> list[Scene]:
    scenes = []
    for path, values in found.sweep.axes.items():
        is_range = bool(TRACED.fullmatch(path))
        tried = [line["setting"][path] for line in found.trials]
        at = tried if is_range else [values.index(value) for value in tried]
        best = value_text(found.best[0]["setting"][path], SUGGESTED_DIGITS)
        alt = f"Validation loss against {path}; the best trial has {best}."
        names = () if is_range else [value_text(value) for value in values]
        log = bool(LOGARITHMIC.fullmatch(path)) and spans_decades([*values])
        size = (250.0, 180.0)
        scenes.append(_dots(found, path, path, at, size, alt, (), names, log))
    return scenes


def _dots(
    found: Found,
    title: str,
    x_label: str,
    at: Sequence[Any],
    size: tuple[float, float],
    alt: str,
    line: Sequence[tuple[float, float]] = (),
    names: Sequence[str] = (),
    log_x: bool = False,
) -> Scene:
    """Draws a dot per trial, over a line."""
    width, height = size
    losses = np.array([loss_of(line) for line in found.trials])
    panel = Panel(
        title, x_label, "validation loss", [], losses, size=size, x_names=names
    )
    y = fit_scale(losses, TOP + height, TOP, log=True)
    places = [float(value) for value in (range(len(names)) if names else at)]
    x = fit_scale(places, LEFT, LEFT + width, log_x)
    shapes: list[Any] = [Label(8, 17, title, 13, bold=True)]
    shapes += draw_axes(panel, x, y)
    steps = [
        (x.place(value), y.place(loss))
        for n, (value, _) in enumerate(line)
        for loss in ([line[n - 1][1]] if n else []) + [line[n][1]]
    ]
    if steps:
        shapes.append(Stroke(tuple(steps), "both", 2.2))
    # The best is drawn over the others.
    dots = list(zip(at, losses, found.trials, strict=True))
    for place, loss, trial in sorted(dots, key=lambda dot: dot[2] is found.best[0]):
        if np.isfinite(loss):
            spot = x.place(float(place)), y.place(float(loss))
            shapes.append(Mark((_dot(*spot, trial, found),), _tip(trial)))
    return Scene(LEFT + width + 14, TOP + height + 42, tuple(shapes), alt)


def _dot(x: float, y: float, trial: Result, found: Found) -> Dot:
    best = trial is found.best[0]
    colour = "recurrent" if best else COLOURS[trial["status"]]
    marker, radius = ("diamond", 6.0) if best else ("circle", 3.5)
    return Dot(x, y, colour, marker, radius, trial["status"] != "finished")


def _tip(trial: Result) -> str:
    setting = plain(describe(trial["setting"], SUGGESTED_DIGITS))
    state = "" if trial["status"] == "finished" else f", {trial['status']}"
    return (
        f"Trial {trial['trial']}: {setting}; loss {loss_of(trial):.4f} after "
        f"{count_text(trial['epochs'], 'epoch')}{state}"
    )


def _losses(values: Sequence[float | None]) -> str:
    return mean_sd(np.array([np.nan if value is None else value for value in values]))


def _range(path: str, values: Sequence[Any]) -> str:
    if TRACED.fullmatch(path):
        return f"`{path}` from {value_text(min(values))} to {value_text(max(values))}"
    return f"`{path}` {', '.join(map(value_text, values))}"
