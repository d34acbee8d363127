"""Helpers that several folders of tests share."""

import math

import chex
import jax


def traced_once(function):
    """Returns a plain function compiled; a second trace of it fails."""
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(function, n=1))


def assert_frequency(count, trials, probability, sigmas=5.0):
    """Checks that a binomial count is within some standard deviations of its mean."""
    sd = math.sqrt(trials * probability * (1 - probability))
    assert abs(count - trials * probability) <= sigmas * sd
