"""Statistics agree with tables, with scipy and with each other."""

import math

import numpy as np
import pytest
import scipy.stats
from helpers import assert_frequency

from experiments import bootstrap, statistics, wording

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
    assert statistics.seeds_needed(with_effect(effect), 0.05 / 6) > seeds


def test_seeds_needed_have_ends():
    assert statistics.seeds_needed(with_effect(0.0)) is None
    assert statistics.seeds_needed(with_effect(1e-4)) is None
    assert statistics.seeds_needed(with_effect(1e3)) == 2
    assert statistics.seeds_needed(np.full(3, 0.25)) == 2


def test_power_is_how_often_an_effect_is_seen(rng):
    differences = 1.5 + rng.normal(size=(RUNS, 5))
    ps = [statistics.paired_p(d) for d in differences]
    for level in (0.05, 0.01):
        seen = sum(p < level for p in ps)
        assert_frequency(seen, RUNS, statistics.power(1.5, 5, level))


@pytest.mark.parametrize(
    ("seeds", "coverage"),
    [
        (2, 0.51),
        (4, 0.88),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((3, 0.75), (5, 0.92), (10, 0.94))
        ),
    ],
)
def test_intervals_cover_what_their_docstring_says(rng, seeds, coverage):
    low, high = bootstrap.interval(rng.normal(size=(seeds, 2000)))
    covered = int(((low <= 0) & (high >= 0)).sum())
    assert_frequency(covered, 2000, coverage)


def test_an_interval_is_the_same_again_and_lies_within_the_seeds(rng):
    values = rng.normal(size=4)
    low, high = bootstrap.interval(values)
    assert (low, high) == bootstrap.interval(values)
    assert values.min() <= low < values.mean() < high <= values.max()
    assert bootstrap.interval(values[:1]) == (values[0], values[0])


@pytest.mark.parametrize(("seeds", "sequences"), [(1.0, 0.2), (0.05, 1.0), (0.3, 0.5)])
def test_an_interval_over_seeds_and_sequences_adds_their_variances(
    rng, seeds, sequences
):
    """An effect of each seed and one of each sequence, which all seeds share."""
    of_seed, of_sequence = rng.normal(size=40) * seeds, rng.normal(size=200) * sequences
    weights = rng.integers(1, 9, size=200).astype(float)
    mean = (weights * of_sequence).sum() / weights.sum()
    spread = (weights**2 * (of_sequence - mean) ** 2).sum() / weights.sum() ** 2
    of_t, of_normal = scipy.stats.t.ppf(0.975, 39), scipy.stats.norm.ppf(0.975)
    reach = math.sqrt(of_t**2 * of_seed.var(ddof=1) / 40 + of_normal**2 * spread)
    values = of_seed[:, None] + of_sequence
    low, high = bootstrap.crossed_interval(values, weights)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.05)
    middle = of_seed.mean() + mean
    assert (low + high) / 2 == pytest.approx(middle, abs=0.1 * reach)


@pytest.mark.slow
@pytest.mark.parametrize(("of_sequences", "coverage"), [(0.0, 0.94), (1.0, 0.99)])
def test_intervals_over_sequences_cover_what_their_docstring_says(
    rng, monkeypatch, of_sequences, coverage
):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    covered = 0
    for _ in range(150):
        effects = rng.normal(size=(4, 1)) * (1 if not of_sequences else 0.03)
        noise = rng.normal(size=(5, 100)) * of_sequences
        values = effects + noise[:1] + noise[1:]
        low, high = bootstrap.crossed_interval(values, np.ones(100))
        covered += low <= 0 <= high
    assert_frequency(covered, 150, coverage)
    assert bootstrap.crossed_interval(values, np.ones(100)) == (low, high)


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
    assert [c.p_corrected for c in compared] == statistics.holm([c.p for c in compared])
    assert [c.level for c in compared] == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])
    assert [c.verdict() for c in compared] == [
        "lower than the baseline",
        "higher than the baseline",
        statistics.UNSETTLED,
    ]
    assert [c.lower for c in compared] == [True, False, False]
    assert [c.higher for c in compared] == [False, True, False]
    sentence = compared[0].sentence()
    assert sentence.startswith(
        "lower than the baseline (\N{MINUS SIGN}0.307, interval \N{MINUS SIGN}0."
    )
    assert sentence.endswith("after Holm's correction for 3 tests)")


def test_intervals_and_seeds_needed_agree_with_the_verdict(rng):
    """A verdict, its interval and the seeds needed never contradict each other."""
    settled = 0
    for seeds in (2, 3, 4, 8):
        effects = rng.uniform(0, 3, size=(4, 6, 1))
        for differences in effects + rng.normal(size=(4, 6, seeds)):
            zero = np.zeros(seeds)
            for found in statistics.compare([(d, zero) for d in differences]):
                outside = found.low > 0 or found.high < 0
                assert outside == found.settled
                if not found.settled:
                    assert found.seeds_needed is None or found.seeds_needed > seeds
                settled += found.settled
    assert settled > 12


def test_levels_by_hand():
    """Sorted, 5 % over 4, 3, 2 and 1, up to the first that fails."""
    levels = [0.05 / 2, 0.05 / 3, 0.05, 0.05 / 4]
    assert statistics.levels([0.02, 0.01, 0.04, 0.001]) == pytest.approx(levels)
    stopped = [0.05 / 3, 0.05 / 3, 0.05 / 3, 0.05 / 4]
    assert statistics.levels([0.02, 0.018, 0.04, 0.001]) == pytest.approx(stopped)
    assert statistics.levels([]) == []


def test_t_intervals_are_those_of_scipy(rng):
    values = rng.normal(size=5)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.99)
    assert statistics.t_interval(values, 0.01) == pytest.approx(tuple(expected))


def test_one_seed_has_no_statistics():
    one = np.array([0.5])
    assert statistics.compare([(one, one - 0.1)]) == [None]
    assert wording.mean_sd(one) == "0.500"
    assert wording.mean_sd(np.array([0.4, 0.6])) == "0.500 ±0.141"
    assert wording.mean_sd(np.array([0.4, np.nan])) == "-"


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (1.0, 10), (2.0, 3)])
def test_power_is_the_noncentral_t(effect, seeds):
    critical = scipy.stats.t.isf(0.025, seeds - 1)
    upper = scipy.stats.nct(seeds - 1, effect * math.sqrt(seeds)).sf(critical)
    assert statistics.power(effect, seeds) == pytest.approx(upper, abs=2e-4)


def test_power_of_a_strong_effect_at_two_seeds():
    """The chance is small, however strong the effect looks."""
    assert 0.1 < statistics.power(13.0, 2, 0.05 / 6) < 0.3
