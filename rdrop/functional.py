"""Functional: dropout around a recurrence, outside any cell, and what a rate costs.

References:
    [1] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
    [2] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182; embed_regularize.py and locked_dropout.py of their code.
    [3] Gal, Hron, Kendall. Concrete dropout. NeurIPS 2017. arXiv:1705.07832; checked
        with concrete-dropout-keras.ipynb of their code, equation 3 with quotations.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rdrop.noise import Bernoulli, Concrete, check

# The nearest that a regularised rate comes to 0 and 1; as in the masks of [3].
EDGE = 1e-7


def embedding_dropout(
    key: Key[Array, ""], rate: Any, table: Float[Array, "V E"]
) -> Float[Array, "V E"]:
    """Drops whole rows of an embedding, one draw a word type [1, 2].

    Every occurrence of a dropped word, in all sequences that use the returned table, is
    zero; the other rows are scaled by 1 / (1 - rate). Do not call it in evaluation.

    Args:
        key: a typed key; use a fresh one for each forward pass.
        rate: in [0, 1]; a number or a traced scalar.
        table: one row a word type.

    Raises:
        ValueError: `rate` is outside [0, 1], or not a scalar.
    """
    return table * _mask(key, rate, (len(table), 1, 1))[:, 0].astype(table.dtype)


def locked_dropout(
    key: Key[Array, ""], rate: Any, xs: Float[Array, "..."], time_axis: int = 1
) -> Float[Array, "..."]:
    """Drops units of sequences with one mask for all time steps [1, 2].

    Each example has its own mask; units that stay are scaled by 1 / (1 - rate). Do not
    call it in evaluation.

    Args:
        key: a typed key; use a fresh one for each sequence.
        rate: in [0, 1]; a number or a traced scalar.
        xs: sequences of any rank, units last.
        time_axis: the axis over which the mask is held.

    Raises:
        ValueError: `rate` is outside [0, 1], or not a scalar; `time_axis` is no axis.
    """
    if not -xs.ndim <= time_axis < xs.ndim:
        raise ValueError(
            f"`time_axis` must be an axis of `xs`, of shape {xs.shape}, "
            f"got {time_axis}."
        )
    shape = list(xs.shape)
    shape[time_axis] = 1
    flat = _mask(key, rate, (1, 1, math.prod(shape)))
    return xs * flat.reshape(shape).astype(xs.dtype)


def activation_regulariser(
    ys: Float[Array, "B T H"], lengths: Any = None
) -> Float[Array, ""]:
    """Returns the mean square of outputs: AR of AWD-LSTM, to be added to the loss [2].

    The authors take the last layer's outputs, after their dropout, times 2.

    Args:
        ys: outputs of a layer.
        lengths: int[B], valid steps of each sequence; by default all T.
    """
    return _mean_square(ys, lengths)


def temporal_activation_regulariser(
    ys: Float[Array, "B T H"], lengths: Any = None
) -> Float[Array, ""]:
    """Returns the mean square of y_t - y_{t-1}: TAR of AWD-LSTM [2].

    The authors take the last layer's outputs, before their dropout, times 1. Without
    two valid steps anywhere it is 0.

    Args:
        ys: outputs of a layer.
        lengths: int[B], valid steps of each sequence; by default all T.
    """
    lengths = None if lengths is None else jnp.maximum(jnp.asarray(lengths) - 1, 0)
    return _mean_square(ys[:, 1:] - ys[:, :-1], lengths)


def concrete_regulariser(
    rate: Any, kernel: Float[Array, "K N"], *, weight: Any, dropout: Any
) -> Float[Array, ""]:
    """Returns what a learned rate p adds to the loss, for the kernel that it masks [3].

        weight * sum(kernel^2) / (1 - p) + dropout * K * (p log p + (1 - p) log(1 - p))

    For a loss that is the mean over N examples of the negative log-likelihood, and a
    prior of lengthscale l, `weight` is l^2 / (2 N) and `dropout` 1 / N; for a mean
    squared error of precision t, l^2 / (t N) and 2 / (t N). This is the Keras code of
    [3]; its PyTorch code takes the squares of biases as well. [3, equation 3]
    multiplies by 1 - p instead, as the masks there are 0 or 1 and the kernel is this
    one divided by 1 - p.

    The derivation is of masks held over the sequence, and one for all gates. With
    gates="each", add up the terms of each gate's columns of the kernel.

    Args:
        rate: in [0, 1]: a number, a tracer, or one rate an input unit [K]. Value and
            gradient are those at the nearest rate in [1e-7, 1 - 1e-7].
        kernel: its rows are the K input units that are dropped.
        weight: 0 or more.
        dropout: 0 or more.

    Returns:
        A number in the kernel's dtype, or float32 if that is narrower.

    Raises:
        ValueError: `rate` is outside [0, 1], or has another shape; `weight` or
            `dropout` is below 0. Traced values are not checked.
    """
    check(Concrete(rate), (1, 1, len(kernel)))
    for name, value in (("weight", weight), ("dropout", dropout)):
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"`{name}` must be 0 or more, got {value}.")
    dtype = np.promote_types(kernel.dtype, np.float32)
    weight, dropout, p = (jnp.asarray(v, dtype) for v in (weight, dropout, rate))
    p = jnp.broadcast_to(p.reshape(-1), (len(kernel),))
    p = p + jax.lax.stop_gradient(jnp.clip(p, EDGE, 1 - EDGE) - p)
    squares = (kernel.astype(dtype) ** 2).sum(axis=1)
    negative_entropy = p * jnp.log(p) + (1 - p) * jnp.log1p(-p)
    return (weight * squares / (1 - p) + dropout * negative_entropy).sum()


def _mask(key, rate, shape):
    return Bernoulli(rate).draw(key, shape)


def _mean_square(values, lengths):
    """The mean over units and valid steps, in float32 or wider."""
    squares = jnp.square(values.astype(np.promote_types(values.dtype, np.float32)))
    _, time, units = values.shape
    if lengths is None:
        return squares.sum() / max(1, squares.size)
    lengths = jnp.asarray(lengths)
    valid = jnp.arange(time, dtype=lengths.dtype)[None] < lengths[:, None]
    count = (jnp.maximum(1, lengths.sum()) * units).astype(squares.dtype)
    return jnp.where(valid[..., None], squares, 0).sum() / count
