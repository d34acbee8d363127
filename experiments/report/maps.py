"""Maps: planes of two axes, one cell per setting.

The vertical axis of a plane of rates is the rate on the vertical arrows (`dropout`),
and the horizontal axis is the rate on the horizontal arrows (`recurrent_dropout`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from experiments.axes import value_text
from experiments.report import lanes
from experiments.report.curves import axis_label, learned, learned_settings, short_text
from experiments.report.lanes import PLANE, Setting
from experiments.report.palette import LIGHT, scale_colour, series_styles, text_on
from experiments.report.scales import Scale, fit_scale
from experiments.report.scene import (
    Box,
    Dot,
    Label,
    Mark,
    Number,
    Scene,
    Stroke,
    right_of_texts,
    text_width,
)
from experiments.report.sentences import plain
from experiments.wording import mean_sd

LEARNED = ("rate_inputs", "rate_recurrent")
MOST_MAPS = 12
LEFT, TOP, WIDE, HIGH = 62.0, 34.0, 78.0, 46.0


class Map(NamedTuple):
    """A part of the lanes as rows and columns of cells.

    Attributes:
        data: the lanes.
        paths: the vertical and the horizontal axis.
        rows, columns: their values, ascending.
        scale: from a loss to a share of the colours.
    """

    data: xr.Dataset
    paths: tuple[str, str]
    rows: list[Any]
    columns: list[Any]
    scale: Scale

    @property
    def right(self) -> float:
        """The right edge of the cells."""
        return LEFT + WIDE * len(self.columns)

    @property
    def bottom(self) -> float:
        """The bottom edge of the cells."""
        return TOP + HIGH * len(self.rows)

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """The top left corner of a cell."""
        return LEFT + WIDE * column, self.bottom - HIGH * (row + 1)

    def corner_of(self, setting: Setting) -> tuple[float, float]:
        """The top left corner of the cell of a setting."""
        vertical, horizontal = self.paths
        row = self.rows.index(setting[vertical])
        return self.corner(row, self.columns.index(setting[horizontal]))


def map_axes(data: xr.Dataset) -> tuple[str, str] | None:
    """Returns the axes of a map: the two rates, or else the two numeric axes."""
    numeric = lanes.numeric_axes(data)
    if set(PLANE) <= set(numeric):
        return PLANE
    return (numeric[0], numeric[1]) if len(numeric) == 2 else None


def plane_maps(data: xr.Dataset) -> list[Scene]:
    """Draws the mean test loss of every setting, one map for each of the rest."""
    paths = map_axes(data) or PLANE
    parts = lanes.groups(data, *paths)[:MOST_MAPS]
    losses = np.stack([lanes.mean_loss(part).values for _, part in parts])
    scale = _colours(losses)
    maps = [(common, _make_map(part, paths, scale)) for common, part in parts]
    return [_draw_map(m, short_text(common)) for common, m in maps]


def learned_on_plane(plane: xr.Dataset, runs: Sequence[xr.Dataset]) -> list[Scene]:
    """Draws how learned rates move, on the map of the test loss at fixed rates."""
    best = lanes.best(plane) or lanes.settings(plane)[0]
    part = lanes.select(plane, {p: v for p, v in best.items() if p not in PLANE})
    shown = _make_map(part, PLANE, _colours(lanes.mean_loss(part).values))
    lines = [(run, st) for run in runs for st in learned_settings(run, LEARNED[0])]
    shapes: list[Any] = [*_cells(shown, numbers=False), *_frame(shown)]
    bottom = shown.bottom + 62
    for n, ((run, setting), style) in enumerate(
        zip(lines, series_styles(len(lines)), strict=True)
    ):
        name = ": ".join(filter(None, (run.attrs["name"], short_text(setting))))
        shapes += _path(shown, run, setting, style, name)
        shapes += _key(8, bottom + 18 * n, style, name)
    bottom += 18 * len(lines)
    shapes.append(Label(8, 18, f"Colours: {lanes.loss_label(plane)} at fixed rates"))
    width = max(shown.right, right_of_texts(shapes)) + 12
    alt = f"Paths of {len(lines)} pairs of learned rates over a map. {_alt(shown, '')}"
    return [Scene(width, bottom, tuple(shapes), alt)]


def learns_both(data: xr.Dataset) -> bool:
    """Returns whether a run has learned both rates of the plane."""
    return set(LEARNED) <= set(learned(data))


def _make_map(part: xr.Dataset, paths: tuple[str, str], scale: Scale) -> Map:
    rows, columns = (sorted(part[path].values.tolist()) for path in paths)
    return Map(part, paths, rows, columns, scale)


def _colours(losses: np.ndarray) -> Scale:
    """Ends exactly at the lowest and the highest loss."""
    finite = losses[np.isfinite(losses)]
    if not finite.size or finite.min() == finite.max():
        return fit_scale(losses, 0, 1)
    return Scale(float(finite.min()), float(finite.max()), 0, 1, bool(finite.min() > 0))


def _draw_map(shown: Map, title: str) -> Scene:
    shapes: list[Any] = [*_cells(shown, numbers=True), *_frame(shown)]
    best = lanes.best(shown.data)
    if best is not None:
        shapes += _outline(*shown.corner_of(best))
    label = (
        f"{title}: {lanes.loss_label(shown.data)}"
        if title
        else lanes.loss_label(shown.data)
    )
    shapes.append(Label(8, 18, f"{label[:1].upper()}{label[1:]}", bold=True))
    shapes += _legend(shown, best is not None)
    width = max(shown.right, right_of_texts(shapes)) + 12
    return Scene(width, shown.bottom + 88, tuple(shapes), _alt(shown, title))


def _cells(shown: Map, numbers: bool) -> list[Mark]:
    """One mark per cell, with its mean and standard deviation."""
    found = []
    for setting in lanes.settings(shown.data):
        x, y = shown.corner_of(setting)
        test = lanes.losses_at(shown.data, setting)
        known = np.isfinite(test).all()
        fill = scale_colour(shown.scale.share(test.mean())) if known else "paper"
        shapes: list[Any] = [Box(x, y, WIDE, HIGH, fill, "faint")]
        ink = text_on(fill) if known else "ink"
        centre = x + WIDE / 2
        mean, _, spread = mean_sd(test).partition(" ")
        if numbers:
            shapes.append(
                Label(centre, y + 21, mean, 14, "middle", colour=ink, bold=True)
            )
        if numbers and spread:
            shapes.append(Label(centre, y + 37, spread, 12, "middle", colour=ink))
        found.append(Mark(tuple(shapes), _tip(shown.data, setting)))
    return found


def _tip(data: xr.Dataset, setting: Setting) -> str:
    """The exact numbers of a cell."""
    loss = data.attrs["loss"]
    valid = mean_sd(lanes.values_at(data, setting, f"valid_{loss}"))
    seeds = ", ".join(f"{value:.4f}" for value in lanes.losses_at(data, setting))
    name = lanes.loss_name(data)
    return (
        f"{plain(lanes.describe(setting))}. Test {name} "
        f"{mean_sd(lanes.losses_at(data, setting))}; validation {name} {valid}; "
        f"test {name} by seed: {seeds}"
    )


def _frame(shown: Map) -> list[Label]:
    """Values and names of both axes."""
    vertical, horizontal = shown.paths
    middle = (TOP + shown.bottom) / 2
    rows = [
        Label(
            LEFT - 8, shown.corner(n, 0)[1] + HIGH / 2 + 5, value_text(v), anchor="end"
        )
        for n, v in enumerate(shown.rows)
    ]
    columns = [
        Label(
            shown.corner(0, n)[0] + WIDE / 2,
            shown.bottom + 18,
            value_text(v),
            anchor="middle",
        )
        for n, v in enumerate(shown.columns)
    ]
    centre = (LEFT + shown.right) / 2
    across = Label(
        centre,
        shown.bottom + 38,
        axis_label(horizontal),
        13,
        "middle",
        True,
        _role(horizontal),
    )
    up = Label(
        18, middle, axis_label(vertical), 13, "middle", True, _role(vertical), True
    )
    return [*rows, *columns, across, up]


def _role(path: str) -> str:
    return path.split(".")[1] if path in PLANE else "ink"


def _outline(x: Number, y: Number) -> list[Box]:
    """Two frames, dark and light, that are seen on every colour."""
    return [
        Box(x + 1, y + 1, WIDE - 2, HIGH - 2, stroke=LIGHT["both"], thickness=4),
        Box(x + 2.5, y + 2.5, WIDE - 5, HIGH - 5, stroke=LIGHT["paper"], thickness=1.6),
    ]


def _legend(shown: Map, chosen: bool) -> list[Any]:
    """The colours, from the lowest to the highest loss, and the frame."""
    top = shown.bottom + 54
    losses = lanes.mean_loss(shown.data).values
    if np.isnan(losses).all():
        return []
    low, high = (f"{value:.3f}" for value in (shown.scale.low, shown.scale.high))
    left = 8 + text_width(f"lower is better: {low}", 12) + 6
    steps, wide = 20, 5.0
    boxes = [
        Box(left + wide * n, top, wide + 0.5, 12, scale_colour(n / (steps - 1)))
        for n in range(steps)
    ]
    right = left + wide * steps
    shapes = [
        Label(8, top + 11, f"lower is better: {low}", 12),
        *boxes,
        Label(right + 6, top + 11, high, 12),
    ]
    if chosen:
        shapes.append(Label(8, top + 29, "framed: chosen on validation data", 12))
    return shapes


def _path(shown: Map, run: xr.Dataset, setting: Setting, style, name: str) -> list[Any]:
    """A path in units of cells: between two rates of an axis, position is linear."""
    lane = lanes.select(run, setting)
    y, x = (
        np.interp(
            lane[metric].mean("seed").values.reshape(-1), rates, range(len(rates))
        )
        for metric, rates in zip(LEARNED, (shown.rows, shown.columns), strict=True)
    )
    points = tuple(
        (LEFT + WIDE * (column + 0.5), shown.bottom - HIGH * (row + 0.5))
        for row, column in zip(y, x, strict=True)
    )
    last = [float(lane[m].isel(evaluation=-1).mean()) for m in LEARNED]
    tip = f"{name}: ends at dropout {last[0]:.3f}, recurrent_dropout {last[1]:.3f}"
    shapes = (
        Stroke(points, "paper", 6),
        Stroke(points, style.colour, 2.5, style.dash),
        Dot(*points[0], style.colour, "circle", 5, hollow=True),
        Dot(*points[-1], style.colour, "square", 6),
    )
    return [Mark(shapes, tip)]


def _key(x: Number, y: Number, style, name: str) -> list[Any]:
    line = Stroke(((x, y - 4), (x + 24, y - 4)), style.colour, 2.5, style.dash)
    return [line, Label(x + 28, y, name, 12)]


def _alt(shown: Map, title: str) -> str:
    """The result in words: lowest, highest and chosen cell."""
    data, name = shown.data, lanes.loss_name(shown.data)
    mean = lanes.mean_loss(data).values.reshape(-1)
    of = f" ({title})" if title else ""
    size = f"{len(shown.rows)} by {len(shown.columns)} settings"
    if np.isnan(mean).all():
        return f"Heat map of the test {name} at {size}{of}; no value is finite."
    rows = lanes.settings(data)

    def text(n):
        cell = {path: rows[n][path] for path in shown.paths}
        return f"{mean[n]:.3f} at {plain(lanes.describe(cell))}"

    best = lanes.best(data)
    chosen = f" Chosen on validation data: {text(rows.index(best))}." if best else ""
    return (
        f"Heat map of the test {name} at {size}{of}; lower is better. Lowest "
        f"{text(int(np.nanargmin(mean)))}; highest {text(int(np.nanargmax(mean)))}."
        f"{chosen}"
    )
