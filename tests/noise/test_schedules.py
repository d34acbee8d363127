"""Schedules have the values of their formulas, under jit too, and refuse nonsense."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import traced_once

from rdrop import Bernoulli, Dropout, Gaussian, Zoneout, schedules
from rdrop.noise import Drift

STEPS = 10_000
BY_STEP = {  # schedules, and their values at training steps
    "linear": (
        schedules.linear(0.5, 8),
        {0: 0.5, 2: 0.375, 4: 0.25, 8: 0.0, 9: 0.0, 100: 0.0},
    ),
    "early": (schedules.early(0.3, 5), {0: 0.3, 4: 0.3, 5: 0.0, 100: 0.0}),
    "late": (schedules.late(0.3, 5), {0: 0.0, 4: 0.0, 5: 0.3, 100: 0.3}),
    "curriculum": (
        schedules.curriculum(0.5, 0.001),
        {0: 0.0, 1000: 0.5 * (1 - math.exp(-1)), 10**6: 0.5},
    ),
    "optax": (optax.linear_schedule(0.0, 0.8, 4), {0: 0.0, 1: 0.2, 4: 0.8, 9: 0.8}),
}
BY_FRACTION = {  # Kaldi's strings, and their values at fractions of training
    "0,0@0.20,0.3@0.50,0": {0.1: 0, 0.2: 0, 0.35: 0.15, 0.5: 0.3, 0.75: 0.15, 1: 0},
    "0.1,0.5,0.3": {0: 0.1, 0.25: 0.3, 0.5: 0.5, 0.75: 0.4, 1: 0.3},
    "0,0.1,0.2,0": {0.4999: 0.09998, 0.5: 0.2, 0.75: 0.1, 1: 0},
    "0.1,0.5@0,0.2": {0: 0.1, 0.5: 0.35, 1: 0.2},
    "0.0,0.5@0.25,0.0,0.6@0.75,0.0": {0.1: 0.2, 0.25: 0.5, 0.5: 0, 0.75: 0.6, 1: 0},
    "0.2,0.4": {0: 0.2, 0.5: 0.3, 1: 0.4},
    "0.2,0.4@1,0.6": {0.5: 0.3, 1: 0.6},
    "1,0": {0: 1, 1: 0},
}


def assert_values(named):
    """At traced steps, all schedules in one program; the first in Python too."""
    schedules, values = zip(*named, strict=True)
    steps = [jnp.asarray(list(at), jnp.int32) for at in values]

    @jax.jit
    def traced(steps):
        return [jax.vmap(f)(at) for f, at in zip(schedules, steps, strict=True)]

    for actual, expected in zip(traced(steps), values, strict=True):
        expected = np.asarray(list(expected.values()))
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
    for step, expected in values[0].items():
        np.testing.assert_allclose(schedules[0](step), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_values_at_steps():
    assert_values(BY_STEP.values())


def test_kaldi_at_fractions_of_training():
    def by_step(at):
        values = {round(fraction * STEPS): value for fraction, value in at.items()}
        return values | {STEPS + 1: at[1]}  # the last value stays after training

    assert_values(
        (schedules.kaldi(text, STEPS), by_step(at)) for text, at in BY_FRACTION.items()
    )


@pytest.mark.parametrize("name", ["linear", "optax"])
def test_a_schedule_is_a_rate_or_a_probability_of_drift(name):
    schedule, values = BY_STEP[name]
    dropout = Dropout(
        inputs=Bernoulli(schedule),
        recurrent=Gaussian(0.25),
        hidden_state=Zoneout(0.5, per=Drift(schedule)),
    )
    program = traced_once(lambda dropout, step: dropout.at(step))
    for step, expected in values.items():
        at = program(dropout, step)
        rates = [at.inputs.rate, at.recurrent.rate, *jax.tree.leaves(at.hidden_state)]
        chex.assert_trees_all_close(
            [float(rate) for rate in rates], [expected, 0.25, 0.5, expected], atol=1e-6
        )


def test_rates_steps_and_constants_may_be_traced():
    """A vmap over them gives the values of each; steps may be epochs times steps."""
    rates = jnp.asarray([0.2, 0.4], jnp.float32)
    steps = 2 * jnp.asarray([5, 10])

    def values(rate, steps):
        gamma = 1 / steps.astype(jnp.float32)
        return [
            schedules.linear(rate, steps)(12),
            schedules.curriculum(rate, gamma)(12),
            schedules.early(rate, steps)(12),
            schedules.late(rate, steps)(12),
            schedules.kaldi("0,0.4", steps)(12),
            Bernoulli(schedules.linear(rate, steps)).at(12).rate,
        ]

    expected = [
        [0, 0.4 * (1 - 12 / 20)],
        [0.2 * (1 - math.exp(-1.2)), 0.4 * (1 - math.exp(-0.6))],
        [0, 0.4],
        [0.2, 0],
        [0.4, 0.4 * 12 / 20],
        [0, 0.4 * (1 - 12 / 20)],
    ]
    mapped = jax.jit(jax.vmap(values))(rates, steps)
    np.testing.assert_allclose(np.asarray(mapped), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.3", "at least two values"),
        ("", "at least two values"),
        ("garbage", "at least two values"),
        ("0@0.2,1", 'no "@" at its first and last value'),
        ("0,1@0.2", 'no "@" at its first and last value'),
        ("0,0.1@0.6,0.2@0.4,0", r"fractions in \[0, 1\] that do not decrease"),
        ("0,0.1@0.6,0.2,0", r"fractions in \[0, 1\] that do not decrease"),
        ("0,0.1@1.5,0", r"fractions in \[0, 1\] that do not decrease"),
        ("0,0.1@-0.5,0", r"fractions in \[0, 1\] that do not decrease"),
        ("0,1.5", r"values in \[0, 1\]"),
        ("-0.1,0", r"values in \[0, 1\]"),
        ("0,nan", r"values in \[0, 1\]"),
        ("some,garbage", '"value,value@fraction,...,value"'),
        ("0,,1", '"value,value@fraction,...,value"'),
        ("0,0.1@0.2@0.3,0", '"value,value@fraction,...,value"'),
        ("0,0.1@,0", '"value,value@fraction,...,value"'),
    ],
)
def test_what_is_not_kaldis_grammar_is_rejected(text, message):
    with pytest.raises(ValueError, match=f"`text` must .*{message}, got '{text}'"):
        schedules.kaldi(text, 10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["linear", "early", "late", "curriculum"])
def test_rate_outside_the_unit_interval_is_rejected(name):
    for rate in (-0.1, 1.1, math.nan, jnp.float32(1.5)):
        message = rf"`rate` must lie in \[0, 1\], got {rate}"
        with pytest.raises(ValueError, match=message):
            getattr(schedules, name)(rate, 5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps", [0, -1, jnp.int32(0)])
def test_training_of_no_steps_is_rejected(steps):
    message = f"`steps` must be at least 1, got {steps}"
    for name in ("linear", "early", "late", "kaldi"):
        first = "0,1" if name == "kaldi" else 0.5
        with pytest.raises(ValueError, match=message):
            getattr(schedules, name)(first, steps)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("gamma", [0, -1.0, math.nan, jnp.float32(0)])
def test_curriculum_that_does_not_rise_is_rejected(gamma):
    with pytest.raises(ValueError, match=f"`gamma` must be above 0, got {gamma}"):
        schedules.curriculum(0.5, gamma)
