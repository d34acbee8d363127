"""Plots: curves over rates and epochs, and how every figure looks and is saved.

Blue stands for the vertical arrows (`dropout`) and orange for the horizontal ones
(`recurrent_dropout`) throughout.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.across import RunBest
from experiments.report.answers import METHOD, describe, kinds, methods, text, title
from experiments.report.outcomes import PLANE, RATE, Outcomes, Setting
from experiments.report.statistics import interval

COLOURS = {
    "none": "#7f7f7f",
    "inputs": "#1f6fb4",
    "recurrent": "#e07b1a",
    "both": "#2a9d5c",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.formatter.min_exponent": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rdrop",
}
UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}
MOST_PANELS = 25
MOST_LINES = 12


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Lets a function draw in the house style."""

    @functools.wraps(draw)
    def drawn(*arguments):
        with matplotlib.rc_context(STYLE):
            return draw(*arguments)

    return drawn


def encode(figure: Figure, kind: str) -> bytes:
    """Returns a figure as "png", "svg" or "pdf", the same bytes for the same data."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=kind, dpi=150, metadata=UNDATED[kind])
    return file.getvalue()


def curve_axis(outcomes: Outcomes) -> str | None:
    """The axis of the rate curves: the one rate, or else the one axis of numbers."""
    numeric = outcomes.numeric()
    rates = [path for path in numeric if RATE.fullmatch(path)]
    found = rates or numeric
    return found[0] if len(found) == 1 else None


@styled
def rate_curves(outcomes: Outcomes) -> Figure:
    """Draws the test loss against the one rate, a panel a structure."""
    path = curve_axis(outcomes) or ""
    groups = outcomes.split(path)[:MOST_PANELS]
    columns = min(5, len(groups))
    rows = -(-len(groups) // columns)
    size = (6, 4) if len(groups) == 1 else (2.5 * columns, 2.2 * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    notes = _same_methods(outcomes)
    for axes, (common, members) in zip(grid.flat, groups, strict=False):
        _draw_rates(axes, outcomes, path, members)
        note = notes.get(common.get(METHOD), "")
        axes.set_title(short(common) + note, fontsize=9)
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    figure.supxlabel(axis_label(path), fontsize=9)
    figure.supylabel(loss_label(outcomes), fontsize=9)
    return figure


@styled
def learning_curves(outcomes: Outcomes) -> Figure:
    """Draws the loss against epochs for the baseline and the best of each kind."""
    figure, axes = _train_and_test()
    for setting, colour, label in _shown(outcomes):
        _learning(axes, outcomes, setting, colour, label)
    paired = "(dropout, recurrent_dropout)" if kinds(outcomes) else None
    _finish(figure, axes, loss_label(outcomes), paired)
    return figure


@styled
def learning_curves_of_runs(rows: Sequence[RunBest]) -> Figure:
    """Draws the loss against epochs for the best setting of each run."""
    figure, axes = _train_and_test()
    for row, colour in zip(rows, colours(len(rows)), strict=True):
        if row.best is not None:
            _learning(axes, row.run, row.best, colour, row.run.name)
    labels = {loss_label(row.run) for row in rows}
    _finish(figure, axes, labels.pop() if len(labels) == 1 else "test loss")
    return figure


@styled
def learned_rates(outcomes: Outcomes) -> Figure:
    """Draws each learned rate against epochs, a line a setting."""
    names = learned(outcomes)
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=True):
        for s, colour in learned_settings(outcomes, name):
            label = plain(outcomes.settings[s])
            values = outcomes.metrics[name][s]
            draw_band(axes, outcomes.epochs(name), values, colour, label)
        axes.set(title=name.removeprefix("rate_"), xlabel="epoch")
    grid[0, 0].set_ylabel("learned rate")
    if len(outcomes.settings) > 1:
        grid[0, -1].legend(frameon=False, fontsize=8)
    return figure


def learned(outcomes: Outcomes) -> list[str]:
    """The metrics that are learned rates, those with any finite figure."""
    return [
        name
        for name, values in outcomes.metrics.items()
        if name.startswith("rate_") and np.isfinite(values).any()
    ]


def learned_settings(outcomes: Outcomes, name: str) -> list[tuple[int, str]]:
    """The first settings that learn a rate, each with its colour."""
    values = outcomes.metrics[name]
    found = [s for s in range(len(values)) if np.isfinite(values[s]).any()]
    found = found[:MOST_LINES]
    return list(zip(found, colours(len(found)), strict=True))


def colours(count: int) -> list[str]:
    """Returns as many colours, evenly spaced from dark to light."""
    scale = matplotlib.colormaps["plasma"]
    return [
        matplotlib.colors.to_hex(scale(0.85 * n / max(1, count - 1)))
        for n in range(count)
    ]


def draw_band(axes: Axes, x, values, colour, label) -> None:
    """A line for the mean over seeds and a band from the lowest to the highest."""
    axes.plot(x, values.mean(axis=0), color=colour, label=label)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def axis_label(path: str) -> str:
    """Names an axis, those of the plane by their arrows."""
    return {
        PLANE[0]: "rate on the vertical arrows ↑ dropout",
        PLANE[1]: "rate on the horizontal arrows → recurrent_dropout",
        "dropout.rate": "rate",
    }.get(path, path)


def loss_label(outcomes: Outcomes, split: str = "test") -> str:
    """Names a loss with its unit: "test NLL (nats an utterance)"."""
    unit = outcomes.task.get("units", {}).get(outcomes.loss, "")
    return f"{split} {title(outcomes.loss)}{f' ({unit})' if unit else ''}"


def short(setting: Setting) -> str:
    """Names a structure in the title of a panel."""
    if len(setting) == 1:
        return text(*setting.values())
    return ", ".join(f"{p.split('.', 1)[-1]} {text(v)}" for p, v in setting.items())


def plain(setting: Setting) -> str:
    """Names a setting in a legend."""
    return describe(setting).replace("`", "")


def log_scale(values) -> bool:
    """Whether values can stand on a logarithmic axis."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and (finite > 0).all())


def _draw_rates(axes, outcomes, path, members) -> None:
    order = sorted(members, key=lambda s: outcomes.settings[s][path])
    x = np.array([outcomes.settings[s][path] for s in order])
    test = outcomes.final(f"test_{outcomes.loss}")
    mean = test.mean(axis=1)
    axes.plot(x, mean[order], color=COLOURS["both"])
    axes.fill_between(x, *_band(test[order].T), color=COLOURS["both"], alpha=0.2, lw=0)
    base, best = outcomes.baseline(order[0]), outcomes.best(members)
    if base is not None:
        axes.axhline(mean[base], color=COLOURS["none"], lw=1, ls="--")
    if best is not None:
        axes.plot(outcomes.settings[best][path], mean[best], "o", color="red", ms=5)
    if log_scale(mean):
        axes.set_yscale("log")
    if log_scale(x) and x.max() >= 20 * x.min():
        axes.set_xscale("log")


def _band(values):
    """The bootstrap interval of each column, NaN where a seed is missing."""
    ends = np.full((2, values.shape[1]), np.nan)
    finite = np.isfinite(values).all(axis=0)
    if finite.any():
        ends[:, finite] = interval(values[:, finite])
    return ends


def _same_methods(outcomes: Outcomes) -> dict[Any, str]:
    if METHOD not in outcomes.axes:
        return {}
    return {
        row.method: f"\n= {row.same_as}"
        for row in methods(outcomes)
        if row.same_as != row.method
    }


def _train_and_test():
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    return figure, figure.subplots(1, 2, sharex=True)


def _shown(outcomes: Outcomes) -> list[tuple[int, str, str]]:
    """The settings of the learning curves, each with its colour and label."""
    best = outcomes.best()
    if best is None:
        return []
    if found := kinds(outcomes):
        return [
            (s, COLOURS[kind], f"({_pair(outcomes.settings[s])}) {kind}")
            for kind, s in found._asdict().items()
            if s is not None and kind in COLOURS
        ]
    if not outcomes.axes:
        return [(best, COLOURS["both"], "the one setting")]
    shown = {outcomes.baseline(best): ("none", "baseline"), best: ("both", "best")}
    return [
        (s, COLOURS[colour], f"{name}: {plain(outcomes.settings[s])}")
        for s, (colour, name) in shown.items()
        if s is not None
    ]


def _pair(setting: Setting) -> str:
    return ", ".join(text(setting[path]) for path in PLANE)


def _learning(axes, outcomes, setting, colour, label) -> None:
    for side, split in zip(axes, ("train", "test"), strict=True):
        name = f"{split}_{outcomes.loss}"
        values = outcomes.metrics[name][setting]
        draw_band(side, outcomes.epochs(name), values, colour, label)


def _finish(figure, axes, label: str, legend: str | None = None) -> None:
    left, right = axes
    left.set(title="training, noise on", ylabel=label.removeprefix("test "))
    right.set(title="test, noise off")
    if right.lines:
        right.legend(title=legend, frameon=False, fontsize=8)
    for side in axes:
        side.set_xlabel("epoch")
        shown = [np.asarray(line.get_ydata(), float) for line in side.lines]
        if shown and log_scale(np.concatenate(shown)):
            side.set_yscale("log")
    figure.suptitle("Line: mean over seeds; band: lowest to highest", fontsize=9)
