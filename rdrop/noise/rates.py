"""Rates: numbers, arrays, tracers and schedules, and the checks of their range.

A value that can be read now (a number of Python or NumPy, an array on a device) is
checked when a user writes it down. A traced value cannot be read. If it is out of range
it becomes NaN, so that masks and loss show the mistake.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# A number, an array, a tracer or a schedule.
Rate: TypeAlias = Any
Shape: TypeAlias = tuple[int, int, int]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ScheduledRate:
    """A rate that is a function of the training step, awaiting `Dropout.at(step)`.

    A function cannot be traced, so this is a pytree without leaves: it passes through
    `jax.jit` as static data.
    """

    function: Callable[..., Array]


def known(value: Any) -> np.ndarray | None:
    """Returns the values of a number or an array, or None if they cannot be read now.

    Tracers and arrays of other hosts cannot be read.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array):
        return np.asarray(jax.device_get(value)) if _is_here(value) else None
    if isinstance(value, (int, float, np.ndarray, np.generic)):
        return np.asarray(value)
    return None


def check_numeric(name: str, value: Any) -> None:
    """Raises a TypeError if `value` is text, a list or a tuple."""
    if isinstance(value, (str, list, tuple)):
        raise TypeError(
            f"`{name}` must be a number, an array or a schedule, got {value!r}."
        )


def check_probability(name: str, value: Any) -> None:
    """Raises if `value` is text or a list, or is known and lies outside [0, 1].

    Args:
        name: name of the argument, for the error.
        value: a number, an array, a tracer or a schedule.

    Raises:
        TypeError: `value` is text, a list or a tuple.
        ValueError: a known value is NaN or lies outside [0, 1].
    """
    check_numeric(name, value)
    values = known(value)
    if values is not None and not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")


def check_positive(name: str, value: Any) -> None:
    """Raises if `value` is text or a list, or is known and is not above 0.

    Args:
        name: name of the argument, for the error.
        value: a number, an array, a tracer or a schedule.

    Raises:
        TypeError: `value` is text, a list or a tuple.
        ValueError: a known value is NaN, 0 or negative.
    """
    check_numeric(name, value)
    values = known(value)
    if values is not None and not np.all(values > 0):
        raise ValueError(f"`{name}` must be above 0, got {value}.")


def as_float32(name: str, value: Any) -> Float[Array, "#B #G #U"]:
    """Returns a rate as float32 with the three axes of a mask.

    Raises:
        ValueError: `value` is a schedule.
    """
    if isinstance(value, ScheduledRate):
        raise ValueError(
            f"`{name}` is a schedule; resolve it with `dropout.at(step)` first."
        )
    value = jnp.asarray(value, jnp.float32)
    return value.reshape((1,) * (3 - value.ndim) + value.shape)


def as_probability(name: str, value: Any) -> Float[Array, "#B #G #U"]:
    """Returns a rate as `as_float32` does, NaN if it lies outside [0, 1]."""
    rate = as_float32(name, value)
    return jnp.where((rate >= 0) & (rate <= 1), rate, jnp.nan)


def one_or_nan(rate: Float[Array, "#B #G #U"]) -> Float[Array, "#B #G #U"]:
    """Returns 1, or NaN if `rate` is NaN."""
    return jnp.where(jnp.isnan(rate), rate, 1)


def _is_here(array: jax.Array) -> bool:
    return array.is_fully_addressable or array.is_fully_replicated
