"""Tables: the results of a run as text, for the page and the terminal."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from experiments.axes import value_text
from experiments.report import lanes
from experiments.report.data_sets import OverDataSets, percent
from experiments.report.findings import difference_name, explored, methods, planned
from experiments.report.lanes import METHOD, PLANE, Setting, describe
from experiments.report.several import RunBest
from experiments.statistics import MOST_SEEDS, Comparison
from experiments.wording import mean_sd, signed

MOST_COLUMNS = 3
TESTED = ("verdict", "difference", "p (corrected)", "seeds needed")


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        names: the setting, the comparison or the run.
        numbers: results.
        tested: verdict, difference, p and seeds needed; or the difference alone.
        chosen: whether it is the setting chosen on validation data.
    """

    names: list[str]
    numbers: list[str]
    tested: list[str]
    chosen: bool = False


class Table(NamedTuple):
    """Rows under headings, one heading per text of a row."""

    names: list[str]
    numbers: list[str]
    tested: list[str]
    rows: list[Row]


def planned_table(data: xr.Dataset) -> Table:
    """Returns the planned comparisons, which were tested as one family."""
    why = _why_not(data)
    rows = [
        Row([difference_name(row)], [], _tested(row.comparison, why))
        for row in planned(data).values()
    ]
    return Table(["comparison"], [], list(TESTED), rows)


def settled_table(data: xr.Dataset) -> Table:
    """Returns the settings of a race with their planned comparisons."""
    best, paths = lanes.best(data), list(lanes.axes(data))
    tests = {str(row.setting): row for row in planned(data).values()}
    rows = []
    for setting in _by_result(data):
        row = tests.get(str(setting))
        if row is None:
            tested = _tested(None, "the baseline" if _against(data) else "the best")
        else:
            tested = _tested(row.comparison, _why_not(data))
            if row.comparison and not _against(data):
                tested[0] += f" ({row.other})"
        numbers = _numbers(data, setting)
        rows.append(Row(_names(setting, paths), numbers, tested, setting == best))
    return Table(_headings(paths), _measures(data), list(TESTED), rows)


def _against(data: xr.Dataset) -> bool:
    """Whether a race is against baselines, not until the best."""
    return bool(data.attrs["race"] == "settled")


def settings_table(data: xr.Dataset, most: int | None = None) -> Table:
    """Returns all settings, or those with the lowest loss; the lowest test loss first.

    With `most`, the baseline of the chosen setting is always among them.
    """
    best = lanes.best(data)
    order = _by_result(data)
    if most is not None and len(order) > most:
        base = None if best is None else lanes.baseline(data, best)
        kept = order[:most]
        order = kept if base is None or base in kept else [*kept[:-1], base]
    paths = list(lanes.axes(data))
    rows = [
        Row(
            _names(setting, paths),
            _numbers(data, setting),
            [_explored(data, setting)],
            setting == best,
        )
        for setting in order
    ]
    return Table(_headings(paths), _measures(data), ["difference"], rows)


def methods_table(data: xr.Dataset) -> Table:
    """Returns the best setting of each method, the lowest test loss first."""
    others = [path for path in lanes.axes(data) if path != METHOD]
    best = lanes.best(data)
    rows = []
    for row in methods(data):
        same = "" if row.same_as == row.method else f" (= {row.same_as})"
        why = "is the baseline" if row.best == row.base else _why_not(data)
        tested = _tested(row.comparison, why)
        names = [row.method + same, *_names(row.best, others)]
        rows.append(Row(names, _numbers(data, row.best), tested, row.best == best))
    return Table(["method", *_headings(others)], _measures(data), list(TESTED), rows)


def runs_table(compared: Sequence[RunBest]) -> Table:
    """Returns the chosen setting of each of several runs, in their order."""
    rows = []
    for n, row in enumerate(compared):
        run = row.data
        setting = "-" if row.best is None else describe(row.best) or "one"
        numbers = ["-", "-"] if row.best is None else _numbers(run, row.best)[:2]
        why = "the first run" if n == 0 else "not compared"
        names = [
            run.attrs["name"],
            run.attrs["task"] or "-",
            lanes.loss_name(run),
            setting,
        ]
        rows.append(Row(names, numbers, _tested(row.comparison, why)))
    headings = ["run", "task", "loss", "chosen setting"]
    return Table(headings, ["test", "validation"], list(TESTED), rows)


def data_sets_table(over: OverDataSets) -> Table:
    """Returns the change of each setting on each data set and over all of them."""
    paths = list(over.settings[0])
    found = {str(change.setting): change for change in over.changes}
    ranks = [""] * len(over.settings) if over.ranks is None else over.ranks.average
    rows = []
    for setting, rank in zip(over.settings, ranks, strict=True):
        change = found.get(str(setting))
        each = [percent(v) for v in change.each] if change else ["-"] * len(over.names)
        tested = [change.text if change else "the baseline"]
        if over.ranks is not None:
            tested.append(f"{rank:.2f}")
        rows.append(
            (
                change.middle if change else 0.0,
                Row(_names(setting, paths), each, tested),
            )
        )
    headings = ["over all"] + ["average rank"] * (over.ranks is not None)
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return Table(_headings(paths), list(over.names), headings, ordered)


def _by_result(data: xr.Dataset) -> list[Setting]:
    """Settings with any result, the lowest test loss first; those without one last."""
    loss = lanes.mean_loss(data).values.reshape(-1)
    ended = (data["status"] != "missing").any("seed").values.reshape(-1)
    settings = lanes.settings(data)
    return [settings[n] for n in np.argsort(loss, stable=True) if ended[n]]


def _names(setting: Setting, paths: Sequence[str]) -> list[str]:
    if len(paths) > MOST_COLUMNS:
        return [describe({path: setting[path] for path in paths})]
    return [value_text(setting[path]) for path in paths]


def _headings(paths: Sequence[str]) -> list[str]:
    """One column per axis if there are few, and one for all of them otherwise."""
    if len(paths) > MOST_COLUMNS:
        return ["setting"]
    short = {PLANE[0]: "dropout", PLANE[1]: "recurrent_dropout", "dropout.rate": "rate"}
    return [short.get(path, path) for path in paths]


def _measures(data: xr.Dataset) -> list[str]:
    loss = lanes.loss_name(data)
    extra = [f"test {lanes.metric_text(m.removeprefix('test_'))}" for m in _extra(data)]
    return [f"test {loss}", f"validation {loss}", *extra]


def _numbers(data: xr.Dataset, setting: Setting) -> list[str]:
    loss = data.attrs["loss"]
    found = [
        mean_sd(lanes.values_at(data, setting, f"{split}_{loss}"))
        for split in ("test", "valid")
    ]
    extra = [(m, lanes.values_at(data, setting, m)) for m in _extra(data)]
    return found + [_extra_text(metric, values) for metric, values in extra]


def _extra(data: xr.Dataset) -> list[str]:
    """The test metrics other than the loss."""
    loss = f"test_{data.attrs['loss']}"
    names = [str(name) for name in data.data_vars]
    return [name for name in names if name.startswith("test_") and name != loss]


def _extra_text(name: str, values: np.ndarray) -> str:
    if name.endswith("accuracy") and np.isfinite(values).all():
        return f"{values.mean():.1%}"
    return mean_sd(values)


def _explored(data: xr.Dataset, setting: Setting) -> str:
    """The difference to the baseline, without a verdict."""
    if lanes.baseline(data, setting) == setting:
        return "the baseline"
    found = explored(data, setting)
    if found is None:
        return _why_not(data)
    difference, low, high = (signed(value) for value in found)
    return f"{difference} ({low} to {high})"


def _why_not(data: xr.Dataset) -> str:
    """Why two settings are not compared, if they are not."""
    return "one seed" if data.sizes["seed"] == 1 else "results are missing"


def _tested(comparison: Comparison | None, why: str) -> list[str]:
    if comparison is None:
        return [why, "-", "-", "-"]
    low, high = signed(comparison.low), signed(comparison.high)
    return [
        _short_verdict(comparison),
        f"{signed(comparison.difference)} ({low} to {high})",
        "<0.0001" if comparison.p_corrected < 1e-4 else f"{comparison.p_corrected:.2g}",
        _needed(comparison),
    ]


def _short_verdict(comparison: Comparison) -> str:
    if not comparison.settled:
        return "not settled"
    if not comparison.differs:
        return "equivalent"
    return "lower" if comparison.lower else "higher"


def _needed(comparison: Comparison) -> str:
    """The seeds that would settle it; those that did if it is settled."""
    if comparison.sequential:
        fixed = comparison.seeds_needed or f">{MOST_SEEDS:,}"
        return f"{comparison.seeds}; fixed {fixed}"
    if comparison.settled:
        return f"{comparison.seeds} were enough"
    if comparison.seeds_needed is None:
        return f">{MOST_SEEDS:,}"
    return f"about {comparison.seeds_needed:,}"
