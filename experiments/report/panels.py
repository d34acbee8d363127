"""Panels: line pictures with a band, a legend and exact numbers at each x."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.report.palette import Style
from experiments.report.scales import Scale, fit_scale
from experiments.report.scene import (
    Area,
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


class Series(NamedTuple):
    """A line with a band.

    Attributes:
        name: for the legend.
        style: how it is drawn.
        x, y: the line.
        low, high: the band.
    """

    name: str
    style: Style
    x: Float[np.ndarray, "K"]
    y: Float[np.ndarray, "K"]
    low: Float[np.ndarray, "K"]
    high: Float[np.ndarray, "K"]


class Panel(NamedTuple):
    """A picture of several series.

    Attributes:
        title, x_label, y_label: texts.
        series: the lines.
        y_range: values that the vertical scale must hold, also of other panels.
        log_y, log_x: whether the scales may be logarithmic.
        whole_x: whether the ticks of x are whole numbers, as of epochs and seeds.
        level: the height of a dashed line, such as the baseline; None without one.
        chosen: the x of the value chosen on validation data.
        size: width and height of the area with the lines.
        legend: whether the series are named below the title.
        x_names: the names of 0, 1 and so on, if x is not a number.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    y_range: Float[np.ndarray, "..."]
    log_y: bool = True
    log_x: bool = False
    whole_x: bool = False
    level: float | None = None
    chosen: float | None = None
    size: tuple[float, float] = (360, 210)
    legend: bool = True
    x_names: Sequence[str] = ()


def draw_panel(panel: Panel, alt: str) -> Scene:
    """Returns the picture of a panel."""
    width, height = panel.size
    rows = _legend_rows(panel, width) if panel.legend else []
    top = 30.0 + 18 * len(rows) + 4 * bool(rows)
    y = fit_scale(panel.y_range, top + height, top, panel.log_y)
    ticks = max(text_width(f"{value:g}", 11) for value in y.ticks())
    left = 30 + max(28.0, ticks)
    x_values = [v for series in panel.series for v in series.x] or [0, 1]
    x = fit_scale(x_values, left, left + width, panel.log_x, panel.whole_x)
    shapes: list[Any] = [Label(8, 17, panel.title, 13, bold=True)]
    for n, row in enumerate(rows):
        shapes += _legend(row, 8, 36 + 18 * n)
    shapes += draw_axes(panel, x, y)
    if panel.level is not None and np.isfinite(panel.level):
        at = y.place(panel.level)
        shapes.append(Stroke(((left, at), (left + width, at)), "plain", 1.5, (4, 3)))
    for series in panel.series:
        shapes += _line(series, x, y, panel.legend)
    shapes += _points(panel, x, y)
    wide = max(left + width + 14, right_of_texts(shapes) + 8)
    return Scene(wide, top + height + 42, tuple(shapes), alt)


def _legend_rows(panel: Panel, width: Number) -> list[list[Series]]:
    """The series in rows that fit the width."""
    rows: list[list[Series]] = []
    room = 0.0
    for series in panel.series:
        needed = 46 + text_width(series.name, 12)
        if not rows or needed > room:
            rows.append([])
            room = width + 58
        rows[-1].append(series)
        room -= needed
    return rows


def _legend(row: Sequence[Series], x: Number, y: Number) -> list[Any]:
    shapes: list[Any] = []
    for series in row:
        style = series.style
        shapes += [
            Stroke(((x, y - 4), (x + 28, y - 4)), style.colour, 2.2, style.dash),
            Dot(x + 14, y - 4, style.colour, style.marker, 3.5),
            Label(x + 33, y, series.name, 12),
        ]
        x += 46 + text_width(series.name, 12)
    return shapes


def draw_axes(panel: Panel, x: Scale, y: Scale) -> list[Any]:
    """Returns grid lines, tick labels and the names of both axes."""
    shapes: list[Any] = []
    narrow = x.end - x.start < 200
    for value in y.ticks(4 if narrow else 6):
        at = y.place(value)
        shapes.append(Stroke(((x.start, at), (x.end, at)), "grid", 1))
        shapes.append(
            Label(x.start - 5, at + 4, f"{value:g}", 11, "end", colour="faint")
        )
    ticks = [(value, f"{value:g}") for value in x.ticks(4 if narrow else 6)]
    for value, name in list(enumerate(panel.x_names)) or ticks:
        at = x.place(value)
        shapes.append(Stroke(((at, y.start), (at, y.start + 4)), "faint", 1))
        shapes.append(Label(at, y.start + 17, name, 11, "middle", colour="faint"))
    shapes.append(Stroke(((x.start, y.start), (x.end, y.start)), "faint", 1))
    middle = (x.start + x.end) / 2
    shapes.append(Label(middle, y.start + 35, panel.x_label, 12, "middle"))
    if not narrow:
        shapes.append(
            Label(14, (y.start + y.end) / 2, panel.y_label, 12, "middle", upright=True)
        )
    return shapes


def _line(series: Series, x: Scale, y: Scale, ends: bool) -> list[Any]:
    """The finite part of a line over its band, with a marker at its end on request."""
    band = np.isfinite(series.low) & np.isfinite(series.high)
    above = _places(series.x[band], series.high[band], x, y)
    below = _places(series.x[band], series.low[band], x, y)
    known = np.isfinite(series.y)
    points = _places(series.x[known], series.y[known], x, y)
    style = series.style
    shapes: list[Any] = []
    if len(above) > 1:
        shapes.append(Area((*above, *below[::-1]), style.colour))
    if points:
        shapes.append(Stroke(points, style.colour, 2.2, style.dash))
    if points and ends:
        shapes.append(Dot(*points[-1], style.colour, style.marker, 3.5))
    return shapes


def _places(xs, ys, x: Scale, y: Scale) -> tuple[tuple[Number, Number], ...]:
    return tuple((x.place(v), y.place(w)) for v, w in zip(xs, ys, strict=True))


def _points(panel: Panel, x: Scale, y: Scale) -> list[Any]:
    """One mark per value of x, with the numbers of all series there."""
    marks: list[Any] = []
    places = sorted({float(v) for series in panel.series for v in series.x})
    width = (x.end - x.start) / max(1, len(places) - 1)
    for value in places:
        at = x.place(value)
        left, right = max(x.start, at - width / 2), min(x.end, at + width / 2)
        # Without a fill it is not seen, and still answers to the pointer.
        shapes: list[Any] = [Box(left, y.end, right - left, y.start - y.end)]
        numbers = [_number(series, value) for series in panel.series]
        tip = f"{panel.x_label} {value:g}: {'; '.join(filter(None, numbers))}"
        if value == panel.chosen:
            height = panel.series[0].y[list(panel.series[0].x).index(value)]
            shapes.append(Dot(at, y.place(float(height)), "recurrent", "diamond", 5))
            tip += " (chosen on validation data)"
        marks.append(Mark(tuple(shapes), tip))
    return marks


def _number(series: Series, value: float) -> str:
    there = np.flatnonzero(series.x == value)
    if not there.size or not np.isfinite(series.y[there[0]]):
        return ""
    n = there[0]
    return (
        f"{series.name} {series.y[n]:.4f} ({series.low[n]:.4f} to {series.high[n]:.4f})"
    )
