"""A search trains what it says, shares its study, and loses no trial."""

import json
import random
import re
import signal
import subprocess
import sys
import time
import tomllib

import jax
import numpy as np
import pytest

from experiments import axes
from experiments.__main__ import main
from experiments.config import ConfigError, Train
from experiments.runs.records import read_records
from experiments.search.population import rungs
from experiments.search.space import Space
from experiments.search.study import (
    Rules,
    Study,
    best_first,
    loss_of,
    read_results,
    spent_lanes,
)
from experiments.search.tune import Search, tune

RULES = Rules("tpe", 0, "nll", "0123")
SPACE = {
    "seeds": 2,
    "model": {"units": 4, "cell": ["simple", "gru"]},
    "dropout": {"inputs": {"rate": [0.0, 0.5]}},
    "train": {"epochs": 4, "evaluate_every": 1, "learning_rate": [1e-3, 1e-1]},
}
RANGES = ["dropout.inputs.rate", "train.learning_rate"]


def sweep_of(raw=SPACE):
    return axes.make_sweep(raw, "test")


def study_in(folder, rules=RULES):
    return Study(folder, Space.of(sweep_of()), rules)


def ended(trial, loss=0.5, epochs=4, status="finished"):
    return {
        "trial": trial.number,
        "setting": dict(trial.params),
        "status": status,
        "epochs": epochs,
        "seeds": [0, 1],
        "valid": [loss, loss],
        "test": [loss, loss],
        "curve": {str(epochs): loss},
    }


def test_traced_fields_are_ranges_and_the_others_choices():
    space = Space.of(sweep_of())
    rate, learning = (space.distributions[path] for path in RANGES)
    assert (rate.low, rate.high, rate.log) == (0.0, 0.5, False)
    assert (learning.low, learning.high, learning.log) == (1e-3, 1e-1, True)
    assert space.distributions["model.cell"].choices == ("simple", "gru")
    assert space.structures() == [{"model.cell": "simple"}, {"model.cell": "gru"}]
    widest = space.widest({"model.cell": "gru"})
    assert [lane.config.seeds for lane in widest] == [0, 1]
    assert widest[0].traced == dict(zip(RANGES, (0.5, 0.1), strict=True))


@pytest.mark.parametrize(
    ("epochs", "every", "halving", "expected"),
    [
        (60, 4, 0, [60]),
        (60, 4, 3, [4, 8, 20, 60]),
        (60, 4, 2, [4, 8, 16, 32, 60]),
        (27, 1, 3, [1, 3, 9, 27]),
        (5, 5, 2, [5]),
    ],
)
def test_rungs(epochs, every, halving, expected):
    assert rungs(Train(epochs=epochs, evaluate_every=every), halving) == expected


def test_processes_share_a_study_and_take_over_from_dead_ones(tmp_path):
    one, other = study_in(tmp_path), study_in(tmp_path)
    with other:
        with one:
            first = one.claim(3, lanes=40)
            second = other.claim(2, lanes=40)
            assert [t.number for t in (*first, *second)] == [0, 1, 2, 3, 4]
            one.tell({0: first[0]}, [ended(first[0])])
        # `one` has gone without the results of two trials.
        third = other.claim(4, lanes=40)
        assert [t.number for t in third] == [1, 2, 3, 4]
        assert [t.params for t in third[:2]] == [t.params for t in first[1:]]
        other.tell({t.number: t for t in third}, [ended(t) for t in third])
        assert len(read_results(tmp_path)) == 5


def test_a_result_that_was_written_but_not_told_is_told(tmp_path):
    study = study_in(tmp_path)
    with study:
        (trial,) = study.claim(1, lanes=40)
    (tmp_path / "trials.jsonl").write_text(json.dumps(ended(trial)) + "\n")
    again = study_in(tmp_path)
    with again:
        assert [t.number for t in again.claim(1, lanes=40)] == [1]
        assert again._study.get_trials()[0].value == 0.5


def test_a_trial_that_was_half_suggested_is_completed(tmp_path):
    study = study_in(tmp_path)
    with study:
        trial = study._study.ask()
        assert trial.params == {}
        (taken,) = study.claim(1, lanes=40)
    assert taken.number == 0
    assert taken.params.keys() == Space.of(sweep_of()).distributions.keys()


def test_lanes_are_the_limit_of_all_processes_and_pruned_ones_count_in_part(tmp_path):
    one, other = study_in(tmp_path), study_in(tmp_path)
    with one, other:
        first = one.claim(4, lanes=9.5)
        assert [len(first), len(other.claim(4, lanes=9.5))] == [4, 0]
        lines = [ended(t, epochs=1, status="pruned") for t in first[:2]]
        lines += [ended(t) for t in first[2:]]
        one.tell({t.number: t for t in first}, lines)
        assert spent_lanes(lines, 4) == 1 + 4
        assert len(other.claim(4, lanes=9.5)) == 2


def test_a_suggestion_depends_on_the_trials_before_it_alone(tmp_path):
    def suggested(folder, sizes):
        study = study_in(folder)
        found = []
        for size in sizes:
            with study:
                trials = study.claim(size, lanes=100)
                lines = [ended(t, loss=t.params[RANGES[0]]) for t in trials]
                study.tell({t.number: t for t in trials}, lines)
                found += [t.params for t in trials]
        return found

    one = suggested(tmp_path / "one", [11, 1])
    assert one == suggested(tmp_path / "other", [11, 1])
    assert len({str(params) for params in one}) == 12


def test_the_sampler_learns(tmp_path):
    """A smooth loss: the second half is nearer to the best than the first."""
    study = study_in(tmp_path)
    with study:
        for _ in range(8):
            trials = study.claim(3, lanes=1000)
            lines = [ended(t, loss=(t.params[RANGES[0]] - 0.3) ** 2) for t in trials]
            study.tell({t.number: t for t in trials}, lines)
    losses = [loss_of(line) for line in read_results(tmp_path)]
    assert np.mean(losses[12:]) < 0.5 * np.mean(losses[:12])


def test_diverged_trials_are_never_the_best(tmp_path):
    study = study_in(tmp_path)
    with study:
        trials = study.claim(2, lanes=40)
        lost = ended(trials[0], status="diverged") | {"valid": [None, 0.1]}
        study.tell({t.number: t for t in trials}, [lost, ended(trials[1])])
        study.claim(2, lanes=40)
    assert loss_of(lost) == np.inf
    assert [line["trial"] for line in best_first(read_results(tmp_path))] == [1]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "study"
    search = Search(lanes=24, population=6, halving=2)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert tune(sweep_of(), folder, search)
    return folder


@pytest.mark.usefixtures("as_users_run_it")
def test_a_trial_is_bitwise_the_ablation_of_its_setting(searched, tmp_path):
    """Also after it was moved to other slots twice."""
    best = best_first(read_results(searched))[0]
    assert len(best["curve"]) == 4
    config = tomllib.loads((searched / "best.toml").read_text())
    assert config["dropout"]["inputs"]["rate"] == best["setting"][RANGES[0]]
    out = str(tmp_path / "run")
    assert main(["ablate", str(searched / "best.toml"), "--out", out]) == 0
    records = read_records(tmp_path / "run")
    for split in ("valid", "test"):
        losses = [r["metrics"][f"{split}_nll"][-1] for r in records]
        assert losses == best[split]


def test_half_of_the_trials_reach_each_rung(searched):
    results = read_results(searched)
    assert spent_lanes(results, 4) <= 24
    first = [line["epochs"] for line in results if line["trial"] < 6]
    assert sorted(first) == [1, 1, 1, 2, 4, 4]
    at_first = {line["trial"]: line["curve"]["1"] for line in results[:6]}
    stopped = [line["trial"] for line in results[:6] if line["epochs"] == 1]
    kept = at_first.keys() - set(stopped)
    assert max(at_first[n] for n in kept) <= min(at_first[n] for n in stopped)


def test_a_search_goes_on_with_more_lanes_only(searched, capsys):
    before = (searched / "trials.jsonl").read_bytes()
    assert tune(sweep_of(), searched, Search(lanes=24, population=6, halving=2))
    assert (searched / "trials.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="is a study with halving 2, not 0"):
        tune(sweep_of(), searched, Search(lanes=40))
    other = sweep_of(SPACE | {"seeds": 3})
    with pytest.raises(ConfigError, match=r"is a study of another config \(seeds was"):
        tune(other, searched, Search(lanes=40, halving=2))


def test_the_report_shows_the_search(searched, capsys):
    assert main(["report", str(searched)]) == 0
    page = (searched / "report.html").read_text()
    assert "The lowest validation loss" in page
    assert page.count('class="mark"') == 4 * len(read_results(searched))
    shown = capsys.readouterr().out
    assert "ablate" in shown
    assert re.search(r"--seed 1\b", shown)
    main(["report", str(searched), "--figure", "slices", "--out", f"{searched}/a.svg"])
    assert "model.cell" in (searched / "a.svg").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--population", "0"], "population: must be at least 1, got 0"),
        (["--halving", "1"], "halving: must be 0, or at least 2, got 1"),
        (["--lanes", "3"], "lanes: must be at least 4, one per seed, got 3"),
        (
            ["--sampler", "cmaes", "--model.cell", "lstm", "gru"],
            "cmaes suggests numbers only, but model.cell is a choice",
        ),
        (
            ["--dropout.inputs.rate", "0.1", "--dropout.recurrent.rate", "0.1"],
            "must have an axis with several values to be searched",
        ),
    ],
)
def test_a_search_that_is_not_possible_says_why(
    pytestconfig, capsys, tmp_path, options, message
):
    config = str(pytestconfig.rootpath / "configs/vowels_plane.toml")
    assert main(["tune", config, "--out", str(tmp_path / "a"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.toml").write_text("seeds = 1\n")
    with pytest.raises(ConfigError, match=r"has config.toml but is not a study"):
        study_in(tmp_path)


@pytest.mark.slow
def test_a_killed_search_ends_as_if_it_had_not_been(pytestconfig, tmp_path):
    def start(out):
        command = [
            *(sys.executable, "-m", "experiments", "tune"),
            *("configs/vowels_plane.toml", "--out", str(out), "--seeds", "2"),
            *("--model.units", "8", "--train.epochs", "8", "--lanes", "80"),
            *("--halving", "2", "--population", "10"),
        ]
        return subprocess.Popen(command, cwd=pytestconfig.rootpath)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for _ in range(4):
        process = start(killed)
        while process.poll() is None and not (killed / "study.sqlite3").exists():
            time.sleep(0.1)
        time.sleep(random.uniform(2, 14))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed).wait() == 0
    assert len(read_results(whole)) > 40
    assert (killed / "trials.jsonl").read_bytes() == (
        whole / "trials.jsonl"
    ).read_bytes()
