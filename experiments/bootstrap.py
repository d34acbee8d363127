"""Bootstrap intervals of a mean over seeds, and over seeds and sequences.

Shapes:
    N seeds, M sequences.

References:
    [1] Hesterberg. What teachers should know about the bootstrap. The American
        Statistician 69(4), 2015: the expanded percentile interval, section 4.
    [2] Owen. The pigeonhole bootstrap. The Annals of Applied Statistics 1(2), 2007.
        (Only its abstract was read.)
"""

import math

import numpy as np
import scipy.stats
from jaxtyping import Float

from experiments.statistics import LEVEL

RESAMPLES = 4999


def interval(
    values: Float[np.ndarray, "N *rest"],
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Returns the 95 % bootstrap interval of the mean over the first axis.

    It is the expanded percentile interval [1]: percentiles of the resampled means,
    widened as Student's t is for N seeds, since plain percentiles are too narrow for a
    few. It never reaches beyond the lowest and the highest seed. For normal values it
    covers the true mean in 51 % (N = 2), 75 % (3), 88 % (4), 92 % (5) and 94 % (10) of
    all runs, and in fewer for skewed values. Pictures show it; tests do not use it.

    Returns:
        Its ends, the same for the same values; for one seed, the value itself twice.
    """
    seeds = len(values)
    if seeds < 2:
        return np.asarray(values[0]), np.asarray(values[0])
    found = scipy.stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=RESAMPLES,
        batch=1000,
        method="percentile",
        confidence_level=1 - 2 * scipy.stats.norm.sf(_reach(seeds)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def crossed_interval(
    values: Float[np.ndarray, "N M"], weights: Float[np.ndarray, "M"]
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean over other seeds and other sequences.

    A percentile bootstrap in two levels: each resample draws seeds, and then sequences.
    All seeds are tested on the same sequences, so that a hard sequence is hard for all:
    each resample has one draw of sequences for all of its seeds, as in the pigeonhole
    bootstrap [2]. With other sequences for each seed, this shared part would seem to
    shrink with the number of seeds. The means of the seeds are stretched around their
    mean, as much as `interval` is widened for that many seeds. For normal effects it
    covers the true mean of 4 seeds on 100 sequences in 94 % (no effect of sequences) to
    99 % (hardly one of seeds) of all runs.

    Args:
        values: differences of two settings at each seed on each sequence; at least 2
            seeds and 2 sequences.
        weights: of each sequence in the mean.

    Returns:
        Its ends, the same for the same values.
    """
    seeds, sequences = values.shape
    rng = np.random.default_rng(0)
    means = np.average(values, axis=1, weights=weights)
    wider = _reach(seeds) / scipy.stats.norm.isf(LEVEL / 2)
    stretched = values + (wider - 1) * (means - means.mean())[:, None]

    def resampled() -> float:
        rows = rng.integers(seeds, size=seeds)
        columns = rng.integers(sequences, size=sequences)
        found = stretched[np.ix_(rows, columns)].mean(axis=0)
        return np.average(found, weights=weights[columns])

    found = [resampled() for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _reach(seeds: int) -> float:
    """The reach of an interval [1] in standard deviations of a resampled mean."""
    return scipy.stats.t.isf(LEVEL / 2, seeds - 1) * math.sqrt(seeds / (seeds - 1))
