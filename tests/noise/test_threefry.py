"""Threefry: bitwise the numbers of jax.random, however it is called."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop.noise.threefry import fold_in, uniform

SEEDS = (0, 1, 42, 2**63 - 1)
SHAPES = ((), (1,), (3,), (2, 3, 4), (5, 0), (20, 1, 65))
DATA = (0, 1, 2**31, 2**32 - 1)
TYPES = (jnp.int32, jnp.uint32, jnp.int64, np.int32, np.uint32, np.int64)
NUMBERS = (0, 7, 2**31 - 1)


def expected_uniform(key, shape):
    return jax.random.uniform(key, shape, jnp.float32)


def assert_same_keys(actual, expected):
    assert actual.dtype == expected.dtype
    words = map(jax.random.key_data, (actual, expected))
    np.testing.assert_array_equal(*words)


def assert_same_numbers(actual, expected):
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, expected)


@pytest.fixture
def key():
    return jax.random.key(5)


def of_all_shapes(uniform):
    return jax.jit(lambda key: [uniform(key, shape) for shape in SHAPES])


def test_uniform_numbers_are_those_of_jax():
    actual, expected = of_all_shapes(uniform), of_all_shapes(expected_uniform)
    for seed in SEEDS:
        key = jax.random.key(seed)
        for numbers, of_jax in zip(actual(key), expected(key), strict=True):
            assert_same_numbers(numbers, of_jax)


def test_folded_keys_are_those_of_jax():
    for seed in SEEDS:
        key = jax.random.key(seed)
        for data in DATA:
            assert_same_keys(fold_in(key, data), jax.random.fold_in(key, data))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.__name__)
def test_fold_in_takes_integers_of_every_type(key, dtype):
    """Negative ones, and those of more than 32 bits, lose what does not fit."""
    large = np.array([-1, 2**32 - 1, 2**33 + 5]).astype(np.dtype(dtype))
    for number in (*NUMBERS, *large.tolist()):
        data = dtype(number)
        assert_same_keys(fold_in(key, data), jax.random.fold_in(key, data))


@pytest.mark.parametrize("data", [-1, 2**32])
def test_numbers_that_do_not_fit_raise_as_those_of_jax_do(key, data):
    for function in (fold_in, jax.random.fold_in):
        with pytest.raises(OverflowError, match="out of bounds for uint32"):
            function(key, data)


def test_first_block_is_the_published_one():
    """Random123, kat_vectors: threefry2x32 of 20 rounds, key and counter zero."""
    zero = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32))
    words = jax.random.key_data(fold_in(zero, 0))
    assert words.tolist() == [0x6B200159, 0x99BA4EFE]


def test_compiled_and_mapped_they_are_those_of_jax(key):
    """Over steps and over keys, in one program for both."""
    steps = jnp.array([0, 1, 7, 2**31 - 1], jnp.int32)
    keys = jax.random.split(key, 3)

    def results(fold_in, uniform):
        over_steps = jax.vmap(lambda t: uniform(fold_in(key, t), (3, 1, 5)))(steps)
        folded = jax.vmap(lambda key: jax.random.key_data(fold_in(key, 7)))(keys)
        return over_steps, folded, jax.vmap(lambda key: uniform(key, (4,)))(keys)

    of_jax = (jax.random.fold_in, expected_uniform)
    actual, expected = jax.jit(lambda: (results(fold_in, uniform), results(*of_jax)))()
    chex.assert_trees_all_equal(actual, expected)
    assert_same_numbers(actual[0][2], uniform(fold_in(key, 7), (3, 1, 5)))


def test_without_wide_numbers_they_are_those_of_jax():
    with jax.enable_x64(False):
        key = jax.random.key(5)
        numbers = jax.jit(
            lambda key: (uniform(key, (2, 3)), expected_uniform(key, (2, 3)))
        )
        assert_same_numbers(*numbers(key))
        for data in (2**32 - 1, jnp.int32(-1)):
            assert_same_keys(fold_in(key, data), jax.random.fold_in(key, data))


def assert_both_are_those_of_jax(key):
    assert_same_numbers(uniform(key, (3, 5)), expected_uniform(key, (3, 5)))
    assert_same_keys(fold_in(key, 7), jax.random.fold_in(key, 7))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind_give_what_jax_gives(impl):
    assert_both_are_those_of_jax(jax.random.key(5, impl=impl))


def test_without_partitionable_threefry_they_are_those_of_jax(key):
    before = uniform(key, (3, 5))
    with jax.threefry_partitionable(False):
        assert_both_are_those_of_jax(key)
        assert (uniform(key, (3, 5)) != before).any()


def test_a_switch_of_threefry_reaches_compiled_programs(key):
    draw = jax.jit(lambda key: uniform(key, (3, 5)))
    assert_same_numbers(draw(key), expected_uniform(key, (3, 5)))
    with jax.threefry_partitionable(False):
        assert_same_numbers(draw(key), expected_uniform(key, (3, 5)))


def test_rounds_are_written_out(key):
    """JAX's own are a loop on CPU, which is what makes them slow."""
    for function in (lambda key: uniform(key, (3, 5)), lambda key: fold_in(key, 1)):
        assert "while" not in jax.jit(function).lower(key).as_text()
