"""Fused: the loops with a derivative of their own are the plain one, for less.

test_laws.py compares the default loop with the cell's definition: batch-major, with
lengths, states multiplied forwards and mixed backwards. Here are the other layouts,
`recompute`, and what else the docstrings of rdrop/loops/fused.py promise.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn

import rdrop
from rdrop import (
    Bernoulli,
    Concrete,
    DropConnect,
    Dropout,
    Gaussian,
    Masks,
    Mix,
    Zoneout,
)

BATCH, TIME, FEATURES, UNITS = 4, 6, 2, 3
LENGTHS = np.array([6, 4, 1, 0])
KEYS = rdrop.stream_keys(jax.random.key(0)).replace(step=7)
double = {"units": UNITS, "param_dtype": jnp.float64}
CELLS = {
    "lstm": rdrop.LSTMCell(**double),
    "gru": rdrop.GRUCell(**double),
    "gru_reset_before": rdrop.GRUCell(reset_after=False, **double),
    "simple": rdrop.SimpleCell(**double),
}
FAST = ("fused", "recompute")
every_cell = pytest.mark.parametrize("name", CELLS)


def in_time(values, quick):
    """Parameters of which all but the quick are left to the slow suite."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow)
        for value in values
    ]


every_cell_in_time = pytest.mark.parametrize("name", in_time(CELLS, ("lstm", "gru")))
slow_each = pytest.param("each", marks=pytest.mark.slow)
slow_recompute = pytest.param("recompute", marks=pytest.mark.slow)
every_loop = pytest.mark.parametrize("loop", ["fused", slow_recompute])

# Compiles three times as fast.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
step = {"per": "step"}
each = {"gates": "each"}


class Setting(NamedTuple):
    """Where noise enters, and how the sequences lie."""

    dropout: Dropout
    time_major: bool = False
    reverse: bool = False
    lengths: Any = None


SETTINGS = {
    "mixed_states": Setting(
        Dropout(
            inputs=Bernoulli(0.5, **each),
            recurrent=Bernoulli(0.5, **step, **each),
            update=Bernoulli(0.5, **step),
            gates=Bernoulli(0.5, **step, **each),
            cell_state=Zoneout(0.5, **step),
            hidden_state=Zoneout(0.5, **step),
        ),
        time_major=True,
        reverse=True,
        lengths=LENGTHS,
    ),
    "multiplied_states": Setting(
        Dropout(
            inputs=Bernoulli(0.5, **step),
            outputs=Bernoulli(0.5),
            input_weights=DropConnect(0.5),
            recurrent=Bernoulli(0.5),
            update=Bernoulli(0.5),
            gates=Bernoulli(0.5),
            cell_state=Bernoulli(0.5),
            hidden_state=Bernoulli(0.5),
            recurrent_weights=DropConnect(0.5),
        ),
    ),
    "some_shared": Setting(
        Dropout(
            inputs=Bernoulli(0.5, units="shared"),
            recurrent=Bernoulli(0.5, **each, batch="shared"),
            cell_state=Zoneout(0.5),
            hidden_state=Bernoulli(0.5, **step, batch="shared"),
        ),
        reverse=True,
    ),
    "no_noise": Setting(Dropout(), time_major=True, lengths=LENGTHS),
}


def assert_close(actual, expected, tolerance=1e-10):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_all_matter(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.any(leaf)


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


def masks_of(cell, dropout, time=TIME):
    """Masks of the noise's shapes and any numbers: drawing takes longest to compile."""
    sites, rng = cell.sites(FEATURES), np.random.default_rng(3)

    def mask(noise, size):
        if isinstance(noise, DropConnect):
            return numbers((size.rows, size.gates, size.units))
        lead = (time,) if noise.per == "step" else ()
        shape = lead + noise.shape(BATCH, size.gates, size.units)
        return Mix(numbers(shape) / 2) if isinstance(noise, Zoneout) else numbers(shape)

    def numbers(shape):
        return jnp.asarray(rng.choice([0.0, 0.5, 1.5], shape), jnp.float32)

    return Masks(
        **{
            site: mask(noise, sites[site])
            for site, noise in dropout.sites()
            if site in sites
        }
    )


@functools.cache
def problem_of(layer, time=TIME):
    """Random parameters, inputs and initial carry of a layer."""
    major = getattr(layer, "time_major", False)
    shape = (time, BATCH, FEATURES) if major else (BATCH, time, FEATURES)
    xs = jax.ShapeDtypeStruct(shape, np.float64)
    key = jax.random.key(0)
    (carry, _), params = jax.eval_shape(layer.init_with_output, key, xs)
    return random_like(params, 1), random_like(xs, 2), random_like(carry, 3)


def with_gradients(layer):
    """Results of a layer, and gradients in parameters, inputs and initial carry."""

    def both(noise, lengths, keys, *arguments):
        def run(params, xs, carry):
            options = {"initial_carry": carry, "lengths": lengths}
            return layer.apply(params, xs, noise, keys, **options)

        results, pull_back = jax.vjp(run, *arguments)
        return results, pull_back(random_like(results, 4))

    return both


@functools.cache
def results_of(name, setting, loop):
    dropout, time_major, reverse, lengths = SETTINGS[setting]
    rnn = rdrop.RNN(CELLS[name], time_major, reverse, loop)
    masks = masks_of(CELLS[name], dropout)
    train = quick_jit(with_gradients(rnn))
    return train(masks, lengths, None, *problem_of(rnn))


# The loops agree.


@pytest.mark.parametrize("setting", SETTINGS)
@every_loop
@every_cell_in_time
def test_loop_is_the_plain_one(name, loop, setting):
    """Values, and gradients in parameters, inputs and carry."""
    expected = results_of(name, setting, "plain")
    assert_all_matter(expected)
    assert_close(results_of(name, setting, loop), expected)


@functools.cache
def stack_results(loop):
    options = {} if loop is None else {"loop": loop}
    stack = rdrop.Stack(
        (
            rdrop.RNN(CELLS["lstm"].clone(), **options),
            rdrop.Bidirectional(
                CELLS["gru"].clone(), CELLS["simple"].clone(), **options
            ),
        )
    )
    noise = Dropout(recurrent=Bernoulli(0.4), hidden_state=Zoneout(0.3, **step))
    return quick_jit(with_gradients(stack))(noise, LENGTHS, KEYS, *problem_of(stack))


@pytest.mark.parametrize("loop", [None, "fused", slow_recompute])
def test_layers_in_both_directions_and_stacked_hand_it_on(loop):
    expected = stack_results("plain")
    assert_all_matter(expected)
    assert_close(stack_results(loop), expected)


@every_cell
def test_without_a_step_the_carry_and_its_cotangent_pass(name):
    rnn = rdrop.RNN(CELLS[name])
    problem = problem_of(rnn, 0)
    masks = masks_of(CELLS[name], SETTINGS["multiplied_states"].dropout, 0)
    (carry, ys), gradients = with_gradients(rnn)(masks, None, None, *problem)
    assert ys.shape == (BATCH, 0, UNITS)
    in_params, in_xs, in_carry = gradients
    assert_close(carry, problem[2])
    assert_close(in_carry, random_like((carry, ys), 4)[0])
    assert in_xs.shape == (BATCH, 0, FEATURES)
    assert not any(leaf.any() for leaf in jax.tree.leaves(in_params))


@every_loop
def test_single_step_is_that_of_the_plain_loop(loop):
    rnns = [rdrop.RNN(CELLS["lstm"], loop=word) for word in (loop, "plain")]
    masks = masks_of(CELLS["lstm"], SETTINGS["mixed_states"].dropout, 1)
    actual, expected = (
        quick_jit(with_gradients(rnn))(masks, None, None, *problem_of(rnn, 1))
        for rnn in rnns
    )
    assert_close(actual, expected)


# Masks that are differentiated; derivatives of derivatives; forward mode.


def loss_of(rnn, noise=None, lengths=None, keys=None):
    """A loss with curvature, of parameters, inputs and initial carry."""

    def loss(params, xs, carry, noise=noise):
        options = {"initial_carry": carry, "lengths": lengths}
        carry, ys = rnn.apply(params, xs, noise, keys, **options)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves((carry, ys)))

    return loss


def noisy_loss(name, loop):
    """That of a cell with masks on all its sites, mixed states, and padding."""
    rnn = rdrop.RNN(CELLS[name], loop=loop)
    masks = masks_of(CELLS[name], SETTINGS["mixed_states"].dropout)
    return loss_of(rnn, masks, LENGTHS), problem_of(rnn)


NORMAL = Dropout(recurrent=Gaussian(0.4), hidden_state=Gaussian(0.1, **step))


@functools.cache
def gradients_in_rates(loop, argnums=(0, 3)):
    rnn = rdrop.RNN(CELLS["gru"], loop=loop)
    gradient = jax.grad(loss_of(rnn, lengths=LENGTHS, keys=KEYS), argnums)
    return quick_jit(gradient)(*problem_of(rnn), NORMAL)


@every_loop
def test_gradient_of_a_gaussian_rate_is_that_of_the_plain_loop(loop):
    """Masks, and so their gradients, are float32."""
    actual = gradients_in_rates(loop)
    assert_all_matter(actual)
    assert_close(actual, gradients_in_rates("plain"), tolerance=1e-5)


def test_gradient_of_a_gaussian_rate_alone_is_that_beside_others():
    alone, (_, beside) = (gradients_in_rates("fused", n) for n in (3, (0, 3)))
    assert_close(alone, beside, tolerance=1e-5)


class Numbers(Concrete):
    """Puts out the uniform numbers that the mask of a `Concrete` is made of."""

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
    rnn = rdrop.RNN(CELLS["lstm"], **loop)
    loss, problem = loss_of(rnn, lengths=LENGTHS, keys=KEYS), problem_of(rnn)
    return jax.grad(lambda rates: loss(*problem, smooth(rates, **options)))


@pytest.mark.parametrize("loop", [None, slow_recompute])
@pytest.mark.parametrize("gates", ["shared", slow_each])
@pytest.mark.parametrize("per", ["sequence", "step"])
def test_gradient_of_a_concrete_rate_is_that_of_the_equations(per, gates, loop):
    """By central differences in float64, of the numbers that were drawn."""
    options = {"per": per, "gates": gates}
    loop = {"loop": loop} if loop else {}
    actual = quick_jit(gradient_in_smooth_rates(loop, **options))(RATES)
    drawn = rdrop.draw(
        smooth(RATES, Numbers, **options),
        KEYS,
        CELLS["lstm"].sites(FEATURES),
        BATCH,
        TIME,
    )
    numbers = {site: np.float64(getattr(drawn, site)) for site in RATES}
    problem = problem_of(rdrop.RNN(CELLS["lstm"]))
    for site, rate in RATES.items():
        above, below = (
            loss_by_equations(problem, numbers, RATES | {site: rate + change})
            for change in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(actual[site], (above - below) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("per", ["sequence", "step"])
def test_gradients_by_vmap_over_concrete_rates_are_those_of_the_loop(per):
    """From one program, the ends of the rates included."""
    gradient = gradient_in_smooth_rates({}, per=per)
    values = jnp.asarray([0.0, 0.3, 0.8, 1.0], jnp.float32)
    rates = {"inputs": values, "recurrent": values[::-1]}
    one = quick_jit(gradient)
    looped = [one(jax.tree.map(lambda v, n=n: v[n], rates)) for n in range(4)]
    assert one._cache_size() == 1
    mapped = quick_jit(jax.vmap(gradient))(rates)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
    assert_close(mapped, looped, tolerance=1e-5)
    for leaf in jax.tree.leaves(mapped):
        assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(leaf == 0, [True, False, False, True])


@functools.cache
def curvature(name, loop):
    """Product of the Hessian with a vector, forwards over reverse."""

    @quick_jit
    def product(*point):
        gradient = jax.grad(noisy_loss(name, loop)[0], argnums=(0, 1, 2))
        return jax.jvp(gradient, point, random_like(point, 5))[1]

    return product(*noisy_loss(name, loop)[1])


@pytest.mark.slow
@every_loop
@every_cell
def test_second_derivatives_are_those_of_the_plain_loop(name, loop):
    expected = curvature(name, "plain")
    assert_all_matter(expected)
    assert_close(curvature(name, loop), expected)


@every_loop
def test_hessian_is_that_of_the_plain_loop_forwards_and_in_reverse(loop):
    def hessian(loop, jacobian):
        loss, (params, xs, carry) = noisy_loss("simple", loop)
        gradient = jax.grad(loss, argnums=2)
        return quick_jit(jacobian(gradient, argnums=2))(params, xs, carry)

    expected = hessian("plain", jax.jacfwd)
    assert_all_matter(expected)
    for jacobian in (jax.jacfwd, jax.jacrev):
        assert_close(hessian(loop, jacobian), expected)


@every_loop
def test_curvature_in_a_rate_and_the_parameters(loop):
    """The inner derivative takes the masks as they are, the outer one does not."""

    def mixed(loop):
        rnn = rdrop.RNN(CELLS["simple"], loop=loop)
        params, xs, carry = problem_of(rnn)
        gradient = jax.grad(loss_of(rnn, keys=KEYS))

        def slope(noise):
            leaves = jax.tree.leaves(gradient(params, xs, carry, noise))
            return sum((leaf**2).sum() for leaf in leaves)

        return quick_jit(jax.grad(slope))(NORMAL)

    actual = mixed(loop)
    assert_all_matter(actual)
    assert_close(actual, mixed("plain"), tolerance=1e-5)


FORWARD = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,))[1],
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "jit": lambda f, x: jax.jvp(jax.jit(f), (x,), (x,))[1],
}
OWN = r'in reverse mode only; .* set `loop` to "plain"'
ANY = rf"{OWN}|can't apply forward-mode"


@pytest.mark.parametrize(
    ("mode", "message"),
    [("jvp", OWN), ("jacfwd", OWN), ("linearize", ANY), ("jit", ANY)],
    ids=FORWARD,
)
@every_loop
def test_forward_mode_is_refused(mode, message, loop):
    """By name of the plain loop, unless JAX traces the function beforehand."""
    loss, (params, xs, carry) = noisy_loss("simple", loop)
    with pytest.raises(TypeError, match=message):
        FORWARD[mode](lambda xs: loss(params, xs, carry), xs)


def test_plain_loop_has_derivatives_in_forward_mode():
    loss, (params, xs, carry) = noisy_loss("simple", "plain")
    run = jax.jit(lambda xs: loss(params, xs, carry))
    assert_close(FORWARD["jvp"](run, xs), (jax.grad(run)(xs) * xs).sum())


# bfloat16.

LONG = 50


@functools.cache
def half_gradients(name, loop, dtype):
    """Gradients in parameters and inputs, of compute in `dtype`; and the masks."""
    cell = CELLS[name].clone(units=16, param_dtype=jnp.float32, dtype=dtype)
    rnn = rdrop.RNN(cell, loop=loop)
    problem = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problem_of(rnn, LONG))
    params, xs = jax.tree.map(lambda leaf: leaf / 4, problem[0]), problem[1]
    noise = Dropout(
        inputs=Bernoulli(0.5), recurrent=Bernoulli(0.5, scale="expectation")
    )
    masks = rdrop.draw(noise, KEYS, cell.sites(FEATURES), BATCH, LONG)

    def loss(params, xs):
        ys = rnn.apply(params, xs, masks)[1].astype(jnp.float32)
        return (ys * random_like(ys).astype(jnp.float32)).sum()

    return quick_jit(jax.grad(loss, argnums=(0, 1)))(params, xs), masks


@pytest.mark.slow
@every_loop
@pytest.mark.parametrize("name", ["lstm", "gru", "simple"])
def test_bfloat16_rounds_no_more_than_in_the_plain_loop(name, loop):
    """Both round each step to 8 bits, at other places, so errors are of one size.

    A kernel's gradient is one product, with less error than a sum over steps; slopes
    are rounded once more, which made at most 1.15 times the error in five seeds.
    """
    exact, _ = half_gradients(name, "plain", jnp.float32)
    plain, _ = half_gradients(name, "plain", jnp.bfloat16)
    fused, _ = half_gradients(name, loop, jnp.bfloat16)
    leaves = map(jax.tree.leaves, (exact, plain, fused))
    for truth, slow, fast in zip(*leaves, strict=True):
        assert fast.dtype == jnp.float32
        allowed = np.linalg.norm(slow - truth)
        assert 0 < allowed < 0.05 * np.linalg.norm(truth)
        assert np.linalg.norm(fast - truth) <= 1.2 * allowed


@pytest.mark.parametrize(
    "name",
    ["lstm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gru", "simple"))],
)
def test_bfloat16_has_the_masks_of_float32(name):
    _, expected = half_gradients(name, "plain", jnp.float32)
    for loop in FAST:
        (_, in_xs), masks = half_gradients(name, loop, jnp.bfloat16)
        for a, b in zip(*map(jax.tree.leaves, (masks, expected)), strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_array_equal(a, b)
        dropped = np.broadcast_to(masks.inputs == 0, in_xs.shape)
        np.testing.assert_array_equal(in_xs == 0, dropped)


# What it is for: less work inside the loop, and less to keep.


def products_in_loops(layer, noise):
    """How many matrix products there are in each loop over time of the gradient."""
    arguments = (noise, None, None, *problem_of(layer))
    program = jax.make_jaxpr(with_gradients(layer))(*arguments)
    loops = (e for e in program.eqns if e.primitive.name == "scan")
    return [str(loop.params["jaxpr"]).count("dot_general") for loop in loops]


@pytest.mark.parametrize("noise", ["none", "shared", "each"])
@every_cell
def test_no_gradient_of_a_kernel_is_taken_inside_the_loop(name, noise):
    """A step multiplies once forwards and once back, and the plain loop once more."""
    if noise == "none":
        masks = Masks()
    else:
        masks = masks_of(CELLS[name], Dropout(recurrent=Bernoulli(0.4, gates=noise)))
    count = 2 if name == "gru_reset_before" else 1
    if noise == "each":
        count = CELLS[name].GATES
    for loop in FAST:
        rnn = rdrop.RNN(CELLS[name], loop=loop)
        assert products_in_loops(rnn, masks) == [count, count]
    plain = rdrop.RNN(CELLS[name], loop="plain")
    assert products_in_loops(plain, masks) == [count, 2 * count]


@every_cell_in_time
def test_kernel_is_transposed_before_the_loop_unless_it_is_large(name, monkeypatch):
    """Which is faster; the results are the same."""
    rnn = rdrop.RNN(CELLS[name])
    masks = masks_of(CELLS[name], SETTINGS["multiplied_states"].dropout)
    arguments = (masks, None, None, *problem_of(rnn))

    def results():
        train = with_gradients(rnn)  # a new function, to be traced anew
        program = jax.make_jaxpr(train)(*arguments)
        *_, back = (e for e in program.eqns if e.primitive.name == "scan")
        turns = "transpose[" in str(back.params["jaxpr"])
        return turns, quick_jit(train)(*arguments)

    turned_in_loop, expected = results()
    assert not turned_in_loop
    params = problem_of(rnn)[0]["params"]
    size = params["recurrent_kernel"].nbytes
    monkeypatch.setattr("rdrop.loops.backwards.LARGE_BYTES", size - 1)
    turned_in_loop, actual = results()
    assert turned_in_loop
    assert_close(actual, expected)


def test_both_directions_take_no_gradient_of_a_kernel_inside_the_loop():
    cells = CELLS["gru"].clone(), CELLS["simple"].clone()
    assert products_in_loops(rdrop.Bidirectional(*cells), None) == [1] * 4
    plain = rdrop.Bidirectional(*cells, loop="plain")
    assert products_in_loops(plain, None) == [1, 1, 2, 2]


def large_layers(name, loop, depth=1, time=64):
    """Outputs of layers with as many features as units, and the arguments' shapes."""
    cell = CELLS[name].clone(units=32, param_dtype=jnp.float32)
    layers = rdrop.Stack([rdrop.RNN(cell.clone(), loop=loop) for _ in range(depth)])
    xs = jax.ShapeDtypeStruct((16, time, 32), jnp.float32)
    params = jax.eval_shape(layers.init, jax.random.key(0), xs)
    return lambda params, xs: layers.apply(params, xs)[1], (params, xs)


def large_loss(*arguments):
    """A loss of `large_layers`, and its arguments' shapes."""
    outputs, shapes = large_layers(*arguments)
    return lambda params, xs: outputs(params, xs).sum(), shapes


def memory(function, shapes):
    """Bytes of temporary memory, by the compiler's own count."""
    compiled = quick_jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def memory_of_gradient(*arguments):
    loss, shapes = large_loss(*arguments)
    return memory(jax.grad(loss, argnums=(0, 1)), shapes)


# As in the docstring of rdrop/loops/fused.py: fused, and recompute.
KEPT = {"lstm": (6, 1), "gru": (5, 0), "gru_reset_before": (5, 0), "simple": (1, 0)}


@every_cell
def test_numbers_kept_for_the_gradient_are_those_promised(name):
    """For each step, example and unit, besides the input and the output."""
    for loop, promised in zip(FAST, KEPT[name], strict=True):
        loss, (params, xs) = large_loss(name, loop)
        _, pull_back = jax.eval_shape(functools.partial(jax.vjp, loss), params, xs)
        kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.ndim == 3]
        assert {leaf.shape[:2] for leaf in kept} == {(16, 64)}
        assert sum(leaf.size for leaf in kept) == (2 + promised) * xs.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"), [*((name, 1) for name in CELLS), ("lstm", 2)]
)
def test_gradient_needs_less_memory_than_that_of_the_plain_loop(name, depth):
    plain = memory_of_gradient(name, "plain", depth)
    assert all(memory_of_gradient(name, loop, depth) < plain for loop in FAST)


# Vectorised.


@pytest.mark.slow
@every_loop
def test_gradient_and_vmap_over_lengths_commute(loop):
    lengths = np.stack([LENGTHS, LENGTHS[::-1], np.full(BATCH, 3), np.zeros(BATCH)])
    lengths = lengths.astype(np.int32)
    rnns = [rdrop.RNN(CELLS["lstm"], loop=word) for word in (loop, "plain")]
    problem = problem_of(rnns[0])
    masks = masks_of(CELLS["lstm"], SETTINGS["mixed_states"].dropout)
    run, plain = (
        lambda lengths, *arguments, rnn=rnn: loss_of(rnn, masks, lengths)(*arguments)
        for rnn in rnns
    )
    in_axes, argnums = (0, None, None, None), (1, 2, 3)
    of_each = quick_jit(jax.vmap(jax.grad(run, argnums), in_axes))(lengths, *problem)
    one = quick_jit(jax.grad(plain, argnums))
    looped = [one(n, *problem) for n in lengths]
    assert_close(of_each, jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped))

    def total(*arguments):
        return jax.vmap(run, in_axes)(*arguments).sum()

    of_total = quick_jit(jax.grad(total, argnums))(lengths, *problem)
    assert_close(of_total, jax.tree.map(lambda leaf: leaf.sum(0), of_each))


@pytest.mark.slow
@every_loop
def test_gradients_by_vmap_over_rates_are_those_of_the_loop(loop):
    rnn = rdrop.RNN(CELLS["gru"], loop=loop)
    problem = problem_of(rnn)

    def gradients(rate):
        noise = Dropout(
            recurrent=Bernoulli(rate, **step), hidden_state=Zoneout(rate, **step)
        )
        loss = loss_of(rnn, noise, LENGTHS, KEYS)
        return jax.grad(loss, argnums=(0, 1, 2))(*problem)

    one, rates = quick_jit(gradients), (0.0, 0.3, 0.8)
    looped = [one(rate) for rate in rates]
    assert one._cache_size() == 1
    mapped = quick_jit(jax.vmap(gradients))(jnp.asarray(rates))
    assert_close(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped))


# Words that are refused, and cells that have no derivative of their own.

LAYERS = {
    "rnn": lambda cell, loop: rdrop.RNN(cell, loop=loop),
    "bidirectional": lambda cell, loop: rdrop.Bidirectional(
        cell, cell.clone(), loop=loop
    ),
}
XS = jnp.ones((BATCH, TIME, FEATURES))
every_layer = pytest.mark.parametrize("layer", LAYERS)


class Doubled(rdrop.LSTMCell):
    """An LSTM that puts out twice its state: its derivative is not that of LSTM."""

    @nn.nowrap
    def step(self, weights, carry, z, masks):
        carry, y = super().step(weights, carry, z, masks)
        return carry, 2 * y


@pytest.mark.usefixtures("unchecked")
@every_layer
def test_other_words_are_refused(layer):
    message = r"`loop` must be one of \('fused', 'recompute', 'plain'\), got 'fast'"
    with pytest.raises(ValueError, match=message):
        LAYERS[layer](CELLS["lstm"].clone(), "fast").init(jax.random.key(0), XS)


@pytest.mark.parametrize(
    "cell",
    [rdrop.LayerNormLSTMCell, rdrop.MinGRUCell, Doubled],
    ids=lambda c: c.__name__,
)
@every_layer
def test_recompute_is_refused_where_no_derivative_is_supplied(layer, cell):
    message = rf'`loop` must be "fused" or "plain" for {cell.__name__}, which does not'
    with pytest.raises(ValueError, match=message):
        LAYERS[layer](cell(**double), "recompute").init(jax.random.key(0), XS)


def test_another_step_is_run_by_the_plain_loop():
    """A class that replaces the step alone has its own gradients, not the parent's."""
    rnn = rdrop.RNN(Doubled(**double))
    params, xs, carry = problem_of(rnn)

    def by_definition(params, xs, carry):
        def advance(carry, x):
            return rnn.cell.apply(params, carry, x)

        carry, ys = jax.lax.scan(advance, carry, xs.swapaxes(0, 1))
        return sum((leaf**2).sum() for leaf in jax.tree.leaves((carry, ys)))

    gradients = [
        quick_jit(jax.grad(loss, argnums=(0, 1, 2)))(params, xs, carry)
        for loss in (loss_of(rnn), by_definition)
    ]
    assert_close(*gradients)


class Loud(rdrop.LSTMCell):
    """An LSTM that hears its input twice as loud."""

    @nn.nowrap
    def project(self, weights, x, masks):
        return super().project(weights, 2 * x, masks)


def test_another_projection_is_used():
    rnns = [rdrop.RNN(Loud(**double), loop=word) for word in ("fused", "plain")]
    params, xs, carry = problem_of(rnns[0])
    actual, expected = (
        quick_jit(jax.value_and_grad(loss_of(rnn)))(params, xs, carry) for rnn in rnns
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("vmapped", [False, True])
@pytest.mark.parametrize("gates", ["shared", slow_each])
@pytest.mark.parametrize("cell", [rdrop.LSTMCell(16), rdrop.GRUCell(16)])
def test_buffers_are_written_in_place(cell, gates, vmapped):
    """Else XLA would copy a whole one at each step."""
    rnn, xs = rdrop.RNN(cell), jnp.ones((3, 7, 2), jnp.float32)
    params = rnn.init(jax.random.key(0), xs)

    def loss(params, rate):
        dropout = Dropout(recurrent=Bernoulli(rate, gates=gates))
        lengths = np.array([7, 3, 0])
        return (rnn.apply(params, xs, dropout, KEYS, lengths=lengths)[1] ** 2).sum()

    gradient, rates = jax.grad(loss), jnp.float32(0.5)
    if vmapped:
        gradient, rates = jax.vmap(gradient, (None, 0)), jnp.full(2, rates)
    program = jax.jit(gradient).lower(params, rates).compile().as_text()
    size = 16 * cell.GATES
    whole = rf"f32\[(2,)?3,7,{size}\]\S* copy\("
    assert re.search(rf"f32\[(2,)?3,7,{size}\]", program)
    assert not re.search(whole, program)
