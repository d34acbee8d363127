"""Gradients through the fast loops: in rates and masks, second derivatives.

Gradients in masks, parameters, inputs and carry are compared in test_fused.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import (
    assert_all_matter,
    assert_close,
    quickly,
    random_like,
    stack_trees,
    traced_once,
)
from loop_cases import (
    BATCH,
    CELLS,
    FAST,
    FEATURES,
    KEYS,
    LENGTHS,
    LOOPS,
    TIME,
    loss_of,
    noisy_loss,
    problem_of,
    step,
)

import rdrop
from rdrop import Concrete, Dropout, Gaussian

NORMAL = Dropout(recurrent=Gaussian(0.4), hidden_state=Gaussian(0.1, **step))
MIXTURE = NORMAL.replace(recurrent=Concrete(0.4, gates="each"))


@pytest.mark.parametrize(
    ("name", "noise"),
    quickly(
        [(name, noise) for name in CELLS for noise in ("normal", "mixture")],
        ("gru", "normal"),
        ("simple", "mixture"),
    ),
)
def test_gradients_in_rates_are_those_of_the_plain_loop(name, noise):
    """Alone, and together with gradients in parameters; masks are float32."""
    noise = {"normal": NORMAL, "mixture": MIXTURE}[noise]
    sites = CELLS[name].sites(FEATURES)
    if "hidden_state" not in sites:
        of_update = noise.recurrent.replace(gates="shared")
        noise = Dropout(update=of_update, cell_state=noise.hidden_state)
    elif "recurrent" not in sites:
        noise = noise.replace(recurrent=None)
    if name == "simple":
        noise = noise.replace(recurrent=noise.recurrent.replace(gates="shared"))
    rnns = [rdrop.RNN(CELLS[name], loop=loop) for loop in LOOPS]

    @jax.jit
    def gradients(noise, *problem):
        losses = [loss_of(rnn, lengths=LENGTHS, keys=KEYS) for rnn in rnns]
        alone = jax.grad(losses[0], 3)(*problem, noise)
        return alone, [jax.grad(loss, (0, 3))(*problem, noise) for loss in losses]

    alone, (fused, recompute, plain) = gradients(noise, *problem_of(rnns[0]))
    assert_all_matter(plain)
    assert_close(fused, plain, tolerance=1e-5)
    assert_close(recompute, plain, tolerance=1e-5)
    assert_close(alone, plain[1], tolerance=1e-5)


class Numbers(Concrete):
    """Returns the uniform numbers that the mask of a `Concrete` is made of."""

    def mask(self, variate):
        return variate


def loss_by_equations(problem, numbers, rates, temperature=0.1):
    """`loss_of` an LSTM with smooth masks, from the equations in float64."""
    params, xs, carry = jax.tree.map(np.asarray, problem)
    symbols = {"kernel": "W", "recurrent_kernel": "U", "bias": "b"}
    weights = {symbols[name]: value for name, value in params["params"].items()}
    masks = {
        site: reference.concrete(numbers[site], rate, temperature)
        for site, rate in rates.items()
    }
    loss = 0.0
    for n, length in enumerate(LENGTHS):
        state = [leaf[n] for leaf in carry]
        step = reference.lstm_step
        y, last = reference.unroll(step, xs[n], state, weights, masks, n, length)
        loss += (y**2).sum() + sum((leaf**2).sum() for leaf in last)
    return loss


RATES = {"inputs": 0.3, "recurrent": 0.6}


def smooth(rates, kind=Concrete, **options):
    return Dropout(**{site: kind(rate, **options) for site, rate in rates.items()})


def gradient_in_smooth_rates(loop, **options):
    """A function of rates; it has no derivative in parameters beside that."""
    rnn = rdrop.RNN(CELLS["lstm"], loop=loop)
    loss, problem = loss_of(rnn, lengths=LENGTHS, keys=KEYS), problem_of(rnn)

    def gradient(rates):
        return jax.grad(lambda r: loss(*problem, smooth(r, **options)))(rates)

    return gradient


OPTIONS = [
    (per, gates, loop)
    for per in ("sequence", "step")
    for gates in ("shared", "each")
    for loop in FAST
]


@pytest.mark.parametrize(
    ("per", "gates", "loop"), quickly(OPTIONS, ("step", "each", "fused"))
)
def test_gradient_of_a_concrete_rate_is_that_of_the_equations(per, gates, loop):
    """By central differences in float64, of the numbers that were drawn."""
    options = {"per": per, "gates": gates}

    @jax.jit
    def run(rates):
        numbers = smooth(RATES, Numbers, **options)
        sites = CELLS["lstm"].sites(FEATURES)
        drawn = rdrop.draw(numbers, KEYS, sites, BATCH, TIME)
        return gradient_in_smooth_rates(loop, **options)(rates), drawn

    actual, drawn = run(RATES)
    numbers = {site: np.float64(getattr(drawn, site)) for site in RATES}
    problem = problem_of(rdrop.RNN(CELLS["lstm"]))
    for site, rate in RATES.items():
        above, below = (
            loss_by_equations(problem, numbers, RATES | {site: rate + change})
            for change in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(actual[site], (above - below) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("per", quickly(["sequence", "step"], "sequence"))
def test_gradients_by_vmap_over_concrete_rates_are_those_of_the_loop(per):
    """From one program, the ends of the rates included."""
    gradient = gradient_in_smooth_rates("fused", per=per)
    values = jnp.asarray([0.0, 0.3, 0.8, 1.0], jnp.float32)
    rates = {"inputs": values, "recurrent": values[::-1]}
    one = traced_once(gradient)
    looped = [one(jax.tree.map(lambda v, n=n: v[n], rates)) for n in range(4)]
    mapped = jax.jit(jax.vmap(gradient))(rates)
    assert_close(mapped, stack_trees(looped), tolerance=1e-5)
    for leaf in jax.tree.leaves(mapped):
        assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(leaf == 0, [True, False, False, True])


# Derivatives of derivatives.


@functools.cache
def curvature(name, loop):
    """Product of the Hessian with a vector, forwards over reverse."""

    @jax.jit
    def product(*point):
        gradient = jax.grad(noisy_loss(name, loop)[0], argnums=(0, 1, 2))
        return jax.jvp(gradient, point, random_like(point, 5))[1]

    return product(*noisy_loss(name, loop)[1])


@pytest.mark.slow
@pytest.mark.parametrize("loop", FAST)
@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives_are_those_of_the_plain_loop(name, loop):
    expected = curvature(name, "plain")
    assert_all_matter(expected)
    assert_close(curvature(name, loop), expected, tolerance=1e-10)


@pytest.mark.parametrize("loop", quickly(FAST, "fused"))
def test_hessian_is_that_of_the_plain_loop_forwards_and_in_reverse(loop):
    def hessian(loop, jacobian):
        loss, (params, xs, carry) = noisy_loss("simple", loop)
        return jacobian(jax.grad(loss, argnums=2), argnums=2)(params, xs, carry)

    @jax.jit
    def hessians():
        expected = hessian("plain", jax.jacfwd)
        return expected, hessian(loop, jax.jacfwd), hessian(loop, jax.jacrev)

    expected, forwards, in_reverse = hessians()
    assert_all_matter(expected)
    assert_close(forwards, expected, tolerance=1e-10)
    assert_close(in_reverse, expected, tolerance=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("loop", FAST)
def test_curvature_in_a_rate_and_the_parameters(loop):
    """The inner derivative takes the masks as they are, the outer one does not."""

    def mixed(loop):
        rnn = rdrop.RNN(CELLS["simple"], loop=loop)
        params, xs, carry = problem_of(rnn)
        gradient = jax.grad(loss_of(rnn, keys=KEYS))

        def slope(noise):
            leaves = jax.tree.leaves(gradient(params, xs, carry, noise))
            return sum((leaf**2).sum() for leaf in leaves)

        return jax.jit(jax.grad(slope))(NORMAL)

    actual = mixed(loop)
    assert_all_matter(actual)
    assert_close(actual, mixed("plain"), tolerance=1e-5)
