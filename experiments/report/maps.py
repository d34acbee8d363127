"""Maps: planes of two axes as pictures.

The vertical axis of a plane of rates is the rate on the vertical arrows (`dropout`),
the horizontal axis that on the horizontal ones (`recurrent_dropout`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from experiments.report.answers import text
from experiments.report.outcomes import PLANE, Outcomes
from experiments.report.plots import (
    COLOURS,
    axis_label,
    colours,
    learned_settings,
    log_scale,
    loss_label,
    short,
    styled,
)

LEARNED = ("rate_inputs", "rate_recurrent")
MOST_MAPS = 12


class Cells(NamedTuple):
    """The settings of one map.

    Attributes:
        rows, columns: values of the vertical and the horizontal axis, ascending.
        places: row and column of each setting, by its index.
    """

    rows: list[Any]
    columns: list[Any]
    places: dict[int, tuple[int, int]]


def map_axes(outcomes: Outcomes) -> tuple[str, str] | None:
    """The vertical and the horizontal axis of a map: the two rates, or two numbers."""
    numeric = outcomes.numeric()
    if set(PLANE) <= set(numeric):
        return PLANE
    return (numeric[0], numeric[1]) if len(numeric) == 2 else None


@styled
def plane_map(outcomes: Outcomes) -> Figure:
    """Draws the mean test loss of every setting, a map a structure."""
    paths = map_axes(outcomes) or PLANE
    groups = outcomes.split(*paths)[:MOST_MAPS]
    norm = _norm(outcomes, [s for _, members in groups for s in members])
    cells = [_cells(outcomes, paths, members) for _, members in groups]
    figure, grid = _panels(cells)
    for axes, (common, members), places in zip(grid, groups, cells, strict=False):
        image = _draw(axes, outcomes, paths, places, norm)
        _write_figures(axes, outcomes, places, image)
        if (best := outcomes.best(members)) is not None:
            _outline(axes, *places.places[best])
        axes.set_title(short(common), fontsize=10)
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid), shrink=0.85)
    seeds = len(outcomes.seeds)
    shown = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(
        f"{loss_label(outcomes)}, {shown}\n"
        "outlined: the cell chosen on validation data",
        fontsize=10,
    )
    return figure


@styled
def learned_on_plane(plane: Outcomes, runs: Sequence[Outcomes]) -> Figure:
    """Draws how learned rates move, on the map of the test loss at fixed rates."""
    best = plane.best()
    members = next(m for _, m in plane.split(*PLANE) if best is None or best in m)
    cells = _cells(plane, PLANE, members)
    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    axes = figure.subplots()
    image = _draw(axes, plane, PLANE, cells, _norm(plane, members))
    figure.colorbar(image, ax=axes, shrink=0.85, label=loss_label(plane))
    lines = [(run, s) for run in runs for s, _ in learned_settings(run, LEARNED[0])]
    for (run, s), colour in zip(lines, colours(len(lines)), strict=True):
        _draw_path(axes, run, s, cells, colour)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    axes.set_title("circle: first evaluation; square: last", fontsize=10)
    return figure


def learns_both(outcomes: Outcomes) -> bool:
    """Whether a run has learned both rates of the plane."""
    return all(
        name in outcomes.metrics and np.isfinite(outcomes.metrics[name]).any()
        for name in LEARNED
    )


def _cells(outcomes: Outcomes, paths: tuple[str, str], members: list[int]) -> Cells:
    settings = outcomes.settings
    rows, columns = (sorted({settings[s][path] for s in members}) for path in paths)
    places = {
        s: (rows.index(settings[s][paths[0]]), columns.index(settings[s][paths[1]]))
        for s in members
    }
    return Cells(rows, columns, places)


def _norm(outcomes: Outcomes, members: list[int]) -> Normalize:
    mean = outcomes.final(f"test_{outcomes.loss}")[members].mean(axis=1)
    finite = mean[np.isfinite(mean)]
    if not len(finite):
        return Normalize(0, 1)
    kind = LogNorm if log_scale(finite) else Normalize
    return kind(finite.min(), finite.max())


def _panels(cells: list[Cells]):
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    width = max(4.2, 0.95 * max(len(c.columns) for c in cells)) + 0.6
    height = max(3.6, 0.8 * max(len(c.rows) for c in cells)) + 0.4
    size = (width * columns + 1.4, height * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _draw(axes: Axes, outcomes: Outcomes, paths, cells: Cells, norm) -> AxesImage:
    mean = np.full((len(cells.rows), len(cells.columns)), np.nan)
    for s, place in cells.places.items():
        mean[place] = outcomes.final(f"test_{outcomes.loss}")[s].mean()
    image = axes.imshow(
        np.ma.masked_invalid(mean), origin="lower", cmap="viridis_r", norm=norm
    )
    axes.set_xticks(range(len(cells.columns)), [text(v) for v in cells.columns])
    axes.set_yticks(range(len(cells.rows)), [text(v) for v in cells.rows])
    vertical, horizontal = paths
    axes.set_ylabel(axis_label(vertical), color=_colour(vertical), weight="bold")
    axes.set_xlabel(axis_label(horizontal), color=_colour(horizontal), weight="bold")
    return image


def _colour(path: str) -> str:
    return COLOURS[path.split(".")[1]] if path in PLANE else "black"


def _write_figures(axes: Axes, outcomes: Outcomes, cells: Cells, image) -> None:
    test = outcomes.final(f"test_{outcomes.loss}")
    for s, (row, column) in cells.places.items():
        mean = test[s].mean()
        spread = f"\n±{test[s].std(ddof=1):.3f}" if len(test[s]) > 1 else ""
        red, green, blue, _ = image.to_rgba(np.array([mean]))[0]
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        axes.text(
            column,
            row,
            f"{mean:.3f}{spread}" if np.isfinite(mean) else "-",
            color="white" if dark and np.isfinite(mean) else "black",
            ha="center",
            va="center",
            fontsize=9,
        )


def _outline(axes: Axes, row: int, column: int) -> None:
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec="red", lw=3))


def _draw_path(axes: Axes, run: Outcomes, setting: int, cells: Cells, colour) -> None:
    """A path in units of cells: between two rates of an axis, position is linear."""
    y, x = (
        np.interp(run.metrics[name][setting].mean(axis=0), rates, range(len(rates)))
        for name, rates in zip(LEARNED, (cells.rows, cells.columns), strict=True)
    )
    edge = [withStroke(linewidth=4, foreground="white")]
    label = ": ".join(filter(None, (run.name, short(run.settings[setting]))))
    axes.plot(x, y, color=colour, lw=2, path_effects=edge, label=label)
    axes.plot(x[0], y[0], "o", color=colour, ms=8, mec="white")
    axes.plot(x[-1], y[-1], "s", color=colour, ms=8, mec="white")
