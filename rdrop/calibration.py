"""Calibration: whether a model is as often right as it is confident.

It judges predictions, log-probabilities of C classes, of one pass or of many, by the
labels of N examples.

References:
    [1] Guo et al. On calibration of modern neural networks. ICML 2017.
        arXiv:1706.04599; temperature_scaling.py of their code.
    [2] El-Yaniv, Wiener. On the foundations of noise-free selective classification.
        JMLR 11, 2010. (Abstract.)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdrop.montecarlo import Arrays, wide

# The temperatures that are searched, and how often their range is halved.
COLDEST, HOTTEST, HALVINGS = 1e-3, 1e3, 50


class Reliability(NamedTuple):
    """How often predictions are right, by how confident they are.

    Attributes:
        counts: predictions in each bin.
        confidence: their mean confidence, 0 in an empty bin.
        accuracy: the share of them that is right, 0 in an empty bin.
    """

    counts: Int[Arrays, "bins"]
    confidence: Float[Arrays, "bins"]
    accuracy: Float[Arrays, "bins"]


class Coverage(NamedTuple):
    """How often predictions are right, by how many of them are kept.

    Attributes:
        share: 1/N, 2/N, ..., 1 of the predictions, the most certain ones.
        accuracy: the share of those kept that is right.
    """

    share: Float[Arrays, "N"]
    accuracy: Float[Arrays, "N"]


def reliability(
    log_probs: Float[Arrays, "N C"], labels: Int[Arrays, "N"], bins: int = 15
) -> Reliability:
    """Sorts predictions into bins of confidence, for a reliability diagram [1].

    The confidence of a prediction is its largest probability; bin m of M holds those in
    ((m - 1) / M, m / M].

    Args:
        log_probs: normalised; of equally probable classes the first is predicted.
        labels: the right classes, in [0, C).
        bins: M, at least 1.

    Raises:
        ValueError: `bins` is below 1, or the shapes do not fit.
    """
    _check_labels(log_probs, labels)
    if not bins >= 1:
        raise ValueError(f"`bins` must be 1 or more, got {bins}.")
    log_probs = wide(log_probs)
    confidence = jnp.exp(log_probs.max(axis=1))
    edges = jnp.arange(1, bins, dtype=confidence.dtype) / bins
    place = jnp.searchsorted(edges, confidence, side="left")
    right = log_probs.argmax(axis=1) == jnp.asarray(labels, int)
    ones = jnp.ones_like(confidence)
    counts, confidence, correct = (
        jax.ops.segment_sum(values, place, bins)
        for values in (ones, confidence, right.astype(confidence.dtype))
    )
    some = jnp.maximum(counts, 1)
    return Reliability(counts.astype(jnp.int32), confidence / some, correct / some)


def calibration_error(
    log_probs: Float[Arrays, "N C"], labels: Int[Arrays, "N"], bins: int = 15
) -> Float[Array, ""]:
    """Returns the expected calibration error, in [0, 1] [1].

        ECE = sum_m counts_m / N |accuracy_m - confidence_m|

    Few examples a bin make it larger: a calibrated model's is above 0.

    Args:
        log_probs: normalised.
        labels: the right classes, in [0, C).
        bins: M, at least 1.

    Raises:
        ValueError: as `reliability`.
    """
    counts, confidence, accuracy = reliability(log_probs, labels, bins)
    gap = jnp.abs(accuracy - confidence)
    return (counts.astype(gap.dtype) * gap).sum() / len(labels)


def coverage(uncertainty: Float[Arrays, "N"], correct: Bool[Arrays, "N"]) -> Coverage:
    """Returns the accuracy of the most certain predictions, at every coverage [2].

    It is 1 minus the selective risk, of the risk-coverage curve. Equally uncertain
    predictions are kept in random order, and the accuracy is the mean over orders: so
    the order of the examples does not matter.

    Args:
        uncertainty: larger is less certain, for example an entropy.
        correct: whether each prediction is right.

    Raises:
        ValueError: the shapes differ.
    """
    if uncertainty.shape != correct.shape:
        raise ValueError(
            f"`correct` must have the shape of `uncertainty`, {uncertainty.shape}, got "
            f"{correct.shape}."
        )
    values = wide(uncertainty)
    order = jnp.argsort(values)
    values, right = values[order], jnp.asarray(correct)[order].astype(values.dtype)
    tie = jnp.cumsum(jnp.append(False, values[1:] != values[:-1]))
    sums = (jax.ops.segment_sum(v, tie, len(v)) for v in (right, jnp.ones_like(right)))
    total, size = (each[tie] for each in sums)
    kept = jnp.arange(1, len(values) + 1, dtype=values.dtype)
    return Coverage(kept / len(values), jnp.cumsum(total / size) / kept)


def fit_temperature(
    log_probs: Float[Arrays, "N C"], labels: Int[Arrays, "N"]
) -> Float[Array, ""]:
    """Returns the temperature T that minimises the negative log-likelihood [1].

        NLL(T) = -1/N sum_n log softmax(z_n / T)[label_n]

    It is convex in 1 / T; its derivative mean_n(E[z] - z[label]), E over the tempered
    distribution, is followed by bisection to a relative 1e-9 in float64, and to the
    rounding of that derivative, some 1e-5, in float32. Fit it on held-out data.

    Args:
        log_probs: z, log-probabilities or logits; -inf is allowed.
        labels: the right classes, in [0, C).

    Returns:
        T, or the end of [1e-3, 1e3] that is nearest where there is no minimum between:
        the lower one if all predictions are right, the upper one if they are no better
        than chance, or a right class has probability 0. It is constant under
        differentiation.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_labels(log_probs, labels)
    z = wide(log_probs)
    finite = jnp.where(jnp.isneginf(z), 0, z)
    right = jnp.take_along_axis(z, jnp.asarray(labels)[:, None], axis=1)[:, 0]

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
    """Returns log softmax(log_probs / temperature): above 1, less confident [1].

    Args:
        log_probs: log-probabilities or logits.
        temperature: above 0; a number or a traced scalar.

    Raises:
        ValueError: `temperature` is 0 or below. Traced values are not checked.
    """
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")
    log_probs = wide(log_probs)
    return jax.nn.log_softmax(log_probs / jnp.asarray(temperature, log_probs.dtype))


def _check_labels(log_probs, labels) -> None:
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1]:
        raise ValueError(
            "`log_probs` must be [N, C] and `labels` [N], got shapes "
            f"{log_probs.shape} and {labels.shape}."
        )
