"""Lengths of any integer type give the mask that NumPy gives; others are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop.lengths import valid_steps

LENGTHS = [100, 0, 50]
WIDTHS = [np.int8, np.uint8, np.int16, np.uint32, np.int64]


def expected(time=300):
    return np.arange(time)[:, None] < np.array(LENGTHS)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_lengths_of_any_width_mask_more_steps_than_their_type_counts(make):
    for dtype in WIDTHS:
        lengths = make(np.array(LENGTHS, dtype))
        np.testing.assert_array_equal(valid_steps(lengths, 300, 3), expected())
    np.testing.assert_array_equal(valid_steps(LENGTHS, 300, 3), expected())


def test_traced_lengths_give_the_same_and_are_not_checked():
    run = jax.jit(lambda *many: [valid_steps(each, 300, 3) for each in many])
    for valid in run(*(np.array(LENGTHS, dtype) for dtype in WIDTHS)):
        np.testing.assert_array_equal(valid, expected())
    beyond = jax.jit(lambda lengths: valid_steps(lengths, 2, 2))(np.array([3, -1]))
    assert beyond.tolist() == [[True, False]] * 2


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (np.ones((2, 1), int), r"integers of shape \[B\] = \(2,\), got int64\[2, 1\]"),
        (np.ones(3, int), r"integers of shape \[B\] = \(2,\), got int64\[3\]"),
        (np.ones(2), r"must be integers .* got float64\[2\]"),
        (np.ones(2, bool), r"must be integers .* got bool\[2\]"),
        ([4, 6], r"must lie in \[0, T = 5\], got \[4 6\]"),
        (np.array([4, -1], np.int8), r"must lie in \[0, T = 5\], got \[ 4 -1\]"),
        (jnp.array([200, 1], jnp.uint8), r"must lie in \[0, T = 5\], got \[200 +1\]"),
    ],
)
def test_other_lengths_are_refused(lengths, message):
    with pytest.raises(ValueError, match="`lengths` .*" + message):
        valid_steps(lengths, 5, 2)
