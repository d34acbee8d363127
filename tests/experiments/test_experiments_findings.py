"""Settings are chosen on validation data, and planned comparisons are one family."""

import itertools

import numpy as np
import pytest
from folders import make_folder, make_lines, write_folder

from experiments import runs
from experiments.report import findings, lanes, sentences
from experiments.report.lanes import METHOD, PLANE
from experiments.report.several import compare_runs
from experiments.statistics import holm, t_interval

INPUTS, RECURRENT = PLANE
RATES = {INPUTS: [0.0, 0.5], RECURRENT: [0.0, 0.5]}
CELLS = [
    dict(zip(PLANE, rates, strict=True))
    for rates in itertools.product((0.0, 0.5), repeat=2)
]
NOISE = np.random.default_rng(0).normal(size=(4, 9))


def place(setting):
    """The cell of a 2 x 2 plane as a number."""
    return 2 * (setting[INPUTS] > 0) + (setting[RECURRENT] > 0)


def load_plane(folder, valid, test=None, noise=0.001, seeds=4):
    def values(means):
        return lambda s, seed: means[place(s)] + noise * NOISE[place(s), seed]

    return runs.load(
        make_folder(folder, RATES, seeds, values(test or valid), values(valid))
    )


def test_the_choice_is_made_on_validation_not_on_test(tmp_path):
    run = load_plane(tmp_path, valid=[0.4, 0.2, 0.3, 0.5], test=[0.1, 0.9, 0.8, 0.05])
    none, recurrent, inputs, both = CELLS
    assert findings.kinds(run) == (none, inputs, recurrent, both)
    assert lanes.best(run) == recurrent


@pytest.mark.parametrize("status", ["diverged", "interrupted"])
def test_a_setting_with_a_diverged_seed_is_not_chosen(tmp_path, status):
    lines = make_lines(RATES, 2, lambda setting, seed: 0.5 - 0.1 * place(setting))
    lines[7] |= {"status": status, "diverged_at": 3}
    run = runs.load(write_folder(tmp_path, RATES, lines))
    assert findings.kinds(run).both is None
    assert lanes.best(run) == CELLS[2]
    assert findings.diverged_lanes(run) == [
        f"`{INPUTS}` 0.5, `{RECURRENT}` 0.5, seed 1, at step 3"
    ]


def test_kinds_share_the_other_axes_of_the_best_setting(tmp_path):
    axes = {"model.cell": ["lstm", "gru"], **RATES}

    def test(setting, seed):
        return 0.5 - 0.1 * place(setting) + (setting["model.cell"] == "lstm")

    run = runs.load(make_folder(tmp_path, axes, 2, test))
    assert [kind["model.cell"] for kind in findings.kinds(run)] == ["gru"] * 4
    assert not lanes.is_plane(run)


@pytest.mark.parametrize(
    ("axes", "setting", "baseline"),
    [
        (RATES, 3, {INPUTS: 0, RECURRENT: 0}),
        (
            {METHOD: ["a", "b"], "dropout.rate": [0.4, 0.2]},
            2,
            {METHOD: "b", "dropout.rate": 0.2},
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
    run = runs.load(make_folder(tmp_path, axes, 1, lambda setting, seed: 0.1))
    assert lanes.baseline(run, lanes.settings(run)[setting]) == baseline


def test_a_baseline_may_be_missing(tmp_path):
    lines = make_lines(RATES, 2, lambda setting, seed: 0.1 + 0.01 * seed)[2:]
    run = runs.load(write_folder(tmp_path, RATES, lines))
    assert lanes.baseline(run, CELLS[2]) is None
    assert findings.explored(run, CELLS[2]) is None
    assert "Its baseline is missing" in sentences.answer(run)


def test_values_of_truth_are_not_numbers(tmp_path):
    axes = {"dropout.inputs.learn": [False, True]}
    run = runs.load(make_folder(tmp_path, axes, 1, lambda setting, seed: 0.1))
    assert lanes.numeric_axes(run) == []
    part = lanes.select(run, {"dropout.inputs.learn": True})
    assert part["dropout.inputs.learn"].values.tolist() == [True]
    assert lanes.describe(lanes.settings(run)[1]) == "`dropout.inputs.learn` true"


def test_the_kinds_of_a_plane_are_one_family_of_six(tmp_path):
    """Tested for themselves: the size of the plane does not matter."""
    rates = {INPUTS: [0.0, 0.25, 0.5], RECURRENT: [0.0, 0.25, 0.5]}
    best = {0.0: 0, 0.25: 1, 0.5: 2}
    test = {(0, 0): 0.5, (1, 0): 0.3, (0, 1): 0.2, (1, 1): 0.1}

    def loss(setting, seed):
        key = best[setting[INPUTS]], best[setting[RECURRENT]]
        noise = 0.01 * NOISE[key[0], seed] * (1 + key[1])
        return test.get(key, 0.6) + noise

    run = runs.load(make_folder(tmp_path, rates, 4, loss))
    rows = findings.planned(run)
    assert list(rows) == [
        *(("inputs", "none"), ("recurrent", "none"), ("both", "none")),
        *(("recurrent", "inputs"), ("both", "inputs"), ("both", "recurrent")),
    ]
    tests = [row.comparison for row in rows.values()]
    assert {test.family for test in tests} == {6}
    assert [test.p_corrected for test in tests] == holm([test.p for test in tests])
    both = rows["both", "none"]
    assert both.setting == {INPUTS: 0.25, RECURRENT: 0.25}
    assert both.base == {INPUTS: 0.0, RECURRENT: 0.0}
    assert both.name == "both (0.25, 0.25)"
    difference = lanes.losses_at(run, both.setting) - lanes.losses_at(run, both.base)
    assert both.comparison.difference == pytest.approx(difference.mean())


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        (
            [0.5, 0.3, 0.4, 0.1],
            "Use both. Each kind alone lowers the test NLL and both",
        ),
        (
            [0.5, 0.3, 0.4, 0.3],
            "Use `recurrent_dropout`. Each kind alone lowers the test",
        ),
        (
            [0.5, 0.3, 0.4, 0.45],
            "Use `recurrent_dropout` alone. Each kind alone lowers",
        ),
        ([0.5, 0.4, 0.3, 0.3], "Use `dropout`. Each kind alone lowers the test NLL; 4"),
        (
            [0.5, 0.5, 0.3, 0.1],
            "Use both. `dropout` alone lowers the test NLL and both",
        ),
        ([0.5, 0.5, 0.5, 0.3], "Use both together: they lower the test NLL; 4 seeds"),
        ([0.1, 0.3, 0.4, 0.5], "Use no dropout: every kind raises the test NLL."),
        ([0.3, 0.3, 0.3, 0.3], "4 seeds do not settle whether dropout lowers"),
    ],
)
def test_the_verdict_follows_the_planned_comparisons(tmp_path, means, verdict):
    """Means of none, recurrent, inputs and both."""
    run = load_plane(tmp_path, means)
    assert sentences.verdict(run).startswith(verdict)


def test_the_answer_says_that_lower_is_better(tmp_path):
    run = load_plane(tmp_path, [0.5, 0.3, 0.4, 0.1])
    answer = sentences.answer(run)
    assert answer.startswith(
        "Test NLL (nats per utterance), lower is better, mean ± sd"
    )
    assert "`dropout` alone (0.5) 0.4" in answer
    assert "both (0.5, 0.5) 0.0" in answer


def test_other_settings_are_explored_without_a_correction(tmp_path):
    run = load_plane(tmp_path, [0.5, 0.3, 0.4, 0.1])
    difference = lanes.losses_at(run, CELLS[1]) - lanes.losses_at(run, CELLS[0])
    assert findings.explored(run, CELLS[1]) == (
        difference.mean(),
        *t_interval(difference),
    )
    assert findings.explored(run, CELLS[0]) is None


def test_methods_with_the_same_results_are_one_test(tmp_path):
    axes = {METHOD: ["a", "b", "c"], "dropout.rate": [0.0, 0.5]}
    gain = {"a": 0.1, "b": 0.2, "c": 0.1}

    def test(setting, seed):
        noise = 0.001 * NOISE[0, seed] * (setting["dropout.rate"] > 0)
        return 0.5 - setting["dropout.rate"] * gain[setting[METHOD]] + noise

    run = runs.load(make_folder(tmp_path, axes, 3, test))
    rows = findings.methods(run)
    assert [(row.method, row.same_as) for row in rows] == [
        ("b", "b"),
        ("a", "a"),
        ("c", "a"),
    ]
    assert {row.best["dropout.rate"] for row in rows} == {0.5}
    assert {row.comparison.family for row in rows} == {2}
    assert rows[1].comparison == rows[2].comparison
    assert list(findings.planned(run)) == [("b", "baseline"), ("a", "baseline")]
    assert sentences.verdict(run).endswith("of 2 methods: `b`, `a`.")


def test_one_other_axis_has_one_planned_comparison(tmp_path):
    axes = {"dropout.rate": [0.0, 0.2, 0.4, 0.6]}

    def test(setting, seed):
        return (
            abs(setting["dropout.rate"] - 0.4)
            + 0.01 * NOISE[0, seed] * setting["dropout.rate"]
        )

    run = runs.load(make_folder(tmp_path, axes, 4, test))
    (row,) = findings.planned(run).values()
    assert (row.setting, row.base) == ({"dropout.rate": 0.4}, {"dropout.rate": 0.0})
    assert row.comparison.family == 1
    assert row.comparison.p_corrected == row.comparison.p


def test_runs_are_paired_only_under_the_same_conditions(tmp_path):
    def test(setting, seed):
        return 0.2 + 0.01 * seed

    folders = [
        make_folder(tmp_path / "first", {}, 3, test),
        make_folder(tmp_path / "same", {}, 3, lambda s, seed: test(s, seed) - 0.1),
        make_folder(tmp_path / "seeds", {}, 4, test),
        make_folder(tmp_path / "root", {}, 3, test),
        make_folder(tmp_path / "data", {}, 3, test),
    ]
    (folders[3] / "config.toml").write_text("seeds = 3\nseed = 1\n")
    facts = folders[4] / "run.json"
    facts.write_text(facts.read_text().replace("0123456789abcdef", "other"))
    rows = compare_runs([runs.load(folder) for folder in folders])
    assert [row.comparison is not None for row in rows] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert rows[1].comparison.difference == pytest.approx(-0.1)


def test_a_run_without_a_config_is_compared_with_none(tmp_path):
    folders = [
        make_folder(tmp_path / n, {}, 2, lambda s, seed: 0.1 * seed) for n in "ab"
    ]
    (folders[1] / "config.toml").unlink()
    rows = compare_runs([runs.load(folder) for folder in folders])
    assert rows[1].comparison is None
