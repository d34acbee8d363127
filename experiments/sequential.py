"""Sequential statistics: tests and intervals that hold after every seed.

A t-test holds for a number of seeds that was fixed beforehand. Whoever looks after each
seed and stops at the first p-value below 5 % is wrong far more often. The tests here
may be looked at after every seed: whatever the rule that ends the race, a true null is
rejected in at most 5 % of races. Both kinds assume independent differences of one
normal distribution.

For N differences with the mean m and the variance s^2, unbiased, the evidence against
a mean of mu is the Bayes factor of an effect (mean - mu) / sd ~ Normal(0, 1) [1, 2]

    E = R^(-1/2) ((1 + x) / (1 + x / R))^(N/2),  x = N (m - mu)^2 / ((N - 1) s^2),
    R = 1 + N

with the right Haar prior for the scale. If mu is the true mean, E exceeds 1 / level at
any N with a probability of at most `level` [1]. So 1 / E, and its lowest value so far,
is a p-value that is valid at any time; all mu with E < 1 / level are an interval that
is, and the intervals so far may be intersected.

Shapes:
    N seeds, in the order in which they were trained.

References:
    [1] Wang, Ramdas. Anytime-valid t-tests and confidence sequences for Gaussian means
        with unknown variance. 2023. arXiv:2310.03722, theorem 4.9. (Text unchecked.)
    [2] Lindon, Ham, Tingley, Bojinov. Anytime-valid linear models and regression
        adjusted causal inference in randomized experiments. 2022. arXiv:2210.08589;
        michaellindon/avlm, R/e_variables.R: log_G_t with g = 1.
"""

import math

import numpy as np
from jaxtyping import Float

from experiments.statistics import LEVEL, Tests

MOST_EVIDENCE = 700.0  # in nats: above it, p is 0 in float64


def evidence(
    differences: Float[np.ndarray, "N"], mean: float = 0.0
) -> Float[np.ndarray, "N"]:
    """Returns log E against a true mean after each seed; 0 after the first."""
    counts, means, squares = _moments(differences)
    r = 1 + counts
    shift = counts * (means - mean) ** 2
    # (1 + x) / (1 + x / R) without a division by a variance of 0.
    with np.errstate(invalid="ignore"):
        ratio = (squares + shift) / (squares + shift / r)
    ratio = np.where(shift == 0, 1, ratio)
    found = (counts * np.log(ratio) - np.log(r)) / 2
    found[:1] = 0
    return found


def p_value(differences: Float[np.ndarray, "N"], mean: float = 0.0) -> float:
    """Returns the p-value of a true mean that is valid at any time, two-sided."""
    return _p(evidence(differences, mean))


def equivalence_p(differences: Float[np.ndarray, "N"], margin: float) -> float:
    """Returns the p-value, valid at any time, of a true mean not inside a margin.

    Both ends of (-margin, margin) must be rejected, each while the mean is inside of
    it: if the true mean is beyond an end, that end is less often rejected than if it is
    the true mean.
    """
    _, means, _ = _moments(differences)
    low = np.where(means > -margin, evidence(differences, -margin), 0)
    high = np.where(means < margin, evidence(differences, margin), 0)
    return max(_p(low), _p(high))


def intervals(
    differences: Float[np.ndarray, "N"], level: float = LEVEL
) -> Float[np.ndarray, "2 N"]:
    """Returns the ends of the interval of the mean after each seed.

    The true mean is in all of them at once, with a probability of at least 1 - `level`.
    Each is inside of the one before; the first ones reach to infinity.
    """
    counts, means, squares = _moments(differences)
    r = 1 + counts
    bound = (np.sqrt(r) / level) ** (2 / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(bound < r, (bound - 1) / (1 - bound / r), np.inf)
        reach = np.where(np.isinf(x), np.inf, np.sqrt(squares * x / counts))
    reach[:1] = np.inf
    low = np.maximum.accumulate(means - reach)
    return np.stack([low, np.minimum.accumulate(means + reach)])


def interval(
    differences: Float[np.ndarray, "N"], level: float = LEVEL
) -> tuple[float, float]:
    """Returns the ends of the last of the `intervals`."""
    low, high = intervals(differences, level)[:, -1]
    return float(low), float(high)


def fewest_seeds(level: float = LEVEL) -> int:
    """Returns the fewest seeds at which any evidence can reach 1 / `level`.

    For x to infinity, E approaches R^((N - 1) / 2).
    """
    seeds = 2
    while (seeds - 1) / 2 * math.log1p(seeds) <= -math.log(level):
        seeds += 1
    return seeds


def _moments(values):
    """The counts, and after each seed the mean and the sum of squared deviations."""
    values = np.asarray(values, np.float64)
    counts = np.arange(1, len(values) + 1)
    means = np.cumsum(values) / counts
    before = np.concatenate([[0.0], means[:-1]])
    return counts, means, np.cumsum((values - before) * (values - means))


def _p(log_evidence) -> float:
    return math.exp(-min(max(log_evidence.max(), 0), MOST_EVIDENCE))


SEQUENTIAL = Tests(p_value, equivalence_p, interval, fixed=False)
