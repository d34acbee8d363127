"""Helpers that several folders of tests share."""

import functools
import math
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Statements about optimised programs compile as users do: see tests/conftest.py.
OPTIMISED: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if "fusion_emitters" in os.environ["XLA_FLAGS"]:
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True
optimised_jit = functools.partial(jax.jit, compiler_options=OPTIMISED)


def traced_once(function):
    """Returns a plain function compiled; a second trace of it fails."""
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(function, n=1))


def quickly(values, *quick):
    """Returns parameters of which all but the quick ones are left to the slow suite.

    A tuple holds the values of several parameters.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[] if value in quick else pytest.mark.slow,
        )
        for value in values
    ]


def random_like(tree, seed=0):
    """Returns normal numbers in the shapes of a tree: float64, or complex128."""
    rng = np.random.default_rng(seed)

    def normal(leaf):
        values = rng.normal(size=leaf.shape)
        if jnp.iscomplexobj(leaf):
            values = values + 1j * rng.normal(size=leaf.shape)
        return jnp.asarray(values)

    return jax.tree.map(normal, tree)


def stack_trees(trees):
    """Returns one tree of stacked leaves."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def assert_close(actual, expected, tolerance=1e-12):
    """Checks that two trees agree to a relative or an absolute tolerance."""
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_all_matter(tree):
    """Checks that no leaf is all zeros, so that agreement shows something."""
    assert all(np.any(leaf) for leaf in jax.tree.leaves(tree))


def assert_frequency(count, trials, probability, sigmas=5.0):
    """Checks that a binomial count is within some standard deviations of its mean."""
    sd = math.sqrt(trials * probability * (1 - probability))
    assert abs(count - trials * probability) <= sigmas * sd
