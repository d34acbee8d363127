"""Masks of each kind: values, frequencies, means, gradients, and rates out of range."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from helpers import assert_frequency, traced_once

from rdrop import Bernoulli, Concrete, DropConnect, Gaussian, Mix, Zoneout
from rdrop.noise import KINDS_BY_NAME, Drift

KEY = jax.random.key(0)
SHAPE = (50, 4, 100)
SMALL = (3, 1, 4)
KINDS = tuple(KINDS_BY_NAME.values())
NAMED = tuple(KINDS_BY_NAME.items())
RATES = np.float32([0.0, 0.1, 0.25, 0.3, 0.31, 0.5, 0.9, 1.0])
INNER = np.float32([0.1, 0.5, 0.9])
EXTREMES = np.float32([0, 2**-23, 0.5, 1 - 2**-23])  # the least and the greatest drawn
OUT_OF_RANGE = (math.nan, -0.2, 1.5)


@pytest.fixture(scope="module")
def drawn():
    """Masks of each kind at each of `RATES`, all from one key and one program."""

    def masks(rate):
        noises = {
            "bernoulli": Bernoulli(rate),
            "expectation": Bernoulli(rate, scale="expectation"),
            "gaussian": Gaussian(rate),
            "concrete": Concrete(rate),
            "cold": Concrete(rate, temperature=1e-6),
            "zoneout": Zoneout(rate),
            "dropconnect": DropConnect(rate),
        }
        drawn = {name: noise.draw(KEY, SHAPE) for name, noise in noises.items()}
        return drawn | {"zoneout": drawn["zoneout"].share}

    masks = jax.tree.map(np.asarray, jax.jit(jax.vmap(masks))(jnp.asarray(RATES)))
    return {name: dict(zip(RATES, mask, strict=True)) for name, mask in masks.items()}


@pytest.fixture(scope="module")
def small():
    """A program that draws small masks of each kind at a traced rate."""
    return traced_once(
        lambda rate: {
            "expectation": Bernoulli(rate, scale="expectation").draw(KEY, SMALL),
            **{name: kind(rate).draw(KEY, SMALL) for name, kind in NAMED},
        }
    )


@pytest.fixture(scope="module")
def uniforms():
    return np.asarray(Concrete(0.5).variate(KEY, (10, 4, 25)))


def assert_drops(mask, rate):
    """The frequency of zeros is the rate, in all and along each axis."""
    dropped = mask == 0
    assert_frequency(dropped.sum(), dropped.size, rate)
    for axes in ((1, 2), (0, 2), (0, 1)):
        counts = dropped.sum(axes)
        for count in counts:
            assert_frequency(count, dropped.size // counts.size, rate)


@pytest.mark.parametrize("rate", INNER)
def test_inverted_masks_have_their_support_frequency_and_mean(drawn, rate):
    for kind in ("bernoulli", "dropconnect"):
        mask = drawn[kind][rate]
        assert_drops(mask, rate)
        assert set(np.unique(mask)) == {0, np.float32(1) / (1 - rate)}
        standard_error = math.sqrt(rate / (1 - rate) / mask.size)
        assert abs(np.float64(mask).mean() - 1) <= 5 * standard_error


@pytest.mark.parametrize("rate", INNER)
def test_kinds_of_one_key_drop_the_same_units(drawn, rate):
    dropped = drawn["bernoulli"][rate] == 0
    np.testing.assert_array_equal(drawn["expectation"][rate], ~dropped)
    np.testing.assert_array_equal(drawn["zoneout"][rate], dropped)
    np.testing.assert_array_equal(drawn["cold"][rate] == 0, dropped)
    np.testing.assert_array_equal(drawn["concrete"][rate] * (1 - rate) < 0.5, dropped)
    np.testing.assert_allclose(drawn["cold"][rate], drawn["bernoulli"][rate], 1e-6)


def test_masks_are_nested_in_the_rate(drawn):
    dropped = [mask == 0 for mask in drawn["bernoulli"].values()]
    for low, high in itertools.pairwise(dropped):
        assert not (low & ~high).any()
        assert high.sum() > low.sum()


def test_concrete_masks_fall_with_the_rate(drawn):
    """Before the scale 1 / (1 - rate), for each unit."""
    left = [mask * (1 - rate) for rate, mask in drawn["concrete"].items()]
    for low, high in itertools.pairwise(left):
        assert (high <= low * (1 + 1e-6)).all()
        assert high.sum() < low.sum()


def test_rate_zero_keeps_all_and_rate_one_drops_all(drawn):
    for kind in ("bernoulli", "expectation", "concrete", "cold", "dropconnect"):
        assert (drawn[kind][0] == 1).all()
        assert (drawn[kind][1] == 0).all()
    assert (drawn["gaussian"][0] == 1).all()
    assert (drawn["zoneout"][0] == 0).all()
    assert (drawn["zoneout"][1] == 1).all()


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_unit_whose_number_is_the_rate_is_kept(rate):
    number = jnp.full((1, 1, 1), rate, jnp.float32)
    for kind in (Bernoulli, DropConnect):
        assert kind(rate).mask(number) == 1 / (1 - rate)
    assert Zoneout(rate).mask(number).share == 0


@pytest.mark.parametrize("rate", INNER)
def test_gaussian_has_mean_one_and_the_variance_of_an_inverted_mask(drawn, rate):
    mask = np.float64(drawn["gaussian"][rate])
    variance = rate / (1 - rate)
    assert abs(mask.mean() - 1) <= 5 * math.sqrt(variance / mask.size)
    sd_of_variance = variance * math.sqrt(2 / (mask.size - 1))
    assert abs(mask.var(ddof=1) - variance) <= 5 * sd_of_variance
    assert_frequency((mask > 1).sum(), mask.size, 0.5)
    numbers = (mask - 1) / math.sqrt(variance)
    np.testing.assert_allclose(
        numbers, drawn["gaussian"][np.float32(0.5)] - 1, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("rate", INNER)
def test_concrete_is_near_zero_as_often_as_its_formula_says(drawn, rate):
    """drop > 0.99 if the logistic number of u exceeds a bound."""
    near_zero = drawn["concrete"][rate] * (1 - rate) < 0.01
    logit = math.log(rate / (1 - rate)) - 0.1 * math.log(99)
    assert_frequency(near_zero.sum(), near_zero.size, 1 / (1 + math.exp(-logit)))


def test_options_share_axes_and_evaluation_has_its_mask():
    assert Bernoulli(0.5).shape(5, 4, 3) == (5, 1, 3)
    assert Bernoulli(0.5, gates="each").shape(5, 4, 3) == (5, 4, 3)
    assert Bernoulli(0.5, batch="shared").shape(5, 4, 3) == (1, 1, 3)
    assert Bernoulli(0.5, units="shared").shape(5, 4, 3) == (5, 1, 1)
    assert DropConnect(0.5).shape(6, 4, 3) == (6, 4, 3)
    assert DropConnect(0.5, by="row").shape(6, 4, 3) == (1, 4, 3)
    assert (Zoneout(0.5).per, Bernoulli(0.5).per) == ("step", "sequence")
    for kind in (Bernoulli, Gaussian, Concrete, DropConnect):
        assert kind(0.3).expected() is None
    factor = Bernoulli(0.25, scale="expectation").expected()
    chex.assert_trees_all_equal(factor, np.full((1, 1, 1), 0.75, np.float32))
    mix = Mix(np.full((1, 1, 1), 0.25, np.float32))
    chex.assert_trees_all_equal(Zoneout(0.25).expected(), mix)


def test_one_program_serves_every_rate_and_vmap_is_the_loop(small):
    rates = jnp.asarray([0.0, 0.2, 0.7, 1.0], jnp.float32)
    looped = jax.tree.map(lambda *m: np.stack(m), *[small(rate) for rate in rates])
    draws = jax.vmap(lambda rate: [kind(rate).draw(KEY, SMALL) for kind in KINDS])
    expected = [looped[name] for name in KINDS_BY_NAME]
    chex.assert_trees_all_equal(jax.jit(draws)(rates), expected)
    for name in ("bernoulli", "concrete"):
        eager = KINDS_BY_NAME[name](0.2).draw(KEY, SMALL)
        chex.assert_trees_all_equal(eager, small(rates[1])[name])


def test_rates_of_any_dtype_and_shape_draw_the_same_numbers(drawn):
    rates = np.float32([0.25, 0.9])
    low, high = drawn["bernoulli"][rates[0]], drawn["bernoulli"][rates[1]]
    for dtype in (jnp.bfloat16, jnp.float64):
        draw = jax.jit(lambda rate: Bernoulli(rate).draw(KEY, SHAPE))
        mask = draw(jnp.asarray(0.25, dtype))
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, low)
    shapes = ((100,), (4, 1), (50, 1, 1), (1, 4, 100))
    arrays = [np.resize(rates, shape) for shape in shapes]
    masks = jax.jit(lambda: [Bernoulli(rate).draw(KEY, SHAPE) for rate in arrays])()
    for rate, mask in zip(arrays, masks, strict=True):
        np.testing.assert_array_equal(mask, np.where(rate == rates[0], low, high))


# Gradients


NUMBERS = jnp.linspace(0, 0.99, 12, dtype=jnp.float32).reshape(SMALL)


def total(noise):
    return jax.tree.leaves(noise.mask(NUMBERS))[0].sum()


def test_masks_that_drop_have_no_gradient_in_the_rate():
    def sums(rate):
        noises = (Bernoulli(rate, scale="expectation"), Zoneout(rate))
        return [total(noise) for noise in (*noises, Bernoulli(rate), DropConnect(rate))]

    slopes = jax.jit(jax.jacrev(sums))
    for rate in (0.0, 0.5, 1.0):
        assert not any(slopes(jnp.float32(rate)))


def test_gaussian_gradient_in_the_rate_follows_its_formula():
    gradient = jax.jit(jax.grad(lambda rate: total(Gaussian(rate))))
    assert gradient(0.0) == 0
    for rate in (1e-6, 0.2, 0.9):
        slope = 0.5 / math.sqrt(rate / (1 - rate)) / (1 - rate) ** 2
        np.testing.assert_allclose(gradient(rate), NUMBERS.sum() * slope, rtol=1e-5)


def concrete_total(rate, temperature, numbers):
    return Concrete(rate, temperature=temperature).mask(numbers).sum()


concrete_slopes = jax.jit(jax.grad(concrete_total, argnums=(0, 1)))


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_concrete_gradients_follow_its_formula(uniforms, temperature):
    """Central differences of the formula in float64."""
    numbers = uniforms[:2]

    def slope(function, at, step=1e-6):
        return (function(at + step * at) - function(at - step * at)) / (2 * step * at)

    def of(rate, temperature):
        return reference.concrete(np.float64(numbers), rate, temperature).sum()

    for rate in (0.01, 0.2, 0.5, 0.9):
        actual = concrete_slopes(rate, temperature, jnp.asarray(numbers))
        in_rate = slope(lambda value: of(value, temperature), rate)
        in_temperature = slope(lambda value: of(rate, value), temperature)  # noqa: B023
        np.testing.assert_allclose(actual, (in_rate, in_temperature), rtol=1e-4)
        assert all(actual)


def test_concrete_gradients_are_finite_everywhere_and_zero_at_the_ends():
    numbers = jnp.asarray([[EXTREMES]])
    for temperature in (0.01, 0.1, 2.0):
        for rate in (0.0, 1e-45, 1e-38, 1e-30, 1e-7, 0.5, 1 - 6e-8, 1.0):
            gradients = concrete_slopes(rate, temperature, numbers)
            chex.assert_tree_all_finite(gradients)
            assert rate not in (0, 1) or not any(gradients)


# The formula of Concrete


def test_concrete_mask_follows_its_formula(uniforms):
    numbers = np.append(EXTREMES, uniforms)
    for temperature in np.float32([0.02, 0.1, 0.7, 2.0]):
        for rate in np.float32([0.0, 1e-3, 0.1, 0.5, 0.99, 1.0]):
            noise = Concrete(rate, temperature=temperature)
            actual = noise.mask(jnp.asarray(numbers)[None, None])[0, 0]
            assert actual.dtype == np.float32
            expected = reference.concrete(
                np.float64(numbers), float(rate), float(temperature)
            )
            # Logits have an error of a few 1e-7, which the temperature divides.
            tolerance = 2e-6 + 1e-6 / temperature
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-7)


def exact_mean(rate, temperature, cells=50_000):
    numbers = (np.arange(cells) + 0.5) / cells
    return reference.concrete(numbers, float(rate), temperature).mean()


@pytest.mark.parametrize("rate", INNER)
def test_concrete_mean_has_the_bias_of_its_docstring(drawn, rate):
    exact = exact_mean(rate, 0.1)
    bias = rate * (1 - 2 * rate) * (math.pi * 0.1) ** 2 / 6
    np.testing.assert_allclose(exact, 1 - bias, atol=2e-4)
    mask = np.float64(drawn["concrete"][rate])
    assert abs(mask.mean() - exact) <= 5 * mask.std() / math.sqrt(mask.size)


@pytest.mark.parametrize(
    ("rate", "temperature", "mean"),
    [(0.25, 0.1, 0.998), (0.9999, 0.1, 1.017), (0.25, 0.5, 0.96), (0.9999, 0.5, 1.57)],
)
def test_extreme_means_of_concrete_are_as_its_docstring_says(rate, temperature, mean):
    digits = 3 if temperature == 0.1 else 2
    assert round(exact_mean(rate, temperature, 200_000), digits) == mean


def test_temperature_is_data_per_unit_or_a_schedule():
    temperatures = jnp.asarray([0.05, 0.1, 0.7, 2.0], jnp.float32)
    program = jax.jit(lambda noise: noise.mask(NUMBERS))
    masks = [program(Concrete(0.4, temperature=value)) for value in temperatures]
    mixed = program(Concrete(0.4, temperature=temperatures))
    expected = np.stack([mask[..., n] for n, mask in enumerate(masks)], axis=-1)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    falling = Concrete(0.4, temperature=optax.linear_schedule(0.7, 0.1, 4))
    assert jax.tree.leaves(falling) == [0.4]
    np.testing.assert_allclose(falling.at(2).temperature, 0.4, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`temperature` is a schedule.*`dropout.at"):
        falling.mask(NUMBERS)


# Rates out of range


def test_traced_rates_out_of_range_make_every_kind_nan(small):
    for rate in OUT_OF_RANGE:
        for mask in jax.tree.leaves(small(jnp.float32(rate))):
            assert np.isnan(mask).all()
    assert np.isnan(small(jnp.float32(1))["gaussian"]).all()


def test_only_the_units_of_a_rate_out_of_range_are_nan():
    rates = jnp.asarray([0.5, math.nan, 0.0, -1.0], jnp.float32)

    @jax.jit
    def masks(rate):
        factor = Bernoulli(rate, scale="expectation")
        return (
            Bernoulli(rate).mask(NUMBERS),
            Zoneout(rate).expected(),
            factor.expected(),
        )

    for mask in jax.tree.leaves(masks(rates)):
        np.testing.assert_array_equal(np.isnan(mask[0, 0]), [False, True, False, True])


def test_traced_temperatures_out_of_range_make_masks_nan():
    concrete = jax.jit(lambda value: Concrete(0.5, temperature=value).mask(NUMBERS))
    for temperature in (math.nan, 0.0, -0.1):
        assert np.isnan(concrete(jnp.float32(temperature))).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [*KINDS, Drift])
def test_known_rates_out_of_range_are_rejected(kind):
    """Numbers of Python and NumPy, and arrays on a device."""
    name = "probability" if kind is Drift else "rate"
    message = rf"`{name}` must lie in \[0, 1\], got "
    for rate in (*OUT_OF_RANGE, 2, -1, math.inf):
        for make in (float, np.float32, jnp.float32, lambda r: np.array([0.5, r])):
            with pytest.raises(ValueError, match=message):
                kind(make(rate))
    with pytest.raises(ValueError, match=message):
        kind(0.5).replace(**{name: jnp.float32(1.5)})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rate", [1, 1.0, jnp.float32(1), np.array([0.5, 1.0])])
def test_gaussian_at_rate_one_is_rejected(rate):
    with pytest.raises(ValueError, match=r"`rate` of Gaussian must lie in \[0, 1\), "):
        Gaussian(rate)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [0, -0.1, math.nan, np.array([0.1, 0]), jnp.zeros(2)])
def test_temperature_that_is_not_positive_is_rejected(value):
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got "):
        Concrete(0.5, temperature=value)


@pytest.mark.usefixtures("unchecked")
def test_text_and_lists_are_rejected():
    for kind, name in (*((kind, "rate") for kind in KINDS), (Drift, "probability")):
        for rate in ("0.5", [0.5], (0.1, 0.2)):
            with pytest.raises(TypeError) as error:
                kind(rate)
            message = (
                f"`{name}` must be a number, an array or a schedule, got {rate!r}."
            )
            assert str(error.value) == message
    with pytest.raises(TypeError, match=r"`temperature` must be a .* got '0.1'"):
        Concrete(0.5, temperature="0.1")


def test_missing_numbers_are_rejected():
    message = "` must be a number, an array or a schedule, got None"
    for noise in (Bernoulli(None), Concrete(0.5, temperature=None)):
        with pytest.raises(ValueError, match=message):
            noise.draw(KEY, SHAPE)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (7, 1, 1), (1, 1, 1, 1), (50, 4, 7)])
def test_arrays_that_do_not_broadcast_are_rejected(shape):
    zeros = jnp.zeros(shape)
    for noise, name in (
        (Bernoulli(zeros), "rate"),
        (Concrete(0.5, temperature=zeros + 1), "temperature"),
        (Gaussian(0.5, per=Drift(zeros)), "probability"),
    ):
        message = rf"`{name}` must broadcast to the mask's axes \(50, 4, 100\), got "
        with pytest.raises(ValueError, match=message + rf"shape \({shape[0]}"):
            noise.draw(KEY, SHAPE)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "option", "words"),
    [
        (Bernoulli, "per", '"sequence" or "step" or a Drift or a Block'),
        (Bernoulli, "gates", '"shared" or "each"'),
        (Bernoulli, "batch", '"each" or "shared"'),
        (Bernoulli, "units", '"each" or "shared"'),
        (Bernoulli, "scale", '"inverted" or "expectation"'),
        (DropConnect, "by", '"weight" or "row"'),
    ],
)
def test_unknown_options_are_rejected(kind, option, words):
    for value, got in (("often", "'often'"), (0.5, "0.5"), (Drift, "<class .*Drift'>")):
        with pytest.raises(ValueError, match=f"`{option}` must be {words}, got {got}"):
            kind(0.5, **{option: value})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("drift", r"Hint: masks that drift slowly have per=rdrop\.Drift"),
        ("rat", r"Did you mean `rate`\?"),
    ],
)
def test_unknown_options_are_named(name, hint):
    with pytest.raises(
        TypeError, match=rf"Bernoulli has no argument `{name}`.* {hint}"
    ):
        Bernoulli(0.5, **{name: 0.1})
