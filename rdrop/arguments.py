"""Checks of arguments that are a count or a number."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["check_count", "check_number"]


def check_count(name: str, value: Any) -> int:
    """Returns a count as a Python integer.

    Args:
        name: of the argument, for the error.
        value: an integer of 1 or more; also one of NumPy or JAX, unless it is traced.

    Raises:
        ValueError: `value` is not an integer, or below 1.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"`{name}` must be an integer of 1 or more, got {value!r}.")
    return count


def check_number(
    name: str, value: Any, allowed: str, holds: Callable[[float], bool]
) -> None:
    """Raises unless a number is one of those allowed.

    Args:
        name: of the argument, for the error.
        value: a number, or an array of shape []. A traced value is not checked.
        allowed: the numbers allowed, in words, for the error.
        holds: returns whether a number is allowed.

    Raises:
        ValueError: `value` has another shape, or is not allowed.
    """
    if shape := jnp.shape(value):
        raise ValueError(f"`{name}` must be a single number, got shape {shape}.")
    if not isinstance(value, jax.core.Tracer) and not holds(float(value)):
        raise ValueError(f"`{name}` must be {allowed}, got {value}.")
