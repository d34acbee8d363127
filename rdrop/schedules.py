"""Schedules: rates as functions of the training step.

Any function of the step may be used as a rate, for example a schedule of optax; these
are the ones of the literature on dropout. `Dropout.at(step)` evaluates them. Rates,
steps and constants may be traced, so `vmap` over them works; a traced value is not
checked. Steps are training steps; for epochs, multiply:

    linear(0.5, steps=20 * steps_per_epoch)

References:
    [1] Rennie, Goel, Thomas. Annealed dropout training of deep networks. SLT 2014. (The
        abstract says from a high initial rate to zero; its formula is unchecked.)
    [2] Morerio et al. Curriculum dropout. ICCV 2017. arXiv:1703.06229; their code.
    [3] Liu et al. Dropout reduces underfitting. ICML 2023. arXiv:2303.01500; their
        code.
    [4] Kaldi, egs/wsj/s5/steps/libs/nnet3/train/dropout_schedule.py; used by Cheng et
        al. An exploration of dropout with LSTMs. Interspeech 2017.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rdrop.noise.rates import Rate, check_positive, check_probability, known

__all__ = ["Schedule", "curriculum", "early", "kaldi", "late", "linear"]

Schedule: TypeAlias = Callable[..., Float[Array, "..."]]


def linear(rate: Rate, steps: Any) -> Schedule:
    """Falls linearly from `rate` to 0 at step `steps`, then stays 0 [1, 3].

    Args:
        rate: at step 0, in [0, 1].
        steps: at least 1.

    Raises:
        ValueError: a known argument is out of its range.
    """
    check_probability("rate", rate)
    _check_steps(steps)
    return lambda step: (
        _float(rate) * jnp.maximum(0.0, 1 - _float(step) / _float(steps))
    )


def curriculum(rate: Rate, gamma: Any) -> Schedule:
    """Rises from 0 towards `rate`, as rate * (1 - exp(-gamma * step)) [2].

    Args:
        rate: the limit, in [0, 1].
        gamma: above 0; 0.001 in the code of [2].

    Raises:
        ValueError: a known argument is out of its range.
    """
    check_probability("rate", rate)
    check_positive("gamma", gamma)
    return lambda step: _float(rate) * (1 - jnp.exp(-_float(gamma) * _float(step)))


def early(rate: Rate, steps: Any) -> Schedule:
    """Is `rate` for the first `steps` steps, then 0 [3].

    Args:
        rate: in [0, 1].
        steps: at least 1.

    Raises:
        ValueError: a known argument is out of its range.
    """
    check_probability("rate", rate)
    _check_steps(steps)
    return lambda step: jnp.where(_float(step) < _float(steps), _float(rate), 0.0)


def late(rate: Rate, steps: Any) -> Schedule:
    """Is 0 for the first `steps` steps, then `rate` [3].

    Args:
        rate: in [0, 1].
        steps: at least 1.

    Raises:
        ValueError: a known argument is out of its range.
    """
    check_probability("rate", rate)
    _check_steps(steps)
    return lambda step: jnp.where(_float(step) < _float(steps), 0.0, _float(rate))


def kaldi(text: str, steps: Any) -> Schedule:
    """Reads Kaldi's grammar: piecewise linear in the fraction of training [4].

    `"0,0@0.20,0.3@0.50,0"` is 0 up to a fifth of training, rises to 0.3 at the half,
    and falls to 0 at the end. The first value is at 0, the last at 1; one between
    without "@fraction" is at 0.5. If two share a fraction, the later one holds from
    there (at 0, the first holds there). Kaldi's patterns of component names are not
    read.

    Args:
        text: at least two values in [0, 1], at fractions that do not decrease.
        steps: the whole of training, at least 1; later steps have the last value.

    Raises:
        ValueError: `text` is not of that form.
    """
    _check_steps(steps)
    fractions, values = _points(text)

    def schedule(step):
        at = jnp.clip(_float(step) / _float(steps), 0, 1)
        last = len(values) - 1
        n = jnp.searchsorted(fractions, at, side="right").astype(jnp.int32) - 1
        n = jnp.where(at > 0, jnp.clip(n, 0, last), 0)
        then = jnp.minimum(n + 1, last)
        width = fractions[then] - fractions[n]
        weight = jnp.where(width > 0, (at - fractions[n]) / width, 0)
        inside = values[n] + weight * (values[then] - values[n])
        return jnp.where(at < 1, inside, values[last])

    return schedule


def _points(text):
    """The fractions and values of a Kaldi schedule."""
    items = text.split(",")
    if len(items) < 2:
        raise ValueError(f"`text` must have at least two values, got {text!r}.")
    points = [_point(item, text) for item in items]
    if points[0][0] is not None or points[-1][0] is not None:
        raise ValueError(
            f'`text` must have no "@" at its first and last value, got {text!r}.'
        )
    middle = [0.5 if at is None else at for at, _ in points[1:-1]]
    fractions = np.array([0.0, *middle, 1.0], np.float32)
    values = np.array([value for _, value in points], np.float32)
    ordered = np.all(np.diff(fractions) >= 0)
    if not (ordered and np.all((fractions >= 0) & (fractions <= 1))):
        raise ValueError(
            f"`text` must have fractions in [0, 1] that do not decrease, got {text!r}."
        )
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"`text` must have values in [0, 1], got {text!r}.")
    return jnp.asarray(fractions), jnp.asarray(values)


def _point(item, text):
    try:
        value, *at = (float(part) for part in item.split("@"))
        (fraction,) = at or [None]
    except ValueError:
        raise ValueError(
            f'`text` must be "value,value@fraction,...,value", got {text!r}.'
        ) from None
    return fraction, value


def _float(value) -> Float[Array, "..."]:
    return jnp.asarray(value, jnp.float32)


def _check_steps(steps) -> None:
    value = known(steps)
    if value is not None and not np.all(value >= 1):
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
