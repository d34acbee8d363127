"""Tables: the figures of a run as text, for the report and the terminal."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.report.across import RunBest
from experiments.report.answers import (
    METHOD,
    comparisons,
    describe,
    methods,
    text,
    title,
)
from experiments.report.outcomes import Outcomes
from experiments.report.statistics import MOST_SEEDS, Comparison, mean_sd

COMPARED = ("verdict", "difference (95 % CI)", "p (Holm)", "seeds needed")


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        names: what it is about, as text.
        figures: numbers.
        compared: verdict, difference, p and seeds needed.
        chosen: whether it is the one chosen on validation data.
    """

    names: list[str]
    figures: list[str]
    compared: list[str]
    chosen: bool = False


class Table(NamedTuple):
    """Rows under headings.

    Attributes:
        names, figures, compared: a heading for each of a row's texts.
        rows: the lines.
    """

    names: list[str]
    figures: list[str]
    compared: list[str]
    rows: list[Row]


def of_settings(outcomes: Outcomes) -> Table:
    """Every setting in the order of the sweep."""
    compared = comparisons(outcomes)
    best = outcomes.best()
    rows = [
        Row(
            names=[text(value) for value in setting.values()],
            figures=_figures(outcomes, s),
            compared=_compared(compared[s], _why(outcomes, s)),
            chosen=s == best,
        )
        for s, setting in enumerate(outcomes.settings)
    ]
    return Table(list(outcomes.axes), _headings(outcomes), list(COMPARED), rows)


def of_best(outcomes: Outcomes, most: int = 20) -> Table:
    """The settings with the lowest validation loss, and the baseline of the first."""
    table = of_settings(outcomes)
    loss = outcomes.final(f"valid_{outcomes.loss}").mean(axis=1)
    order = [int(s) for s in np.argsort(loss)[:most]]
    base = outcomes.baseline(order[0])
    if base is not None and base not in order:
        order[-1] = base
    return table._replace(rows=[table.rows[s] for s in order])


def of_methods(outcomes: Outcomes) -> Table:
    """The best setting of each method, the lowest test loss first."""
    others = [path for path in outcomes.axes if path != METHOD]
    rows = []
    for row in methods(outcomes):
        if row.best is None:
            continue
        setting = outcomes.settings[row.best]
        same = "" if row.same_as == row.method else f" (= {row.same_as})"
        rows.append(
            Row(
                names=[row.method + same, *(text(setting[path]) for path in others)],
                figures=_figures(outcomes, row.best),
                compared=_compared(row.comparison, _why(outcomes, row.best)),
                chosen=row.best == outcomes.best(),
            )
        )
    return Table([METHOD, *others], _headings(outcomes), list(COMPARED), rows)


def of_runs(compared: Sequence[RunBest]) -> Table:
    """The best setting of each of several runs, in their order."""
    rows = []
    for n, row in enumerate(compared):
        run = row.run
        setting = "-" if row.best is None else describe(run.settings[row.best]) or "one"
        figures = ["-", "-"] if row.best is None else _figures(run, row.best)[:2]
        why = "the first run" if n == 0 else "not compared"
        names = [run.name, run.task.get("name", "-"), title(run.loss), setting]
        rows.append(
            Row(names, figures, _compared(row.comparison, why, "the first run"))
        )
    headings = ["run", "task", "loss", "best setting"]
    return Table(headings, ["validation", "test"], list(COMPARED), rows)


def _headings(outcomes: Outcomes) -> list[str]:
    loss = title(outcomes.loss)
    extra = [f"test {title(name.removeprefix('test_'))}" for name in _extra(outcomes)]
    return [f"validation {loss}", f"test {loss}", *extra]


def _figures(outcomes: Outcomes, setting: int) -> list[str]:
    losses = [
        mean_sd(outcomes.final(f"{split}_{outcomes.loss}")[setting])
        for split in ("valid", "test")
    ]
    extra = [
        _extra_text(name, outcomes.final(name)[setting]) for name in _extra(outcomes)
    ]
    return [figure.replace("nan ±nan", "-") for figure in losses + extra]


def _extra(outcomes: Outcomes) -> list[str]:
    """The test metrics other than the loss."""
    loss = f"test_{outcomes.loss}"
    return [m for m in outcomes.metrics if m.startswith("test_") and m != loss]


def _extra_text(name: str, values) -> str:
    if name.endswith("accuracy") and np.isfinite(values).all():
        return f"{values.mean():.1%}"
    return mean_sd(values)


def _why(outcomes: Outcomes, setting: int) -> str:
    """Why a setting is not compared, if it is not."""
    if outcomes.baseline(setting) == setting:
        return "the baseline"
    if len(outcomes.seeds) == 1:
        return "one seed: no statistics"
    return "figures are missing"


def _compared(
    comparison: Comparison | None, why: str, other: str = "the baseline"
) -> list[str]:
    if comparison is None:
        return [why, "-", "-", "-"]
    needed = comparison.seeds_needed
    return [
        comparison.verdict(other),
        f"{comparison.difference:+.3f} "
        f"({comparison.low:+.3f} to {comparison.high:+.3f})",
        "<0.0001" if comparison.p_holm < 1e-4 else f"{comparison.p_holm:.2g}",
        f">{MOST_SEEDS}" if needed is None else str(needed),
    ]
