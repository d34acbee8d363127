"""Lanes of a run: final values, the choice on validation data, and baselines.

The functions read the data set of `experiments.runs.load`. A setting is one value per
axis of the sweep, as a dict. Settings are chosen by validation losses; test losses are
reported.

Shapes:
    N seeds.
"""

import itertools
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Float, Shaped

from experiments.axes import DIGITS, value_text
from experiments.axes import baseline as find_baseline
from experiments.runs.dataset import MISSING, axis_names

Value: TypeAlias = float | int | str
Setting: TypeAlias = dict[str, Any]
PLANE = ("dropout.inputs.rate", "dropout.recurrent.rate")
METHOD = "dropout.method"


def started(data: xr.Dataset) -> xr.Dataset:
    """Returns the data set without the seeds that no lane has started."""
    there = (data["status"] != MISSING).any(axis_names(data))
    return data.isel(seed=np.flatnonzero(there.values))


def axes(data: xr.Dataset) -> dict[str, tuple[Value, ...]]:
    """Returns the values of each axis, in the order of the sweep."""
    return {path: tuple(data[path].values.tolist()) for path in axis_names(data)}


def numeric_axes(data: xr.Dataset) -> list[str]:
    """Returns the axes whose values are numbers."""
    return [path for path in axis_names(data) if data[path].dtype.kind in "if"]


def settings(data: xr.Dataset) -> list[Setting]:
    """Returns all settings in the order of the sweep."""
    values = axes(data)
    return [
        dict(zip(values, row, strict=True))
        for row in itertools.product(*values.values())
    ]


def select(data: xr.Dataset, setting: Setting) -> xr.Dataset:
    """Returns the lanes with some values; the axes stay, with one value each."""
    values = axes(data)
    return data.isel({path: [values[path].index(v)] for path, v in setting.items()})


def groups(data: xr.Dataset, *paths: str) -> list[tuple[Setting, xr.Dataset]]:
    """Splits a data set into parts that differ in nothing except the axes `paths`.

    Returns:
        For each part, the values that it has in common, and its lanes.
    """
    others = {p: v for p, v in axes(data).items() if p not in paths}
    rows = itertools.product(*others.values())
    common = [dict(zip(others, row, strict=True)) for row in rows]
    return [(setting, select(data, setting)) for setting in common]


def diverged(data: xr.Dataset) -> xr.DataArray:
    """Returns which lanes diverged."""
    return (data["status"] == "diverged") | (data["diverged_at"] >= 0)


def final(data: xr.Dataset, metric: str) -> xr.DataArray:
    """Returns a metric of each lane at the last evaluation; NaN if it diverged."""
    return data[metric].isel(evaluation=-1).where(~diverged(data))


def final_loss(data: xr.Dataset, split: str = "test") -> xr.DataArray:
    """Returns the loss of each lane at the last evaluation; NaN if it diverged."""
    return final(data, f"{split}_{data.attrs['loss']}")


def mean_loss(data: xr.Dataset, split: str = "test") -> xr.DataArray:
    """Returns the mean loss of each setting; NaN if a seed is not finite.

    Seeds that a race did not train do not count.
    """
    loss = final_loss(data, split)
    if not data.attrs["race"]:
        return loss.mean("seed", skipna=False)
    there = data["status"] != MISSING
    return loss.where(there, 0).sum("seed", skipna=False) / there.sum("seed")


def history(
    data: xr.Dataset, setting: Setting, name: str
) -> Shaped[np.ndarray, "N ..."]:
    """Returns a variable of the data set at one setting, with a row per seed.

    Seeds that a race did not train have no row.
    """
    # NumPy alone: a report asks thousands of times.
    place = tuple(values.index(setting[path]) for path, values in axes(data).items())
    found = data[name].values[place]
    if data.attrs["race"]:
        found = found[data["status"].values[place] != MISSING]
    return found


def values_at(
    data: xr.Dataset, setting: Setting, metric: str
) -> Float[np.ndarray, "N"]:
    """Returns the final values of a metric at one setting, one per seed."""
    lost = [history(data, setting, name) for name in ("status", "diverged_at")]
    diverged = (lost[0] == "diverged") | (lost[1] >= 0)
    return np.where(diverged, np.nan, history(data, setting, metric)[:, -1])


def shared_seeds(
    one: Float[np.ndarray, "_"], other: Float[np.ndarray, "_"]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Returns the values of two settings at the seeds of both, which come first."""
    seeds = min(len(one), len(other))
    return one[:seeds], other[:seeds]


def losses_at(data: xr.Dataset, setting: Setting) -> Float[np.ndarray, "N"]:
    """Returns the final test loss at one setting, one value per seed."""
    return values_at(data, setting, f"test_{data.attrs['loss']}")


def best(data: xr.Dataset) -> Setting | None:
    """Returns the setting with the lowest mean validation loss, if any is finite."""
    loss = mean_loss(data, "valid").values
    if data.attrs["race"] == "best":
        # Those that left early are worse, but may have had lucky seeds.
        seeds = (data["status"] != MISSING).sum("seed").values
        loss = np.where(seeds == seeds.max(), loss, np.nan)
    if not loss.size or np.isnan(loss).all():
        return None
    place = np.unravel_index(np.nanargmin(loss), loss.shape)
    values = axes(data).items()
    return {path: v[n] for (path, v), n in zip(values, place, strict=True)}


def baseline(data: xr.Dataset, setting: Setting) -> Setting | None:
    """Returns the setting with the lowest rates and all else equal.

    Without a rate axis, it is the first setting of the sweep. None if it has no lanes.
    """
    base = find_baseline(axes(data), setting)
    there = select(data, base)["status"] != MISSING
    return base if there.any() else None


def is_plane(data: xr.Dataset) -> bool:
    """Returns whether the axes are the two rates of the plane, both from 0."""
    values = axes(data)
    return set(values) == set(PLANE) and all(0 in v for v in values.values())


def describe(setting: Setting, digits: int = DIGITS) -> str:
    """Returns a setting as text: "`dropout.rate` 0.3, `model.cell` gru"."""
    values = (f"`{path}` {value_text(v, digits)}" for path, v in setting.items())
    return ", ".join(values)


def loss_name(data: xr.Dataset) -> str:
    """Returns the name of the loss as prose writes it: "NLL" for nll."""
    return metric_text(data.attrs["loss"])


def metric_text(name: str) -> str:
    """Returns the name of a metric as prose writes it."""
    return name.upper() if len(name) <= 3 else name.replace("_", " ")


def loss_unit(data: xr.Dataset) -> str:
    """Returns the unit of the loss; empty if it has none."""
    return data[f"test_{data.attrs['loss']}"].attrs["units"]


def loss_label(data: xr.Dataset, split: str = "test") -> str:
    """Returns the loss with its unit: "test NLL (nats per utterance)"."""
    unit = loss_unit(data)
    return f"{split} {loss_name(data)}{f' ({unit})' if unit else ''}"
