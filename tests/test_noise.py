"""Masks have the promised values, frequencies, mean, nesting and errors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdrop import Bernoulli

KEY = jax.random.key(0)
SHAPE = (50, 4, 100)


def draw(rate, shape=SHAPE, **options):
    return np.asarray(Bernoulli(rate, **options).draw(KEY, shape))


def assert_frequency(count, trials, probability, sigmas=5.0):
    """A binomial count lies within `sigmas` standard deviations of its mean."""
    sd = math.sqrt(trials * probability * (1 - probability))
    assert abs(count - trials * probability) <= sigmas * sd


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_frequency_and_support(rate):
    mask = draw(rate)
    assert_frequency((mask == 0).sum(), mask.size, rate)
    keep = np.float32(1) - np.float32(rate)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1) / keep}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_frequency_along_each_axis(rate):
    dropped = draw(rate) == 0
    for axes in ((1, 2), (0, 2), (0, 1)):
        trials = dropped.size // dropped.sum(axes).size
        for count in dropped.sum(axes):
            assert_frequency(count, trials, rate)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_inverted_mask_has_mean_one(rate):
    mask = draw(rate).astype(np.float64)
    standard_error = math.sqrt(rate / (1 - rate) / mask.size)
    assert abs(mask.mean() - 1) <= 5 * standard_error


def test_expectation_mask_is_zero_or_one_and_drops_the_same_units():
    mask = draw(0.3, scale="expectation")
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(mask == 0, draw(0.3) == 0)


def test_masks_are_nested_in_the_rate():
    dropped = [draw(rate) == 0 for rate in (0.0, 0.1, 0.3, 0.31, 0.7, 1.0)]
    for low, high in itertools.pairwise(dropped):
        assert not (low & ~high).any()
        assert high.sum() > low.sum()


def test_rate_zero_is_one_and_rate_one_is_zero():
    for scale in ("inverted", "expectation"):
        assert (draw(0.0, scale=scale) == 1).all()
        assert (draw(1.0, scale=scale) == 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_bits_do_not_depend_on_the_dtype_of_the_rate(dtype):
    mask = draw(jnp.asarray(0.25, dtype))
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, draw(0.25))


@pytest.mark.parametrize("shape", [(), (100,), (4, 1), (50, 1, 1), (1, 4, 100)])
def test_rate_array_broadcasts_to_batch_gates_units(shape):
    rates = np.resize(np.float32([0.2, 0.7]), shape)
    expected = np.where(rates == np.float32(0.2), draw(0.2), draw(0.7))
    np.testing.assert_array_equal(draw(rates), expected)


def test_options_share_axes():
    assert Bernoulli(0.5).shape(5, 4, 3) == (5, 1, 3)
    assert Bernoulli(0.5, gates="each").shape(5, 4, 3) == (5, 4, 3)
    assert Bernoulli(0.5, batch="shared").shape(5, 4, 3) == (1, 1, 3)


def test_one_program_serves_every_rate_and_vmap_is_the_loop():
    rates = jnp.asarray([0.0, 0.2, 0.7, 1.0], jnp.float32)
    program = jax.jit(lambda rate: Bernoulli(rate).draw(KEY, (3, 1, 4)))
    looped = jnp.stack([program(rate) for rate in rates])
    assert program._cache_size() == 1
    np.testing.assert_array_equal(jax.vmap(program)(rates), looped)
    np.testing.assert_array_equal(program(0.2), draw(0.2, (3, 1, 4)))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", ["inverted", "expectation"])
def test_gradient_in_the_rate_is_zero(rate, scale):
    def total(rate):
        return Bernoulli(rate, scale=scale).draw(KEY, (3, 1, 4)).sum()

    assert jax.jit(jax.grad(total))(rate) == 0


def test_expected_is_the_factor_only_of_the_expectation_scale():
    assert Bernoulli(0.3).expected() is None
    factor = Bernoulli(0.25, scale="expectation").expected()
    np.testing.assert_array_equal(factor, np.full((1, 1, 1), 0.75))


def test_schedule_is_resolved_by_the_training_step():
    noise = Bernoulli(optax.linear_schedule(0.0, 0.8, 4), per="step", gates="each")
    assert jax.tree.leaves(noise) == []
    for step, rate in ((0, 0.0), (1, 0.2), (9, 0.8)):
        resolved = noise.at(step)
        assert (resolved.per, resolved.gates) == ("step", "each")
        np.testing.assert_allclose(resolved.rate, rate, rtol=1e-6)


def test_a_number_is_its_own_schedule():
    assert Bernoulli(0.3).at(5) == Bernoulli(0.3)


@pytest.mark.parametrize("scale", ["inverted", "expectation"])
def test_unresolved_schedule_is_not_drawn(scale):
    noise = Bernoulli(optax.constant_schedule(0.5), scale=scale)
    with pytest.raises(ValueError, match=r"`rate` is a schedule.*`dropout.at\(step\)`"):
        noise.draw(KEY, SHAPE)


def test_unresolved_schedule_has_no_factor():
    noise = Bernoulli(optax.constant_schedule(0.5), scale="expectation")
    with pytest.raises(ValueError, match=r"`rate` is a schedule.*`dropout.at\(step\)`"):
        noise.expected()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rate", [-0.1, 1.01, 2, -1, math.nan, math.inf, -math.inf])
def test_rate_outside_the_unit_interval_is_refused(rate):
    with pytest.raises(ValueError, match=rf"`rate` must lie in \[0, 1\], got {rate}"):
        Bernoulli(rate)


@pytest.mark.parametrize("rate", [[0.1, 1.5], [-0.5, 0.5], [0.1, math.nan]])
def test_numpy_rate_outside_the_unit_interval_is_refused(rate):
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\], got \[ ?[-0]"):
        Bernoulli(np.array(rate))


@pytest.mark.usefixtures("unchecked")
def test_text_as_a_rate_is_refused():
    message = r"`rate` must be a number, an array or a schedule, got '0.5'"
    with pytest.raises(TypeError, match=message):
        Bernoulli("0.5")


@pytest.mark.parametrize("shape", [(3,), (2, 1), (7, 1, 1), (1, 1, 1, 1), (50, 4, 7)])
def test_rate_array_that_does_not_broadcast_is_refused(shape):
    message = r"`rate` must broadcast .* = \(50, 4, 100\), got shape \(" + str(shape[0])
    with pytest.raises(ValueError, match=message):
        draw(jnp.zeros(shape))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", ["per", "gates", "batch", "scale"])
def test_unknown_option_is_refused(option):
    message = rf"`{option}` must be one of \('\w+', '\w+'\), got 'often'"
    with pytest.raises(ValueError, match=message):
        Bernoulli(0.5, **{option: "often"})
