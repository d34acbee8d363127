"""Calibration: agreement of a model's confidence with its accuracy.

The functions compare predictions, the log-probabilities of C classes, with the labels
of N examples. A prediction may come from one pass or from many.

References:
    [1] Guo et al. On calibration of modern neural networks. ICML 2017.
        arXiv:1706.04599; temperature_scaling.py of their code.
    [2] El-Yaniv, Wiener. On the foundations of noise-free selective classification.
        JMLR 11, 2010. (Abstract.)
    [3] Nixon et al. Measuring calibration in deep learning. 2019. arXiv:1904.01685.
        (Text unchecked.)
    [4] Geifman, Uziel, El-Yaniv. Bias-reduced uncertainty estimation for deep neural
        classifiers. ICLR 2019. arXiv:1805.08206. (Text unchecked.)
    [5] Angelopoulos, Bates. A gentle introduction to conformal prediction and
        distribution-free uncertainty quantification. 2021. arXiv:2107.07511, section 1.
        (Text unchecked.)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from rdrop.arguments import check_count, check_number
from rdrop.montecarlo import Arrays, wide

__all__ = [
    "Coverage",
    "Reliability",
    "adaptive_calibration_error",
    "area_under_risk_coverage",
    "brier_score",
    "calibration_error",
    "conformal_quantile",
    "conformal_sets",
    "coverage",
    "fit_temperature",
    "reliability",
    "temper",
]

# The range of temperatures that is searched, and how often it is halved.
COLDEST, HOTTEST, HALVINGS = 1e-3, 1e3, 50


class Reliability(NamedTuple):
    """Accuracy of predictions by confidence.

    Attributes:
        counts: predictions in each bin.
        confidence: their mean confidence, 0 in an empty bin.
        accuracy: the fraction of them that is right, 0 in an empty bin.
    """

    counts: Int[Arrays, "bins"]
    confidence: Float[Arrays, "bins"]
    accuracy: Float[Arrays, "bins"]


class Coverage(NamedTuple):
    """Accuracy of the most certain predictions, by how many are kept.

    Attributes:
        share: 1/N, 2/N, ..., 1, the fraction of predictions that is kept.
        accuracy: the fraction of the kept ones that is right.
    """

    share: Float[Arrays, "N"]
    accuracy: Float[Arrays, "N"]


def reliability(
    log_probs: Float[Arrays, "N C"], labels: Integer[Arrays, "N"], bins: int = 15
) -> Reliability:
    """Sorts predictions into bins of confidence, for a reliability diagram [1].

    The confidence of a prediction is its largest probability; bin m of M holds the
    confidences in ((m - 1) / M, m / M].

    Args:
        log_probs: normalised; of equally probable classes the first is predicted.
        labels: the right classes, integers in [0, C).
        bins: M, an integer of 1 or more.

    Raises:
        ValueError: N is 0, or the shapes do not fit; a label is not an integer, or
            outside [0, C); `bins` is not an integer, or below 1. Traced labels are not
            checked.
    """
    labels = _checked_labels(log_probs, labels)
    bins = check_count("bins", bins)
    log_probs = wide(log_probs)
    confidence = jnp.exp(log_probs.max(axis=1))
    edges = jnp.arange(1, bins, dtype=confidence.dtype) / bins
    place = jnp.searchsorted(edges, confidence, side="left")
    right = log_probs.argmax(axis=1).astype(jnp.int32) == labels
    ones = jnp.ones_like(confidence)
    counts, confidence, correct = (
        jax.ops.segment_sum(values, place, bins)
        for values in (ones, confidence, right.astype(confidence.dtype))
    )
    some = jnp.maximum(counts, 1)
    return Reliability(counts.astype(jnp.int32), confidence / some, correct / some)


def calibration_error(
    log_probs: Float[Arrays, "N C"], labels: Integer[Arrays, "N"], bins: int = 15
) -> Float[Array, ""]:
    """Returns the expected calibration error, in [0, 1] [1].

        ECE = sum_m counts_m / N |accuracy_m - confidence_m|

    Few examples per bin make it larger: it is above 0 even for a calibrated model.

    Args:
        log_probs: normalised.
        labels: the right classes, integers in [0, C).
        bins: M, an integer of 1 or more.

    Raises:
        ValueError: as `reliability`.
    """
    counts, confidence, accuracy = reliability(log_probs, labels, bins)
    gap = jnp.abs(accuracy - confidence)
    return (counts.astype(gap.dtype) * gap).sum() / len(labels)


def coverage(uncertainty: Float[Arrays, "N"], correct: Bool[Arrays, "N"]) -> Coverage:
    """Returns the accuracy of the most certain predictions, at every coverage [2].

    It is 1 minus the selective risk, of the risk-coverage curve. Equally uncertain
    predictions are kept in random order, and the accuracy is the mean over all orders,
    so it does not depend on the order of the examples.

    Args:
        uncertainty: larger is less certain, for example an entropy.
        correct: whether each prediction is right.

    Raises:
        ValueError: N is 0, or the shapes differ; `correct` is not boolean.
    """
    if uncertainty.ndim != 1 or not uncertainty.size:
        raise ValueError(
            "`uncertainty` must have the shape [N], N of 1 or more, got "
            f"{uncertainty.shape}."
        )
    if correct.shape != uncertainty.shape or correct.dtype != bool:
        raise ValueError(
            f"`correct` must be booleans of the shape of `uncertainty`, "
            f"{uncertainty.shape}, got {correct.dtype}{list(correct.shape)}."
        )
    values = wide(uncertainty)
    order = jnp.argsort(values)
    values, right = values[order], jnp.asarray(correct)[order].astype(values.dtype)
    tie = jnp.cumsum(jnp.append(False, values[1:] != values[:-1]))
    sums = (jax.ops.segment_sum(v, tie, len(v)) for v in (right, jnp.ones_like(right)))
    total, size = (each[tie] for each in sums)
    kept = jnp.arange(1, len(values) + 1, dtype=values.dtype)
    return Coverage(kept / len(values), jnp.cumsum(total / size) / kept)


def area_under_risk_coverage(
    uncertainty: Float[Arrays, "N"], correct: Bool[Arrays, "N"]
) -> Float[Array, ""]:
    """Returns the mean over all coverages of the share of wrong predictions [4].

    It is 0 if all predictions are right, and lower if wrong ones are the uncertain
    ones. Arguments and errors are those of `coverage`.
    """
    return 1 - coverage(uncertainty, correct).accuracy.mean()


def brier_score(
    log_probs: Float[Arrays, "N C"], labels: Integer[Arrays, "N"]
) -> Float[Array, ""]:
    """Returns mean_n sum_c (p_nc - [c = label_n])^2, in [0, 2].

    Args:
        log_probs: normalised.
        labels: the right classes, integers in [0, C).

    Raises:
        ValueError: as `reliability`.
    """
    labels = _checked_labels(log_probs, labels)
    probs = jnp.exp(wide(log_probs))
    right = jax.nn.one_hot(labels, probs.shape[1], dtype=probs.dtype)
    return ((probs - right) ** 2).sum(axis=1).mean()


def adaptive_calibration_error(
    log_probs: Float[Arrays, "N C"], labels: Integer[Arrays, "N"], bins: int = 15
) -> Float[Array, ""]:
    """Returns the adaptive calibration error, in [0, 1] [3].

    Of each class, the N probabilities are sorted into bins of equal counts (counts
    differ by at most one); the error is the mean over classes and bins of |share of
    examples of the class - mean probability|.

    Args:
        log_probs: normalised.
        labels: the right classes, integers in [0, C).
        bins: an integer of 1 to N.

    Raises:
        ValueError: as `reliability`; or there are more bins than examples.
    """
    labels = _checked_labels(log_probs, labels)
    bins, count = check_count("bins", bins), len(labels)
    if bins > count:
        raise ValueError(f"`bins` must be at most N = {count}, got {bins}.")
    probs = jnp.exp(wide(log_probs))
    right = jax.nn.one_hot(labels, probs.shape[1], dtype=probs.dtype)
    order = jnp.argsort(probs, axis=0)
    gaps = jnp.take_along_axis(right - probs, order, axis=0)
    place = jnp.arange(count, dtype=jnp.int32) * bins // count
    sizes = jax.ops.segment_sum(jnp.ones(count, probs.dtype), place, bins)
    sums = jax.ops.segment_sum(gaps, place, bins)
    return jnp.abs(sums / sizes[:, None]).mean()


def conformal_quantile(scores: Float[Arrays, "N"], coverage: Any) -> Float[Array, ""]:
    """Returns the threshold of split conformal prediction [5].

    It is the ceil((N + 1) coverage)-th smallest score of held-out examples. A further
    example that is exchangeable with them has a score of at most the threshold with a
    probability of at least `coverage`, whatever the model.

    The scores of numbers may be |y - mean| / deviation: the intervals are then mean
    +- threshold * deviation. Those of classes may be 1 - p_label, see `conformal_sets`.

    Args:
        scores: larger is worse, of examples that the model was not trained on.
        coverage: in (0, 1).

    Returns:
        The threshold; infinite if there are too few examples for the coverage.

    Raises:
        ValueError: N is 0; `coverage` is not a number in (0, 1).
    """
    check_number("coverage", coverage, "in (0, 1)", lambda number: 0 < number < 1)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(
            f"`scores` must have the shape [N], N of 1 or more, got {scores.shape}."
        )
    values = wide(scores)
    place = math.ceil(round((len(values) + 1) * coverage, 9))
    if place > len(values):
        return jnp.asarray(jnp.inf, values.dtype)
    return jnp.sort(values)[place - 1]


def conformal_sets(
    log_probs: Float[Arrays, "*N C"], threshold: Any
) -> Bool[Array, "*N C"]:
    """Returns the classes whose score 1 - p_c is at most a threshold [5].

    Args:
        log_probs: normalised.
        threshold: the `conformal_quantile` of the scores 1 - p_label.
    """
    probs = jnp.exp(wide(log_probs))
    return 1 - probs <= jnp.asarray(threshold, probs.dtype)


def fit_temperature(
    log_probs: Float[Arrays, "N C"], labels: Integer[Arrays, "N"]
) -> Float[Array, ""]:
    """Returns the temperature T that minimises the negative log-likelihood [1].

        NLL(T) = -1/N sum_n log softmax(z_n / T)[label_n]

    It is convex in 1 / T, with the derivative mean_n(E[z] - z[label]), E over the
    tempered distribution. Bisection finds the root to a relative 1e-9 in float64, and
    to the rounding of the derivative, about 1e-5, in float32. Fit it on held-out data.

    Args:
        log_probs: z, log-probabilities or logits; -inf is allowed.
        labels: the right classes, integers in [0, C).

    Returns:
        T, or the nearest end of [1e-3, 1e3] if the minimum lies outside; the lower end
        if all predictions are right, the upper one if they are not better than chance,
        or if a right class has probability 0. It is constant under differentiation.

    Raises:
        ValueError: N is 0, or the shapes do not fit; a label is not an integer, or
            outside [0, C). Traced labels are not checked.
    """
    labels = _checked_labels(log_probs, labels)
    z = wide(log_probs)
    finite = jnp.where(jnp.isneginf(z), 0, z)
    right = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        expected = (jax.nn.softmax(z / jnp.exp(middle)) * finite).sum(axis=1)
        too_hot = (expected - right).mean() <= 0
        return jnp.where(too_hot, low, middle), jnp.where(too_hot, middle, high)

    ends = [jnp.asarray(math.log(end), z.dtype) for end in (COLDEST, HOTTEST)]
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, tuple(ends))
    return jnp.exp((low + high) / 2)


def temper(log_probs: Float[Arrays, "*N C"], temperature: Any) -> Float[Array, "*N C"]:
    """Returns log softmax(log_probs / temperature) [1].

    A temperature above 1 makes predictions less confident.

    Args:
        log_probs: log-probabilities or logits.
        temperature: above 0; a number or a traced scalar.

    Raises:
        ValueError: `temperature` is not a single number, or not above 0. Traced values
            are not checked.
    """
    check_number("temperature", temperature, "above 0", lambda number: number > 0)
    log_probs = wide(log_probs)
    return jax.nn.log_softmax(log_probs / jnp.asarray(temperature, log_probs.dtype))


def _checked_labels(log_probs, labels) -> Int[Array, "N"]:
    """The labels in int32; raises as `reliability`."""
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1] or not len(labels):
        raise ValueError(
            "`log_probs` must have the shape [N, C] and `labels` [N], N of 1 or more, "
            f"got {log_probs.shape} and {labels.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"`labels` must be integers, got {labels.dtype}.")
    if not isinstance(labels, jax.core.Tracer):
        values, classes = np.asarray(labels), log_probs.shape[1]
        if wrong := values[(values < 0) | (values >= classes)].tolist():
            raise ValueError(
                f"`labels` must lie in [0, C) = [0, {classes}), got {wrong[0]}."
            )
    return jnp.asarray(labels).astype(jnp.int32)
