"""Aggregates over data sets: interquartile means, average ranks, critical differences.

Shapes:
    D data sets, N seeds, S settings.

References:
    [1] Agarwal, Schwarzer, Castro, Courville, Bellemare. Deep reinforcement learning at
        the edge of the statistical precipice. NeurIPS 2021. arXiv:2108.13264. (Text
        unchecked; the code is google-research/rliable: `aggregate_iqm` in
        rliable/metrics.py and `StratifiedBootstrap` in rliable/library.py.)
    [2] Demsar. Statistical comparisons of classifiers over multiple data sets. Journal
        of Machine Learning Research 7, 2006: section 3.2.2.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from experiments.bootstrap import RESAMPLES
from experiments.statistics import LEVEL

CUT = 0.25  # of the values at each end


class Ranks(NamedTuple):
    """Settings ranked on each data set; the lowest loss has rank 1.

    Attributes:
        average: the mean rank of each setting over the data sets.
        chi_square: of Friedman's test that all settings have equal ranks.
        p: of that test, by permutations of the ranks on each data set.
        critical: Nemenyi's critical difference of two average ranks.
    """

    average: Float[np.ndarray, "S"]
    chi_square: float
    p: float
    critical: float

    @property
    def differ(self) -> bool:
        """Whether Friedman's test finds a difference between any settings."""
        return self.p < LEVEL

    @property
    def groups(self) -> list[list[int]]:
        """The largest groups of settings that do not differ, by average rank.

        Two settings differ if their average ranks are apart by the critical difference
        or more. Without a difference in Friedman's test, all are one group. Groups of
        one setting are left out.
        """
        order = np.argsort(self.average, stable=True).tolist()
        if not self.differ:
            return [order]
        ranks, end = self.average[order], 0
        found = []
        for start in range(len(order)):
            within = ranks - ranks[start] < self.critical
            last = int(np.flatnonzero(within)[-1]) + 1
            if last > max(end, start + 1):
                found.append(order[start:last])
            end = max(end, last)
        return found


def interquartile_mean(values: Float[np.ndarray, "*batch N D"]) -> np.ndarray:
    """Returns the mean of the middle half of all seeds on all data sets [1].

    A quarter of the values, rounded down, is left out at each end.

    Returns:
        The mean of each table N x D.
    """
    flat = values.reshape(*values.shape[:-2], -1)
    return np.asarray(scipy.stats.trim_mean(flat, CUT, axis=-1))


def stratified_interval(values: Float[np.ndarray, "N D"]) -> tuple[float, float]:
    """Returns the 95 % stratified bootstrap interval of the interquartile mean [1].

    Seeds are resampled on each data set by itself; the ends are percentiles. So it is
    about other seeds of the same data sets, and not about other data sets. For normal
    values on 3 data sets it covers the true mean in 74 % (2 seeds), 86 % (3), 89 % (4),
    91 % (5) and 94 % (10) of all runs.

    Returns:
        Its ends, the same for the same values.
    """
    seeds = len(values)
    rng = np.random.default_rng(0)
    drawn = rng.integers(seeds, size=(RESAMPLES, *values.shape))
    found = interquartile_mean(np.take_along_axis(values[None], drawn, axis=1))
    low, high = np.quantile(found, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def rank_settings(losses: Float[np.ndarray, "D S"]) -> Ranks:
    """Ranks settings on each data set, and tests whether they differ [2].

    Equal losses share the mean of their ranks. The p-value of Friedman's test is exact
    for few data sets and settings, and otherwise from random permutations, since the
    chi-square distribution is a poor one of so few data sets.

    Args:
        losses: of at least 3 settings on at least 2 data sets; finite.
    """
    ranks = scipy.stats.rankdata(losses, axis=1)
    data_sets, settings = ranks.shape
    critical = critical_difference(settings, data_sets)
    average = ranks.mean(axis=0)
    if np.ptp(ranks) == 0:  # all settings are equal on every data set
        return Ranks(average, 0.0, 1.0, critical)
    test = scipy.stats.permutation_test(
        ranks.T,
        # It orders tables as Friedman's statistic does.
        lambda *columns, axis: np.var([c.mean(axis=axis) for c in columns], axis=0),
        permutation_type="samples",
        alternative="greater",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    chi_square = float(scipy.stats.friedmanchisquare(*ranks.T).statistic)
    return Ranks(average, chi_square, float(test.pvalue), critical)


def critical_difference(settings: int, data_sets: int, level: float = LEVEL) -> float:
    """Returns by how much two average ranks must differ in Nemenyi's test [2].

    Args:
        settings: how many are ranked, at least 2.
        data_sets: on how many.
        level: the chance that any two settings without a difference are told apart.
    """
    studentized = scipy.stats.studentized_range.isf(level, settings, np.inf)
    error = math.sqrt(settings * (settings + 1) / (6 * data_sets))
    return float(studentized / math.sqrt(2) * error)
