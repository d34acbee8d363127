"""Statistics agree with tables and definitions, and err as rarely as they say."""

import math

import numpy as np
import pytest
import scipy.stats
from helpers import assert_frequency

from experiments.report import statistics

RUNS = 4000


def with_effect(effect):
    """Two differences of that mean and standard deviation 1."""
    return effect + np.array([-1, 1]) / math.sqrt(2)


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(ps, adjusted):
    """Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, then never falling."""
    assert statistics.holm(ps) == pytest.approx(adjusted)


def test_a_family_errs_at_all_in_one_of_twenty(rng):
    ps = rng.uniform(size=(RUNS, 10))
    wrong = sum(min(statistics.holm(list(p))) < 0.05 for p in ps)
    assert_frequency(wrong, RUNS, 1 - (1 - 0.05 / 10) ** 10)


def test_paired_p_is_that_of_scipy(rng):
    for seeds in (2, 4, 10):
        a, b = rng.normal(size=(2, seeds))
        expected = scipy.stats.ttest_rel(a, b).pvalue
        assert statistics.paired_p(a - b) == pytest.approx(expected, rel=1e-12)
    assert statistics.paired_p(np.zeros(3)) == 1
    assert statistics.paired_p(np.full(3, 0.25)) == 0


@pytest.mark.parametrize(
    ("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)]
)
def test_seeds_needed_are_those_of_the_tables(effect, seeds):
    """Cohen's small, medium and large effect in a paired test, two-sided 5 %, 80 %."""
    assert statistics.seeds_needed(with_effect(effect)) == seeds
    assert statistics.power(effect, seeds) >= 0.8 > statistics.power(effect, seeds - 1)


def test_seeds_needed_have_ends():
    assert statistics.seeds_needed(with_effect(0.0)) is None
    assert statistics.seeds_needed(with_effect(1e-4)) is None
    assert statistics.seeds_needed(with_effect(1e3)) == 2
    assert statistics.seeds_needed(np.full(3, 0.25)) == 2


def test_power_is_how_often_an_effect_is_seen(rng):
    differences = 1.5 + rng.normal(size=(RUNS, 5))
    seen = sum(statistics.paired_p(d) < 0.05 for d in differences)
    assert_frequency(seen, RUNS, statistics.power(1.5, 5))


@pytest.mark.parametrize(
    ("seeds", "coverage"), [(2, 0.51), (3, 0.75), (4, 0.88), (5, 0.92), (10, 0.94)]
)
def test_intervals_cover_what_their_docstring_says(rng, seeds, coverage):
    low, high = statistics.interval(rng.normal(size=(seeds, 2000)))
    covered = int(((low <= 0) & (high >= 0)).sum())
    assert_frequency(covered, 2000, coverage)


def test_an_interval_is_the_same_again_and_lies_within_the_seeds(rng):
    values = rng.normal(size=4)
    low, high = statistics.interval(values)
    assert (low, high) == statistics.interval(values)
    assert values.min() <= low < values.mean() < high <= values.max()
    assert statistics.interval(values[:1]) == (values[0], values[0])


def test_comparisons_are_one_family():
    base = np.array([0.5, 0.6, 0.7, 0.8])
    lower = base - np.array([0.30, 0.31, 0.30, 0.32])
    higher = base + np.array([0.02, 0.03, 0.02, 0.02])
    same = base + np.array([0.01, -0.01, 0.02, -0.02])
    diverged = np.array([0.1, np.nan, 0.1, 0.1])
    found = statistics.compare(
        [None, (lower, base), (diverged, base), (higher, base), (same, base)]
    )
    assert [c is None for c in found] == [True, False, True, False, False]
    compared = [c for c in found if c]
    assert [c.family for c in compared] == [3, 3, 3]
    assert [c.p_holm for c in compared] == statistics.holm([c.p for c in compared])
    assert [c.verdict() for c in compared] == [
        "lower than the baseline",
        "higher than the baseline",
        "no evidence of a difference",
    ]
    assert compared[0].sentence().startswith("lower than the baseline (-0.307, 95 % CI")
    assert compared[0].sentence().endswith("by Holm over 3)")


def test_one_seed_has_no_statistics():
    one = np.array([0.5])
    assert statistics.compare([(one, one - 0.1)]) == [None]
    assert statistics.mean_sd(one) == "0.500"
    assert statistics.mean_sd(np.array([0.4, 0.6])) == "0.500 ±0.141"
