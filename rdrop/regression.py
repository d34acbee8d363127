"""Regression: scores of predicted distributions of numbers.

A prediction is a normal distribution, a mixture of K of them with equal weights (one
per pass of Monte Carlo dropout, or per model of an ensemble), or K samples. Scores are
per example; their mean over the examples is reported, and lower is better.

Shapes:
    K passes or samples; * any shape of examples.

References:
    [1] Gneiting, Raftery. Strictly proper scoring rules, prediction, and estimation.
        JASA 102(477), 2007. (Text unchecked.)
    [2] Grimit, Gneiting, Berrocal, Johnson. The continuous ranked probability score for
        circular variables and its application to mesoscale forecast ensemble
        verification. Q. J. R. Meteorol. Soc. 132, 2006: mixtures. (Text unchecked.)
    [3] Ferro. Fair scores for ensemble forecasts. Q. J. R. Meteorol. Soc. 140, 2014.
        (Text unchecked.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.arguments import check_number
from rdrop.montecarlo import Arrays, wide

__all__ = [
    "IntervalQuality",
    "crps_mixture",
    "crps_normal",
    "crps_samples",
    "interval_quality",
    "pinball_loss",
    "pit_mixture",
]


class IntervalQuality(NamedTuple):
    """How good intervals are: those of the right coverage should be narrow.

    Attributes:
        coverage: the fraction of the examples that are inside, ends included.
        width: the mean width, in the unit of the examples.
    """

    coverage: Float[Array, ""]
    width: Float[Array, ""]


def crps_normal(
    mean: Float[Arrays, "*N"],
    deviation: Float[Arrays, "*N"],
    observed: Float[Arrays, "*N"],
) -> Float[Array, "*N"]:
    """Returns the continuous ranked probability score of normal distributions [1].

        CRPS(F, y) = integral of (F(x) - [x >= y])^2 dx = E|X - y| - E|X - X'| / 2

    It has the unit of the examples, and is |mean - y| at a deviation of 0.

    Args:
        mean: of each distribution.
        deviation: the standard deviation, at least 0.
        observed: y.
    """
    mean, deviation, observed = _wide(mean, deviation, observed)
    spread = deviation / jnp.sqrt(jnp.asarray(jnp.pi, mean.dtype))
    return _distance(observed - mean, deviation) - spread


def crps_mixture(
    means: Float[Arrays, "K *N"],
    deviations: Float[Arrays, "K *N"],
    observed: Float[Arrays, "*N"],
) -> Float[Array, "*N"]:
    """Returns the score of mixtures of K normal distributions, in closed form [2].

    Args:
        means: of each pass.
        deviations: standard deviations, at least 0.
        observed: y.
    """
    means, deviations, observed = _wide(means, deviations, observed)
    error = _distance(observed[None] - means, deviations).mean(axis=0)

    def apart(one):
        mean, deviation = one
        spread = jnp.hypot(deviation[None], deviations)
        return _distance(mean[None] - means, spread).mean(axis=0)

    return error - jax.lax.map(apart, (means, deviations)).mean(axis=0) / 2


def crps_samples(
    samples: Float[Arrays, "K *N"], observed: Float[Arrays, "*N"]
) -> Float[Array, "*N"]:
    """Returns the fair score of K samples [3].

        1/K sum_k |x_k - y| - 1 / (2 K (K - 1)) sum_jk |x_j - x_k|

    Its expectation is the score of the distribution that the samples are from, for
    every K of 2 or more.

    Raises:
        ValueError: there is one sample.
    """
    samples, observed = _wide(samples, observed)
    count = len(samples)
    if count < 2:
        raise ValueError(f"`samples` must be at least 2, got {count}.")
    # Of sorted samples, the k-th is larger than k others and smaller than the rest.
    rank = 2 * jnp.arange(count, dtype=samples.dtype) - (count - 1)
    apart = jnp.tensordot(rank, jnp.sort(samples, axis=0), axes=1)
    return jnp.abs(samples - observed[None]).mean(axis=0) - apart / (
        count * (count - 1)
    )


def pinball_loss(
    quantiles: Float[Arrays, "*N"], level: float, observed: Float[Arrays, "*N"]
) -> Float[Array, "*N"]:
    """Returns max(level (y - q), (level - 1) (y - q)): lowest on average at a quantile.

    Args:
        quantiles: q.
        level: of the quantile, in (0, 1).
        observed: y.

    Raises:
        ValueError: `level` is not a number in (0, 1).
    """
    check_number("level", level, "in (0, 1)", lambda number: 0 < number < 1)
    quantiles, observed = _wide(quantiles, observed)
    error = observed - quantiles
    return jnp.maximum(level * error, (level - 1) * error)


def pit_mixture(
    means: Float[Arrays, "K *N"],
    deviations: Float[Arrays, "K *N"],
    observed: Float[Arrays, "*N"],
) -> Float[Array, "*N"]:
    """Returns the probability integral transform F(y) of mixtures, in [0, 1].

    It is uniform over the examples if the predictions are right.

    Args:
        means: of each pass.
        deviations: standard deviations, above 0.
        observed: y.
    """
    means, deviations, observed = _wide(means, deviations, observed)
    return jax.scipy.stats.norm.cdf(observed[None], means, deviations).mean(axis=0)


def interval_quality(
    low: Float[Arrays, "*N"], high: Float[Arrays, "*N"], observed: Float[Arrays, "*N"]
) -> IntervalQuality:
    """Returns the coverage and the width of intervals.

    Args:
        low: the lower ends.
        high: the upper ends.
        observed: y.
    """
    low, high, observed = _wide(low, high, observed)
    inside = (low <= observed) & (observed <= high)
    return IntervalQuality(inside.astype(low.dtype).mean(), (high - low).mean())


def _distance(difference, deviation):
    """Returns E|D| of D ~ Normal(difference, deviation^2)."""
    positive = jnp.where(deviation > 0, deviation, 1)
    z = difference / positive
    expected = 2 * positive * jax.scipy.stats.norm.pdf(z)
    expected += difference * (2 * jax.scipy.stats.norm.cdf(z) - 1)
    return jnp.where(deviation > 0, expected, jnp.abs(difference))


def _wide(*values):
    return tuple(wide(value) for value in values)
