"""Plots: the plane as pictures.

The vertical axis of every map is the rate on the vertical arrows (`dropout`), the
horizontal axis that on the horizontal ones (`recurrent_dropout`); blue and orange stand
for the two throughout.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.comparison import Curve
from experiments.plane import Cell, Choice, Plane

COLOURS = {
    "none": "#7f7f7f",
    "inputs": "#1f6fb4",
    "recurrent": "#e07b1a",
    "both": "#2a9d5c",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rdrop",
}


def save(figure: Figure, path: Path) -> None:
    """Writes `path`.svg and `path`.png, the same bytes for the same data."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150)


def plane_map(plane: Plane, choice: Choice) -> Figure:
    """Draws the mean test NLL of every cell, and outlines the chosen one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5.4), layout="constrained")
        axes = figure.subplots()
        _draw_map(axes, plane, choice.best)
        axes.set_title(
            "Test NLL (nats), mean ± sd over "
            f"{plane.final('test_nll').shape[-1]} seeds\n"
            "outlined: the cell chosen on validation data",
            fontsize=10,
        )
    return figure


def learning_curves(plane: Plane, choice: Choice) -> Figure:
    """Draws NLL against epochs for the baseline and the best cell of each kind."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        every_epoch = np.arange(1, plane.metrics.train_nll.shape[-1] + 1)
        for kind, colour in COLOURS.items():
            cell = getattr(choice, kind)
            if cell is None:
                continue
            inputs, recurrent = plane.rates(cell)
            label = f"({inputs:g}, {recurrent:g}) {kind}"
            _band(left, every_epoch, plane.metrics.train_nll[cell], colour, label)
            _band(right, plane.epochs, plane.metrics.test_nll[cell], colour, label)
        left.set(title="training, noise on", ylabel="NLL (nats)")
        right.set(title="test, noise off")
        right.legend(title="(dropout, recurrent_dropout)", frameon=False, fontsize=8.5)
        for axes in (left, right):
            axes.set(xlabel="epoch", yscale="log")
        figure.suptitle("Line: mean over seeds; band: lowest to highest", fontsize=9)
    return figure


def method_curves(curves: list[Curve]) -> Figure:
    """Draws the test NLL of each method against its rate, a panel a method."""
    columns = min(5, len(curves))
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * columns, 2.1 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, curve in zip(grid.flat, curves, strict=False):
            nll = curve.final("test_nll").T
            _band(axes, curve.rates, nll, COLOURS["both"], None)
            baseline = nll[:, curve.baseline()].mean()
            axes.axhline(baseline, color=COLOURS["none"], lw=1, ls="--")
            best = curve.best()
            axes.plot(curve.rates[best], nll[:, best].mean(), "o", color="red", ms=5)
            same = "" if curve.same_as == curve.method else f"\n= {curve.same_as}"
            axes.set_title(curve.method + same, fontsize=9)
            axes.set_yscale("log")
        for axes in grid.flat[len(curves) :]:
            axes.set_axis_off()
        figure.supxlabel("rate", fontsize=9)
        figure.supylabel("test NLL (nats)", fontsize=9)
    return figure


def _draw_map(axes: Axes, plane: Plane, chosen: Cell) -> None:
    nll = plane.final("test_nll")
    mean, sd = nll.mean(axis=-1), nll.std(axis=-1, ddof=min(1, nll.shape[-1] - 1))
    image = axes.imshow(
        np.ma.masked_invalid(mean), origin="lower", cmap="viridis_r", norm=LogNorm()
    )
    for i, r in np.ndindex(mean.shape):
        red, green, blue, _ = image.to_rgba(mean[i, r])
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        axes.text(
            r,
            i,
            f"{mean[i, r]:.3f}\n±{sd[i, r]:.3f}",
            color="white" if dark else "black",
            ha="center",
            va="center",
            fontsize=9,
        )
    axes.add_patch(
        matplotlib.patches.Rectangle(
            (chosen.recurrent - 0.5, chosen.inputs - 0.5),
            1,
            1,
            fill=False,
            ec="red",
            lw=3,
        )
    )
    axes.set_xticks(range(len(plane.recurrent)), [f"{p:g}" for p in plane.recurrent])
    axes.set_yticks(range(len(plane.inputs)), [f"{p:g}" for p in plane.inputs])
    axes.set_xlabel(
        "rate on the horizontal arrows → recurrent_dropout",
        color=COLOURS["recurrent"],
        weight="bold",
    )
    axes.set_ylabel(
        "rate on the vertical arrows ↑ dropout", color=COLOURS["inputs"], weight="bold"
    )
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


def _band(axes: Axes, x, values, colour, label) -> None:
    """A line for the mean over seeds and a band from the lowest to the highest."""
    axes.plot(x, values.mean(axis=0), color=colour, label=label)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
