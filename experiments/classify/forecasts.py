"""Scores of predicted distributions of numbers: one network, or a mixture of many.

Passes and networks are the members of a mixture of normal distributions with equal
weights. Intervals are those of the normal distribution with the mean and the variance
of the mixture; conformal intervals have the same shape and another width, from the
validation split [1].

References:
    [1] Angelopoulos, Bates. A gentle introduction to conformal prediction and
        distribution-free uncertainty quantification. 2021. arXiv:2107.07511. (Text
        unchecked.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float

from experiments.task import Normal
from rdrop import calibration, montecarlo, regression

COVERAGES = (0.5, 0.8, 0.95)


def mixture_scores(members: Normal, held_out: Normal | None) -> dict[str, float]:
    """Returns the scores of mixtures of K normal distributions, means over N examples.

    Args:
        members: [K, N] each.
        held_out: the same for the validation split; None for no conformal intervals.

    Returns:
        "nll" of the mixture, at the scale of the task; in units of the file "crps",
        "mae" of the mean, "sharpness" (the standard deviation), and of it "between":
        the part on which the members disagree; "pit_error", the largest distance of
        the distribution of the probability integral transform to a uniform one; and
        "coverage" and "width" of the intervals at each level in per cent, with
        "conformal" in front of the calibrated ones.
    """
    observed, scale = members.observed[0], members.scale[0]
    deviations = jnp.exp(members.log_variance / 2)
    mixture = moments(members)
    pit = regression.pit_mixture(members.mean, deviations, observed)
    crps = regression.crps_mixture(members.mean, deviations, observed)
    means = {
        "nll": _nll(members),
        "crps": crps * scale,
        "mae": jnp.abs(observed - mixture.mean) * scale,
        "sharpness": jnp.sqrt(mixture.variance) * scale,
        "between": jnp.sqrt(mixture.between) * scale,
    }
    found = {name: float(value.mean()) for name, value in means.items()}
    found["pit_error"] = float(scipy.stats.kstest(np.asarray(pit), "uniform").statistic)
    for level in COVERAGES:
        factor = scipy.stats.norm.ppf((1 + level) / 2)
        found |= _intervals("", level, members, factor)
        if held_out is not None:
            factor = calibration.conformal_quantile(distances(held_out), level)
            found |= _intervals("conformal_", level, members, factor)
    return found


def moments(members: Normal) -> montecarlo.Moments:
    """Returns the mean and the variances of mixtures, [N] each."""
    return montecarlo.moments(lambda p: p, (members.mean, members.log_variance))


def distances(members: Normal) -> Float[Array, "N"]:
    """Returns |observed - mean| / deviation of mixtures: their conformal scores."""
    mixture = moments(members)
    return jnp.abs(members.observed[0] - mixture.mean) / jnp.sqrt(mixture.variance)


def _nll(members: Normal) -> Float[Array, "N"]:
    """Returns -log of the mean density of the members."""
    deviations = jnp.exp(members.log_variance / 2)
    logs = jax.scipy.stats.norm.logpdf(members.observed, members.mean, deviations)
    return jnp.log(len(logs)) - jax.nn.logsumexp(logs, axis=0)


def _intervals(prefix, level, members, factor) -> dict[str, float]:
    """Returns the coverage and the width of mean +- factor * deviation."""
    mixture, scale = moments(members), members.scale[0]
    half = factor * jnp.sqrt(mixture.variance)
    ends = (mixture.mean - half) * scale, (mixture.mean + half) * scale
    quality = regression.interval_quality(*ends, members.observed[0] * scale)
    percent = round(100 * level)
    return {
        f"{prefix}coverage_{percent}": float(quality.coverage),
        f"{prefix}width_{percent}": float(quality.width),
    }
