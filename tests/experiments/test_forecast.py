"""Forecasts: windows of a series, their heads, and scores of mixtures of forecasts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from folders import no_reports
from helpers import assert_close

import rdrop
from experiments.__main__ import main
from experiments.classify.evaluate import evaluate_sequences
from experiments.classify.forecasts import COVERAGES, mixture_scores
from experiments.classify.model import Network
from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.runs.records import read_records
from experiments.runs.weights import load_weights, weights_path
from experiments.task import Batch, Normal
from experiments.tasks import forecast, load_task

STEPS, WINDOW, HORIZON = 40, 5, 3
NUMBER = "must be a finite float32 number"


def options(path, **others):
    return Options("forecast", str(path), **others)


@pytest.fixture
def series(rng):
    """The target, and a further input that does not change in training."""
    further = np.where(np.arange(STEPS) < 25, 4.0, 5.0)
    return np.stack([rng.normal(size=STEPS).cumsum(), further], axis=1)


def write_csv(tmp_path, series):
    path = tmp_path / "series.csv"
    rows = [f"day {n},{x!r},{y!r}" for n, (y, x) in enumerate(series.tolist())]
    path.write_text("\n".join(["time,further,target", *rows]))
    return path


def test_each_part_predicts_later_steps_from_windows_scaled_by_training(
    series, tmp_path
):
    wanted = options(
        write_csv(tmp_path, series), window=WINDOW, horizon=HORIZON, test=0.25
    )
    task, data = load_task(wanted)
    targets = STEPS - WINDOW - HORIZON + 1  # 33: 17 for training, 8 and 8
    seen = series[: 17 + WINDOW + HORIZON - 1]
    mean, sd = seen.mean(axis=0), seen.std(axis=0)
    sd[1] = 1  # a constant is only centred
    first = 0
    for batch, count in ((data.train, 17), (data.valid, 8), (data.test, 8)):
        assert len(batch.inputs) == count
        for row in range(count):
            start = first + row
            window = (series[start : start + WINDOW] - mean) / sd
            assert_close(batch.inputs[row], window.astype(np.float32), 1e-6)
            later = (series[start + WINDOW + HORIZON - 1, 0] - mean[0]) / sd[0]
            assert_close(batch.targets[row], np.float32([later, sd[0]]), 1e-6)
        first += count
    assert first == targets
    assert task.inputs(data.test).shape == (8, WINDOW, 2)


def test_npz_holds_the_same_series(series, tmp_path):
    path = tmp_path / "series.npz"
    np.savez(path, target=series[:, 0], features=series[:, 1:])
    arrays = forecast.load(options(path, window=WINDOW)).splits
    table = forecast.load(options(write_csv(tmp_path, series), window=WINDOW)).splits
    assert_close(arrays, table, 1e-6)


def test_the_shipped_series_is_daily_weather():
    _, data = load_task(Options("forecast", window=14, test=0.25))
    assert [len(batch.lengths) for batch in data.splits] == [725, 361, 361]
    assert "public domain" in data.source


def test_the_normal_head_is_judged_by_likelihood_and_crps(rng):
    outputs, observed = rng.normal(size=(6, 2)), rng.normal(size=6)
    targets = np.stack([observed, np.full(6, 3.0)], axis=1)
    score = forecast.score(
        jnp.asarray(outputs), Batch(outputs, np.ones(6, int), targets)
    )
    mean, sd = outputs[:, 0], np.exp(outputs[:, 1] / 2)
    nll = -scipy.stats.norm.logpdf(observed, mean, sd)
    assert_close(np.asarray(score.values["nll"]), nll, 1e-12)
    assert_close(np.asarray(score.values["mae"]), 3 * np.abs(observed - mean), 1e-12)
    for n, y in enumerate(observed):
        expected = crps(lambda x, n=n: scipy.stats.norm.cdf(x, mean[n], sd[n]), y)
        assert float(score.values["crps"][n]) == pytest.approx(3 * expected, rel=1e-6)


def crps(cdf, observed):
    """The integral of (F(x) - [x >= y])^2."""
    below = scipy.integrate.quad(lambda x: cdf(x) ** 2, observed - 60, observed)
    above = scipy.integrate.quad(lambda x: (1 - cdf(x)) ** 2, observed, observed + 60)
    return below[0] + above[0]


def test_the_head_of_quantiles_is_judged_by_the_pinball_loss(rng, series, tmp_path):
    path = write_csv(tmp_path, series)
    _, data = load_task(options(path, window=WINDOW, head="quantiles"))
    assert data.outputs == len(forecast.LEVELS)
    outputs = rng.normal(size=(len(data.test.lengths), data.outputs))
    score = forecast.score(jnp.asarray(outputs), data.test)
    observed, sd = data.test.targets.T
    for n, y in enumerate(observed.astype(float)):
        losses = [
            level * (y - q) if y > q else (1 - level) * (q - y)
            for level, q in zip(forecast.LEVELS, outputs[n], strict=True)
        ]
        assert float(score.values["pinball"][n]) == pytest.approx(np.mean(losses))
        mae = sd[n] * abs(y - outputs[n, 3])
        assert float(score.values["mae"][n]) == pytest.approx(mae, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,speed\n1,2\n", "must have one column target, got time, speed"),
        ("target,speed\n1,2\n3,fast\n", f":3: speed {NUMBER}, got 'fast'"),
        ("target,speed\n1,2\nnan,2\n", f":3: target {NUMBER}, got 'nan'"),
        ("target,speed\n1,2\n,2\n", f":3: target {NUMBER}, got ''"),
        ("target,speed\n1,2\n1\n", ":3: must have 2 cells, as the header has, got 1"),
        ("target\n", "must have steps, got none"),
        (
            "target\n1\n2\n3\n",
            "task.window = 5, task.horizon = 1 and task.test = 0.2, got 3 steps",
        ),
        ("target\n" + "1\n" * 40, "target must vary in the training part"),
    ],
)
def test_impossible_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        forecast.load(options(path, window=WINDOW))
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(9)}, "must have an array target"),
        ({"target": np.array(["a"])}, "target must be numbers [T], got <U1"),
        ({"target": np.array([1, np.nan])}, f"target[1] {NUMBER}, got nan"),
        (
            {"target": np.ones(9), "features": np.ones((8, 2))},
            "features must have the 9 steps of target, got 8",
        ),
        (
            {"target": np.ones(9), "features": np.ones(9)},
            "features must be numbers [T, D], got float64 of shape (9,)",
        ),
    ],
)
def test_impossible_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "series.npz", **arrays)
    with pytest.raises(ConfigError) as error:
        forecast.load(options(tmp_path / "series.npz", window=WINDOW))
    assert message in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    for name in ("none.csv", "series.txt"):
        with pytest.raises(
            ConfigError, match=r"task\.data: must name a \.csv with a col"
        ):
            forecast.load(options(tmp_path / name))


def mixture(rng, members, count):
    """Members of mixtures that are too narrow, with a scale of 2."""
    mean, log_variance = rng.normal(size=(2, members, count))
    observed = np.broadcast_to(3 * rng.normal(size=count), (members, count))
    found = Normal(mean, log_variance / 4, observed, np.full((members, count), 2.0))
    return jax.tree.map(jnp.asarray, found)


def test_mixtures_are_scored_as_by_numpy(rng):
    members, held_out = mixture(rng, 3, 12), mixture(rng, 3, 30)
    found = mixture_scores(members, held_out)
    mean, sd = np.asarray(members.mean), np.exp(np.asarray(members.log_variance) / 2)
    y = np.asarray(members.observed[0])
    density = scipy.stats.norm.pdf(y, mean, sd).mean(axis=0)
    assert found["nll"] == pytest.approx(-np.log(density).mean())
    scores = [
        crps(lambda x, n=n: scipy.stats.norm.cdf(x, mean[:, n], sd[:, n]).mean(), y[n])
        for n in range(12)
    ]
    assert found["crps"] == pytest.approx(2 * np.mean(scores), rel=1e-5)
    middle, deviation = total(members)
    assert found["mae"] == pytest.approx(2 * np.abs(y - middle).mean())
    assert found["sharpness"] == pytest.approx(2 * deviation.mean())
    assert found["between"] == pytest.approx(2 * mean.std(axis=0).mean())
    pit = np.sort(scipy.stats.norm.cdf(y, mean, sd).mean(axis=0))
    steps = np.arange(13) / 12
    distance = max((pit - steps[:-1]).max(), (steps[1:] - pit).max())
    assert found["pit_error"] == pytest.approx(distance)
    middle_v, deviation_v = total(held_out)
    ranked = np.sort(np.abs(np.asarray(held_out.observed[0]) - middle_v) / deviation_v)
    for level in COVERAGES:
        place = int(np.ceil(31 * level))
        factors = {"": scipy.stats.norm.ppf((1 + level) / 2)}
        factors["conformal_"] = ranked[place - 1]
        for prefix, factor in factors.items():
            inside = np.abs(y - middle) <= factor * deviation
            name = f"{round(100 * level)}"
            assert found[f"{prefix}coverage_{name}"] == pytest.approx(inside.mean())
            width = 4 * factor * deviation.mean()
            assert found[f"{prefix}width_{name}"] == pytest.approx(width)


def total(members):
    """Mean and standard deviation of mixtures, from their second moments."""
    mean, variance = np.asarray(members.mean), np.exp(np.asarray(members.log_variance))
    second = (variance + mean**2).mean(axis=0)
    return mean.mean(axis=0), np.sqrt(second - mean.mean(axis=0) ** 2)


def test_conformal_intervals_cover_what_narrow_ones_do_not(rng):
    """5 standard deviations of a binomial share of 2,000, around 95 %."""
    found = mixture_scores(mixture(rng, 2, 2000), mixture(rng, 2, 2000))
    assert found["coverage_95"] < 0.8
    assert abs(found["conformal_coverage_95"] - 0.95) < 5 * np.sqrt(
        2 * 0.05 * 0.95 / 2000
    )


SMALL = [
    *("--seeds", "2", "--model.units", "4", "--train.epochs", "1", "--keep", "all"),
    *("--train.evaluate-every", "1", "--dropout.method", "inputs_held"),
    *("--dropout.rate", "0.3", "--task.window", "4"),
]


@pytest.fixture(scope="module")
def run(pytestconfig, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "kept"
    with (
        no_reports(),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
    ):
        path = str(pytestconfig.rootpath / "configs/forecast.toml")
        assert main(["ablate", path, *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def as_users_run_it():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run_it")
def test_an_ensemble_is_the_mixture_of_the_seeds(run):
    alone, together = evaluate_sequences(run, ensemble=True)
    metrics = read_records(run)[0]["metrics"]
    for name in ("nll", "crps", "mae"):
        assert alone[name] == pytest.approx(metrics[f"test_{name}"][-1], rel=1e-4)
    task, data = load_task(Options("forecast", window=4, test=0.25))
    network = Network(rdrop.LSTMCell, 4, 1, 2, "last", "none")
    xs, lengths = map(jnp.asarray, (task.inputs(data.test), data.test.lengths))
    outputs = [
        network.apply(load_weights(weights_path(run, lane)).params, xs, lengths)
        for lane in (0, 1)
    ]
    mean, log_variance = np.moveaxis(np.asarray(outputs, np.float64), -1, 0)
    observed = data.test.targets[:, 0]
    density = scipy.stats.norm.pdf(observed, mean, np.exp(log_variance / 2)).mean(0)
    assert together["nll"] == pytest.approx(-np.log(density).mean(), rel=1e-4)
    assert together["networks"] == 2
    assert together["between"] > alone["between"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run_it")
def test_passes_are_members_of_the_mixture(run):
    found = evaluate_sequences(run, passes=(3,), ensemble=True)
    shown = [(row["passes"], row["networks"]) for row in found]
    assert shown == [(0, 1), (0, 2), (3, 1), (3, 2)]
    assert found[2]["between"] > 0
    chunked = evaluate_sequences(run, passes=(3,), ensemble=True, chunk=2)
    assert [row["nll"] for row in chunked] == pytest.approx(
        [row["nll"] for row in found], rel=1e-5
    )
    valid = evaluate_sequences(run, part="valid")
    assert not any(name.startswith("conformal") for name in valid[0])
