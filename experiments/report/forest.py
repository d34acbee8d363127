"""Forest plots: one row per comparison, method or setting, with an interval."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from experiments.axes import value_text
from experiments.bootstrap import interval
from experiments.report import lanes
from experiments.report.data_sets import Change, OverDataSets, label, percent
from experiments.report.findings import (
    SPLITS,
    MethodBest,
    Planned,
    compared_split,
    difference_name,
    methods,
    planned,
)
from experiments.report.lanes import METHOD
from experiments.report.palette import STYLES
from experiments.report.scales import Scale, fit_scale
from experiments.report.scene import (
    Box,
    Dot,
    Label,
    Mark,
    Number,
    Scene,
    Stroke,
    text_width,
)
from experiments.report.sentences import plain
from experiments.statistics import UNSETTLED, difference_text
from experiments.wording import MINUS, mean_sd, p_text, signed

WIDTH = 460.0
MOST_CHANGES = 40


class Row(NamedTuple):
    """A row of a forest plot.

    Attributes:
        name: the comparison, the method or the setting.
        number: the value as text.
        value, low, high: the point and its interval.
        filled: whether the difference is settled; the point is hollow otherwise.
        reference: another value of the row, such as its baseline; None without one.
        tip: the exact numbers.
    """

    name: str
    number: str
    value: float
    low: float
    high: float
    filled: bool
    reference: float | None
    tip: str


def comparison_forest(data: xr.Dataset) -> list[Scene]:
    """Draws the planned comparisons as differences with their intervals."""
    found = [row for row in planned(data).values() if row.comparison]
    rows = [_comparison_row(row) for row in found]
    label = f"difference in {lanes.loss_label(data, SPLITS[compared_split(data)])}"
    settled = [
        f"{r.name} against {r.other}: {r.comparison.verdict('it')}"
        for r in found
        if r.comparison
    ]
    alt = plain(
        f"Forest plot of {len(rows)} planned comparisons. {'; '.join(settled)}."
    )
    return [_draw(rows, label, "◂ lower, better", alt, stacked=True, zero=True)]


def method_dots(data: xr.Dataset) -> list[Scene]:
    """Draws each method at its chosen rate, the lowest test loss first."""
    found = methods(data)
    rows = [_method_row(data, row) for row in found]
    first = found[0] if found else None
    loss = lanes.loss_name(data)
    alt = f"Dot plot of the test {loss} of {len(rows)} methods, lower is better."
    if first:
        others = ", ".join(f"{row.name} {row.value:.3f}" for row in rows)
        alt += f" In order, each with its chosen rate: {others}."
    label = f"{lanes.loss_label(data)}, lower is better"
    return [_draw(rows, label, "", alt, stacked=False, zero=False)]


def change_forest(over: OverDataSets) -> list[Scene]:
    """Draws the change of each setting over all data sets, the lowest loss first."""
    rows = [_change_row(change, over.names) for change in over.changes[:MOST_CHANGES]]
    found = "; ".join(f"{row.name} {row.number}" for row in rows)
    alt = f"Forest plot of {len(rows)} settings over {len(over.names)} data sets. "
    alt += f"Change of the test loss: {found}."
    text = "change of the test loss, %"
    return [_draw(rows, text, "◂ lower, better", alt, stacked=True, zero=True)]


def _change_row(change: Change, names: Sequence[str]) -> Row:
    name = label(change.setting)
    each = (f"{n} {percent(v)}" for n, v in zip(names, change.each, strict=True))
    ends = (change.middle, change.low, change.high)
    value, low, high = (100 * float(np.expm1(end)) for end in ends)
    clear = low > 0 or high < 0
    tip = f"{name}: {change.text}; {'; '.join(each)}"
    return Row(name, percent(change.middle), value, low, high, clear, None, tip)


def _comparison_row(row: Planned) -> Row:
    comparison = row.comparison
    assert comparison is not None
    name = plain(difference_name(row))
    p = p_text(comparison.p_corrected)
    tip = (
        f"{name}: {difference_text(comparison)}; {p} after {comparison.correction}: "
        f"{comparison.verdict(plain(row.other))}"
    )
    return Row(
        name,
        signed(comparison.difference),
        comparison.difference,
        comparison.low,
        comparison.high,
        comparison.differs,
        None,
        tip,
    )


def _method_row(data: xr.Dataset, row: MethodBest) -> Row:
    test = lanes.losses_at(data, row.best)
    known = np.isfinite(test).all()
    low, high = (float(end) for end in interval(test)) if known else (np.nan, np.nan)
    others = [value_text(v) for path, v in row.best.items() if path != METHOD]
    name = " ".join([row.method, *others])
    base = None if row.base is None else float(lanes.losses_at(data, row.base).mean())
    verdict = UNSETTLED
    if row.base == row.best:
        verdict = "is the baseline itself"
    elif row.comparison:
        verdict = row.comparison.sentence("its baseline")
    same = f" Same results as {row.same_as}." if row.same_as != row.method else ""
    against = "" if base is None else f"; baseline {base:.3f}"
    found = f"{mean_sd(test)}, interval {low:.3f} to {high:.3f}{against}"
    tip = f"{name}: {found}; {verdict}.{same}"
    settled = bool(row.comparison and row.comparison.differs)
    return Row(
        name, f"{test.mean():.3f}", float(test.mean()), low, high, settled, base, tip
    )


def _draw(
    rows: Sequence[Row], label: str, hint: str, alt: str, stacked: bool, zero: bool
) -> Scene:
    """Rows below each other; stacked rows have their names above their intervals."""
    names = max([text_width(row.name, 12) for row in rows] or [0.0])
    left = 10.0 if stacked else names + 18
    right = WIDTH - 62
    step, top = (40.0, 30.0) if stacked else (23.0, 14.0)
    bottom = top + step * len(rows) + 4
    ends = [v for row in rows for v in (row.low, row.high, row.value, row.reference)]
    values = [v for v in ends if v is not None] + [0.0] * zero
    scale = fit_scale(values, left, right, log=not zero)
    shapes: list[Any] = _axis(scale, top - 22 if stacked else top - 10, bottom)
    if zero:
        at = scale.place(0)
        shapes.append(Stroke(((at, 18), (at, bottom)), "faint", 1.5))
        if hint:
            shapes.append(
                Label(
                    at - 6, 16, hint, 12, "end" if at > 130 else "start", colour="faint"
                )
            )
    for n, row in enumerate(rows):
        shapes.append(_mark(row, scale, top + step * n, step, stacked))
    middle = (left + right) / 2
    shapes.append(Label(middle, bottom + 36, label, 12, "middle"))
    return Scene(WIDTH, bottom + 46, tuple(shapes), alt)


def _axis(scale: Scale, top: Number, bottom: Number) -> list[Any]:
    shapes: list[Any] = []
    for value in scale.ticks(6):
        at = scale.place(value)
        shapes.append(Stroke(((at, top + 10), (at, bottom)), "grid", 1))
        shapes.append(
            Label(
                at,
                bottom + 16,
                f"{value:g}".replace("-", MINUS),
                11,
                "middle",
                colour="faint",
            )
        )
    return shapes


def _mark(row: Row, scale: Scale, top: Number, step: Number, stacked: bool) -> Mark:
    """The name, the interval, the point and the value of a row."""
    middle = top + (26 if stacked else step / 2)
    base = top + 13 if stacked else middle + 4
    name = Label(4, base, row.name, 12)
    number = Label(WIDTH - 4, base, row.number, 12, "end", bold=True)
    colour = "inputs"
    shapes: list[Any] = [Box(0, top, WIDTH, step), name, number]
    if row.reference is not None and np.isfinite(row.reference):
        style = STYLES["none"]
        shapes.append(
            Dot(scale.place(row.reference), middle, style.colour, style.marker, 4)
        )
    if np.isfinite([row.low, row.high]).all():
        ends = ((scale.place(row.low), middle), (scale.place(row.high), middle))
        shapes.append(Stroke(ends, colour, 2.4))
    if np.isfinite(row.value):
        shapes.append(
            Dot(scale.place(row.value), middle, colour, "circle", 5, not row.filled)
        )
    return Mark(tuple(shapes), row.tip)
