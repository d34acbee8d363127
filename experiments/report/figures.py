"""Figures: the pictures of one run, and of several together, by name."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import xarray as xr

from experiments.report import curves, data_sets, forest, lanes, maps, ranks
from experiments.report.findings import (
    SPLITS,
    by_method,
    compared_split,
    kinds,
    planned,
)
from experiments.report.lanes import PLANE
from experiments.report.scene import Scene
from experiments.report.several import compare_runs
from experiments.wording import count_text

LINES = "Lines are means over the seeds; the band is the range of the seeds."
CHOSEN = "The chosen setting and its baseline."
KINDS = (
    "The best setting of each kind of noise, with its rates of `dropout` and "
    "`recurrent_dropout`."
)


class Drawing(NamedTuple):
    """A picture that can be drawn.

    Attributes:
        title: its heading.
        caption: how to read it.
        draw: returns its panels.
        columns: panels per row of an image file.
        folded: whether the page shows it only on demand.
    """

    title: str
    caption: str
    draw: Callable[[], list[Scene]]
    columns: int = 2
    folded: bool = False


def drawings(runs: Sequence[xr.Dataset]) -> dict[str, Drawing]:
    """Returns the pictures of one run, or of several together, by name."""
    return _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)


def _of_one(run: xr.Dataset) -> dict[str, Drawing]:
    methods = by_method(run)
    found = _maps(run) | (_methods(run) if methods else {}) | _comparisons(run)
    found |= _race(run) | _rate_curves(run, folded=methods)
    found["learning_curves"] = Drawing(
        "Learning curves",
        f"{KINDS if kinds(run) else CHOSEN} {LINES}",
        partial(curves.learning_curves, run),
    )
    if curves.learned(run):
        found["learned_rates"] = Drawing(
            "Learned rates",
            LINES + _cut(len(lanes.settings(run)), curves.MOST_LINES),
            partial(curves.learned_rates, run),
        )
    return found


def _maps(run: xr.Dataset) -> dict[str, Drawing]:
    paths = maps.map_axes(run)
    if paths is None:
        return {}
    caption = (
        "Each cell is the mean ± standard deviation over the seeds."
        if run.sizes["seed"] > 1
        else "Each cell is one seed."
    )
    caption += (
        " Brighter is lower, which is better. Point at a cell for its exact numbers."
    )
    if curves.learned(run):
        caption += " Rates are where learning starts."
    caption += _cut(len(lanes.groups(run, *paths)), maps.MOST_MAPS)
    return {"plane": Drawing("The plane", caption, partial(maps.plane_maps, run), 3)}


def _methods(run: xr.Dataset) -> dict[str, Drawing]:
    caption = (
        "One row per method at the rate chosen on validation data, the lowest test "
        "loss first. Circle and line: mean and its 95 % bootstrap interval; the circle "
        "is filled if the difference to the baseline is settled. Triangle: the same "
        "method at its lowest rate, its baseline."
    )
    draw = partial(forest.method_dots, run)
    return {"methods": Drawing("The methods, each at its best rate", caption, draw, 1)}


def _comparisons(run: xr.Dataset) -> dict[str, Drawing]:
    """A forest plot if there are several planned comparisons of one run."""
    rows = [row for row in planned(run).values() if row.comparison]
    if by_method(run) or len(rows) < 2:
        return {}
    split = SPLITS[compared_split(run)]
    test = rows[0].comparison
    assert test
    caption = (
        f"Differences in the {split} loss, paired by seed; left of 0 the first is "
        f"lower, which is better. The {count_text(len(rows), 'comparison')} are one "
        "family. A filled circle, whose line does not reach 0, is a difference that "
        f"holds after {test.correction}."
    )
    draw = partial(forest.comparison_forest, run)
    return {"comparisons": Drawing("The planned comparisons", caption, draw, 1)}


def _race(run: xr.Dataset) -> dict[str, Drawing]:
    if (
        not any(row.comparison for row in planned(run).values())
        or not run.attrs["race"]
    ):
        return {}
    to_the_end = run.attrs["race"] == "best"
    what = (
        "validation loss to the lowest setting when it left, or at the end"
        if to_the_end
        else "test loss to the baseline"
    )
    leaves = "is above 0" if to_the_end else "excludes 0, or lies inside the margin"
    caption = (
        f"Difference in the {what}, paired by seed, against the seeds. Line: mean; "
        "band: the interval that holds after every seed, at the level of its test; "
        f"dashed: 0. A setting leaves the race once its band {leaves}."
        + _cut(len(planned(run)), curves.MOST_PANELS)
    )
    return {"race": Drawing("The race", caption, partial(curves.race_curves, run), 3)}


def _rate_curves(run: xr.Dataset, folded: bool) -> dict[str, Drawing]:
    path = curves.curve_axis(run)
    if path is None:
        return {}
    caption = (
        "Line: mean over the seeds; band: its 95 % bootstrap interval; dashed: the "
        "baseline; diamond: chosen on validation data."
        + _cut(len(lanes.groups(run, path)), curves.MOST_PANELS)
    )
    title = f"Loss against {curves.axis_label(path)}"
    return {
        "rate_curves": Drawing(
            title, caption, partial(curves.rate_curves, run), 5, folded
        )
    }


def _of_several(runs: Sequence[xr.Dataset]) -> dict[str, Drawing]:
    found = {} if data_sets.refusal(runs) else _over_data_sets(runs)
    found["learning_curves"] = Drawing(
        "Learning curves",
        f"The chosen setting of each run. {LINES}" + _cut(len(runs), curves.MOST_LINES),
        partial(curves.learning_curves_of_runs, compare_runs(runs)),
    )
    planes = [run for run in runs if maps.map_axes(run) == PLANE]
    learners = [run for run in runs if maps.learns_both(run)]
    fixed = [run for run in planes if not any(run is other for other in learners)]
    if fixed and learners:
        found["learned_on_plane"] = Drawing(
            "Learned rates on the plane",
            f"Colours: the test loss of `{fixed[0].attrs['name']}` at fixed rates. "
            "Lines: learned rates from the first evaluation (circle) to the last "
            "(square), means over the seeds. Rates outside the plane are at its edge.",
            partial(maps.learned_on_plane, fixed[0], learners),
            1,
        )
    return found


def _over_data_sets(runs: Sequence[xr.Dataset]) -> dict[str, Drawing]:
    over = data_sets.over_data_sets(runs)
    changes = Drawing(
        "The change of the loss over all data sets",
        "Circle: interquartile mean of the change against the baseline, over seeds and "
        "data sets; line: its 95 % stratified bootstrap interval, unadjusted. The "
        "circle is filled if the interval excludes 0."
        + _cut(len(over.changes), forest.MOST_CHANGES),
        partial(forest.change_forest, over),
        1,
    )
    if over.ranks is None:
        return {"changes": changes}
    caption = (
        "Average ranks of the mean test loss over the data sets; 1 is best. Settings "
        "under one bar do not differ: their ranks are closer than the critical "
        "difference of Nemenyi's test"
    )
    caption += (
        "."
        if over.ranks.differ
        else (", or, as here, Friedman's test finds no difference between any.")
    )
    caption += _cut(len(over.settings), ranks.MOST_RANKED)
    draw = partial(ranks.critical_differences, over)
    return {"changes": changes, "ranks": Drawing("Average ranks", caption, draw, 1)}


def _cut(count: int, most: int) -> str:
    return f" The first {most} of {count} are shown." if count > most else ""
