"""Penalties: terms that are added to a loss.

Two punish large or fast activations (AR, TAR), one is the price of a learned rate, and
two compare the outputs of two passes over one batch. The passes differ in their masks:
each has keys of its own, or the second has none and is the expectation over the noise.
Gradients flow into both passes.

Symbols:
    z, z' [..., C]: the outputs of two passes, before a softmax; p, p' = softmax(z),
    softmax(z').
    w [...]: weights of examples or steps, 0 at padding.

References:
    [1] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182.
    [2] Gal, Hron, Kendall. Concrete dropout. NeurIPS 2017. arXiv:1705.07832; checked
        with concrete-dropout-keras.ipynb of their code, equation 3 with quotations.
    [3] Zolna, Arpit, Suhubdy, Bengio. Fraternal dropout. ICLR 2018. arXiv:1711.00066;
        checked with main.py of their code, the equations of the paper unchecked.
    [4] Ma et al. Dropout with expectation-linear regularization. ICLR 2017.
        arXiv:1609.08017; unchecked except for the option ELD of the code of [3].
    [5] Laine, Aila. Temporal ensembling for semi-supervised learning. ICLR 2017.
        arXiv:1610.02242; unchecked except for the option PM of the code of [3].
    [6] Liang et al. R-Drop: regularized dropout for neural networks. NeurIPS 2021.
        arXiv:2106.14448; checked with the README and the losses of their code, the
        equations of the paper unchecked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from rdrop.arguments import check_number
from rdrop.lengths import valid_steps
from rdrop.noise import Concrete

__all__ = [
    "activation_regulariser",
    "concrete_regulariser",
    "fraternal",
    "r_drop",
    "temporal_activation_regulariser",
]

Outputs = Float[Array, "*N C"]
Weights = Float[Array, "..."] | Integer[Array, "..."] | Bool[Array, "..."]

# A regularised rate is kept this far from 0 and 1, as in the masks of [2].
EDGE = 1e-7


def activation_regulariser(
    ys: Float[Array, "..."], lengths: Any = None, *, time_major: bool = False
) -> Float[Array, ""]:
    """Returns the mean square of outputs: AR of AWD-LSTM [1].

    The authors take the last layer's outputs, after their dropout, times 2.

    Args:
        ys: outputs of a layer, [B, T, H], or [T, B, H] if `time_major`.
        lengths: valid steps of each sequence, integers [B] in [0, T]; by default T.
        time_major: whether the time axis comes first.

    Returns:
        A number in the dtype of the outputs, or float32 if that is narrower; 0 if no
        step is valid.

    Raises:
        ValueError: `ys` does not have three axes; `lengths` has another shape or type,
            or lies outside [0, T]. Traced lengths are not checked.
    """
    return _mean_square(ys, _valid(ys, lengths, time_major), time_major)


def temporal_activation_regulariser(
    ys: Float[Array, "..."], lengths: Any = None, *, time_major: bool = False
) -> Float[Array, ""]:
    """Returns the mean square of y_t - y_{t-1}: TAR of AWD-LSTM [1].

    The authors take the last layer's outputs, before their dropout, times 1.

    Args:
        ys: outputs of a layer, [B, T, H], or [T, B, H] if `time_major`.
        lengths: as in `activation_regulariser`.
        time_major: whether the time axis comes first.

    Returns:
        A number in the dtype of the outputs, or float32 if that is narrower; 0 if no
        sequence has two valid steps.

    Raises:
        ValueError: as in `activation_regulariser`.
    """
    valid = _valid(ys, lengths, time_major)
    later = None if valid is None else valid[1:]
    return _mean_square(jnp.diff(ys, axis=0 if time_major else 1), later, time_major)


def concrete_regulariser(
    rate: Any, kernel: Float[Array, "K N"], *, weight: Any, dropout: Any
) -> Float[Array, ""]:
    """Returns the price of a learned rate p, for the kernel that it masks [2].

        weight * sum(kernel^2) / (1 - p) + dropout * K * (p log p + (1 - p) log(1 - p))

    For a loss that is the mean over N examples of the negative log-likelihood, and a
    prior of lengthscale l, `weight` is l^2 / (2 N) and `dropout` 1 / N; for a mean
    squared error of precision t, l^2 / (t N) and 2 / (t N). This is the Keras code of
    [2]; its PyTorch code also takes the squares of biases. [2, equation 3] multiplies
    by 1 - p instead, because its masks are 0 or 1 and its kernel is this one divided by
    1 - p.

    The derivation holds for masks that last a sequence and are shared by all gates.
    With gates="each", add up the terms of each gate's columns of the kernel.

    Args:
        rate: in [0, 1]: a number, a tracer, or one rate per input unit, [K]. Value and
            gradient are taken at the nearest rate in [1e-7, 1 - 1e-7].
        kernel: its rows are the K input units that are dropped.
        weight: 0 or more.
        dropout: 0 or more.

    Returns:
        A number in the kernel's dtype, or float32 if that is narrower.

    Raises:
        ValueError: `rate` is outside [0, 1], or has another shape; `weight` or
            `dropout` is below 0. Traced values are not checked.
    """
    Concrete(rate)  # raises if the rate is outside [0, 1]
    inputs = len(kernel)
    if jnp.size(rate) not in (1, inputs):
        raise ValueError(
            f"`rate` must be one number, or one per input unit of shape [{inputs}], "
            f"got shape {jnp.shape(rate)}."
        )
    check_number("weight", weight, "0 or more", lambda number: number >= 0)
    check_number("dropout", dropout, "0 or more", lambda number: number >= 0)
    (kernel,) = _wide(kernel)
    weight, dropout, p = (jnp.asarray(v, kernel.dtype) for v in (weight, dropout, rate))
    p = jnp.broadcast_to(p.reshape(-1), (inputs,))
    p = p + jax.lax.stop_gradient(jnp.clip(p, EDGE, 1 - EDGE) - p)
    squares = (kernel**2).sum(axis=1)
    negative_entropy = p * jnp.log(p) + (1 - p) * jnp.log1p(-p)
    return (weight * squares / (1 - p) + dropout * negative_entropy).sum()


def fraternal(
    first: Outputs, second: Outputs, weights: Weights | None = None
) -> Float[Array, ""]:
    """Returns the mean squared difference of the outputs of two passes [3].

        sum_n w_n mean_c (z_nc - z'_nc)^2 / sum_n w_n

    Three methods have this penalty, times a weight k. They differ in the passes:

        fraternal dropout [3]   both with keys; the label loss is the mean over both
                                passes; k = 0.15 in their code
        the Pi-model [5]        both with keys; the label loss is of the first; k = 0.15
                                in the code of [3]
        expectation-linear [4]  the second without keys; the label loss is of the first;
                                k = 0.25 in the code of [3]

    Args:
        first: outputs before the softmax, [..., C].
        second: outputs of the second pass, of the same shape.
        weights: 0 or more, one per example or step, [...]; booleans are 0 and 1. By
            default all are equal.

    Returns:
        A number in the dtype of the outputs, or float32 if that is narrower; 0 if all
        weights are 0.

    Raises:
        ValueError: `second` or `weights` has another shape.
    """
    _check_pair(first, second)
    first, second = _wide(first, second)
    return _weighted_mean(((first - second) ** 2).mean(axis=-1), weights)


def r_drop(
    first: Outputs, second: Outputs, weights: Weights | None = None
) -> Float[Array, ""]:
    """Returns the mean of both Kullback-Leibler divergences of two passes [6].

        sum_n w_n (KL(p_n || p'_n) + KL(p'_n || p_n)) / 2 / sum_n w_n
        KL(p || p') + KL(p' || p) = sum_c (p_c - p'_c) (log p_c - log p'_c)

    No term of the second line is negative. The README of [6] adds alpha times this to
    the mean label loss over both passes. Their code for translation and for language
    models adds it to the sum of both label losses, so an alpha there is twice the one
    here. Their code for images also adds it to the sum, and leaves out the half. There,
    and in the code for BERT, divergences are summed over the batch while label losses
    are averaged.

    Args:
        first: logits of the classes, [..., C], finite.
        second: logits of the second pass, of the same shape.
        weights: as in `fraternal`.

    Returns:
        A number in the dtype of the logits, or float32 if that is narrower; 0 if all
        weights are 0.

    Raises:
        ValueError: `second` or `weights` has another shape.
    """
    _check_pair(first, second)
    log_p, log_q = (jax.nn.log_softmax(z) for z in _wide(first, second))
    both = ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(axis=-1)
    return _weighted_mean(both / 2, weights)


def _wide(*arrays):
    """The arrays in one dtype, float32 or wider."""
    dtype = np.result_type(np.float32, *(array.dtype for array in arrays))
    return [array.astype(dtype) for array in arrays]


def _valid(ys, lengths, time_major) -> Bool[Array, "T B"] | None:
    if ys.ndim != 3:
        axes = "[T, B, H]" if time_major else "[B, T, H]"
        raise ValueError(f"`ys` must have the axes {axes}, got shape {ys.shape}.")
    if lengths is None:
        return None
    batch, time = ys.shape[1::-1] if time_major else ys.shape[:2]
    return valid_steps(lengths, time, batch)


def _mean_square(values, valid, time_major):
    """The mean over units and valid steps [T, B]; over all steps if that is None."""
    (values,) = _wide(values)
    squares = jnp.square(values)
    if valid is None:
        return squares.sum() / max(1, squares.size)
    valid = valid if time_major else valid.T
    count = jnp.maximum(1, valid.sum()) * values.shape[-1]
    return jnp.where(valid[..., None], squares, 0).sum() / count.astype(values.dtype)


def _check_pair(first, second):
    if first.shape != second.shape:
        raise ValueError(
            f"`second` must have the shape of `first`, {first.shape}, got "
            f"{second.shape}."
        )


def _weighted_mean(values, weights):
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
