"""Schedules have the values of their formulas, under jit too, and refuse nonsense."""

import math

import jax
import numpy as np
import optax
import pytest

from rdrop import Bernoulli, Dropout, Gaussian, Zoneout, schedules

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


def assert_values(schedule, values):
    """At Python's steps, and at traced ones of one compiled program."""
    compiled = jax.jit(schedule)
    for step, expected in values.items():
        for actual in (schedule(step), compiled(step)):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("name", BY_STEP)
def test_values_at_steps(name):
    assert_values(*BY_STEP[name])


@pytest.mark.parametrize("text", BY_FRACTION)
def test_kaldi_at_fractions_of_training(text):
    values = {round(at * STEPS): value for at, value in BY_FRACTION[text].items()}
    assert_values(schedules.kaldi(text, STEPS), values)


def test_kaldi_keeps_its_last_value_after_training():
    assert_values(schedules.kaldi("0.5,0.1", 10), {10: 0.1, 11: 0.1, 1000: 0.1})


@pytest.mark.parametrize("name", BY_STEP)
def test_a_schedule_stands_for_a_rate(name):
    schedule, values = BY_STEP[name]
    dropout = Dropout(
        inputs=Bernoulli(schedule),
        recurrent=Gaussian(0.25),
        hidden_state=Zoneout(0.5, drift=schedule),
    )
    program = jax.jit(lambda dropout, step: dropout.at(step))
    for step, expected in values.items():
        at = program(dropout, step)
        np.testing.assert_allclose(at.inputs.rate, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(at.hidden_state.drift, expected, 1e-6, 1e-7)
        assert (at.recurrent.rate, at.hidden_state.rate) == (0.25, 0.5)
    assert program._cache_size() == 1


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
def test_what_is_not_kaldis_grammar_is_refused(text, message):
    with pytest.raises(ValueError, match=f"`text` must .*{message}, got '{text}'"):
        schedules.kaldi(text, 10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["linear", "early", "late", "curriculum"])
@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_rate_outside_the_unit_interval_is_refused(name, rate):
    with pytest.raises(ValueError, match=rf"`rate` must lie in \[0, 1\], got {rate}"):
        getattr(schedules, name)(rate, 5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps", [0, -1])
def test_training_of_no_steps_is_refused(steps):
    message = f"`steps` must be at least 1, got {steps}"
    for name, first in (
        ("linear", 0.5),
        ("early", 0.5),
        ("late", 0.5),
        ("kaldi", "0,1"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(schedules, name)(first, steps)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("gamma", [0, -1.0, math.nan])
def test_curriculum_that_does_not_rise_is_refused(gamma):
    with pytest.raises(ValueError, match=f"`gamma` must be above 0, got {gamma}"):
        schedules.curriculum(0.5, gamma)
