"""Finite numbers: the range of float32, in which networks are trained."""

import numpy as np
from jaxtyping import Bool

LARGEST = float(np.finfo(np.float32).max)


def first_bad(
    values: np.ndarray, inside: Bool[np.ndarray, "..."] | None = None
) -> tuple[int, ...] | None:
    """Returns the index of the first number that is not a finite float32.

    Args:
        values: numbers of any dtype.
        inside: which of them count, by their leading axes; None for all.
    """
    if values.dtype.itemsize > 4:
        bad = ~(np.abs(values) <= LARGEST)
    else:  # float16 would turn LARGEST into its infinity
        bad = ~np.isfinite(values)
    return first_true(bad, inside)


def first_true(
    found: Bool[np.ndarray, "..."], inside: Bool[np.ndarray, "..."] | None = None
) -> tuple[int, ...] | None:
    """Returns the index of the first true value, None if there is none.

    Args:
        found: the values.
        inside: which of them count, by their leading axes; None for all.
    """
    if inside is not None:
        axes = (1,) * (found.ndim - inside.ndim)
        found = found & inside.reshape(inside.shape + axes)
    places = np.argwhere(found)
    return tuple(places[0].tolist()) if len(places) else None
