"""Rates are data, every knob is live, nothing explodes, one key gives the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rdrop
from rdrop import Bernoulli, Dropout

SITES = ("inputs", "outputs", "recurrent", "update")


def assert_equal(actual, expected):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(actual, expected):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def step(problem, dropout, keys=None):
    """One step of the cell."""
    arguments = (problem.carry, problem.xs[:, 0])
    return problem.cell.apply(problem.params, *arguments, dropout, keys)


def unroll(problem, dropout=None, keys=None):
    """The whole sequence."""
    return rdrop.RNN(problem.cell).apply(problem.params, problem.xs, dropout, keys)


def train(problem, dropout, keys):
    """The whole sequence, and one step of gradient descent on it."""

    def loss(params):
        carry, ys = unroll(problem._replace(params=params), dropout, keys)
        return (ys**2).mean(), (carry, ys)

    gradients, results = jax.grad(loss, has_aux=True)(problem.params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, problem.params, gradients)
    return results, params


def draw(problem, dropout, keys):
    return rdrop.draw(dropout, keys, problem.sites, 4, 5)


@pytest.mark.parametrize("run", [draw, step, train])
def test_one_program_serves_every_rate_and_vmap_is_the_loop(problem, every_site, run):
    """Rates 0 and 1 as well: finite values and gradients, also where traced."""
    dropout = every_site(0.5, per="step", gates="each")
    program = jax.jit(lambda dropout: run(problem, dropout, problem.keys))

    def at(rate):
        return jax.tree.map(lambda _: rate, dropout)

    rates = [0.0, 0.2, 0.5, 1.0]
    looped = [program(at(rate)) for rate in rates]
    assert program._cache_size() == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(looped))
    mapped = jax.vmap(program)(at(jnp.asarray(rates, jnp.float32)))
    compare = assert_equal if run is draw else assert_close
    compare(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped))


def test_one_program_serves_every_array_of_rates(problem):
    program = jax.jit(lambda dropout: unroll(problem, dropout, problem.keys))
    for rates in ([0.1, 0.2, 0.3], [0.9, 0.0, 1.0]):
        program(Dropout(recurrent=Bernoulli(jnp.asarray(rates))))
    assert program._cache_size() == 1


@pytest.mark.parametrize("run", [step, unroll])
@pytest.mark.parametrize("gates", ["shared", "each"])
def test_rate_zero_is_bitwise_no_noise(rng, problem, every_site, run, gates):
    """At a size where another order of summation would show."""
    cell = rdrop.LSTMCell(64)
    xs = jnp.asarray(rng.normal(size=(4, 5, 12)), jnp.float32)
    carry = cell.initialize_carry(jax.random.key(0), (4, 12))
    params = cell.init(jax.random.key(0), carry, xs[:, 0])
    problem = problem._replace(cell=cell, params=params, xs=xs, carry=carry)
    actual = run(problem, every_site(0.0, gates=gates), problem.keys)
    assert_equal(actual, run(problem, Dropout()))


def test_empty_dropout_is_no_dropout(problem):
    expected = unroll(problem)
    assert_equal(unroll(problem, Dropout()), expected)
    assert_equal(unroll(problem, Dropout(), problem.keys), expected)
    assert_equal(unroll(problem, rdrop.Masks()), expected)


def test_rate_one_cuts_what_the_site_multiplies(problem):
    def cut(site):
        return unroll(problem, Dropout(**{site: Bernoulli(1.0)}), problem.keys)

    deaf = problem._replace(xs=jnp.zeros_like(problem.xs))
    assert_equal(cut("inputs"), unroll(deaf))
    (_, h), ys = cut("outputs")
    assert not ys.any()
    assert h.all()
    (c, h), ys = cut("update")
    assert not any(leaf.any() for leaf in (c, h, ys))
    weights = dict(problem.params["params"])
    weights["recurrent_kernel"] = jnp.zeros_like(weights["recurrent_kernel"])
    assert_close(cut("recurrent"), unroll(problem._replace(params={"params": weights})))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_gradient_in_the_rates_is_zero(problem, every_site, rate):
    def loss(dropout):
        return unroll(problem, dropout, problem.keys)[1].sum()

    assert not any(jax.tree.leaves(jax.grad(loss)(every_site(rate))))


def test_a_schedule_trains_as_its_numbers_do(problem):
    ramp = Dropout(recurrent=Bernoulli(optax.linear_schedule(0.0, 0.8, 4)))
    program = jax.jit(
        lambda dropout, step: unroll(problem, dropout.at(step), problem.keys)
    )
    plain = jax.jit(lambda dropout: unroll(problem, dropout, problem.keys))
    for at, rate in ((0, 0.0), (2, 0.4), (3, 0.6)):
        expected = plain(Dropout(recurrent=Bernoulli(rate)))
        assert_close(program(ramp, at), expected)
    assert program._cache_size() == 1


NOISE = Bernoulli(0.5)
KNOBS = {  # a change of the noise, and the sites that it must be felt at
    "switched on": ({}, None, SITES),
    "rate": ({"rate": 0.9}, {}, SITES),
    "per": ({"per": "step"}, {}, SITES),
    "batch": ({"batch": "shared"}, {}, SITES),
    "scale": ({"scale": "expectation"}, {}, SITES),
    "gates": ({"gates": "each"}, {}, ("inputs", "recurrent")),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_live(problem, knob):
    change, base, sites = KNOBS[knob]
    before = None if base is None else NOISE
    for site in sites:
        outputs = [
            unroll(problem, Dropout(**{site: noise}), problem.keys)[1]
            for noise in (before, NOISE.replace(**change))
        ]
        assert (outputs[0] != outputs[1]).any(), site


def test_inverted_noise_does_not_change_evaluation(problem, every_site):
    assert_equal(unroll(problem, every_site(0.5, gates="each")), unroll(problem))


def test_expectation_scales_evaluation_by_its_factor(problem):
    """A factor on x or h is one on its kernel, and exact where a power of two."""
    weights = {
        "kernel": problem.params["params"]["kernel"] / 4,
        "recurrent_kernel": problem.params["params"]["recurrent_kernel"] / 4,
        "bias": problem.params["params"]["bias"],
    }
    noise = Bernoulli(0.75, scale="expectation")
    matrices = Dropout(inputs=noise, recurrent=noise)
    scaled = problem._replace(params={"params": weights})
    assert_equal(unroll(problem, matrices), unroll(scaled))
    carry, ys = unroll(problem)
    assert_equal(unroll(problem, Dropout(outputs=noise)), (carry, ys / 4))


def test_expectation_scales_the_candidate_by_its_factor(problem):
    empty = jax.tree.map(jnp.zeros_like, problem.carry)
    problem = problem._replace(carry=empty)
    noise = Bernoulli(0.75, scale="expectation")
    (c, _), _ = step(problem, Dropout(update=noise))
    (whole, _), _ = step(problem, Dropout())
    assert_equal(c, whole / 4)


@pytest.mark.parametrize("site", SITES)
def test_nothing_explodes_in_a_thousand_steps(problem, rng, site):
    xs = jnp.asarray(rng.normal(size=(2, 1000, 2)))
    noise = Dropout(**{site: Bernoulli(0.5, per="step")})
    (c, h), ys = unroll(problem._replace(xs=xs), noise, problem.keys)
    assert jnp.isfinite(c).all()
    assert (abs(h) <= 1).all()
    assert (abs(ys) <= (2 if site == "outputs" else 1)).all()


def test_same_key_same_bits_in_two_programs(problem):
    dropout = Dropout(recurrent=Bernoulli(0.5, per="step", gates="each"))
    first, second = (
        jax.jit(lambda keys: train(problem, dropout, keys))(problem.keys)
        for _ in range(2)
    )
    assert_equal(first, second)


def test_masks_are_the_same_eagerly_and_compiled(problem, every_site):
    dropout = every_site(0.5, gates="each")
    compiled = jax.jit(lambda keys: draw(problem, dropout, keys))(problem.keys)
    assert_equal(compiled, draw(problem, dropout, problem.keys))
