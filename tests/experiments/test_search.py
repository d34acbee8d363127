"""A search trains what it says, shares its study, and loses no trial."""

import gc
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
from folders import no_reports

from experiments import axes
from experiments.__main__ import main
from experiments.config import ConfigError, Train
from experiments.report import searched as searched_report
from experiments.report.sentences import plain
from experiments.runs.files import StorageError
from experiments.runs.records import read_records
from experiments.search import tune as tune_module
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


def ended(place, trial, loss=0.5, epochs=4, status="finished"):
    return {
        "trial": place,
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
    inside = space.inside({"model.cell": "gru"})
    assert [lane.config.seeds for lane in inside] == [0, 1]
    assert inside[0].traced == dict(zip(RANGES, (0.25, 0.0505), strict=True))


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
            assert [*first, *second] == [0, 1, 2, 3, 4]
            one.tell(first, [ended(0, first[0])])
        # `one` has gone without the results of two trials.
        third = other.claim(4, lanes=40)
        assert [*third] == [1, 2, 3, 4]
        assert [third[n].params for n in (1, 2)] == [first[n].params for n in (1, 2)]
        other.tell(third, [ended(*each) for each in third.items()])
        assert len(read_results(tmp_path)) == 5


def test_a_result_that_was_written_but_not_told_is_told(tmp_path):
    study = study_in(tmp_path)
    with study:
        trials = study.claim(1, lanes=40)
    line = json.dumps(ended(0, trials[0]))
    (tmp_path / "trials.jsonl").write_text(line + "\n")
    again = study_in(tmp_path)
    with again:
        assert [*again.claim(1, lanes=40)] == [1]
        assert again._study.get_trials()[0].value == 0.5


@pytest.mark.parametrize(
    "sampler", ["tpe", pytest.param("random", marks=pytest.mark.slow), "cmaes"]
)
def test_a_trial_that_was_half_suggested_is_suggested_again(tmp_path, sampler):
    """The process dies after the first, or the second, parameter is stored."""
    raw = SPACE | {"model": {"units": 4, "cell": "simple"}}
    space = Space.of(sweep_of(raw))

    def suggested(folder, dies_after):
        study = Study(folder, space, RULES._replace(sampler=sampler))
        with study:
            trials = study.claim(3, lanes=40)
            lines = [ended(n, t, t.params[RANGES[0]]) for n, t in trials.items()]
            study.tell(trials, lines)
            study._study.sampler = study._sampler(3)
            trial = study._study.ask()
            for path in RANGES[:dies_after]:
                found = space.distributions[path]
                trial.suggest_float(path, found.low, found.high, log=found.log)
        with Study(folder, space, study.rules) as other:
            trials = other.claim(2, lanes=40)
            assert [*trials] == [3, 4]
            return [trial.params for trial in trials.values()]

    found = [suggested(tmp_path / f"{n}", n) for n in (0, 1)]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


# optuna leaves the connection to a damaged file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("spoil", "lacking"),
    [
        (lambda folder: (folder / "study.sqlite3").unlink(), "study.sqlite3: lacks"),
        (lambda folder: (folder / "trials.jsonl").unlink(), "trials.jsonl: lacks"),
        (
            lambda folder: (folder / "study.sqlite3").write_text("garbage" * 999),
            r"study.sqlite3: cannot be read or written: .*not a database",
        ),
    ],
)
def test_a_study_that_lost_a_file_says_which(tmp_path, spoil, lacking):
    with study_in(tmp_path) as study:
        trials = study.claim(2, lanes=40)
        study.tell(trials, [ended(*each) for each in trials.items()])
    spoil(tmp_path)
    with pytest.raises(StorageError, match=lacking):
        study_in(tmp_path)
    gc.collect()


def test_other_data_are_named(tmp_path):
    study_in(tmp_path)
    with pytest.raises(ConfigError, match="was searched on other data"):
        study_in(tmp_path, RULES._replace(data="4567"))


def test_lanes_are_the_limit_of_all_processes_and_pruned_ones_count_in_part(tmp_path):
    one, other = study_in(tmp_path), study_in(tmp_path)
    with one, other:
        first = one.claim(4, lanes=9.5)
        assert [len(first), len(other.claim(4, lanes=9.5))] == [4, 0]
        lines = [ended(n, first[n], epochs=1, status="pruned") for n in (0, 1)]
        lines += [ended(n, first[n]) for n in (2, 3)]
        one.tell(first, lines)
        assert spent_lanes(lines, 4) == 1 + 4
        assert len(other.claim(4, lanes=9.5)) == 2


def test_a_suggestion_depends_on_the_trials_before_it_alone(tmp_path):
    def suggested(folder, sizes):
        study = study_in(folder)
        found = []
        for size in sizes:
            with study:
                trials = study.claim(size, lanes=100)
                lines = [ended(n, t, t.params[RANGES[0]]) for n, t in trials.items()]
                study.tell(trials, lines)
                found += [t.params for t in trials.values()]
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
            lines = [
                ended(n, t, (t.params[RANGES[0]] - 0.3) ** 2) for n, t in trials.items()
            ]
            study.tell(trials, lines)
    losses = [loss_of(line) for line in read_results(tmp_path)]
    assert np.mean(losses[12:]) < 0.5 * np.mean(losses[:12])


def test_diverged_trials_are_never_the_best(tmp_path):
    study = study_in(tmp_path)
    with study:
        trials = study.claim(2, lanes=40)
        lost = ended(0, trials[0], status="diverged", loss=0.1)
        study.tell(trials, [lost, ended(1, trials[1])])
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
    with no_reports():
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


def test_a_search_has_no_margin(searched, capsys):
    assert main(["report", str(searched), "--margin", "0.1"]) == 2
    assert "margin: a search compares no settings" in capsys.readouterr().err


def test_settings_are_one_text_while_it_searches_and_in_its_report(tmp_path):
    learned = {"kind": "concrete", "learn": [False, True], "rate": [0.25, 0.75]}
    space = Space.of(sweep_of(SPACE | {"dropout": {"inputs": learned}}))
    with Study(tmp_path, space, RULES) as study:
        trials = study.claim(4, lanes=40)
        lines = [ended(n, t) for n, t in trials.items()]
        study.tell(trials, lines)
    setting = best_first(read_results(tmp_path))[0]["setting"]
    flag = "true" if setting["dropout.inputs.learn"] else "false"
    text = f"dropout.inputs.learn {flag}"
    rate = f"dropout.inputs.rate {setting['dropout.inputs.rate']:.3g}"
    found = searched_report.read_found(tmp_path)
    shown = tune_module._standing(tmp_path), plain(searched_report.verdict(found))
    for sentence in (
        *shown,
        searched_report.drawings(found)["search"].draw()[0].shapes[-1].tip,
    ):
        assert text in sentence
        assert rate in sentence
    assert "`dropout.inputs.learn` false, true" in searched_report.compared(found)


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
            "must have a range to be searched",
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


def test_a_range_that_ends_where_its_field_has_no_effect_is_searched():
    """Masks that drift with probability 1 have no drift in the compiled program."""
    site = {"rate": 0.2, "per": "step", "drift": [0.1, 1.0]}
    space = Space.of(sweep_of({"seeds": 1, "dropout": {"inputs": site}}))
    assert space.inside({})[0].config.dropout.inputs.drift == 0.55


def test_the_config_may_come_after_the_options(pytestconfig, capsys, tmp_path):
    config = str(pytestconfig.rootpath / "configs/vowels_plane.toml")
    assert main(["tune", "--out", str(tmp_path), config, "--halving", "1"]) == 2
    assert "halving: must be 0, or at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name", "right"),
    [
        ("tune", "ptb_zaremba_small", "train"),
        ("ablate", "ptb_zaremba_small", "train"),
        ("train", "vowels_plane", "ablate"),
    ],
)
def test_a_config_of_another_command_is_told(
    pytestconfig, capsys, command, name, right
):
    config = str(pytestconfig.rootpath / f"configs/{name}.toml")
    assert main([command, config]) == 2
    assert f"is a config for `{right}`" in capsys.readouterr().err
