"""The same settings on several data sets: changes of the loss, and ranks.

A loss is normalised on each data set by the loss of the baseline at the same seed: the
change of a lane is log(loss / loss of the baseline), below 0 if the lane is better. So
losses in other units and of other sizes can be averaged.

Shapes:
    D data sets, N seeds, S settings.
"""

import math
import tomllib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from experiments.aggregate import (
    Ranks,
    interquartile_mean,
    rank_settings,
    stratified_interval,
)
from experiments.config import ConfigError
from experiments.report import lanes
from experiments.report.curves import short_text
from experiments.report.lanes import Setting, describe
from experiments.report.sentences import plain
from experiments.wording import MINUS, count_text, p_text

FIGURES = ("changes", "ranks")
FEWEST_RANKED = 3  # Friedman's test is not defined for fewer
NOISE = ("dropout", "second_pass")  # tables of a config


class Change(NamedTuple):
    """How a setting changes the loss of its baseline, as log ratios.

    Attributes:
        setting: the setting.
        each: the mean over the seeds on each data set.
        middle: the interquartile mean over seeds and data sets.
        low, high: its stratified bootstrap interval.
    """

    setting: Setting
    each: Float[np.ndarray, "D"]
    middle: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The change over all data sets, with its interval."""
        low, high = percent(self.low), percent(self.high)
        return f"{percent(self.middle)} ({low} to {high})"


class OverDataSets(NamedTuple):
    """Settings compared over data sets.

    Attributes:
        names: the runs, one per data set.
        settings: those that are finite at every seed on every data set, and whose
            baselines are; in the order of the sweep.
        left_out: how many are not.
        changes: of all settings except the baselines, the lowest first.
        ranks: of the settings, by their mean losses; None for fewer than 3.
    """

    names: list[str]
    settings: list[Setting]
    left_out: int
    changes: list[Change]
    ranks: Ranks | None


def over_data_sets(runs: Sequence[xr.Dataset]) -> OverDataSets:
    """Compares the settings of runs, each of which is on another data set.

    Raises:
        ConfigError: the runs do not go together, as `refusal` says.
    """
    if reason := refusal(runs):
        raise ConfigError(f"over data sets: {reason}.")
    settings = _complete(runs)
    changes = [
        _change(setting, _log_ratios(runs, setting))
        for setting in settings
        if lanes.baseline(runs[0], setting) != setting
    ]
    means = [[lanes.losses_at(run, s).mean() for s in settings] for run in runs]
    return OverDataSets(
        [run.attrs["name"] for run in runs],
        settings,
        len(lanes.settings(runs[0])) - len(settings),
        sorted(changes, key=lambda change: change.middle),
        rank_settings(np.array(means)) if len(settings) >= FEWEST_RANKED else None,
    )


def refusal(runs: Sequence[xr.Dataset]) -> str:
    """Returns why settings cannot be compared over data sets; empty if they can."""
    first, *others = runs
    data = {run.attrs["data"] for run in runs}
    if len(runs) < 2 or len(data) < len(runs):
        got = f"{count_text(len(runs), 'run')} on {count_text(len(data), 'data set')}"
        return f"needs at least 2 runs, each on another data set, got {got}"
    for run in runs:
        if reason := _unusable(run):
            return f"`{run.attrs['name']}` {reason}"
    for run in others:
        if reason := _different(first, run):
            both = f"`{first.attrs['name']}` and `{run.attrs['name']}`"
            return f"{both} must have the same {reason}"
    settings = _complete(runs)
    if all(lanes.baseline(first, setting) == setting for setting in settings):
        return "no setting other than the baseline is finite on every data set"
    return ""


def verdict(over: OverDataSets) -> str:
    """Returns whether the settings differ over the data sets, in a sentence or two."""
    count = count_text(len(over.names), "data set")
    if over.ranks is None:
        (change,) = over.changes
        name = describe(change.setting)
        return f"Over {count}, {name} changes the loss by {change.text}."
    test = f"Friedman's test of ranks, {p_text(over.ranks.p)}"
    if not over.ranks.differ:
        return f"{count} do not show that the settings differ ({test})."
    best = int(np.argmin(over.ranks.average))
    return (
        f"The settings differ over {count} ({test}). Lowest average rank: "
        f"{describe(over.settings[best])}."
    )


def answer(over: OverDataSets) -> str:
    """Returns the lowest loss over the data sets, and the settings left out."""
    first = over.changes[0]
    text = (
        f"Of the settings other than the baseline, {describe(first.setting)} has the "
        f"lowest loss over all data sets: {first.text} against the baseline."
    )
    if over.left_out:
        text += (
            f" {count_text(over.left_out, 'setting')} left out: a seed or its baseline "
            "is not finite on some data set."
        )
    return text


def label(setting: Setting) -> str:
    """Returns a setting as the label of a row."""
    return plain(describe(setting)) if len(setting) == 1 else short_text(setting)


def percent(log_ratio: float) -> str:
    """Returns a log ratio as a change in percent, with the minus sign of print."""
    return f"{100 * math.expm1(log_ratio):+.1f} %".replace("-", MINUS)


def _unusable(run: xr.Dataset) -> str:
    """Why one run cannot take part, if it cannot."""
    if run.attrs["race"]:
        return "is a race, in which settings differ in their seeds"
    if run.sizes["seed"] < 2:
        return f"must have at least 2 seeds, got {run.sizes['seed']}"
    lowest = float(lanes.final_loss(run).min())
    if lowest <= 0:
        return f"must have test losses above 0 for their ratios, got {lowest:.3g}"
    return ""


def _different(one: xr.Dataset, other: xr.Dataset) -> str:
    """The first thing in which two runs differ and must not."""
    axes = [lanes.axes(run) for run in (one, other)]
    for path in dict.fromkeys([*axes[0], *axes[1]]):
        values = [list(a.get(path, ())) for a in axes]
        if values[0] != values[1]:
            return f"values of `{path}`, got {values[0]} and {values[1]}"
    configs = [tomllib.loads(run.attrs["config"]) for run in (one, other)]
    for table in NOISE:
        if configs[0].get(table) != configs[1].get(table):
            return f"table `{table}` in their configs"
    seeds = one.sizes["seed"], other.sizes["seed"]
    return (
        ""
        if seeds[0] == seeds[1]
        else f"number of seeds, got {seeds[0]} and {seeds[1]}"
    )


def _complete(runs: Sequence[xr.Dataset]) -> list[Setting]:
    """The settings that are finite everywhere, and whose baselines are."""
    return [
        setting
        for setting in lanes.settings(runs[0])
        if all(np.isfinite(_log_ratios([run], setting)).all() for run in runs)
    ]


def _log_ratios(
    runs: Sequence[xr.Dataset], setting: Setting
) -> Float[np.ndarray, "N D"]:
    """The changes of a setting; NaN without a finite baseline."""
    columns = []
    for run in runs:
        losses, base = lanes.losses_at(run, setting), lanes.baseline(run, setting)
        there = np.nan if base is None else lanes.losses_at(run, base)
        columns.append(np.log(losses / there))
    return np.stack(columns, axis=1)


def _change(setting: Setting, ratios: Float[np.ndarray, "N D"]) -> Change:
    middle = float(interquartile_mean(ratios))
    return Change(setting, ratios.mean(axis=0), middle, *stratified_interval(ratios))
