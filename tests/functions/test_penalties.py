"""Penalties are as the papers compute them; padding costs nothing."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import traced_once
from jax.test_util import check_grads

import rdrop

DTYPES = [jnp.bfloat16, jnp.float32, jnp.float64]


def is_wide(values):
    """Whether results for `DTYPES` are in float32 or wider."""
    return [v.dtype for v in values] == [jnp.float32, jnp.float32, jnp.float64]


# Activations.


def ar_and_tar(ys, lengths=None, **axes):
    return jnp.stack(
        [
            rdrop.activation_regulariser(ys, lengths, **axes),
            rdrop.temporal_activation_regulariser(ys, lengths, **axes),
        ]
    )


def test_activation_penalties_are_those_of_the_reference_in_both_layouts(rng):
    """Also if lengths are traced, and if no step or no change is valid."""
    ys = rng.normal(size=(4, 5, 3))
    cases = [[5, 3, 1, 0], [1, 1, 0, 1], [0] * 4]

    @jax.jit
    def run(ys, traced):
        batch_major = [ar_and_tar(ys), *(ar_and_tar(ys, case) for case in cases)]
        flipped, first = ys.swapaxes(0, 1), {"time_major": True}
        time_major = [ar_and_tar(flipped, **first)]
        time_major += [ar_and_tar(flipped, case, **first) for case in traced]
        return batch_major, time_major

    expected = [reference.activation_penalties(ys, each) for each in ([5] * 4, *cases)]
    for found in run(ys, np.array(cases)):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert expected[2][1] == expected[3][0] == 0


def test_narrow_lengths_do_not_overflow(rng):
    ys, lengths = rng.normal(size=(2, 300, 3)), [100, 50]

    known = [np.array(lengths, dtype) for dtype in (np.int8, np.uint8, np.int32)]

    @jax.jit
    def run(ys, traced):
        return [ar_and_tar(ys, each) for each in (*known, *traced)]

    expected = reference.activation_penalties(ys, lengths)
    for found in run(ys, known):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_activation_penalties_are_computed_in_float32_at_least(rng):
    ys = jnp.asarray(rng.normal(size=(4, 5, 3)))
    costs = jax.jit(lambda: [ar_and_tar(ys.astype(d), [5, 3, 1, 0]) for d in DTYPES])()
    assert is_wide(costs)
    np.testing.assert_allclose(costs[1], costs[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((4, 5), {}, r"`ys` must have the axes \[B, T, H\], got shape \(4, 5\)"),
        (
            (4, 5),
            {"time_major": True},
            r"`ys` must have the axes \[T, B, H\], got shape \(4, 5\)",
        ),
        (
            (4, 5, 3),
            {"lengths": [1] * 4, "time_major": True},
            r"`lengths` must be integers of shape \[B\] = \(5,\)",
        ),
        (
            (4, 5, 3),
            {"lengths": [6] * 4},
            r"`lengths` must lie in \[0, T = 5\], got \[6 6 6 6\]",
        ),
    ],
)
def test_wrong_arguments_of_activation_penalties_are_refused(shape, arguments, message):
    for penalty in (
        rdrop.activation_regulariser,
        rdrop.temporal_activation_regulariser,
    ):
        with pytest.raises(ValueError, match=message):
            penalty(jnp.zeros(shape), **arguments)


# The price of a learned rate.

COSTS = {"weight": 0.03, "dropout": 0.5}


def price(rate, kernel, weight=COSTS["weight"], dropout=COSTS["dropout"]):
    return rdrop.concrete_regulariser(rate, kernel, weight=weight, dropout=dropout)


@pytest.fixture
def kernel(rng):
    return rng.normal(size=(5, 8))


def test_price_is_that_of_the_paper_for_any_rate_in_one_program(kernel):
    """Value and gradients, the one in the rate by hand."""
    rates = [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6]

    @traced_once
    def program(rate, kernel):
        return jax.value_and_grad(price, argnums=(0, 1))(rate, kernel)

    looped = [program(rate, kernel) for rate in rates]
    for rate, (value, (in_rate, in_kernel)) in zip(rates, looped, strict=True):
        expected = reference.concrete_cost([rate] * 5, kernel, **COSTS)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        slope = 0.03 * (kernel**2).sum() / (1 - rate) ** 2
        slope += 0.5 * 5 * math.log(rate / (1 - rate))
        np.testing.assert_allclose(in_rate, slope, rtol=1e-6)
        np.testing.assert_allclose(in_kernel, 0.06 * kernel / (1 - rate), rtol=1e-12)
    mapped = jax.jit(jax.vmap(price, (0, None)))(jnp.array(rates), kernel)
    np.testing.assert_allclose(mapped, [value for value, _ in looped], rtol=1e-12)


def test_price_is_the_divergence_of_the_paper(kernel):
    """Equation 3, of masks of 0 and 1: the kernel there is this one over 1 - p."""
    rate, lengthscale, examples = 0.3, 0.7, 200
    outer = kernel / (1 - rate)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    divergence = lengthscale**2 * (1 - rate) / 2 * (outer**2).sum() - 5 * entropy
    weight, dropout = lengthscale**2 / (2 * examples), 1 / examples
    actual = jax.jit(price)(rate, kernel, weight, dropout)
    np.testing.assert_allclose(actual, divergence / examples, rtol=1e-12)


def test_price_takes_a_rate_per_input_unit(kernel):
    rates = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    shaped = [rates, rates.reshape(1, 1, 5), rates[:1], rates[0]]
    costs = jax.jit(lambda kernel: [price(rate, kernel) for rate in shaped])(kernel)
    expected = reference.concrete_cost(rates, kernel, **COSTS)
    np.testing.assert_allclose(costs[:2], expected, rtol=1e-12)
    np.testing.assert_allclose(costs[2], costs[3], rtol=1e-12)


@pytest.mark.parametrize(("end", "near"), [(0.0, 1e-7), (1.0, 1 - 1e-7)])
def test_price_at_an_end_is_that_of_the_nearest_rate(kernel, end, near):
    """Finite, and with a gradient that leads away from the end."""
    kernels = [jnp.asarray(kernel).astype(dtype) for dtype in DTYPES]
    program = jax.jit(lambda *all_: [jax.value_and_grad(price)(end, k) for k in all_])
    values, slopes = zip(*program(*kernels), strict=True)
    assert is_wide(values)
    assert (np.array(slopes) * (end - 0.5) > 0).all()
    chex.assert_tree_all_finite(slopes)
    for value, kernel in zip(values, kernels, strict=True):
        nearest = float(np.asarray(near, value.dtype))
        expected = reference.concrete_cost([nearest] * 5, np.float64(kernel), **COSTS)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_a_learned_rate_without_a_kernel_settles_at_the_largest_entropy():
    slope = jax.grad(lambda logit: price(jax.nn.sigmoid(logit), jnp.zeros((5, 8))))
    learn = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: x - slope(x), x))
    np.testing.assert_allclose(jax.nn.sigmoid(learn(-4.0)), 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1.5}, r"`rate` must lie in \[0, 1\], got 1.5"),
        (
            {"rate": np.zeros(7)},
            r"`rate` must be one number, or .* of shape \[5\], got shape \(7,\)",
        ),
        ({"weight": -1.0}, r"`weight` must be 0 or more, got -1.0"),
        ({"weight": np.float32("nan")}, r"`weight` must be 0 or more, got nan"),
        ({"dropout": -0.5}, r"`dropout` must be 0 or more, got -0.5"),
        ({"dropout": np.ones(2)}, r"`dropout` must be a single .* got shape \(2,\)"),
    ],
)
def test_wrong_arguments_of_the_price_are_refused(change, message):
    arguments = {"rate": 0.5, "kernel": jnp.ones((5, 8)), **COSTS} | change
    with pytest.raises(ValueError, match=message):
        rdrop.concrete_regulariser(**arguments)


# Two passes.

PENALTIES = {
    rdrop.fraternal: reference.fraternal,
    rdrop.r_drop: reference.r_drop,
}
every_penalty = pytest.mark.parametrize("penalty", PENALTIES)


@pytest.fixture
def passes(rng):
    return tuple(3 * rng.normal(size=(2, 4, 5, 3)))


@pytest.fixture
def weights():
    """Of sequences of 5, 3, 1 and no steps."""
    return np.arange(5)[None] < np.array([5, 3, 1, 0])[:, None]


@every_penalty
def test_penalty_is_that_of_the_paper(passes, weights, rng, penalty):
    """With equal weights; at padding; relative to their sum; of nothing."""
    smooth = rng.random((4, 5))
    many = [None, weights, weights * 1, weights * 1.0, smooth, 7 * smooth, 0 * smooth]

    @jax.jit
    def run(passes, many):
        cost = jax.value_and_grad(penalty, argnums=(0, 1))
        return [cost(*passes, each) for each in many]

    found = jax.device_get(run(passes, many))
    flat = [z.reshape(-1, 3) for z in passes]
    for (value, gradients), each in zip(found[:-1], many[:-1], strict=True):
        w = np.ones(20) if each is None else np.ravel(each)
        np.testing.assert_allclose(value, PENALTIES[penalty](*flat, w), rtol=1e-12)
        for gradient in gradients:
            assert ((gradient != 0).reshape(20, 3).all(axis=1) == (w != 0)).all()
    value, gradients = found[-1]
    assert value == 0
    assert not np.any(gradients)


@every_penalty
def test_gradients_are_those_of_differences(passes, weights, penalty):
    """Into both passes, and once more."""
    cost = jax.jit(lambda *passes: penalty(*passes, jnp.asarray(weights)))
    check_grads(cost, passes, 2, ["rev"], rtol=1e-6)


@every_penalty
def test_penalty_is_symmetric_positive_and_zero_for_equal_passes(passes, penalty):
    program = jax.jit(jax.value_and_grad(penalty))
    first, second = passes
    (one, _), (other, _), (none, gradient) = (
        program(*pair) for pair in ((first, second), (second, first), (first, first))
    )
    assert one == other > 0
    assert none == 0
    assert not np.any(gradient)


@every_penalty
def test_penalty_is_computed_in_float32_at_least(passes, penalty):
    @jax.jit
    def run(*passes):
        narrow = [[z.astype(dtype) for z in passes] for dtype in DTYPES]
        exact = [[z.astype(jnp.float64) for z in pair] for pair in narrow]
        return [[penalty(*pair) for pair in pairs] for pairs in (narrow, exact)]

    values, exact = run(*passes)
    assert is_wide(values)
    np.testing.assert_allclose(values, exact, rtol=1e-5)


def test_r_drop_is_finite_without_overlap_and_precise_nearby():
    """To second order it is half the variance of the difference of the logits."""
    program = jax.jit(jax.value_and_grad(rdrop.r_drop))
    value, gradient = program(*np.float32([[[500, 0, 0, 0]], [[0, 500, 0, 0]]]))
    assert value == 500
    chex.assert_tree_all_finite(gradient)
    near = np.float32([[1e-4, -1e-4, 1e-4, -1e-4]])
    np.testing.assert_allclose(program(0 * near, near)[0], 1e-8 / 2, rtol=1e-3)


@every_penalty
def test_penalty_maps_as_its_loop(passes, penalty):
    program = traced_once(penalty)
    looped = [program(*pair) for pair in zip(*passes, strict=True)]
    mapped = jax.jit(jax.vmap(penalty))(*passes)
    np.testing.assert_allclose(mapped, looped, rtol=1e-12)


@every_penalty
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_fit_are_refused(passes, weights, penalty):
    first, second = passes
    with pytest.raises(ValueError, match=r"`second` must have .* got \(4, 5, 2\)"):
        penalty(first, second[..., :2])
    with pytest.raises(ValueError, match=r"`weights` must have .* got \(4,\)"):
        penalty(first, second, weights[:, 0])
