"""The same settings on several data sets: against rliable, Demsar's paper and loops."""

import itertools

import numpy as np
import pytest
import scipy.stats
from folders import make_folder, make_lines, write_folder
from helpers import assert_frequency

from experiments import aggregate, report, runs
from experiments.config import ConfigError
from experiments.report import data_sets, tables

AXES = {"dropout.rate": [0.0, 0.25, 0.5]}
NOISE = np.random.default_rng(0).normal(size=(5, 3, 9))
# Demsar 2006, table 6: ranks of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets.
DEMSAR = np.array(
    [
        *([4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1]),
        *([1, 2.5, 4, 2.5], [3, 2, 4, 1], [2.5, 2.5, 4, 1], [4, 3, 2, 1]),
        *([2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3]),
        [3, 1, 4, 2],
    ]
)


def test_the_interquartile_mean_is_that_of_a_loop(rng):
    for shape in ((4, 3), (5, 3), (3, 2), (2, 7)):
        values = rng.normal(size=shape)
        flat = sorted(values.reshape(-1).tolist())
        cut = len(flat) // 4
        middle = flat[cut : len(flat) - cut]
        expected = sum(middle) / len(middle)
        assert aggregate.interquartile_mean(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            [[-16, -24, -1], [-17, -36, -9], [19, 8, -41], [-58, -39, -19]],
            (-20.166667, -33, -6),
        ),
        (
            [
                [-10, 5, -10],
                [-59, 7, -7],
                [-36, -3, -9],
                [-11, -19, -4],
                [-42, -25, -34],
            ],
            (-14.333333, -23.666667, -7.222222),
        ),
    ],
)
def test_rliable_has_the_same_interval(values, expected):
    """rliable 1.2.0: `get_interval_estimates` of `aggregate_iqm`, 50,000 resamples."""
    values = np.array(values, float)
    found = aggregate.interquartile_mean(values), *aggregate.stratified_interval(values)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1:] == pytest.approx(expected[1:], abs=0.8)


def test_intervals_cover_what_the_docstring_says(rng):
    found = [aggregate.stratified_interval(v) for v in rng.normal(size=(300, 4, 3))]
    assert_frequency(sum(low <= 0 <= high for low, high in found), 300, 0.89)


def test_seeds_are_resampled_within_their_data_set():
    """Values that differ between data sets only have no uncertainty over seeds."""
    values = np.broadcast_to([-3.0, 0.0, 1.0, 5.0], (4, 4))
    assert aggregate.stratified_interval(values) == (0.5, 0.5)


def test_the_example_of_demsar():
    ranks = aggregate.rank_settings(DEMSAR)
    assert ranks.average == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert ranks.critical == pytest.approx(1.25, abs=0.005)
    assert aggregate.critical_difference(4, 14, 0.1) == pytest.approx(1.12, abs=0.005)
    assert ranks.differ
    assert ranks.groups == [[3, 1, 2, 0]]
    assert ranks._replace(critical=1.12).groups == [[3, 1, 2], [2, 0]]


@pytest.mark.parametrize(
    ("difference", "p"), [(8 / 7, 0.088673), (1.0, 0.170052), (13 / 14, 0.226697)]
)
def test_nemenyis_test_is_that_of_scikit_posthocs(difference, p):
    """0.17.1: `posthoc_nemenyi_friedman` of the figures of table 6."""
    found = aggregate.critical_difference(4, 14, p)
    assert found == pytest.approx(difference, rel=1e-5)


def test_friedmans_test_counts_permutations():
    losses = np.array([[0.1, 0.2, 0.3], [0.1, 0.3, 0.2], [0.5, 0.5, 0.7]])

    def statistic(table):
        return scipy.stats.friedmanchisquare(*np.transpose(table)).statistic

    tables_of_ranks = itertools.product(*(itertools.permutations(r) for r in losses))
    observed = statistic(losses)
    found = [statistic(table) >= observed - 1e-9 for table in tables_of_ranks]
    ranks = aggregate.rank_settings(losses)
    assert ranks.chi_square == pytest.approx(observed)
    assert ranks.p == pytest.approx(np.mean(found))
    assert aggregate.rank_settings(np.ones((2, 3))).p == 1
    many = aggregate.rank_settings(DEMSAR)
    approximate = scipy.stats.friedmanchisquare(*DEMSAR.T).pvalue
    assert many.p == pytest.approx(approximate, abs=0.006)


def test_settings_that_do_not_differ_are_one_group():
    ranks = aggregate.Ranks(np.array([3.0, 1.0, 2.0]), 1.0, 0.5, critical=0.1)
    assert ranks.groups == [[1, 2, 0]]
    assert ranks._replace(p=0.01).groups == []
    assert ranks._replace(p=0.01, critical=1.0).groups == []
    assert ranks._replace(p=0.01, critical=1.01).groups == [[1, 2], [2, 0]]


def make_run(folder, data, size=1.0, axes=AXES, seeds=4, slope=1.0, noise=0.01):
    def test(setting, seed):
        rate = setting.get("dropout.rate", 0.0)
        drawn = noise * NOISE[data, int(4 * rate), seed]
        return size * (1 + seed) * np.exp(-slope * rate + drawn)

    run = make_folder(folder, axes, seeds, test)
    facts = run / "run.json"
    facts.write_text(facts.read_text().replace("0123456789abcdef", f"data {data}"))
    return run


def load_runs(root, *options):
    return [
        runs.load(make_run(root / f"set{n}", n, **some))
        for n, some in enumerate(options)
    ]


def test_changes_are_log_ratios_paired_by_seed(tmp_path):
    """The size of a loss and the effect of a seed drop out; the noise is left."""
    found = data_sets.over_data_sets(
        load_runs(tmp_path, {"size": 1.0}, {"size": 50.0}, {"size": 0.01, "slope": 0.8})
    )
    assert [c.setting["dropout.rate"] for c in found.changes] == [0.5, 0.25]
    half = found.changes[0]
    ratios = 0.01 * (NOISE[:3, 2, :4] - NOISE[:3, 0, :4]).T - [0.5, 0.5, 0.4]
    assert half.each == pytest.approx(ratios.mean(axis=0), abs=1e-6)
    assert half.middle == pytest.approx(aggregate.interquartile_mean(ratios), abs=1e-6)
    ends = aggregate.stratified_interval(ratios)
    assert (half.low, half.high) == pytest.approx(ends, abs=1e-6)
    assert found.ranks.average.tolist() == [3, 2, 1]
    table = tables.data_sets_table(found)
    assert [row.names for row in table.rows] == [["0.5"], ["0.25"], ["0"]]
    assert table.rows[2].tested == ["the baseline", "3.00"]
    assert table.rows[0].numbers[2] == data_sets.percent(half.each[2])
    assert data_sets.percent(np.log(0.6)) == "\N{MINUS SIGN}40.0 %"


def test_settings_that_are_not_finite_somewhere_are_left_out(tmp_path):
    lines = make_lines(AXES, 4, lambda setting, seed: 0.2 + 0.01 * seed)
    lines[4] |= {"status": "diverged", "diverged_at": 3}
    some = [
        *load_runs(tmp_path, {}),
        runs.load(write_folder(tmp_path / "b", AXES, lines)),
    ]
    found = data_sets.over_data_sets(some)
    assert [s["dropout.rate"] for s in found.settings] == [0.0, 0.5]
    assert found.left_out == 1
    assert found.ranks is None
    assert "1 setting left out" in data_sets.answer(found)
    assert data_sets.verdict(found).startswith("Over 2 data sets, `dropout.rate` 0.5")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "at least 2 runs, each on another data set, got 1 run on 1 data set"),
        ([{"data": 0}], "got 2 runs on 1 data set"),
        (
            [{"axes": {"dropout.rate": [0.0, 0.5]}}],
            r"same values of `dropout.rate`, got \[0.0, 0.25, 0.5\] and \[0.0, 0.5\]",
        ),
        (
            [{"axes": AXES | {"model.units": [3, 4]}}],
            r"`model.units`, got \[\] and \[3",
        ),
        ([{"seeds": 3}], "same number of seeds, got 4 and 3"),
        ([{"seeds": 1}], "`set1` must have at least 2 seeds, got 1"),
        ([{"size": -1.0}], "`set1` must have test losses above 0"),
        ([{"size": np.inf}], "no setting other than the baseline is finite"),
    ],
)
def test_runs_that_do_not_go_together_are_refused(tmp_path, others, message):
    some = [runs.load(make_run(tmp_path / "set0", 0))]
    for n, options in enumerate(others, 1):
        some.append(
            runs.load(make_run(tmp_path / f"set{n}", **({"data": n} | options)))
        )
    with pytest.raises(ConfigError, match=message):
        data_sets.over_data_sets(some)


def test_other_noise_and_races_are_refused(tmp_path):
    one, other = load_runs(tmp_path, {}, {})
    config = one.attrs["config"] + '[dropout.inputs]\nper = "step"\n'
    assert "same table `dropout`" in data_sets.refusal(
        [one, other.assign_attrs(config=config)]
    )
    assert "`set1` is a race" in data_sets.refusal([one, other.assign_attrs(race=1)])


def test_the_report_over_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make_run(tmp_path / f"set{n}", n, slope=1 + n) for n in range(5)]
    page = report.write_report(folders).read_text()
    assert "The settings differ over 5 data sets" in page
    assert "Every setting on every data set" in page
    assert 'data-label="set3"' in page
    assert "Critical-difference picture of 3 settings. Average ranks:" in page
    picture = report.write_figure(folders, "ranks", tmp_path / "ranks.svg").read_text()
    assert ">critical difference 1.48<" in picture
    page = report.write_report([folders[0], make_run(tmp_path / "x", 2, axes={})])
    assert "Settings are not compared over data sets: " in page.read_text()
    with pytest.raises(ConfigError, match="over data sets: needs at least 2 runs"):
        report.write_figure(folders[:1], "changes")
