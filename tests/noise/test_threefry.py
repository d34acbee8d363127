"""Threefry: every bit is that of jax.random, however it is called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop.threefry import fold_in, uniform

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


def both(actual, expected, transform, *arguments):
    """What the function and that of jax.random give, both of them transformed."""
    return transform(actual)(*arguments), transform(expected)(*arguments)


@pytest.fixture
def key():
    return jax.random.key(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_is_that_of_jax(seed):
    for shape in SHAPES:
        key = jax.random.key(seed)
        assert_same_numbers(uniform(key, shape), expected_uniform(key, shape))


@pytest.mark.parametrize("seed", SEEDS)
def test_fold_in_is_that_of_jax(seed):
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


def test_compiled_they_are_those_of_jax(key):
    jit = functools.partial(jax.jit, static_argnums=1)
    assert_same_numbers(*both(uniform, expected_uniform, jit, key, (2, 3, 4)))
    assert_same_keys(*both(fold_in, jax.random.fold_in, jax.jit, key, jnp.int32(7)))


def test_mapped_over_steps_they_are_those_of_jax(key):
    steps = jnp.array([0, 1, 7, 2**31 - 1], jnp.int32)

    def over_steps(fold_in, uniform):
        return jax.jit(jax.vmap(lambda t: uniform(fold_in(key, t), (3, 1, 5))))(steps)

    actual = over_steps(fold_in, uniform)
    assert_same_numbers(actual, over_steps(jax.random.fold_in, expected_uniform))
    assert_same_numbers(actual[2], uniform(fold_in(key, 7), (3, 1, 5)))


def test_mapped_over_keys_they_are_those_of_jax(key):
    keys = jax.random.split(key, 3)

    def fold(function):
        return jax.vmap(lambda key: function(key, 7))

    def draw(function):
        return jax.vmap(lambda key: function(key, (4,)))

    assert_same_keys(*both(fold_in, jax.random.fold_in, fold, keys))
    assert_same_numbers(*both(uniform, expected_uniform, draw, keys))


def test_without_wide_numbers_they_are_those_of_jax():
    with jax.enable_x64(False):
        key = jax.random.key(5)
        assert_same_numbers(uniform(key, (2, 3)), expected_uniform(key, (2, 3)))
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
