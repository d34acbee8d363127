"""Consistency: what it costs that two passes over the same batch differ.

The passes differ in their masks: each has keys of its own, or the second has none and
is the expectation over the noise. What is compared are the outputs before a softmax;
gradients flow into both passes.

Symbols:
    z, z' [..., C]: the outputs of the two passes; p, p' = softmax(z), softmax(z').
    w [...]: weights of examples or steps, 0 at padding.

References:
    [1] Zolna, Arpit, Suhubdy, Bengio. Fraternal dropout. ICLR 2018. arXiv:1711.00066;
        checked with main.py of their code, the equations of the paper unchecked.
    [2] Ma et al. Dropout with expectation-linear regularization. ICLR 2017.
        arXiv:1609.08017; unchecked but for the option ELD of the code of [1].
    [3] Laine, Aila. Temporal ensembling for semi-supervised learning. ICLR 2017.
        arXiv:1610.02242; unchecked but for the option PM of the code of [1].
    [4] Liang et al. R-Drop: regularized dropout for neural networks. NeurIPS 2021.
        arXiv:2106.14448; checked with the README and the losses of their code, the
        equations of the paper unchecked.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

Outputs = Float[Array, "*N C"]
Weights = Float[Array, "..."] | Integer[Array, "..."] | Bool[Array, "..."]


def fraternal(
    first: Outputs, second: Outputs, weights: Weights | None = None
) -> Float[Array, ""]:
    """Returns the mean squared difference of the outputs of two passes [1].

        sum_n w_n mean_c (z_nc - z'_nc)^2 / sum_n w_n

    Three methods have this penalty, times a weight k. They differ in the passes:

        fraternal dropout [1]   both with keys; the label loss is the mean of both
                                passes'; k = 0.15 in their code
        the Pi-model [3]        both with keys; the label loss is that of the first;
                                0.15 there
        expectation-linear [2]  the second without keys; the label loss is that of the
                                first; 0.25 there

    Args:
        first: outputs before the softmax.
        second: the same of the other pass.
        weights: 0 or more, one an example or step, [...]; booleans are 0 and 1. By
            default all are the same.

    Returns:
        A number in the dtype of the outputs, or float32 if that is narrower; 0 where
        nothing has a weight.

    Raises:
        ValueError: the outputs, or the weights, have another shape.
    """
    first, second = _wide(first, second)
    return _mean(((first - second) ** 2).mean(axis=-1), weights)


def r_drop(
    first: Outputs, second: Outputs, weights: Weights | None = None
) -> Float[Array, ""]:
    """Returns the mean of both Kullback-Leibler divergences of two passes [4].

        sum_n w_n (KL(p_n || p'_n) + KL(p'_n || p_n)) / 2 / sum_n w_n
        KL(p || p') + KL(p' || p) = sum_c (p_c - p'_c) (log p_c - log p'_c)

    No term of the second line is negative. The README of [4] adds alpha times this to
    the mean of the label losses of both passes. Their code for translation and for
    language models adds it to the sum of both, so that an alpha there is twice the one
    here; that for images adds the two divergences without the half, to the sum as well.
    There, and in the code for BERT, divergences are summed over the batch while label
    losses are averaged.

    Args:
        first: logits of the classes, finite.
        second: the same of the other pass.
        weights: as in `fraternal`.

    Returns:
        A number in the dtype of the logits, or float32 if that is narrower; 0 where
        nothing has a weight.

    Raises:
        ValueError: the logits, or the weights, have another shape.
    """
    log_p, log_q = (jax.nn.log_softmax(z) for z in _wide(first, second))
    both = ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(axis=-1)
    return _mean(both / 2, weights)


def _wide(first, second):
    """The outputs in at least float32."""
    if first.shape != second.shape:
        raise ValueError(
            "`second` must have the shape of `first`, "
            f"{first.shape}, got {second.shape}."
        )
    dtype = np.result_type(first.dtype, second.dtype, np.float32)
    return first.astype(dtype), second.astype(dtype)


def _mean(values, weights):
    if weights is None:
        return values.mean()
    if weights.shape != values.shape:
        raise ValueError(
            f"`weights` must have the leading axes of the outputs, {values.shape}, "
            f"got {weights.shape}."
        )
    weights = weights.astype(values.dtype)
    total = weights.sum()
    return (values * weights).sum() / jnp.where(total > 0, total, 1)
