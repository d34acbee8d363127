"""Evaluation of kept networks: alone, by Monte Carlo dropout, and as ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from folders import no_reports
from helpers import assert_close

import rdrop
from experiments.__main__ import main
from experiments.bootstrap import crossed_interval
from experiments.classify import evaluate as classify_evaluate
from experiments.classify.evaluate import compare_settings, evaluate_sequences
from experiments.classify.model import Network
from experiments.classify.run import Sequences
from experiments.config import Config, ConfigError
from experiments.config import Task as Options
from experiments.runs.evaluations import TrainedLane, read_evaluations
from experiments.runs.records import read_records
from experiments.runs.weights import load_weights, weights_path
from experiments.statistics import t_interval
from experiments.tasks import load_task

SMALL = [
    *("--seeds", "3", "--model.units", "4", "--train.epochs", "4", "--keep", "all"),
    *("--train.evaluate-every", "2", "--dropout.recurrent.rate", "0.3"),
]


def ablate(root, out, *arguments, config="vowels_plane"):
    with (
        no_reports(),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
    ):
        path = str(root / f"configs/{config}.toml")
        assert main(["ablate", path, *SMALL, *arguments, "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def run(pytestconfig, tmp_path_factory):
    """Three seeds of two settings."""
    out = tmp_path_factory.mktemp("run") / "kept"
    ablate(pytestconfig.rootpath, out, "--dropout.inputs.rate", "0", "0.3")
    return out


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def distributions(folder, lanes):
    """The predictions of networks without noise, from their files."""
    task, data = load_task(Options("japanese_vowels"))
    network = Network(rdrop.LSTMCell, 4, 1, data.outputs, data.readout, "none")
    found = []
    for lane in lanes:
        params = load_weights(weights_path(folder, lane)).params
        xs, lengths = map(jnp.asarray, (task.inputs(data.test), data.test.lengths))
        logits = network.apply(params, xs, lengths)
        found.append(scipy.special.softmax(np.asarray(logits, np.float64), axis=1))
    return np.stack(found), np.asarray(data.test.targets)


def test_an_ensemble_is_the_mean_of_the_distributions_of_the_seeds(run):
    alone, together = evaluate_sequences(run, line=5, ensemble=True)
    assert (alone["networks"], together["networks"]) == (1, 3)
    assert alone["nll"] == pytest.approx(
        read_records(run)[4]["metrics"]["test_nll"][-1]
    )
    probs, labels = distributions(run, [3, 4, 5])
    rows = np.arange(len(labels))
    mean = probs.mean(axis=0)
    assert_close(together["nll"], -np.log(mean[rows, labels]).mean(), 1e-5)
    assert together["accuracy"] == pytest.approx((mean.argmax(1) == labels).mean())
    kept = read_evaluations(run)[-2:]
    assert [row["networks"] for row in kept] == [1, 3]
    assert kept[1]["nll"] == together["nll"]


def test_each_network_predicts_once_and_the_data_are_loaded_once(run, monkeypatch):
    loads, predicted = [], []

    def load(self, config, load=Sequences.load):
        loads.append(config)
        return load(self, config)

    def of_each(function, members, batch, of_each=classify_evaluate._of_each):
        predicted.append(len(members))
        return of_each(function, members, batch)

    monkeypatch.setattr(Sequences, "load", load)
    monkeypatch.setattr(classify_evaluate, "_of_each", of_each)
    monkeypatch.setattr(classify_evaluate, "_alone", None)
    found = evaluate_sequences(run, passes=(1,), ensemble=True)
    assert [row["networks"] for row in found] == [1, 3, 1, 3]
    assert predicted == [3, 3]
    assert len(loads) == 1
    compare_settings(run, 5, 1)
    assert len(loads) == 2


def test_only_distributions_are_averaged(tmp_path, monkeypatch):
    config = Config(task=Options("forecast", window=4, head="quantiles", test=0.25))
    lane = TrainedLane(config, {}, Sequences().load(config))
    monkeypatch.setattr(classify_evaluate, "open_lanes", lambda *arguments: [lane])
    monkeypatch.setattr(classify_evaluate, "other_seeds", lambda *arguments: [])
    message = (
        "{}; only distributions over classes and normal distributions are averaged, "
        "and this run predicts neither (its loss is pinball); leave it out, or train "
        'with task.head = "gaussian".'
    )
    for options, start in (
        ({"passes": (4,)}, "passes: must be none, got 4"),
        ({"ensemble": True}, "ensemble: must be none, got seeds"),
    ):
        with pytest.raises(ConfigError) as error:
            evaluate_sequences(tmp_path, **options)
        assert str(error.value) == message.format(start)


@pytest.mark.slow
def test_passes_are_averaged_within_and_over_networks(run):
    arguments = {"line": 1, "passes": (2, 3), "ensemble": True}
    found = evaluate_sequences(run, **arguments)
    shown = [(row["passes"], row["networks"]) for row in found]
    assert shown == [(0, 1), (0, 3), (2, 1), (2, 3), (3, 1), (3, 3)]
    nlls = [row["nll"] for row in found]
    assert len(set(nlls)) == 6
    assert nlls == [row["nll"] for row in evaluate_sequences(run, **arguments)]
    chunked = evaluate_sequences(run, **arguments, chunk=1)
    assert_close(np.array(nlls), np.array([row["nll"] for row in chunked]), 1e-5)
    other = evaluate_sequences(run, **arguments, seed=1)
    assert [a["nll"] == b["nll"] for a, b in zip(found, other, strict=True)] == [
        True,
        True,
        *[False] * 4,
    ]


def test_the_command_prints_each_evaluation(run, capsys):
    command = ["evaluate", str(run), "--ensemble", "seeds", "--passes", "2"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("lane 1  split test  passes 2  networks 3  nll ")


def test_two_settings_are_paired_by_seed_and_by_sequence(run, capsys):
    probs, labels = distributions(run, range(6))
    losses = -np.log(probs[:, np.arange(len(labels)), labels])
    differences = losses[3:] - losses[:3]
    found = compare_settings(run, 5, 1)
    assert (found["seeds"], found["sequences"]) == (3, len(labels))
    assert_close(found["difference"], differences.mean(), 1e-5)
    wide = crossed_interval(differences, np.ones(len(labels)))
    assert_close(np.array([found["low"], found["high"]]), np.array(wide), 1e-5)
    narrow = t_interval(differences.mean(axis=1))
    ends = np.array([found["seeds_low"], found["seeds_high"]])
    assert_close(ends, np.array(narrow), 1e-5)
    assert main(["evaluate", str(run), "--lane", "5", "--against", "1"]) == 0
    assert "lane 5  against 1  split test  seeds 3" in capsys.readouterr().out
    assert read_evaluations(run)[-1]["low"] == found["low"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "2"], "lanes 1 and 2 have one setting"),
        (["--against", "9"], "against: must be 1 to 6, got 9"),
        (["--against", "4", "--split", "valid"], "each seed holds out other"),
        (["--against", "4", "--passes", "2"], "takes neither --passes nor"),
    ],
)
def test_impossible_comparisons_are_refused(run, options, message, capsys):
    assert main(["evaluate", str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_impossible_evaluations_are_refused(run, capsys):
    with pytest.raises(ConfigError, match="each seed holds out other sequences"):
        evaluate_sequences(run, part="valid", ensemble=True)
    assert main(["evaluate", str(run), "--powers", "0"]) == 2
    assert "take --lane, --split, --passes, --ensemble" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--passes", "-1"]) == 2
    assert "passes: must be 1 or more, got -1" in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_have_no_mean_distribution(pytestconfig, tmp_path):
    table, out = tmp_path / "numbers.npz", tmp_path / "run"
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(200, 6, 2)).astype(np.float32)
    np.savez(table, x=xs, y=xs.sum((1, 2)))
    options = ["--task.data", str(table), "--train.batch", "20"]
    ablate(pytestconfig.rootpath, out, *options, config="regress")
    assert len(evaluate_sequences(out)) == 1
    with pytest.raises(ConfigError, match="predicts neither"):
        evaluate_sequences(out, passes=(2,))
