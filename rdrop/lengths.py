"""Lengths of padded sequences: one check, and the mask of the valid steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

__all__ = ["valid_steps"]


def valid_steps(lengths: Any, time: int, batch: int) -> Bool[Array, "T B"]:
    """Returns the steps of each sequence that are not padding.

    The comparison is made in int32, so that narrow lengths such as uint8 hold.

    Args:
        lengths: integers in [0, T] of any width, of shape [B]; an array or a list.
        time: T, the steps of the padded sequences.
        batch: B, the number of sequences.

    Raises:
        ValueError: `lengths` has another shape or type, or lies outside [0, T]. Traced
            values are not checked.
    """
    lengths = lengths if hasattr(lengths, "dtype") else np.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"`lengths` must be integers of shape [B] = ({batch},), got "
            f"{lengths.dtype}{list(lengths.shape)}."
        )
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        if np.any((values < 0) | (values > time)):
            raise ValueError(f"`lengths` must lie in [0, T = {time}], got {values}.")
    steps = jnp.arange(time, dtype=jnp.int32)
    return steps[:, None] < jnp.asarray(lengths).astype(jnp.int32)[None]
