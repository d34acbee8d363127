"""A site's key is a function of its coordinates alone, and of each of them."""

import itertools

import jax
import jax.numpy as jnp
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
        (3, TypeError, r"`key` must be a typed PRNG key.*got 3"),
        (
            jax.random.split(jax.random.key(0), 3),
            ValueError,
            r"`key` must be a single key, got an array of shape \(3,\)",
        ),
    ],
)
def test_what_is_not_one_typed_key_is_rejected(key, error, message):
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
        (None, TypeError, "must be a typed PRNG key.*got None"),
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
        (True, TypeError, "must be an integer, got True"),
        (
            np.arange(3),
            ValueError,
            r"must be a single integer or one per row, \[B\] = \[2\]",
        ),
        *(
            (step, ValueError, rf"must lie in \[0, 2\*\*31\), got {step}\.")
            for step in (-1, 2**31, 2**70, np.int64(2**31), jnp.int32(-3))
        ),
    ],
)
def test_step_that_is_not_one_integer_in_range_is_not_drawn_at(step, error, message):
    keys = rdrop.stream_keys(jax.random.key(0)).replace(step=step)
    with pytest.raises(error, match=f"`keys.step` {message}"):
        rdrop.draw(NOISE, keys, SITES, 2)


def test_the_last_step_is_drawn_at():
    keys = rdrop.stream_keys(jax.random.key(0)).replace(step=2**31 - 1)
    masks = jax.eval_shape(lambda: rdrop.draw(NOISE, keys, SITES, 2))
    assert masks.inputs.shape == (2, 1, 3)


def test_fold_in_separates_all_keys_by_a_number_or_a_traced_index():
    """As shards do that fold in the index of their axis, to draw different masks."""
    other = rdrop.stream_keys(jax.random.key(1))
    keys = rdrop.stream_keys(jax.random.key(0)).sharing(other, "update")
    keys = keys.replace(step=5, layer=1, direction="backward")
    names = (("inputs", "a"), ("recurrent", "a"), ("recurrent", "update"))

    def site_keys(index):
        return [keys.fold_in(index).site(*name) for name in names]

    def of_shard(_):
        return site_keys(jax.lax.axis_index("data"))

    shards = jax.vmap(of_shard, axis_name="data")(jnp.arange(3))
    folded = [[bits(key) for key in site_keys(index)] for index in range(3)]
    assert [[bits(key[index]) for key in shards] for index in range(3)] == folded
    unfolded = [bits(keys.site(*name)) for name in names]
    assert len({key for shard in (unfolded, *folded) for key in shard}) == 4 * 3
    place = keys.fold_in(2)
    assert (place.step, place.layer, place.direction) == (5, 1, "backward")


def test_unknown_direction_is_rejected():
    keys = rdrop.stream_keys(jax.random.key(0))
    message = '`direction` must be "forward" or "backward", got \'up\''
    with pytest.raises(ValueError, match=message):
        keys.replace(direction="up")


def test_negative_layer_is_rejected():
    keys = rdrop.stream_keys(jax.random.key(0))
    with pytest.raises(ValueError, match="`layer` must be 0 or more, got -1"):
        keys.replace(layer=-1)
