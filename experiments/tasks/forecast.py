"""Forecasts of a series: the distribution of a later value, given a window of steps.

A window of `options.window` steps is read, and the network answers at the last one with
the distribution of the target `options.horizon` steps later. The head is a normal
distribution, a mean and a log variance, or the quantiles of `LEVELS`.

The series is split in order of time: training, then validation, then test. The last
two have a share `options.test` of the targets each; their windows may begin in the part
before, as they do in use. Targets and features are standardised by the steps of the
training part alone.

    .csv   a header, and one row per step in order of time. `target` is the series;
           every other column is a further input, except `time`, which is not read
    .npz   `target` [T], and perhaps further inputs `features` [T, D]

References:
    [1] Salinas, Flunkert, Gasthaus, Januschowski. DeepAR: probabilistic forecasting
        with autoregressive recurrent networks. International Journal of Forecasting
        36, 2020. arXiv:1704.04110: the normal distribution as the output of an LSTM.
        (Abstract.)
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Normal, Score
from experiments.tasks.files import table
from experiments.tasks.finite import first_bad
from rdrop import regression

SHIPPED = Path(__file__).parents[1] / "data/seattle_weather.csv"
SOURCE = "Seattle, daily, 2012 to 2015; NOAA, public domain"
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
EXPECTED = (
    "a .csv with a column target and one row per step, or an .npz with an array target"
)
LEAST = 2  # targets of each part


def load(options: Options) -> Data:
    """Reads the series `options.data`, by default the shipped one.

    Returns:
        Data with targets [N, 2]: the standardised values, and the standard deviation,
        which converts errors to the units of the file.

    Raises:
        ConfigError: the file cannot be read or is not such a series; or it is too short
            for the window, the horizon and the split.
    """
    data = options.data or str(SHIPPED)
    series = _read(Path(data), data)
    targets = len(series) - options.window - options.horizon + 1
    held_out = int(max(targets, 0) * options.test)
    fit = targets - 2 * held_out
    if held_out < LEAST or fit < LEAST:
        raise ConfigError(
            f"{data}: must have {LEAST} targets in each of training, validation and "
            f"test with task.window = {options.window}, task.horizon = "
            f"{options.horizon} and task.test = {options.test:g}, got {len(series)} "
            "steps."
        )
    seen = series[: fit + options.window + options.horizon - 1]
    mean, sd = seen.mean(axis=0), seen.std(axis=0)
    if not sd[0] > 0:
        raise ConfigError(f"{data}: target must vary in the training part.")
    scaled = (series - mean) / np.where(sd > 0, sd, 1)
    windows = _windows(scaled.astype(np.float32), np.float32(sd[0]), options)
    ends = np.split(np.arange(targets), [fit, fit + held_out])
    train, valid, test = (Batch(*(field[part] for field in windows)) for part in ends)
    return Data(
        train=train,
        test=test,
        valid=valid,
        outputs=2 if options.head == "gaussian" else len(LEVELS),
        readout="last",
        strata=None,
        units=_units(options.head),
        source="" if options.data else SOURCE,
    )


def inputs(batch: Batch) -> Float[Array, "B T D"]:
    """Returns the standardised steps."""
    return jnp.asarray(batch.inputs)


def score(outputs: Float[Arrays, "B O"], batch: Batch) -> Score:
    """Judges two outputs as a normal distribution, and several as quantiles."""
    observed, sd = _observed(outputs, batch)
    predicted = normal(outputs, batch)
    if predicted is None:
        values = _pinball(outputs, observed)
        middle = outputs[:, LEVELS.index(0.5)]
    else:
        middle, deviation = predicted.mean, jnp.exp(predicted.log_variance / 2)
        z = (observed - middle) / deviation
        nll = (jnp.log(2 * jnp.pi) + predicted.log_variance + z**2) / 2
        crps = regression.crps_normal(middle, deviation, observed)
        values = {"nll": nll, "crps": crps * sd}
    values["mae"] = jnp.abs(observed - middle) * sd
    return Score(values, jnp.ones_like(observed))


def normal(outputs: Float[Arrays, "B O"], batch: Batch) -> Normal | None:
    """Returns the predicted distributions; None for a head of quantiles."""
    if outputs.shape[-1] != 2:
        return None
    return Normal(outputs[:, 0], outputs[:, 1], *_observed(outputs, batch))


def _observed(outputs, batch: Batch) -> tuple[Any, Any]:
    """Returns the standardised values and the standard deviations."""
    targets = jnp.asarray(batch.targets).astype(outputs.dtype)
    return targets[:, 0], targets[:, 1]


def _pinball(outputs, observed) -> dict[str, Any]:
    """Returns the mean loss of the quantiles, in standard deviations of training."""
    losses = [
        regression.pinball_loss(outputs[:, n], level, observed)
        for n, level in enumerate(LEVELS)
    ]
    return {"pinball": jnp.stack(losses).mean(axis=0)}


def _units(head: str) -> dict[str, str]:
    if head == "gaussian":
        return {
            "nll": "of standardised values",
            "crps": "units of the file",
            "mae": "units of the file",
        }
    return {"pinball": "standard deviations of training", "mae": "units of the file"}


def _windows(series, sd, options: Options) -> Batch:
    """Returns every window with the value `options.horizon` steps after it."""
    window, horizon = options.window, options.horizon
    count = len(series) - window - horizon + 1
    steps = np.arange(count)[:, None] + np.arange(window)
    observed = series[window + horizon - 1 :, 0]
    targets = np.stack([observed, np.full(count, sd)], axis=1)
    return Batch(series[steps], np.full(count, window, np.int32), targets)


def _read(path: Path, data: str) -> Float[np.ndarray, "T D"]:
    """Returns the target, and after it the further inputs."""
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix not in readers or not path.is_file():
        raise ConfigError(f"task.data: must name {EXPECTED}, got {data!r}.")
    series = readers[path.suffix](path, data)
    if not len(series):
        raise ConfigError(f"{data}: must have steps, got none.")
    return series


def _read_csv(path: Path, data: str) -> Float[np.ndarray, "T D"]:
    with path.open("rb") as file:
        rows = table.read_rows(file, data)
        _, cells = next(rows, (0, []))
        header = cells if cells == ["target"] else table.read_header(data, cells)
        if header.count("target") != 1:
            raise ConfigError(
                f"{data}: must have one column target, got {', '.join(header)}."
            )
        names = ["target", *(n for n in header if n not in ("target", "time"))]
        steps = [_step(*row, header, names, data) for row in rows]
    return np.array(steps).reshape(-1, len(names))


def _step(line, cells, header, names, data) -> list[float]:
    """Returns the numbers of a row."""
    if len(cells) != len(header):
        raise ConfigError(
            f"{data}:{line}: must have {len(header)} cells, as the header has, got "
            f"{len(cells)}."
        )
    row = dict(zip(header, cells, strict=True))
    return [table.read_number(row[name], name, f"{data}:{line}") for name in names]


def _read_npz(path: Path, data: str) -> Float[np.ndarray, "T D"]:
    try:
        with np.load(path) as file:
            arrays = {n: file[n] for n in ("target", "features") if n in file}
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{data}: must be an .npz; it fails: {reason}.") from None
    if "target" not in arrays:
        raise ConfigError(f"{data}: must have an array target.")
    target = arrays["target"]
    features = arrays.get("features", np.zeros((len(np.atleast_1d(target)), 0)))
    for name, array, rank in (("target", target, 1), ("features", features, 2)):
        if array.dtype.kind not in "biuf" or array.ndim != rank:
            raise ConfigError(
                f"{data}: {name} must be numbers {['[T]', '[T, D]'][rank - 1]}, got "
                f"{array.dtype} of shape {array.shape}."
            )
        if (bad := first_bad(array)) is not None:
            raise ConfigError(
                f"{data}: {name}{[*bad]} must be a finite float32 number, got "
                f"{array[bad]}."
            )
    if len(features) != len(target):
        raise ConfigError(
            f"{data}: features must have the {len(target)} steps of target, got "
            f"{len(features)}."
        )
    return np.concatenate([target[:, None], features], axis=1).astype(np.float64)
