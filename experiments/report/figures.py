"""Figures: which pictures a run, or several together, can be drawn as."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.report import maps, plots
from experiments.report.across import compare_runs
from experiments.report.answers import kinds
from experiments.report.outcomes import PLANE, Outcomes


class Drawing(NamedTuple):
    """A figure that can be drawn.

    Attributes:
        title: a heading for it.
        caption: what is to be seen.
        draw: draws it.
    """

    title: str
    caption: str
    draw: Callable[[], Figure]


def drawings(runs: Sequence[Outcomes]) -> dict[str, Drawing]:
    """Returns the figures of one run, or those that show several together, by name."""
    return _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)


def _of_one(run: Outcomes) -> dict[str, Drawing]:
    found = {}
    if paths := maps.map_axes(run):
        found["plane"] = Drawing(
            "The plane",
            f"Each cell: {_seeds(run)}. Red: the cell chosen on validation data."
            + " Rates are where learning starts." * bool(plots.learned(run))
            + _cut(len(run.split(*paths)), maps.MOST_MAPS),
            partial(maps.plane_map, run),
        )
    if path := plots.curve_axis(run):
        found["rate_curves"] = Drawing(
            f"Loss against {plots.axis_label(path)}",
            "Line: mean over seeds; band: its 95 % bootstrap interval; dashed: the "
            "baseline; red: the value chosen on validation data."
            + _cut(len(run.split(path)), plots.MOST_PANELS),
            partial(plots.rate_curves, run),
        )
    found["learning_curves"] = Drawing(
        "Learning curves",
        "No dropout, and the best setting with the one rate alone, the other alone, "
        "and both, each chosen on validation data."
        if kinds(run)
        else "The setting chosen on validation data, and its baseline.",
        partial(plots.learning_curves, run),
    )
    if plots.learned(run):
        found["learned_rates"] = Drawing(
            "Learned rates",
            "Line: mean over seeds; band: lowest to highest."
            + _cut(len(run.settings), plots.MOST_LINES),
            partial(plots.learned_rates, run),
        )
    return found


def _of_several(runs: Sequence[Outcomes]) -> dict[str, Drawing]:
    found = {
        "learning_curves": Drawing(
            "Learning curves",
            "The best setting of each run, chosen on validation data.",
            partial(plots.learning_curves_of_runs, compare_runs(runs)),
        )
    }
    planes = [run for run in runs if maps.map_axes(run) == PLANE]
    learners = [run for run in runs if maps.learns_both(run)]
    if planes and learners:
        found["learned_on_plane"] = Drawing(
            "Learned rates on the plane",
            f"Colours: the test loss of `{planes[0].name}` at fixed rates. Lines: "
            "rates that are learned, from the first evaluation to the last, mean over "
            "seeds; outside the plane they are drawn at its edge.",
            partial(maps.learned_on_plane, planes[0], learners),
        )
    return found


def _seeds(run: Outcomes) -> str:
    return f"{len(run.seeds)} seed{'s' if len(run.seeds) > 1 else ''}"


def _cut(count: int, most: int) -> str:
    return f" The first {most} of {count} are shown." if count > most else ""
