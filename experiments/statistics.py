"""Statistics: paired tests, Holm's correction and the seeds needed.

Lanes of one seed share their initial parameters and the order of their data, so
settings are compared by their differences at each seed. Comparisons that are tested
together form a family. A difference is called lower or higher only if a paired t-test
supports it after Holm's correction [1] for the size of the family.

Shapes:
    N seeds.

References:
    [1] Holm. A simple sequentially rejective multiple test procedure. Scandinavian
        Journal of Statistics 6(2), 1979.
    [2] Cohen. Statistical power analysis for the behavioral sciences. 1988.
    [3] Schuirmann. A comparison of the two one-sided tests procedure and the power
        approach for assessing the equivalence of average bioavailability. Journal of
        Pharmacokinetics and Biopharmaceutics 15(6), 1987. (Text unchecked.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.stats
from jaxtyping import Float

from experiments.wording import count_text, p_text, signed

LEVEL = 0.05
MOST_SEEDS = 10_000
QUANTILES = 500
UNSETTLED = "no settled difference"
Pair: TypeAlias = tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]


class Comparison(NamedTuple):
    """A difference between two settings, tested as one of a family.

    The interval excludes 0 exactly if `differs`. If the number of seeds was fixed,
    `seeds_needed` exceeds it exactly if not: both use the level of the correction.

    Attributes:
        difference: the mean difference over the seeds.
        low, high: its interval at `level`.
        p: of the test of a mean of 0.
        p_corrected: p after the correction.
        level: the significance level at which the correction tests this comparison.
        family: the number of comparisons tested together.
        seeds: how many were compared.
        seeds_needed: for 80 % power of a t-test at `level`; None if above 10,000. See
            `seeds_needed`.
        margin: differences inside of it are equivalent; 0 without such tests.
        p_equivalent: of the test of equivalence, after the correction; 1 without.
        sequential: whether the test holds for any number of seeds.
        stepwise: whether the correction is Holm's, or Bonferroni's.
    """

    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    level: float
    family: int
    seeds: int
    seeds_needed: int | None
    margin: float = 0.0
    p_equivalent: float = 1.0
    sequential: bool = False
    stepwise: bool = True

    @property
    def correction(self) -> str:
        """The correction in words."""
        return f"{'Holm' if self.stepwise else 'Bonferroni'}'s correction"

    @property
    def differs(self) -> bool:
        """Whether the corrected test finds a difference."""
        return self.p_corrected < LEVEL

    @property
    def equivalent(self) -> bool:
        """Whether the corrected test finds the difference to be inside the margin."""
        return self.p_equivalent < LEVEL

    @property
    def settled(self) -> bool:
        """Whether either test has found something."""
        return self.differs or self.equivalent

    @property
    def lower(self) -> bool:
        """Whether there is a difference, below 0."""
        return self.differs and self.difference < 0

    @property
    def higher(self) -> bool:
        """Whether there is a difference, above 0."""
        return self.differs and self.difference > 0

    def verdict(self, other: str = "the baseline") -> str:
        """Returns "lower than OTHER", "higher than OTHER", or `UNSETTLED`.

        With a margin also "equivalent to OTHER within MARGIN".
        """
        if not self.settled:
            return UNSETTLED
        found = [f"{'lower' if self.lower else 'higher'} than {other}"] * self.differs
        if self.equivalent:
            to = "" if self.differs else f" to {other}"
            found.append(f"equivalent{to} within {self.margin:g}")
        return ", but ".join(found)

    def sentence(self, other: str = "the baseline") -> str:
        """Returns the verdict with its figures."""
        p, tests = p_text(self.p_corrected), count_text(self.family, "test")
        return (
            f"{self.verdict(other)} ({difference_text(self)}, {p} after "
            f"{self.correction} for {tests})"
        )


class Tests(NamedTuple):
    """The tests of paired differences [N].

    Attributes:
        p: differences -> p-value of a mean of 0.
        equivalence_p: (differences, margin) -> p-value of a mean outside the margin.
        interval: (differences, level) -> the ends of an interval of the mean.
        fixed: whether the number of seeds must be fixed beforehand.
    """

    p: Callable[[Any], float]
    equivalence_p: Callable[[Any, float], float]
    interval: Callable[[Any, float], tuple[float, float]]
    fixed: bool


def compare(
    pairs: Sequence[Pair | None],
    tests: Tests | None = None,
    margin: float = 0.0,
    stepwise: bool = True,
) -> list[Comparison | None]:
    """Compares pairs of settings as one family.

    Args:
        pairs: the values of two settings, one per seed; None to leave a pair out.
        tests: t-tests by default.
        margin: differences inside of it are equivalent; 0 for no such tests.
        stepwise: whether Holm's correction is used, or Bonferroni's: the same level for
            all pairs, whatever the others are.

    Returns:
        One comparison per pair; None also for one seed and for values not finite. If
        the number of seeds is not fixed, these count in the size of the family.
    """
    tests = tests or T_TESTS
    given = {n: pair[0] - pair[1] for n, pair in enumerate(pairs) if pair is not None}
    usable = {n for n, d in given.items() if len(d) > 1 and np.isfinite(d).all()}
    family = sorted(usable) if tests.fixed else list(given)
    ps = [tests.p(given[n]) if n in usable else 1.0 for n in family]
    equal = [
        tests.equivalence_p(given[n], margin) if margin and n in usable else 1.0
        for n in family
    ]
    found: list[Comparison | None] = [None] * len(pairs)
    if stepwise:
        corrections = holm(ps), levels(ps), holm(equal)
    else:
        size = max(1, len(ps))
        whole = [LEVEL / size] * len(ps)
        corrections = bonferroni(ps), whole, bonferroni(equal)
    rows = zip(family, ps, *corrections, strict=True)
    for n, p, corrected, level, equivalent in rows:
        if n not in usable:
            continue
        differences = given[n]
        found[n] = Comparison(
            float(differences.mean()),
            *tests.interval(differences, level),
            p,
            corrected,
            level,
            len(ps),
            len(differences),
            seeds_needed(differences, level),
            margin,
            equivalent,
            not tests.fixed,
            stepwise,
        )
    return found


def t_interval(
    differences: Float[np.ndarray, "N"], level: float = LEVEL
) -> tuple[float, float]:
    """Returns Student's t interval of the mean; it excludes 0 if p is below `level`."""
    mean, sd, seeds = differences.mean(), differences.std(ddof=1), len(differences)
    reach = scipy.stats.t.isf(level / 2, seeds - 1) * sd / math.sqrt(seeds)
    return float(mean - reach), float(mean + reach)


def paired_p(differences: Float[np.ndarray, "N"]) -> float:
    """Returns the two-sided p-value of a paired t-test.

    Equal differences have no spread to test against: p is 1 if they are 0, and 0
    otherwise.
    """
    mean, sd = differences.mean(), differences.std(ddof=1)
    if sd == 0:
        return float(mean == 0)
    t = abs(mean) / sd * math.sqrt(len(differences))
    return float(2 * scipy.stats.t.sf(t, len(differences) - 1))


def tost_p(differences: Float[np.ndarray, "N"], margin: float) -> float:
    """Returns the p-value of a mean not inside (-margin, margin), by TOST [3].

    It is the larger one of two one-sided t-tests, of a mean of at most -margin and of
    at least margin. Equal differences have no spread to test against: p is 0 if they
    are inside, and 1 otherwise.
    """
    mean, sd, seeds = differences.mean(), differences.std(ddof=1), len(differences)
    room = margin - abs(mean)
    if sd == 0:
        return float(room <= 0)
    return float(scipy.stats.t.sf(room / sd * math.sqrt(seeds), seeds - 1))


T_TESTS = Tests(paired_p, tost_p, t_interval, fixed=True)


def holm(ps: Sequence[float]) -> list[float]:
    """Corrects p-values so that the chance of any error in the family is at most 5 %.

    The k-th smallest of m is multiplied by m - k + 1, and none is smaller than one
    before it [1].
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for k, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - k) * ps[place]))
        adjusted[place] = highest
    return adjusted


def bonferroni(ps: Sequence[float]) -> list[float]:
    """Multiplies p-values by their number."""
    return [min(1.0, p * len(ps)) for p in ps]


def levels(ps: Sequence[float]) -> list[float]:
    """Returns the significance level at which Holm's procedure tests each p-value.

    The k-th smallest of m is tested at 5 % / (m - k + 1). The procedure stops at the
    first p-value above its level; all larger ones keep that level.
    """
    found, stopped = [0.0] * len(ps), False
    level = LEVEL
    for k, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if not stopped:
            level = LEVEL / (len(ps) - k)
            stopped = not ps[place] < level
        found[place] = level
    return found


def power(effect: float, seeds: int, level: float = LEVEL) -> float:
    """Returns the chance that a paired t-test finds an effect [2].

    It integrates the noncentral t distribution over the observed standard deviation,
    since scipy's has NaN tails for strong effects.

    Args:
        effect: the true mean difference over its standard deviation.
        seeds: the number of pairs, at least 2.
        level: significance level of the test.
    """
    critical = scipy.stats.t.isf(level / 2, seeds - 1)
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    sd = np.sqrt(scipy.stats.chi2.ppf(shares, seeds - 1) / (seeds - 1))
    shift = abs(effect) * math.sqrt(seeds)
    tails = [shift - critical * sd, -shift - critical * sd]
    return float(scipy.stats.norm.cdf(tails).sum(axis=0).mean())


def seeds_needed(
    differences: Float[np.ndarray, "N"], level: float = LEVEL, chance: float = 0.8
) -> int | None:
    """Returns the fewest seeds with 80 % power, if the observed effect is the true one.

    An effect seen in a few seeds is itself uncertain, and usually too large if it was
    selected for its size.

    Returns:
        The number; None if it is above 10,000.
    """
    mean, sd = abs(differences.mean()), differences.std(ddof=1)
    if mean == 0:
        return None
    if sd == 0:
        return 2
    low, high = 1, MOST_SEEDS
    if power(mean / sd, high, level) < chance:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if power(mean / sd, middle, level) < chance:
            low = middle
        else:
            high = middle
    return high


def difference_text(comparison: Comparison) -> str:
    """Returns a difference with its interval as text."""
    return (
        f"{signed(comparison.difference)}, interval {signed(comparison.low)} to "
        f"{signed(comparison.high)}"
    )
