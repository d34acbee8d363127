"""A folder is read as it was written, and settings are chosen on validation figures."""

import numpy as np
import pytest
from folders import EVALUATED_AT, make_folder, make_lines, write_folder, write_lines

from experiments.config import ConfigError
from experiments.report import answers, outcomes
from experiments.report.across import compare_runs

INPUTS, RECURRENT = outcomes.PLANE
PLANE = {INPUTS: [0.0, 0.5], RECURRENT: [0.0, 0.5]}


def place(setting):
    """The cell of a 2 x 2 plane as a number."""
    return 2 * (setting[INPUTS] > 0) + (setting[RECURRENT] > 0)


def read_plane(folder, valid, test=None):
    def figure(values):
        return lambda setting, seed: values[place(setting)] + 0.001 * seed

    make_folder(folder, PLANE, 4, figure(test or valid), figure(valid))
    return outcomes.read(folder)


def test_lanes_are_laid_out_by_setting_seed_and_evaluation(tmp_path):
    axes = {"model.cell": ["lstm", "gru"], "dropout.rate": [0.0, 0.3, 0.5]}

    def test(setting, seed):
        return (
            1 + 10 * setting["dropout.rate"] + seed + 100 * len(setting["model.cell"])
        )

    run = outcomes.read(make_folder(tmp_path, axes, 2, test))
    assert run.axes == {path: tuple(values) for path, values in axes.items()}
    assert run.settings[4] == {"model.cell": "gru", "dropout.rate": 0.3}
    assert run.seeds == (0, 1)
    assert run.metrics["test_nll"].shape == (6, 2, 3)
    assert run.metrics["train_nll"].shape == (6, 2, 6)
    assert run.epochs("test_nll").tolist() == EVALUATED_AT
    assert run.epochs("train_nll").tolist() == [1, 2, 3, 4, 5, 6]
    expected = [[test(s, seed) for seed in (0, 1)] for s in run.settings]
    np.testing.assert_allclose(run.final("test_nll"), expected, rtol=1e-9)
    assert run.loss == "nll"
    assert run.task["source"] == "Data: spoken vowels."
    assert run.numeric() == ["dropout.rate"]


def test_results_alone_are_enough(tmp_path):
    write_lines(tmp_path, make_lines(PLANE, 2, lambda setting, seed: 0.1))
    run = outcomes.read(tmp_path)
    assert run.axes == dict.fromkeys(PLANE, (0.0, 0.5))
    assert (run.loss, run.config, run.task) == ("nll", "", {})


def test_lanes_without_a_final_figure_are_nan_and_named(tmp_path):
    lines = make_lines({"dropout.rate": [0.0, 0.5]}, 3, lambda setting, seed: 0.1)
    lines[1] |= {"status": "diverged", "diverged_at": 120}
    lines[3] |= {"status": "interrupted", "epochs": 4, "evaluated_at": [2, 4]}
    lines[3]["metrics"] = {
        name: values[: 4 if name == "train_nll" else 2]
        for name, values in lines[3]["metrics"].items()
    }
    lines[5]["metrics"]["test_nll"][-1] = None
    del lines[4]
    run = outcomes.read(write_folder(tmp_path, {"dropout.rate": [0.0, 0.5]}, lines))
    finite = np.isfinite(run.final("test_nll"))
    np.testing.assert_array_equal(finite, [[True, False, True], [False] * 3])
    assert np.isfinite(run.final("valid_nll")).tolist()[1] == [False, False, True]
    assert np.isfinite(run.metrics["test_nll"][1, 0]).tolist() == [True, True, False]
    assert run.diverged == (outcomes.Trouble(0, 1, 120),)
    assert run.stopped == (outcomes.Trouble(1, 0, 4), outcomes.Trouble(1, 1, None))
    assert run.best() is None
    assert answers.diverged(run) == ["`dropout.rate` 0, seed 1, at step 120"]


def test_the_choice_is_made_on_validation_not_on_test(tmp_path):
    run = read_plane(tmp_path, valid=[0.4, 0.2, 0.3, 0.5], test=[0.1, 0.9, 0.8, 0.05])
    assert answers.kinds(run) == (0, 2, 1, 3, 1)
    assert run.best(among=[0, 2, 3]) == 2


@pytest.mark.parametrize("status", ["diverged", "interrupted"])
def test_a_setting_with_a_diverged_seed_is_not_chosen(tmp_path, status):
    lines = make_lines(PLANE, 2, lambda setting, seed: 0.5 - 0.1 * place(setting))
    lines[7] |= {"status": status, "diverged_at": 3}
    run = outcomes.read(write_folder(tmp_path, PLANE, lines))
    found = answers.kinds(run)
    assert (found.both, found.best) == (None, 2)


def test_kinds_share_the_other_axes_of_the_best_setting(tmp_path):
    axes = {"model.cell": ["lstm", "gru"], **PLANE}

    def test(setting, seed):
        return 0.5 - 0.1 * place(setting) + (setting["model.cell"] == "lstm")

    run = outcomes.read(make_folder(tmp_path, axes, 2, test))
    assert answers.kinds(run) == (4, 6, 5, 7, 7)
    assert not run.is_plane()


@pytest.mark.parametrize(
    ("axes", "setting", "baseline"),
    [
        (PLANE, 3, {INPUTS: 0, RECURRENT: 0}),
        (
            {"dropout.method": ["a", "b"], "dropout.rate": [0.4, 0.2]},
            2,
            {"dropout.method": "b", "dropout.rate": 0.2},
        ),
        (
            {"dropout.rate": [0.5, 0.0], "dropout.inputs.per": ["step", "sequence"]},
            1,
            {"dropout.rate": 0, "dropout.inputs.per": "sequence"},
        ),
        ({"train.learning_rate": [0.1, 0.01]}, 1, {"train.learning_rate": 0.1}),
        ({"dropout.inputs.drift": [0.5, 0.0]}, 1, {"dropout.inputs.drift": 0.5}),
        ({}, 0, {}),
    ],
)
def test_a_baseline_has_the_lowest_rates_and_all_else_equal(
    tmp_path, axes, setting, baseline
):
    run = outcomes.read(make_folder(tmp_path, axes, 1, lambda setting, seed: 0.1))
    assert run.settings[run.baseline(setting)] == baseline


def test_a_baseline_may_be_missing(tmp_path):
    lines = make_lines(PLANE, 1, lambda setting, seed: 0.1)[1:]
    run = outcomes.read(write_folder(tmp_path, PLANE, lines))
    assert run.baseline(2) is None
    assert answers.comparisons(run) == [None] * 3


def test_methods_with_the_same_figures_are_found(tmp_path):
    axes = {"dropout.method": ["a", "b", "c"], "dropout.rate": [0.0, 0.5]}
    gain = {"a": 0.1, "b": 0.2, "c": 0.1}

    def test(setting, seed):
        return 0.5 - setting["dropout.rate"] * gain[setting["dropout.method"]]

    run = outcomes.read(make_folder(tmp_path, axes, 2, test))
    found = [(row.method, row.same_as, row.best) for row in answers.methods(run)]
    assert found == [("b", "b", 3), ("a", "a", 1), ("c", "a", 5)]


def test_several_values_of_truth_are_no_numbers(tmp_path):
    axes = {"dropout.inputs.learn": [False, True]}
    run = outcomes.read(make_folder(tmp_path, axes, 1, lambda setting, seed: 0.1))
    assert run.numeric() == []
    assert answers.describe(run.settings[1]) == "`dropout.inputs.learn` true"


def test_runs_are_paired_only_on_the_same_ground(tmp_path):
    def test(setting, seed):
        return 0.2 + 0.01 * seed

    folders = [
        make_folder(tmp_path / "first", {}, 3, test),
        make_folder(tmp_path / "same", {}, 3, lambda s, seed: test(s, seed) - 0.1),
        make_folder(tmp_path / "seeds", {}, 4, test),
        make_folder(tmp_path / "root", {}, 3, test),
    ]
    (folders[3] / "config.toml").write_text("seeds = 3\nseed = 1\n")
    rows = compare_runs([outcomes.read(folder) for folder in folders])
    assert [row.comparison is not None for row in rows] == [False, True, False, False]
    assert rows[1].comparison.difference == pytest.approx(-0.1)


def test_what_cannot_be_read_is_named(tmp_path, unchecked):
    def refuses(match):
        with pytest.raises(ConfigError, match=match) as caught:
            outcomes.read(tmp_path / "run")
        assert "\n" not in str(caught.value)

    refuses("no such folder")
    (tmp_path / "run").mkdir()
    refuses(r"holds no results\.jsonl")
    path = tmp_path / "run" / "results.jsonl"
    path.write_text("")
    refuses("holds no finished evaluation")
    lines = make_lines({}, 2, lambda setting, seed: 0.1)
    write_lines(tmp_path / "run", lines)
    path.write_text(path.read_text()[:-20])
    refuses(r"results\.jsonl:2: not JSON")
    path.write_text('{"seed": 0}\n')
    refuses(r"results\.jsonl:1: not a lane; needs evaluated_at, metrics")
    empty = {"evaluated_at": [], "metrics": {"train_nll": []}, "status": "interrupted"}
    write_lines(tmp_path / "run", [line | empty for line in lines])
    refuses("holds no finished evaluation")
    write_lines(tmp_path / "run", lines)
    (tmp_path / "run" / "run.json").write_text("{")
    refuses(r"run\.json: not JSON")
