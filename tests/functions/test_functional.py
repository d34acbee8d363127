"""Dropout outside a cell: rows of an embedding, and units held over time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import traced_once

import rdrop

KEY = jax.random.key(0)
DTYPES = [jnp.bfloat16, jnp.float32, jnp.float64]
both = pytest.mark.parametrize("drop", [rdrop.embedding_dropout, rdrop.locked_dropout])


def test_embedding_dropout_draws_once_per_word_type(rng):
    """Whole rows are dropped, as many as the rate says; the others are scaled."""
    table = jnp.asarray(1 + rng.random((2000, 3)))
    rows = np.asarray(jax.jit(rdrop.embedding_dropout)(KEY, 0.25, table))
    dropped = (rows == 0).all(axis=1)
    np.testing.assert_allclose(rows[~dropped], table[~dropped] / 0.75, rtol=1e-6)
    assert ((rows == 0).any(axis=1) == dropped).all()
    sd = (2000 * 0.25 * 0.75) ** 0.5
    assert abs(dropped.sum() - 500) <= 5 * sd


def test_locked_dropout_is_constant_over_time_and_differs_by_example():
    """Over any axis, for sequences, batches of them, and batches of images."""
    shapes = [((7, 40), 0), ((5, 7, 40), 1), ((2, 7, 4, 5, 6), -4)]

    @jax.jit
    def run():
        return [rdrop.locked_dropout(KEY, 0.5, jnp.ones(s), axis) for s, axis in shapes]

    for xs, (_, axis) in zip(run(), shapes, strict=True):
        held = np.moveaxis(xs, axis, 0)
        assert set(np.unique(held)) == {0, 2}
        assert (held == held[:1]).all()
        examples = held[:1, None] if held.ndim == 2 else held[0]
        assert len({each.tobytes() for each in examples}) == len(examples)


@both
def test_dtype_is_kept_and_the_dropped_units_do_not_depend_on_it(drop):
    run = jax.jit(
        lambda: [drop(KEY, 0.5, jnp.ones((30, 4), dtype)) for dtype in DTYPES]
    )
    many = run()
    assert [values.dtype for values in many] == DTYPES
    narrow, *wider = (np.asarray(values) == 0 for values in many)
    assert all((narrow == dropped).all() for dropped in wider)


@both
def test_rates_are_data(drop):
    """One program; none at 0, all at 1; nested; the gradient is the mask."""
    values = np.full((30, 4), 3.0)

    @traced_once
    def program(rate):
        dropped, pull = jax.vjp(lambda xs: drop(KEY, rate, xs), jnp.asarray(values))
        return dropped, *pull(jnp.ones_like(dropped))

    (none, _), (some, mask), (more, _), (every, _) = jax.device_get(
        [program(rate) for rate in (0.0, 0.3, 0.7, 1.0)]
    )
    assert (none == values).all()
    assert not every.any()
    assert ((more == 0) >= (some == 0)).all()
    assert (some != more).any()
    np.testing.assert_allclose(mask, some / 3, rtol=1e-6)


@both
@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (-0.1, r"`rate` must lie in \[0, 1\], got -0.1"),
        (1.5, r"`rate` must lie in \[0, 1\], got 1.5"),
        (np.zeros(5), r"`rate` must broadcast to the mask's axes .* got shape \(5,\)"),
    ],
)
def test_wrong_rates_are_refused(drop, rate, message):
    with pytest.raises(ValueError, match=message):
        drop(KEY, rate, jnp.ones((3, 4)))


@pytest.mark.parametrize("axis", [3, -4])
def test_a_time_axis_that_does_not_exist_is_refused(axis):
    message = (
        r"`time_axis` must be an axis of `xs`, in \[-3, 2\] for shape \(2, 3, 4\), "
        rf"got {axis}"
    )
    with pytest.raises(ValueError, match=message):
        rdrop.locked_dropout(KEY, 0.5, jnp.ones((2, 3, 4)), axis)
