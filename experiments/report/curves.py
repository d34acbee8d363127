"""Curves: a loss or a learned rate against epochs or against an axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from experiments.axes import RATE, value_text
from experiments.bootstrap import interval
from experiments.report import lanes
from experiments.report.findings import Planned, kinds, methods, planned, raced
from experiments.report.lanes import METHOD, PLANE, Setting
from experiments.report.palette import STYLES, Style, series_styles
from experiments.report.panels import Panel, Series, draw_panel
from experiments.report.scales import spans_decades
from experiments.report.scene import Scene
from experiments.report.sentences import plain
from experiments.report.several import RunBest
from experiments.sequential import intervals

MOST_PANELS = 25
MOST_LINES = 12


def curve_axis(data: xr.Dataset) -> str | None:
    """Returns the axis of the rate curves: the one rate, or the one numeric axis."""
    numeric = lanes.numeric_axes(data)
    rates = [path for path in numeric if RATE.fullmatch(path)]
    found = rates or numeric
    return found[0] if len(found) == 1 else None


def rate_curves(data: xr.Dataset) -> list[Scene]:
    """Draws the test loss against the one rate, one panel for each of the rest."""
    path = curve_axis(data) or ""
    parts = lanes.groups(data, path)[:MOST_PANELS]
    losses = np.stack([lanes.mean_loss(part).values for _, part in parts])
    same = _same_methods(data)
    single = len(parts) == 1
    panels = []
    for common, part in parts:
        series = _rate_series(part, path)
        best = lanes.best(part)
        base = lanes.baseline(data, lanes.settings(part)[0])
        title = short_text(common) + same.get(common.get(METHOD), "")
        panel = Panel(
            title,
            axis_label(path),
            lanes.loss_label(data),
            [series],
            np.concatenate([losses.reshape(-1), series.low, series.high])
            if single
            else losses,
            log_x=spans_decades(series.x),
            whole_x=data[path].dtype.kind == "i",
            level=None if base is None else _mean(data, base),
            chosen=best[path] if best else None,
            size=(360, 210) if single else (150, 110),
            legend=False,
        )
        panels.append(draw_panel(panel, _rate_alt(data, path, common, part)))
    return panels


def race_curves(data: xr.Dataset) -> list[Scene]:
    """Draws the difference of each setting to its baseline against the seeds."""
    rows = [row for row in planned(data).values() if row.comparison][:MOST_PANELS]
    series = [_race_series(data, row) for row in rows]
    shown = np.concatenate([np.zeros(1), _range(series)])
    shown = shown[np.isfinite(shown)]
    label = f"difference in {lanes.loss_name(data)}"
    return [
        draw_panel(
            Panel(
                short_text(row.setting),
                "seeds",
                label,
                [line],
                shown,
                log_y=False,
                whole_x=True,
                level=0.0,
                size=(200, 130),
                legend=False,
            ),
            plain(f"{row.name}: {row.comparison.sentence(row.other)}."),
        )
        for row, line in zip(rows, series, strict=True)
        if row.comparison
    ]


def learning_curves(data: xr.Dataset) -> list[Scene]:
    """Draws the losses against epochs for the baseline and the best of each kind."""
    return _losses_by_epoch(data, [(data, *row) for row in _shown(data)])


def learning_curves_of_runs(rows: Sequence[RunBest]) -> list[Scene]:
    """Draws the losses against epochs for the chosen setting of each run."""
    found = [row for row in rows if row.best is not None][:MOST_LINES]
    styles = series_styles(len(found))
    shown = [
        (row.data, row.best, style, row.data.attrs["name"])
        for row, style in zip(found, styles, strict=True)
    ]
    return _losses_by_epoch(rows[0].data, shown)


def learned_rates(data: xr.Dataset) -> list[Scene]:
    """Draws each learned rate against epochs, one line per setting."""
    scenes = []
    for name in learned(data):
        settings = learned_settings(data, name)
        styles = series_styles(len(settings))
        series = [
            _by_epoch(
                data, setting, name, style, plain(lanes.describe(setting)) or "rate"
            )
            for setting, style in zip(settings, styles, strict=True)
        ]
        title = f"Learned rate, {name.removeprefix('rate_')}"
        ends = ", ".join(f"{line.y[-1]:.3f}" for line in series)
        panel = Panel(
            title, "epoch", "rate", series, _range(series), log_y=False, whole_x=True
        )
        scenes.append(draw_panel(panel, f"{title}: ends at {ends}."))
    return scenes


def learned(data: xr.Dataset) -> list[str]:
    """Returns the metrics that are learned rates with any finite value."""
    names = [str(name) for name in data.data_vars if str(name).startswith("rate_")]
    return [name for name in names if np.isfinite(data[name].values).any()]


def learned_settings(data: xr.Dataset, name: str) -> list[Setting]:
    """Returns the first settings that learn a rate."""
    found = [
        setting
        for setting in lanes.settings(data)
        if np.isfinite(lanes.select(data, setting)[name].values).any()
    ]
    return found[:MOST_LINES]


def axis_label(path: str) -> str:
    """Returns the name of an axis; the rates of the plane have their arrows."""
    return {
        PLANE[0]: "↑ dropout",
        PLANE[1]: "→ recurrent_dropout",
        "dropout.rate": "rate",
    }.get(path, path)


def short_text(setting: Setting) -> str:
    """Returns a setting as the title of a panel."""
    if len(setting) == 1:
        return value_text(*setting.values())
    return ", ".join(
        f"{p.split('.', 1)[-1]} {value_text(v)}" for p, v in setting.items()
    )


def _rate_series(part: xr.Dataset, path: str) -> Series:
    rates = np.sort(part[path].values)
    (common,) = lanes.settings(lanes.select(part, {path: rates[0]}))
    low, mean, high = np.full((3, len(rates)), np.nan)
    for n, rate in enumerate(rates.tolist()):
        test = lanes.losses_at(part, common | {path: rate})
        mean[n] = test.mean() if len(test) else np.nan
        if np.isfinite(mean[n]):
            low[n], high[n] = interval(test)
    return Series("mean", STYLES["both"], rates.astype(float), mean, low, high)


def _race_series(data: xr.Dataset, row: Planned) -> Series:
    """The differences from the first seed at which their interval is finite."""
    assert row.comparison is not None
    differences = np.subtract(*raced(data, row))
    seeds = np.arange(1, len(differences) + 1)
    low, high = intervals(differences, row.comparison.level)
    means = np.cumsum(differences) / seeds
    first = min(int(np.isinf(low).sum()), len(seeds) - 1)
    shown = [a[first:] for a in (seeds.astype(float), means, low, high)]
    return Series("difference", STYLES["both"], *shown)


def _rate_alt(data: xr.Dataset, path: str, common: Setting, part: xr.Dataset) -> str:
    title = f" ({short_text(common)})" if common else ""
    best, name = lanes.best(part), lanes.loss_name(data)
    if best is None:
        return f"Test {name} against {path}{title}: no value is finite."
    base = lanes.baseline(data, best)
    against = "" if base is None else f"; the baseline has {_mean(data, base):.3f}"
    return (
        f"Test {name} against {path}{title}, lower is better: "
        f"{_mean(data, best):.3f} at {value_text(best[path])}, chosen on validation "
        f"data{against}."
    )


def _mean(data: xr.Dataset, setting: Setting) -> float:
    return float(lanes.losses_at(data, setting).mean())


def _same_methods(data: xr.Dataset) -> dict[Any, str]:
    if METHOD not in lanes.axes(data):
        return {}
    rows = methods(data)
    return {
        row.method: f" = {row.same_as}" for row in rows if row.same_as != row.method
    }


def _shown(data: xr.Dataset) -> list[tuple[Setting, Style, str]]:
    """The settings of the learning curves, each with its style and name."""
    best = lanes.best(data)
    if best is None:
        return []
    if found := kinds(data):
        return [
            (setting, STYLES[kind], f"{kind} ({_pair(setting)})")
            for kind, setting in found._asdict().items()
            if setting is not None
        ]
    if not best:
        return [(best, STYLES["both"], "the one setting")]
    base = lanes.baseline(data, best)
    rows = (
        []
        if base in (None, best)
        else [(base, STYLES["none"], f"baseline: {plain(lanes.describe(base))}")]
    )
    return [*rows, (best, STYLES["both"], f"chosen: {plain(lanes.describe(best))}")]


def _pair(setting: Setting) -> str:
    return ", ".join(value_text(setting[path]) for path in PLANE)


def _losses_by_epoch(data: xr.Dataset, shown) -> list[Scene]:
    """Two panels: the training loss with noise, and the test loss without."""
    scenes = []
    for split, title in (
        ("train", "Training loss, noise on"),
        ("test", "Test loss, noise off"),
    ):
        series = [
            _by_epoch(run, setting, f"{split}_{run.attrs['loss']}", style, name)
            for run, setting, style, name in shown
        ]
        label = lanes.loss_label(data, split).removeprefix(f"{split} ")
        panel = Panel(title, "epoch", label, series, _range(series), whole_x=True)
        ends = "; ".join(f"{line.name} {line.y[-1]:.3f}" for line in series)
        scenes.append(
            draw_panel(panel, f"{title} against epochs, lower is better. Last: {ends}.")
        )
    return scenes


def _by_epoch(data, setting: Setting, metric: str, style: Style, name: str) -> Series:
    """The mean over seeds, with a band from the lowest to the highest."""
    values = lanes.history(data, setting, metric)
    ends = values.min(axis=0), values.max(axis=0)
    return Series(
        name, style, data["epoch"].values.astype(float), values.mean(axis=0), *ends
    )


def _range(series: Sequence[Series]) -> Float[np.ndarray, "..."]:
    parts = [part for line in series for part in (line.y, line.low, line.high)]
    return np.concatenate([np.empty(0), *parts])
