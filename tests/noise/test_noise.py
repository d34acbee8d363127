"""Masks have the promised values, frequencies, mean, nesting and errors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from rdrop import Bernoulli, Concrete, DropConnect, Gaussian, Mix, Zoneout
from rdrop.lifetime import draw_step, draw_steps

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
    assert Bernoulli(0.5, units="shared").shape(5, 4, 3) == (5, 1, 1)


KINDS = (Bernoulli, Gaussian, Concrete, Zoneout, DropConnect)


@pytest.mark.parametrize("kind", KINDS)
def test_one_program_serves_every_rate_and_vmap_is_the_loop(kind):
    rates = jnp.asarray([0.0, 0.2, 0.7, 1.0], jnp.float32)
    program = jax.jit(lambda rate: kind(rate).draw(KEY, (3, 1, 4)))
    looped = jax.tree.map(lambda *m: jnp.stack(m), *[program(r) for r in rates])
    assert program._cache_size() == 1
    mapped, eager = jax.vmap(program)(rates), kind(0.2).draw(KEY, (3, 1, 4))
    for actual, expected in ((mapped, looped), (eager, program(0.2))):
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", ["inverted", "expectation"])
def test_gradient_in_the_rate_is_zero(rate, scale):
    def total(rate):
        return Bernoulli(rate, scale=scale).draw(KEY, (3, 1, 4)).sum()

    assert jax.jit(jax.grad(total))(rate) == 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_gaussian_has_mean_one_and_the_variance_of_an_inverted_mask(rate):
    mask = np.float64(Gaussian(rate).draw(KEY, SHAPE))
    variance = rate / (1 - rate)
    assert abs(mask.mean() - 1) <= 5 * math.sqrt(variance / mask.size)
    sd_of_variance = variance * math.sqrt(2 / (mask.size - 1))
    assert abs(mask.var(ddof=1) - variance) <= 5 * sd_of_variance
    above = (mask > 1).sum()
    assert_frequency(above, mask.size, 0.5)


def test_gaussian_masks_of_two_rates_come_from_the_same_numbers():
    low, high = (np.float64(Gaussian(rate).draw(KEY, SHAPE)) for rate in (0.2, 0.5))
    np.testing.assert_allclose((low - 1) * 2, high - 1, rtol=1e-4, atol=1e-6)


def test_gaussian_at_rate_zero_is_exactly_one():
    assert (Gaussian(0.0).draw(KEY, SHAPE) == 1).all()
    assert Gaussian(0.5).expected() is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rate", [1, 1.0, np.float32(1), np.array([0.5, 1.0])])
def test_gaussian_at_rate_one_is_refused(rate):
    with pytest.raises(
        ValueError, match=r"`rate` of Gaussian must lie in \[0, 1\), got"
    ):
        Gaussian(rate)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_rate_of_each_kind_outside_the_unit_interval_is_refused(kind, rate):
    with pytest.raises(ValueError, match=rf"`rate` must lie in \[0, 1\], got {rate}"):
        kind(rate)


def test_gaussian_gradient_in_the_rate_is_that_of_its_formula():
    def total(rate):
        return Gaussian(rate).draw(KEY, (3, 1, 4)).sum()

    gradient = jax.jit(jax.grad(total))
    for rate in (0.0, 1.0):
        assert gradient(rate) == 0
    for rate in (1e-6, 0.2, 0.9):
        numbers = (total(0.5) - 12) / 1.0  # the sum of the normal numbers
        slope = 0.5 / math.sqrt(rate / (1 - rate)) / (1 - rate) ** 2
        np.testing.assert_allclose(gradient(rate), numbers * slope, rtol=1e-4)


def concrete(rate, temperature=0.1, shape=SHAPE):
    noise = Concrete(rate, temperature=temperature)
    return np.asarray(noise.draw(KEY, shape))


EXTREMES = np.float32([0, 2**-23, 0.5, 1 - 2**-23])  # the least and the greatest drawn


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.7, 2.0])
@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.1, 0.5, 0.99, 1.0])
def test_concrete_mask_is_that_of_its_formula(rate, temperature):
    rate, temperature = np.float32(rate), np.float32(temperature)
    numbers = np.append(EXTREMES, uniforms((10, 4, 25)))
    noise = Concrete(rate, temperature=temperature)
    actual = noise.mask(jnp.asarray(numbers)[None, None])[0, 0]
    assert actual.dtype == np.float32
    expected = reference.concrete(np.float64(numbers), float(rate), float(temperature))
    # Logits have an error of a few 1e-7, which the temperature divides.
    tolerance = 2e-6 + 1e-6 / temperature
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-7)


def uniforms(shape):
    return np.asarray(Concrete(0.5).variate(KEY, shape))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_concrete_at_a_low_temperature_drops_what_bernoulli_does(rate):
    cold = concrete(rate, temperature=1e-6)
    np.testing.assert_array_equal(cold == 0, draw(rate) == 0)
    np.testing.assert_allclose(cold, draw(rate), rtol=1e-6)
    warm = concrete(rate) * (1 - rate) < 0.5
    np.testing.assert_array_equal(warm, draw(rate) == 0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_concrete_mask_is_near_zero_as_often_as_the_formula_says(rate):
    """drop > 0.99 where the logistic number of u exceeds a bound."""
    near_zero = concrete(rate) * (1 - rate) < 0.01
    logit = math.log(rate / (1 - rate)) - 0.1 * math.log(99)
    assert_frequency(near_zero.sum(), near_zero.size, 1 / (1 + math.exp(-logit)))


def exact_mean(rate, temperature, cells=200_000):
    numbers = (np.arange(cells) + 0.5) / cells
    return reference.concrete(numbers, rate, temperature).mean()


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_concrete_mean_has_the_bias_of_its_docstring(rate):
    exact = exact_mean(rate, 0.1)
    bias = rate * (1 - 2 * rate) * (math.pi * 0.1) ** 2 / 6
    np.testing.assert_allclose(exact, 1 - bias, atol=2e-4)
    mask = concrete(rate, shape=(500, 4, 500)).astype(np.float64)
    assert abs(mask.mean() - exact) <= 5 * mask.std() / math.sqrt(mask.size)


@pytest.mark.parametrize(
    ("rate", "temperature", "mean"),
    [(0.25, 0.1, 0.998), (0.9999, 0.1, 1.017), (0.25, 0.5, 0.96), (0.9999, 0.5, 1.57)],
)
def test_extremes_of_the_mean_are_those_of_the_docstring(rate, temperature, mean):
    digits = 3 if temperature == 0.1 else 2
    assert round(exact_mean(rate, temperature), digits) == mean


def test_concrete_masks_are_nested_in_the_rate():
    """What is left of a unit, before the scale, falls as the rate rises."""
    rates = np.float32([0.0, 0.1, 0.3, 0.31, 0.7, 1.0])
    left = [concrete(rate) * (1 - rate) for rate in rates]
    for low, high in itertools.pairwise(left):
        assert (high <= low * (1 + 1e-6)).all()
        assert high.sum() < low.sum()


def test_concrete_at_its_ends_and_in_evaluation():
    for temperature in (1e-6, 0.1, 10.0):
        assert (concrete(0.0, temperature) == 1).all()
        assert (concrete(1.0, temperature) == 0).all()
    assert Concrete(0.5).expected() is None
    assert (Concrete(0.5).per, Concrete(0.5).temperature) == ("sequence", 0.1)


def concrete_total(rate, temperature, numbers):
    return Concrete(rate, temperature=temperature).mask(numbers).sum()


slopes_of_concrete = jax.jit(jax.grad(concrete_total, argnums=(0, 1)))


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_concrete_gradients_are_those_of_its_formula(rate, temperature):
    """Of each unit by central differences of the formula in float64."""
    numbers = uniforms((20, 1, 5))
    actual = slopes_of_concrete(rate, temperature, jnp.asarray(numbers))

    def slope(function, at, step=1e-6):
        return (function(at + step * at) - function(at - step * at)) / (2 * step * at)

    def total(rate, temperature):
        return reference.concrete(np.float64(numbers), rate, temperature).sum()

    in_rate = slope(lambda value: total(value, temperature), rate)
    in_temperature = slope(lambda value: total(rate, value), temperature)
    np.testing.assert_allclose(actual, (in_rate, in_temperature), rtol=1e-4)
    assert all(actual)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 2.0])
def test_concrete_gradients_are_finite_everywhere_and_zero_at_the_ends(temperature):
    numbers = jnp.asarray([[EXTREMES]])
    for rate in (0.0, 1e-45, 1e-38, 1e-30, 1e-7, 0.5, 1 - 6e-8, 1.0):
        gradients = slopes_of_concrete(rate, temperature, numbers)
        assert np.isfinite(gradients).all(), rate
        assert rate not in (0, 1) or not any(gradients)


def test_rate_of_concrete_that_is_no_number_shows():
    assert np.isnan(Concrete(jnp.float32(math.nan)).draw(KEY, (3, 1, 4))).all()


def test_temperature_is_data_one_a_unit_or_a_schedule():
    temperatures = jnp.asarray([0.05, 0.1, 0.7, 2.0], jnp.float32)
    program = jax.jit(lambda noise: noise.draw(KEY, (3, 1, 4)))
    masks = [program(Concrete(0.4, temperature=value)) for value in temperatures]
    assert program._cache_size() == 1
    mixed = program(Concrete(0.4, temperature=temperatures))
    expected = np.stack([mask[..., n] for n, mask in enumerate(masks)], axis=-1)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    falling = Concrete(0.4, temperature=optax.linear_schedule(0.7, 0.1, 4))
    assert jax.tree.leaves(falling) == [0.4]
    np.testing.assert_allclose(falling.at(2).temperature, 0.4, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`temperature` is a schedule.*`dropout.at"):
        falling.draw(KEY, (3, 1, 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("temperature", [0, -0.1, math.nan, np.array([0.1, 0.0])])
def test_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got "):
        Concrete(0.5, temperature=temperature)


@pytest.mark.usefixtures("unchecked")
def test_temperature_of_another_type_or_shape_is_refused():
    message = "`temperature` must be a number, an array or a schedule, got"
    with pytest.raises(TypeError, match=f"{message} '0.1'"):
        Concrete(0.5, temperature="0.1")
    with pytest.raises(ValueError, match=f"{message} None"):
        Concrete(0.5, temperature=None).draw(KEY, SHAPE)
    message = r"`temperature` must broadcast to the mask's axes .*, got shape \(7,\)"
    with pytest.raises(ValueError, match=message):
        Concrete(0.5, temperature=jnp.ones(7)).draw(KEY, SHAPE)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_zoneout_keeps_the_old_value_with_its_rate(rate):
    share = np.asarray(Zoneout(rate).draw(KEY, SHAPE).share)
    assert set(np.unique(share)) == {0, 1}
    assert_frequency((share == 1).sum(), share.size, rate)
    np.testing.assert_array_equal(share == 1, draw(rate) == 0)


def test_zoneout_at_its_ends_and_in_evaluation():
    assert not Zoneout(0.0).draw(KEY, SHAPE).share.any()
    assert Zoneout(1.0).draw(KEY, SHAPE).share.all()
    expected = Zoneout(0.25).expected()
    assert isinstance(expected, Mix)
    assert expected.share == 0.25
    assert (Zoneout(0.5).per, Bernoulli(0.5).per) == ("step", "sequence")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropconnect_drops_weights_with_its_rate(rate):
    mask = np.float64(DropConnect(rate).draw(KEY, SHAPE))
    assert_frequency((mask == 0).sum(), mask.size, rate)
    assert set(np.unique(mask)) == {0, np.float32(1) / (1 - np.float32(rate))}
    assert abs(mask.mean() - 1) <= 5 * math.sqrt(rate / (1 - rate) / mask.size)
    assert DropConnect(rate).expected() is None


def test_dropconnect_by_row_gives_the_rows_one_mask():
    assert DropConnect(0.5).shape(6, 4, 3) == (6, 4, 3)
    assert DropConnect(0.5, by="row").shape(6, 4, 3) == (1, 4, 3)


DRIFTING = (3, 2, 5)


@pytest.fixture(scope="module")
def drifting():
    """Masks of 60 steps from one program for every drift, and that program."""

    @jax.jit
    def masks(drift, step=0):
        kinds = (Bernoulli, Gaussian, Concrete, Zoneout)
        noises = [kind(0.4, per="step", drift=drift) for kind in kinds]
        return [draw_steps(noise, KEY, DRIFTING, step, 60) for noise in noises]

    return masks


@pytest.mark.slow
@pytest.mark.parametrize(("drift", "per"), [(0.0, "sequence"), (1.0, "step")])
def test_drift_runs_from_a_held_mask_to_one_a_step(drifting, drift, per):
    kinds = (Bernoulli, Gaussian, Concrete, Zoneout)
    for kind, mask in zip(kinds, drifting(drift), strict=True):
        (actual,) = jax.tree.leaves(mask)
        held = draw_steps(kind(0.4, per=per), KEY, DRIFTING, 0, 60)
        (expected,) = jax.tree.leaves(held)
        np.testing.assert_array_equal(actual, jnp.broadcast_to(expected, actual.shape))


def test_one_program_serves_every_drift(drifting):
    for drift in (0.0, 0.3, 1.0):
        drifting(drift)
    assert drifting._cache_size() == 1


@pytest.mark.parametrize("drift", [0.1, 0.5, 0.9])
def test_a_number_is_drawn_anew_with_the_probability_of_drift(drifting, drift):
    """Normal numbers do not agree by chance, so that a change is a redraw."""
    bernoulli, gaussian, *_ = map(np.asarray, map(jax.tree.leaves, drifting(drift)))
    redrawn = gaussian[0][1:] != gaussian[0][:-1]
    assert_frequency(redrawn.sum(), redrawn.size, drift)
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        for count in redrawn.sum(axes):
            assert_frequency(count, redrawn.size // redrawn.sum(axes).size, drift)
    assert set(np.unique(bernoulli)) == set(np.unique(draw(0.4)))


@pytest.mark.parametrize("drift", [0.0, 0.3, 1.0])
def test_drifting_masks_are_those_of_each_step_and_of_later_chunks(drifting, drift):
    masks = drifting(drift)
    for later, mask in zip(drifting(drift, 50), masks, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a[:10], b[50:]), later, mask
        )
    noise = Bernoulli(0.4, per="step", drift=drift)
    step = jax.jit(lambda noise, t: draw_step(noise, KEY, DRIFTING, t))
    for t in (0, 1, 59):
        np.testing.assert_array_equal(step(noise, t), masks[0][t])


@pytest.mark.usefixtures("unchecked")
def test_drift_of_a_held_mask_and_outside_the_unit_interval_is_refused():
    message = '`drift` must be None unless per="step", got 0.5 with per="sequence"'
    with pytest.raises(ValueError, match=message):
        Bernoulli(0.5, drift=0.5)
    with pytest.raises(ValueError, match=r"`drift` must lie in \[0, 1\], got 1.5"):
        Bernoulli(0.5, per="step", drift=1.5)
    noise = Bernoulli(0.5, per="step", drift=jnp.zeros(7))
    message = r"`drift` must broadcast to the mask's axes \(3, 2, 5\), got shape \(7,\)"
    with pytest.raises(ValueError, match=message):
        draw_step(noise, KEY, DRIFTING, 0)


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
    for kind in KINDS:
        for rate in ("0.5", [0.5], (0.1, 0.2)):
            with pytest.raises(TypeError) as error:
                kind(rate)
            message = f"`rate` must be a number, an array or a schedule, got {rate!r}."
            assert str(error.value) == message


def test_no_rate_is_refused():
    message = "`rate` must be a number, an array or a schedule, got None"
    with pytest.raises(ValueError, match=message):
        Bernoulli(None).draw(KEY, SHAPE)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (7, 1, 1), (1, 1, 1, 1), (50, 4, 7)])
def test_rate_array_that_does_not_broadcast_is_refused(shape):
    message = r"`rate` must broadcast to the mask's axes \(50, 4, 100\), got shape \("
    with pytest.raises(ValueError, match=message + str(shape[0])):
        draw(jnp.zeros(shape))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", ["per", "gates", "batch", "units", "scale"])
def test_unknown_option_is_refused(option):
    message = rf"`{option}` must be one of \('\w+', '\w+'\), got 'often'"
    with pytest.raises(ValueError, match=message):
        Bernoulli(0.5, **{option: "often"})


@pytest.mark.usefixtures("unchecked")
def test_unknown_option_of_dropconnect_is_refused():
    message = r"`by` must be one of \('weight', 'row'\), got 'often'"
    with pytest.raises(ValueError, match=message):
        DropConnect(0.5, by="often")
