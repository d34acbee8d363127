"""Several runs compared, each by the setting chosen on its validation data."""

import tomllib
from collections.abc import Sequence
from typing import NamedTuple

import xarray as xr

from experiments.report import lanes
from experiments.report.lanes import Setting
from experiments.sequential import SEQUENTIAL
from experiments.statistics import Comparison, compare
from experiments.wording import mean_sd

NOT_COMPARED = "not compared: data, loss or seeds differ, or there is one seed"


class RunBest(NamedTuple):
    """The chosen setting of one run among several.

    Attributes:
        data: the run.
        best: the setting; None if none is finite.
        comparison: with the first run, in one family over all runs; None for the first
            run, and if data, loss or seeds differ.
    """

    data: xr.Dataset
    best: Setting | None
    comparison: Comparison | None


def compare_runs(runs: Sequence[xr.Dataset]) -> list[RunBest]:
    """Compares the chosen setting of each run with the first run's."""
    best = [lanes.best(run) for run in runs]

    def pair(n):
        alike = _alike(runs[0], runs[n])
        if n == 0 or best[0] is None or best[n] is None or not alike:
            return None
        return lanes.shared_seeds(
            lanes.losses_at(runs[n], best[n]), lanes.losses_at(runs[0], best[0])
        )

    tests = SEQUENTIAL if any(run.attrs["race"] for run in runs) else None
    margin = runs[0].attrs["margin"]
    compared = compare([pair(n) for n in range(len(runs))], tests, margin)
    return [RunBest(*row) for row in zip(runs, best, compared, strict=True)]


def answer_runs(rows: Sequence[RunBest]) -> str:
    """Returns how the runs compare, in words."""
    first, *others = rows
    name = f"`{first.data.attrs['name']}`"
    parts = [f"{name} reaches {_reached(first)}"]
    for row in others:
        verdict = NOT_COMPARED
        if row.comparison:
            verdict = row.comparison.sentence(name)
        parts.append(f"`{row.data.attrs['name']}` {_reached(row)}: {verdict}")
    return (
        "Each at the setting chosen on validation data, lower is better: "
        + "; ".join(parts)
        + "."
    )


def _alike(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether the seeds of two runs can be paired; a race may have had more of them."""
    if _conditions(one) != _conditions(other):
        return False
    seeds = [run["seed"].values.tolist() for run in (one, other)]
    if one.attrs["race"] or other.attrs["race"]:
        shared = min(map(len, seeds))
        seeds = [some[:shared] for some in seeds]
    return seeds[0] == seeds[1]


def _conditions(run: xr.Dataset) -> tuple:
    """The facts that must agree for seeds to be paired."""
    config = tomllib.loads(run.attrs["config"])
    same = (run.attrs[name] for name in ("task", "loss", "data"))
    return *same, config.get("task"), config.get("seed")


def _reached(row: RunBest) -> str:
    if row.best is None:
        return "no finite setting"
    loss = mean_sd(lanes.losses_at(row.data, row.best))
    return f"a test {lanes.loss_name(row.data)} of {loss}"


def verdict_runs(rows: Sequence[RunBest]) -> str:
    """Returns which runs differ from the first one, in one sentence."""
    name = f"`{rows[0].data.attrs['name']}`"
    tested = [row for row in rows if row.comparison]
    lower = [
        row.data.attrs["name"]
        for row in tested
        if row.comparison and row.comparison.lower
    ]
    higher = [
        row.data.attrs["name"]
        for row in tested
        if row.comparison and row.comparison.higher
    ]
    parts = [
        f"{', '.join(f'`{run}`' for run in runs)} {word} than {name}"
        for runs, word in ((lower, "lower"), (higher, "higher"))
        if runs
    ]
    if not tested:
        return f"The runs are {NOT_COMPARED}."
    if not parts:
        return f"No difference to {name} is settled."
    return f"Test loss: {'; '.join(parts)}."
