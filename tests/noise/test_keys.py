"""A site's key is a function of its coordinates alone, and of each of them."""

import itertools

import jax
import numpy as np
import pytest

import rdrop

RAW = np.zeros(2, np.uint32)  # the data of jax.random.PRNGKey(0)


def bits(key):
    return tuple(jax.random.key_data(key).ravel().tolist())


def test_every_coordinate_changes_the_site_key():
    coordinates = itertools.product(
        (0, 1), ("inputs", "recurrent"), (0, 1), ("forward", "backward"), ("a", "b")
    )
    keys = [
        rdrop.stream_keys(jax.random.key(seed))
        .replace(layer=layer, direction=direction)
        .site(stream, name)
        for seed, stream, layer, direction, name in coordinates
    ]
    assert len({bits(key) for key in keys}) == 2**5


def test_streams_are_independent():
    keys = rdrop.stream_keys(jax.random.key(0))
    other = keys.replace(recurrent=jax.random.key(9))
    assert bits(keys.site("inputs", "a")) == bits(other.site("inputs", "a"))
    assert bits(keys.site("recurrent", "a")) != bits(other.site("recurrent", "a"))


def test_site_key_does_not_depend_on_the_step():
    keys = rdrop.stream_keys(jax.random.key(0))
    later = keys.replace(step=5)
    assert bits(keys.site("inputs", "a")) == bits(later.site("inputs", "a"))


def test_site_key_is_the_same_in_every_version():
    keys = rdrop.stream_keys(jax.random.key(0)).replace(layer=1, direction="backward")
    assert bits(keys.site("recurrent", "update")) == (2684549341, 2622594805)


def test_stream_keys_map_over_an_array_of_keys():
    seeds = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda key: rdrop.stream_keys(key).site("inputs", "a"))(seeds)
    looped = [rdrop.stream_keys(key).site("inputs", "a") for key in seeds]
    assert [bits(key) for key in mapped] == [bits(key) for key in looped]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (RAW, TypeError, r"`key` must be a typed PRNG key.*got uint32\[2\]"),
        (jax.random.PRNGKey(0), TypeError, r"`key` must be a typed.*got uint32\[2\]"),
        (3, TypeError, r"`key` must be a typed PRNG key.*got int"),
        (
            jax.random.split(jax.random.key(0), 3),
            ValueError,
            r"`key` must be a single key, got an array of shape \(3,\)",
        ),
    ],
)
def test_what_is_not_one_typed_key_is_refused(key, error, message):
    with pytest.raises(error, match=message):
        rdrop.stream_keys(key)


SITES = {"inputs": rdrop.Site(gates=4, units=3)}
NOISE = rdrop.Dropout(inputs=rdrop.Bernoulli(0.5))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("stream", ["inputs", "recurrent"])
@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (RAW, TypeError, r"must be a typed PRNG key.*got uint32\[2\]"),
        (None, TypeError, "must be a typed PRNG key.*got NoneType"),
        (
            jax.random.split(jax.random.key(0), 3),
            ValueError,
            r"must be a single key, got an array of shape \(3,\)",
        ),
    ],
)
def test_stream_without_one_typed_key_is_not_drawn_from(stream, key, error, message):
    keys = rdrop.stream_keys(jax.random.key(0)).replace(**{stream: key})
    with pytest.raises(error, match=f"`keys.{stream}` {message}"):
        rdrop.draw(NOISE, keys, SITES, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (0.5, TypeError, r"must be an integer, got 0\.5"),
        (np.arange(3), ValueError, r"must be a single step, got shape \(3,\)"),
    ],
)
def test_step_that_is_not_one_integer_is_not_drawn_at(step, error, message):
    keys = rdrop.stream_keys(jax.random.key(0)).replace(step=step)
    with pytest.raises(error, match=f"`keys.step` {message}"):
        rdrop.draw(NOISE, keys, SITES, 2)


def test_unknown_direction_is_refused():
    keys = rdrop.stream_keys(jax.random.key(0))
    message = '`direction` must be "forward" or "backward", got \'up\''
    with pytest.raises(ValueError, match=message):
        keys.replace(direction="up")


def test_negative_layer_is_refused():
    keys = rdrop.stream_keys(jax.random.key(0))
    with pytest.raises(ValueError, match="`layer` must be 0 or more, got -1"):
        keys.replace(layer=-1)
