"""Dropout outside a cell: word types, units held over time; what a rate costs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import rdrop

KEY = jax.random.key(0)


def test_embedding_dropout_draws_once_a_word_type(rng):
    table = jnp.asarray(1 + rng.random((2000, 3)))
    rows = np.asarray(rdrop.embedding_dropout(KEY, 0.25, table))
    dropped = (rows == 0).all(axis=1)
    np.testing.assert_allclose(rows[~dropped], table[~dropped] / 0.75, rtol=1e-6)
    assert ((rows == 0).any(axis=1) == dropped).all()
    sd = (2000 * 0.25 * 0.75) ** 0.5
    assert abs(dropped.sum() - 500) <= 5 * sd


def test_every_occurrence_of_a_dropped_word_is_zero(rng):
    table = rdrop.embedding_dropout(KEY, 0.5, jnp.ones((10, 3)))
    words = rng.integers(0, 10, (4, 50))
    embedded = np.asarray(table)[words]
    for word in range(10):
        assert len(np.unique(embedded[words == word])) == 1


@pytest.mark.parametrize("time_axis", [0, 1, -2])
def test_locked_dropout_is_constant_over_time_and_differs_by_example(time_axis):
    xs = np.asarray(rdrop.locked_dropout(KEY, 0.5, jnp.ones((5, 5, 40)), time_axis))
    xs = np.moveaxis(xs, time_axis, 0)
    assert set(np.unique(xs)) == {0, 2}
    assert (xs == xs[:1]).all()
    assert len({example.tobytes() for example in xs[0]}) == 5


def test_locked_dropout_of_one_sequence_or_of_images():
    xs = rdrop.locked_dropout(KEY, 0.5, jnp.ones((7, 40)), time_axis=0)
    assert (xs == xs[:1]).all()
    xs = rdrop.locked_dropout(KEY, 0.5, jnp.ones((2, 7, 4, 5, 6)))
    assert (xs == xs[:, :1]).all()
    assert (xs[0] != xs[1]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("drop", [rdrop.embedding_dropout, rdrop.locked_dropout])
def test_dtype_is_kept_and_the_units_dropped_do_not_depend_on_it(drop, dtype):
    values = drop(KEY, 0.5, jnp.ones((30, 4), dtype))
    assert values.dtype == dtype
    assert ((values == 0) == (drop(KEY, 0.5, jnp.ones((30, 4))) == 0)).all()


@pytest.mark.parametrize("drop", [rdrop.embedding_dropout, rdrop.locked_dropout])
def test_rates_are_data(drop):
    """One program; none at 0, all at 1; nested; the gradient is that of the mask."""
    values = jnp.full((30, 4), 3.0)
    traces = []

    @jax.jit
    def program(rate):
        traces.append(rate)
        return drop(KEY, rate, values)

    none, some, more, every = (program(rate) for rate in (0.0, 0.3, 0.7, 1.0))
    assert len(traces) == 1
    assert (none == values).all()
    assert not every.any()
    assert ((more == 0) >= (some == 0)).all()
    assert (some != more).any()
    gradient = jax.grad(lambda values: drop(KEY, 0.3, values).sum())(values)
    np.testing.assert_allclose(gradient, some / 3, rtol=1e-6)


@pytest.mark.parametrize("drop", [rdrop.embedding_dropout, rdrop.locked_dropout])
@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_rate_outside_the_unit_interval_is_refused(drop, rate):
    with pytest.raises(ValueError, match=rf"`rate` must lie in \[0, 1\], got {rate}"):
        drop(KEY, rate, jnp.ones((3, 4)))


@pytest.mark.parametrize("drop", [rdrop.embedding_dropout, rdrop.locked_dropout])
def test_rate_that_is_no_scalar_is_refused(drop):
    message = r"`rate` must broadcast to the mask's axes .*, got shape \(5,\)"
    with pytest.raises(ValueError, match=message):
        drop(KEY, jnp.zeros(5), jnp.ones((3, 4)))


@pytest.mark.parametrize("time_axis", [3, -4])
def test_time_axis_that_is_none_is_refused(time_axis):
    message = (
        rf"`time_axis` must be an axis of `xs`, of shape \(2, 3, 4\), got {time_axis}"
    )
    with pytest.raises(ValueError, match=message):
        rdrop.locked_dropout(KEY, 0.5, jnp.ones((2, 3, 4)), time_axis)


COSTS = {"weight": 0.03, "dropout": 0.5}


def cost(rate, kernel):
    return rdrop.concrete_regulariser(rate, kernel, **COSTS)


@pytest.fixture
def kernel(rng):
    return jnp.asarray(rng.normal(size=(5, 8)))


@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
def test_regulariser_is_that_of_the_paper(kernel, rate):
    """Value and gradients, those of the rate by hand."""
    expected = reference.concrete_cost([rate] * 5, np.asarray(kernel), **COSTS)
    np.testing.assert_allclose(cost(rate, kernel), expected, rtol=1e-12)
    in_rate, in_kernel = jax.grad(cost, argnums=(0, 1))(rate, kernel)
    slope = 0.03 * (kernel**2).sum() / (1 - rate) ** 2
    slope += 0.5 * 5 * math.log(rate / (1 - rate))
    np.testing.assert_allclose(in_rate, slope, rtol=1e-6)
    np.testing.assert_allclose(in_kernel, 0.06 * kernel / (1 - rate), rtol=1e-12)


def test_regulariser_is_the_divergence_of_the_paper(kernel):
    """Equation 3, of masks of 0 and 1: the kernel there is this one over 1 - p."""
    rate, lengthscale, examples = 0.3, 0.7, 200
    outer = kernel / (1 - rate)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    divergence = lengthscale**2 * (1 - rate) / 2 * (outer**2).sum() - 5 * entropy
    actual = rdrop.concrete_regulariser(
        rate,
        kernel,
        weight=lengthscale**2 / (2 * examples),
        dropout=1 / examples,
    )
    np.testing.assert_allclose(actual, divergence / examples, rtol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5)])
def test_regulariser_takes_a_rate_for_each_input_unit(kernel, shape):
    rates = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    expected = reference.concrete_cost(rates, np.asarray(kernel), **COSTS)
    np.testing.assert_allclose(cost(rates.reshape(shape), kernel), expected, rtol=1e-12)
    np.testing.assert_allclose(cost(rates[:1], kernel), cost(0.1, kernel), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(("end", "near"), [(0.0, 1e-7), (1.0, 1 - 1e-7)])
def test_regulariser_at_an_end_is_that_of_the_nearest_rate(kernel, end, near, dtype):
    """Finite, and with a gradient that leads away from the end."""
    kernel = kernel.astype(dtype)
    value, slope = jax.value_and_grad(cost)(end, kernel)
    assert value.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    nearest = near if dtype == jnp.float64 else float(np.float32(near))
    expected = reference.concrete_cost([nearest] * 5, np.float64(kernel), **COSTS)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(slope)
    assert slope * (end - 0.5) > 0


def test_regulariser_of_many_rates_is_one_program(kernel):
    program = jax.jit(cost)
    rates = jnp.asarray([0.0, 0.2, 0.7, 1.0])
    looped = [program(rate, kernel) for rate in rates]
    assert program._cache_size() == 1
    np.testing.assert_allclose(jax.vmap(program, (0, None))(rates, kernel), looped)


def test_learned_rate_settles_where_the_gradient_of_the_regulariser_is_zero():
    """Without a kernel that is where the entropy of the mask is largest."""
    slope = jax.jit(jax.grad(lambda logit: cost(jax.nn.sigmoid(logit), zeros)))
    zeros, logit = jnp.zeros((5, 8)), jnp.float64(-4.0)
    for _ in range(100):
        logit = logit - slope(logit)
    np.testing.assert_allclose(jax.nn.sigmoid(logit), 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1.5}, r"`rate` must lie in \[0, 1\], got 1.5"),
        ({"rate": jnp.zeros(7)}, r"`rate` must broadcast to .* got shape \(7,\)"),
        ({"weight": -1.0}, r"`weight` must be 0 or more, got -1.0"),
        ({"dropout": -0.5}, r"`dropout` must be 0 or more, got -0.5"),
    ],
)
def test_wrong_arguments_of_the_regulariser_are_refused(kernel, change, message):
    arguments = {"rate": 0.5, "kernel": kernel, **COSTS} | change
    with pytest.raises(ValueError, match=message):
        rdrop.concrete_regulariser(**arguments)
