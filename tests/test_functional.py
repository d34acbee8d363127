"""Dropout outside a cell: whole word types, and units held over time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
