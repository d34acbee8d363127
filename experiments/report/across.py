"""Across: several runs beside each other, each by its best setting."""

import tomllib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.report.answers import title
from experiments.report.outcomes import Outcomes
from experiments.report.statistics import Comparison, compare, mean_sd


class RunBest(NamedTuple):
    """The best setting of one run among several.

    Attributes:
        run: its outcomes.
        best: index of the setting chosen on validation; None if none is finite.
        comparison: with the best setting of the first run, all runs one family; None
            for the first run, and where data, loss or seeds differ.
    """

    run: Outcomes
    best: int | None
    comparison: Comparison | None


def compare_runs(runs: Sequence[Outcomes]) -> list[RunBest]:
    """Compares the best setting of each run with that of the first."""
    best = [run.best() for run in runs]

    def pair(n):
        first, run = runs[0], runs[n]
        alike = _ground(first) == _ground(run)
        if n == 0 or best[0] is None or best[n] is None or not alike:
            return None
        metric = f"test_{run.loss}"
        return run.final(metric)[best[n]], first.final(metric)[best[0]]

    compared = compare([pair(n) for n in range(len(runs))])
    return [RunBest(*row) for row in zip(runs, best, compared, strict=True)]


def answer(rows: Sequence[RunBest]) -> str:
    """Says how the best settings of several runs compare."""
    first, *others = rows
    parts = [f"`{first.run.name}` has {_reached(first)}"]
    for row in others:
        verdict = "not compared: other data, loss or seeds, or one seed"
        if row.comparison:
            verdict = row.comparison.sentence(f"`{first.run.name}`")
        parts.append(f"`{row.run.name}` {_reached(row)}: {verdict}")
    return "At the setting that validation chose, " + "; ".join(parts) + "."


def _ground(run: Outcomes) -> tuple:
    """What two runs must have in common for their seeds to be paired."""
    config = tomllib.loads(run.config)
    return run.task, config.get("task"), run.loss, config.get("seed"), run.seeds


def _reached(row: RunBest) -> str:
    if row.best is None:
        return "no finite setting"
    values = row.run.final(f"test_{row.run.loss}")[row.best]
    return f"a test {title(row.run.loss)} of {mean_sd(values)}"
