"""Findings: the planned comparisons of a run, and its lanes without a result.

A few comparisons are planned before the results are seen, and are tested as one family
with Holm's correction. All other settings are exploratory: their differences come with
unadjusted intervals and without a verdict.
"""

import itertools
from typing import NamedTuple

import numpy as np
import xarray as xr

from experiments.race import Race, departures
from experiments.report import lanes
from experiments.report.lanes import METHOD, PLANE, Setting
from experiments.runs.dataset import MISSING
from experiments.sequential import SEQUENTIAL, interval
from experiments.statistics import Comparison, Pair, compare, t_interval
from experiments.wording import MINUS, count_text

SPLITS = {"test": "test", "valid": "validation"}
ARGUMENTS = dict(zip(PLANE, ("`dropout`", "`recurrent_dropout`"), strict=True))


class Kinds(NamedTuple):
    """The best setting of each kind of noise, by mean validation loss.

    A kind is None if the plane has no setting of it, or none with a finite loss.

    Attributes:
        none: both rates are 0.
        inputs: `dropout` alone.
        recurrent: `recurrent_dropout` alone.
        both: both rates are above 0.
    """

    none: Setting | None
    inputs: Setting | None
    recurrent: Setting | None
    both: Setting | None


class Planned(NamedTuple):
    """A planned comparison: the first setting minus the second.

    Attributes:
        name, other: the settings in words.
        setting, base: the settings.
        comparison: None if it cannot be tested, or if both are the same.
    """

    name: str
    other: str
    setting: Setting
    base: Setting
    comparison: Comparison | None


class MethodBest(NamedTuple):
    """The best setting of one method.

    Attributes:
        method: its name.
        same_as: the first method with the same results, or the method itself.
        best: the setting chosen on validation data.
        base: its baseline, the same method at its lowest rate; None without lanes.
        comparison: best minus baseline, in one family over all methods; None if both
            are the same, or cannot be compared.
    """

    method: str
    same_as: str
    best: Setting
    base: Setting | None
    comparison: Comparison | None


def kinds(data: xr.Dataset) -> Kinds | None:
    """Returns the best setting of each kind; None if the two rates are not swept.

    Any further axes have their values at the best setting of all. A race has no kinds:
    each of its settings is a planned comparison.
    """
    best = lanes.best(data)
    if best is None or data.attrs["race"] or not set(PLANE) <= set(best):
        return None
    part = lanes.select(data, {p: v for p, v in best.items() if p not in PLANE})

    noisy = {path: part[path].values != 0 for path in PLANE}

    def of_kind(*wanted: bool) -> Setting | None:
        there = zip(noisy.items(), wanted, strict=True)
        places = {path: np.flatnonzero(values == w) for (path, values), w in there}
        return lanes.best(part.isel(places))

    return Kinds(
        none=of_kind(False, False),
        inputs=of_kind(True, False),
        recurrent=of_kind(False, True),
        both=of_kind(True, True),
    )


def kind_names(data: xr.Dataset, found: Kinds) -> dict[str, str]:
    """Returns the kinds in words, with their rates: "`dropout` alone (0.3)"."""
    names = {"none": "no dropout"}
    for kind, path in (("inputs", PLANE[0]), ("recurrent", PLANE[1])):
        if setting := getattr(found, kind):
            names[kind] = f"{ARGUMENTS[path]} alone ({lanes.value_text(setting[path])})"
    if found.both:
        rates = ", ".join(lanes.value_text(found.both[path]) for path in PLANE)
        names["both"] = f"both ({rates})"
    return {kind: name for kind, name in names.items() if getattr(found, kind)}


def planned(data: xr.Dataset) -> dict[tuple[str, str], Planned]:
    """Returns the planned comparisons of a run, by their short names.

    They are: for a race, each setting against its baseline, or against the one that was
    lower than it; for a plane with a cell
    without noise, each kind against none and against each other kind; for methods, the
    best of each against its baseline; otherwise the chosen setting against its
    baseline.
    """
    if data.attrs["race"]:
        to_the_end = data.attrs["race"] == "best"
        return _planned_of_best(data) if to_the_end else _planned_of_race(data)
    found = kinds(data)
    if found and found.none and any(found[1:]):
        return _planned_of_kinds(data, found)
    if by_method(data):
        rows = methods(data)
        return {
            (row.method, "baseline"): Planned(
                f"`{row.method}`", "its baseline", row.best, row.base, row.comparison
            )
            for row in rows
            if row.base and row.same_as == row.method
        }
    best = lanes.best(data)
    base = lanes.baseline(data, best) if best is not None else None
    if best is None or base is None or best == base:
        return {}
    (comparison,) = compare([_pair(data, best, base)], margin=data.attrs["margin"])
    name, other = lanes.describe(best), lanes.describe(base)
    return {("best", "baseline"): Planned(name, other, best, base, comparison)}


def compared_split(data: xr.Dataset) -> str:
    """Returns the split whose loss the planned comparisons compare."""
    return "valid" if data.attrs["race"] == "best" else "test"


def raced(data: xr.Dataset, row: Planned) -> Pair:
    """Returns the losses that a race has compared, at the seeds of both settings."""
    assert row.comparison is not None
    one, other = _pair(data, row.setting, row.base, compared_split(data))
    return one[: row.comparison.seeds], other[: row.comparison.seeds]


def difference_name(row: Planned) -> str:
    """Returns a comparison in words: "both (0.1, 0.5) − no dropout"."""
    return f"{row.name} {MINUS} {row.other}"


def explored(data: xr.Dataset, setting: Setting) -> tuple[float, float, float] | None:
    """Returns a difference to the baseline and its unadjusted 95 % interval.

    None for the baseline itself, for one seed, and if a value is missing.
    """
    base = lanes.baseline(data, setting)
    if base is None or base == setting:
        return None
    one, other = _pair(data, setting, base)
    if len(one) < 2 or not np.isfinite(one - other).all():
        return None
    ends = (interval if data.attrs["race"] else t_interval)(one - other)
    return float((one - other).mean()), *ends


def by_method(data: xr.Dataset) -> bool:
    """Returns whether each method is compared at its best rate."""
    return METHOD in lanes.axes(data) and not data.attrs["race"]


def methods(data: xr.Dataset) -> list[MethodBest]:
    """Returns the best setting of each method, the lowest test loss first.

    Methods with the same results are one test of the family.
    """
    parts = {str(m): lanes.select(data, {METHOD: m}) for m in lanes.axes(data)[METHOD]}
    same = _first_with_the_same(data, parts)
    found = {method: lanes.best(part) for method, part in parts.items()}
    chosen = {method: setting for method, setting in found.items() if setting}
    bases = {method: lanes.baseline(data, best) for method, best in chosen.items()}
    pairs = {
        method: _pair(data, chosen[method], base)
        for method, base in bases.items()
        if base and base != chosen[method] and same[method] == method
    }
    compared = compare(list(pairs.values()), margin=data.attrs["margin"])
    results = dict(zip(pairs, compared, strict=True))
    rows = [
        MethodBest(m, same[m], setting, bases[m], results.get(same[m]))
        for m, setting in chosen.items()
    ]
    return sorted(rows, key=lambda row: lanes.losses_at(data, row.best).mean())


def warnings(data: xr.Dataset) -> list[str]:
    """Returns one sentence per kind of result that is missing."""
    found = []
    status = data["status"].values
    reached, plan = int(data["epoch"].values[-1]), data.attrs["epochs"]
    if (status == "interrupted").any() and plan and reached != plan:
        found.append(
            f"Stopped after {reached} of {plan} epochs: results are of that epoch."
        )
    stopped = int(_stopped(data).sum())
    if stopped:
        of = count_text(status.size, "lane")
        found.append(
            f"{stopped} of {of} stopped before epoch {reached}. Their settings are not "
            "compared."
        )
    planned_lanes = max(data.attrs["lanes"], status.size)
    missing = planned_lanes - int((status != MISSING).sum())
    if missing and not data.attrs["race"]:
        of = count_text(planned_lanes, "lane")
        found.append(f"{missing} of {of} have not started.")
    if lost := int(lanes.diverged(data).sum()):
        of = count_text(status.size, "lane")
        found.append(f"{lost} of {of} diverged. Their settings are never chosen.")
    return found


def diverged_lanes(data: xr.Dataset) -> list[str]:
    """Returns each lane that diverged in words, with its step."""
    found = []
    seeds = data["seed"].values.tolist()
    steps = data["diverged_at"].values.reshape(-1, len(seeds))
    lost = lanes.diverged(data).values.reshape(-1, len(seeds))
    for (n, setting), (m, seed) in itertools.product(
        enumerate(lanes.settings(data)), enumerate(seeds)
    ):
        if lost[n, m]:
            parts = filter(None, [lanes.describe(setting), f"seed {seed}"])
            at = f", at step {steps[n, m]}" if steps[n, m] >= 0 else ""
            found.append(", ".join(parts) + at)
    return found


def _planned_of_kinds(data, found: Kinds) -> dict[tuple[str, str], Planned]:
    names = kind_names(data, found)
    pairs = [
        (b, a)
        for a, b in itertools.combinations(("none", "inputs", "recurrent", "both"), 2)
        if a in names and b in names
    ]
    chosen = found._asdict()
    values = [_pair(data, chosen[b], chosen[a]) for b, a in pairs]
    compared = compare(values, margin=data.attrs["margin"])
    return {
        (b, a): Planned(names[b], names[a], chosen[b], chosen[a], comparison)
        for (b, a), comparison in zip(pairs, compared, strict=True)
    }


def _planned_of_race(data) -> dict[tuple[str, str], Planned]:
    bases = [(s, lanes.baseline(data, s)) for s in lanes.settings(data)]
    rows = [(setting, base) for setting, base in bases if base and base != setting]
    values = [_pair(data, *row) for row in rows]
    compared = compare(values, SEQUENTIAL, data.attrs["margin"])
    return {
        (lanes.describe(setting), "baseline"): Planned(
            lanes.describe(setting), "its baseline", setting, base, comparison
        )
        for (setting, base), comparison in zip(rows, compared, strict=True)
    }


def _planned_of_best(data) -> dict[tuple[str, str], Planned]:
    """Each setting against the one that was lower, or against the best."""
    settings, best = lanes.settings(data), lanes.best(data)
    losses = lanes.final_loss(data, "valid").values.reshape(len(settings), -1)
    ended = (data["status"] != MISSING).values.reshape(losses.shape)
    left = departures(losses, ended, Race("best", data.attrs["margin"]))
    rows, values = [], []
    for place, setting in enumerate(settings):
        departure = left.get(place)
        base = settings[departure.lowest] if departure else best
        if base is not None and setting != best:
            rows.append((setting, base))
            seeds = departure.seeds if departure else None
            values.append(tuple(a[:seeds] for a in _pair(data, setting, base, "valid")))
    compared = compare(values, SEQUENTIAL, data.attrs["margin"], stepwise=False)
    return {
        (lanes.describe(setting), "best"): Planned(
            lanes.describe(setting), lanes.describe(base), setting, base, comparison
        )
        for (setting, base), comparison in zip(rows, compared, strict=True)
    }


def _pair(data: xr.Dataset, setting: Setting, base: Setting, split: str = "test"):
    """The losses of two settings at the seeds of both."""
    metric = f"{split}_{data.attrs['loss']}"
    return lanes.shared_seeds(
        *(lanes.values_at(data, each, metric) for each in (setting, base))
    )


def _stopped(data: xr.Dataset) -> xr.DataArray:
    """Lanes that were interrupted before the last evaluation of the run."""
    loss = data[f"valid_{data.attrs['loss']}"]
    return (
        (data["status"] == "interrupted")
        & ~lanes.diverged(data)
        & loss.isel(evaluation=-1).isnull()
    )


def _first_with_the_same(data, parts: dict[str, xr.Dataset]) -> dict[str, str]:
    """Maps each method to the first one with the same results at all its settings."""
    metrics = [name for name in data.data_vars if "evaluation" in data[name].dims]
    firsts: dict[str, str] = {}
    for method, part in parts.items():
        equal = (
            first
            for first in dict.fromkeys(firsts.values())
            if all(
                np.array_equal(part[m].values, parts[first][m].values, equal_nan=True)
                for m in metrics
            )
        )
        firsts[method] = next(equal, method)
    return firsts
