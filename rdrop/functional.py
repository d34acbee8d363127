"""Dropout outside a cell: rows of an embedding, and units held over time.

References:
    [1] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
    [2] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182; embed_regularize.py and locked_dropout.py of their code.
"""

import math
from typing import Any

from jaxtyping import Array, Float, Key

from rdrop.noise import Bernoulli

__all__ = ["embedding_dropout", "locked_dropout"]


def embedding_dropout(
    key: Key[Array, ""], rate: Any, table: Float[Array, "V E"]
) -> Float[Array, "V E"]:
    """Drops whole rows of an embedding, one draw per word type [1, 2].

    Every occurrence of a dropped word is zero, in all sequences that use the returned
    table. The other rows are scaled by 1 / (1 - rate). Do not call it in evaluation.

    Args:
        key: a typed key; use a fresh one for each forward pass.
        rate: in [0, 1]; a number or a traced scalar.
        table: one row per word type.

    Raises:
        ValueError: `rate` is outside [0, 1], or not a scalar.
    """
    return table * _mask(key, rate, (len(table), 1, 1))[:, 0].astype(table.dtype)


def locked_dropout(
    key: Key[Array, ""], rate: Any, xs: Float[Array, "..."], time_axis: int = 1
) -> Float[Array, "..."]:
    """Drops units of sequences with one mask for all time steps [1, 2].

    Each example has its own mask. Units that stay are scaled by 1 / (1 - rate). Do not
    call it in evaluation.

    Args:
        key: a typed key; use a fresh one for each sequence.
        rate: in [0, 1]; a number or a traced scalar.
        xs: sequences of any rank, units last.
        time_axis: the axis over which the mask is held.

    Raises:
        ValueError: `rate` is outside [0, 1], or not a scalar; `xs` does not have the
            axis `time_axis`.
    """
    if not -xs.ndim <= time_axis < xs.ndim:
        raise ValueError(
            f"`time_axis` must be an axis of `xs`, in [{-xs.ndim}, {xs.ndim - 1}] for "
            f"shape {xs.shape}, got {time_axis}."
        )
    shape = list(xs.shape)
    shape[time_axis] = 1
    flat = _mask(key, rate, (1, 1, math.prod(shape)))
    return xs * flat.reshape(shape).astype(xs.dtype)


def _mask(key, rate, shape):
    return Bernoulli(rate).draw(key, shape)
