"""Fused: the loops with a backward pass of their own agree with the plain one.

tests/laws compare the default loop with the cell's definition: batch-major, with
lengths, states multiplied forwards and mixed backwards. Here are the other layouts,
`recompute`, and every cell. Gradients are with respect to masks, parameters, inputs and
carry.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
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
    SETTINGS,
    TIME,
    UNITS,
    loss_of,
    masks_of,
    noisy_loss,
    problem_of,
    results_of,
    step,
    with_gradients,
)

import rdrop
import rdrop.nnx
from rdrop import Bernoulli, Dropout, Masks, Zoneout

# Every cell and every setting at least once; the other pairs are slow.
QUICK = [
    ("lstm", "mixed_states"),
    ("gru", "some_shared"),
    ("gru_reset_before", "multiplied_states"),
    ("simple", "no_noise"),
    ("min_gru", "mixed_states"),
    ("min_gru", "multiplied_states"),  # its scan has two ways to mask a state
]
PAIRS = [(name, setting) for name in CELLS for setting in SETTINGS]


def run_loops(layers, *arguments, lengths=None):
    """Results and gradients of one layer by each loop, from one program."""

    @jax.jit
    def run(*arguments):
        return [with_gradients(layer, lengths)(*arguments) for layer in layers]

    return run(*arguments)


def assert_loops_agree(fused, recompute, plain):
    assert_close(fused, plain, tolerance=1e-10)
    assert_close(recompute, plain, tolerance=1e-10)


@pytest.mark.parametrize(("name", "setting"), quickly(PAIRS, *QUICK))
def test_loops_agree_in_values_and_all_gradients(name, setting):
    results = [results_of(name, setting, loop) for loop in LOOPS]
    assert_all_matter(results[2])
    assert_loops_agree(*results)


@pytest.mark.slow
def test_layers_in_both_directions_and_stacked_agree():
    def stack_of(loop):
        lstm, gru, simple = (CELLS[n].clone() for n in ("lstm", "gru", "simple"))
        both = rdrop.Bidirectional(gru, simple, loop=loop)
        return rdrop.Stack((rdrop.RNN(lstm, loop=loop), both))

    stacks = [stack_of(loop) for loop in LOOPS]
    halves = jnp.full((BATCH, 1, UNITS), 0.5)
    noise = [Masks(recurrent=halves), (Masks(hidden_state=halves), Masks())]
    arguments = (noise, *problem_of(stacks[0]))
    results = run_loops(stacks, *arguments, lengths=LENGTHS)
    assert_all_matter(results[2])
    assert_loops_agree(*results)


@pytest.mark.parametrize("name", quickly(CELLS, "simple"))
def test_loops_over_one_step_agree(name):
    rnns = [rdrop.RNN(CELLS[name], loop=loop) for loop in LOOPS]
    masks = masks_of(CELLS[name], SETTINGS["mixed_states"].dropout, 1)
    assert_loops_agree(*run_loops(rnns, masks, *problem_of(rnns[0], 1)))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("time", "batch"), [(0, BATCH), (TIME, 0)], ids=str)
def test_without_a_step_or_an_example_the_carry_and_its_cotangent_pass(
    name, time, batch
):
    """In every loop; nothing is not a number, and parameters get no gradient."""
    rnns = [rdrop.RNN(CELLS[name], loop=loop) for loop in LOOPS]
    problem = problem_of(rnns[0], time, batch)
    for results in run_loops(rnns, None, *problem):
        (carry, ys), (_, in_params, in_xs, in_carry) = results
        assert ys.shape == (batch, time, UNITS)
        assert in_xs.shape == (batch, time, FEATURES)
        assert not any(leaf.any() for leaf in jax.tree.leaves(in_params))
        assert_close(carry, problem[2])
        assert_close(in_carry, random_like((carry, ys), 4)[0])


# Forward mode, and words that are not loops.

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
@pytest.mark.parametrize("loop", FAST)
def test_forward_mode_is_refused(mode, message, loop):
    """The message names the plain loop, unless JAX traces the function beforehand."""
    loss, (params, xs, carry) = noisy_loss("simple", loop)
    with pytest.raises(TypeError, match=message):
        FORWARD[mode](lambda xs: loss(params, xs, carry), xs)


def test_plain_loop_has_derivatives_in_forward_mode():
    loss, (params, xs, carry) = noisy_loss("simple", "plain")

    @jax.jit
    def both(xs):
        run = functools.partial(loss, params, carry=carry)
        return FORWARD["jvp"](run, xs), (jax.grad(run)(xs) * xs).sum()

    assert_close(*both(xs))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("face", [rdrop, rdrop.nnx])
def test_other_words_are_refused(face):
    message = (
        r"`loop` must be one of \('fused', 'recompute', 'plain', 'native'\), got 'fast'"
    )
    one, other = (cell_of(face) for _ in range(2))
    with pytest.raises(ValueError, match=message):
        face.RNN(one, loop="fast")
    with pytest.raises(ValueError, match=message):
        face.Bidirectional(one, other, loop="fast")


def cell_of(face):
    if face is rdrop:
        return rdrop.SimpleCell(UNITS)
    return face.SimpleCell(FEATURES, UNITS, rngs=nnx.Rngs(0))


# Traced values do not outlive their trace.


@pytest.mark.slow
@pytest.mark.parametrize("loop", FAST)
def test_no_tracer_leaks(loop):
    """The loop holds the equations, and not the bound module."""
    rnn = rdrop.RNN(CELLS["simple"], loop=loop)
    with jax.check_tracer_leaks():
        jax.make_jaxpr(jax.grad(jax.jit(loss_of(rnn))))(*problem_of(rnn))


# bfloat16.


@functools.cache
def half_gradients(name, loop, dtype, time):
    """Gradients in parameters and inputs, of compute in `dtype`; and the masks."""
    cell = CELLS[name].clone(units=16, param_dtype=jnp.float32, dtype=dtype)
    rnn = rdrop.RNN(cell, loop=loop)
    problem = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), problem_of(rnn, time)[:2]
    )
    params, xs = jax.tree.map(lambda leaf: leaf / 4, problem[0]), problem[1]
    state = {*cell.sites(FEATURES)} & {"hidden_state", "cell_state"}
    noise = Dropout(
        inputs=Bernoulli(0.5),
        **{max(state): Bernoulli(0.25, scale="expectation")},
    )

    def loss(params, xs):
        ys = rnn.apply(params, xs, noise, KEYS)[1]
        assert ys.dtype == dtype
        ys = ys.astype(jnp.float32)
        return (ys * random_like(ys).astype(jnp.float32)).sum()

    @jax.jit
    def run(params, xs):
        masks = rdrop.draw(noise, KEYS, cell.sites(FEATURES), BATCH, time)
        return jax.grad(loss, argnums=(0, 1))(params, xs), masks

    return run(params, xs)


@pytest.mark.slow
@pytest.mark.parametrize("loop", FAST)
@pytest.mark.parametrize("name", ["lstm", "layer_norm_lstm", "gru", "simple"])
def test_bfloat16_rounds_no_more_than_in_the_plain_loop(name, loop):
    """Both round each step to 8 bits, at other places, so errors are of one size.

    A kernel's gradient is one product, with less error than a sum over steps; residuals
    are rounded once more, which made at most 1.15 times the error in five seeds.
    """
    (exact, _), (plain, _), (fused, _) = (
        half_gradients(name, word, dtype, 50)
        for word, dtype in (
            ("plain", jnp.float32),
            ("plain", jnp.bfloat16),
            (loop, jnp.bfloat16),
        )
    )
    leaves = map(jax.tree.leaves, (exact, plain, fused))
    for truth, slow, fast in zip(*leaves, strict=True):
        assert fast.dtype == jnp.float32
        allowed = np.linalg.norm(slow - truth)
        assert 0 < allowed < 0.05 * np.linalg.norm(truth)
        assert np.linalg.norm(fast - truth) <= 1.2 * allowed


@pytest.mark.parametrize(
    ("name", "loop"),
    quickly(
        [(name, loop) for name in CELLS for loop in LOOPS],
        ("lstm", "fused"),
        ("min_gru", "recompute"),
    ),
)
def test_bfloat16_computes_close_to_float32_with_the_same_masks(name, loop):
    """Parameters and their gradients are float32, outputs are bfloat16."""
    expected, masks = half_gradients(name, "plain", jnp.float32, TIME)
    actual, same = half_gradients(name, loop, jnp.bfloat16, TIME)
    assert_close(same, masks, tolerance=0)
    dropped = np.broadcast_to(masks.inputs == 0, actual[1].shape)
    np.testing.assert_array_equal(actual[1] == 0, dropped)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


# Vectorised.


@pytest.mark.slow
@pytest.mark.parametrize("loop", FAST)
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
    of_each = jax.jit(jax.vmap(jax.grad(run, argnums), in_axes))(lengths, *problem)
    one = jax.jit(jax.grad(plain, argnums))
    assert_close(of_each, stack_trees([one(n, *problem) for n in lengths]), 1e-10)

    def total(*arguments):
        return jax.vmap(run, in_axes)(*arguments).sum()

    of_total = jax.jit(jax.grad(total, argnums))(lengths, *problem)
    assert_close(of_total, jax.tree.map(lambda leaf: leaf.sum(0), of_each), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("loop", FAST)
def test_gradients_by_vmap_over_rates_are_those_of_the_loop(loop):
    """The loop over rates is one program."""
    rnn = rdrop.RNN(CELLS["gru"], loop=loop)
    problem = problem_of(rnn)

    def gradients(rate):
        noise = Dropout(
            recurrent=Bernoulli(rate, **step), hidden_state=Zoneout(rate, **step)
        )
        loss = loss_of(rnn, noise, LENGTHS, KEYS)
        return jax.grad(loss, argnums=(0, 1, 2))(*problem)

    one, rates = traced_once(gradients), jnp.array([0.0, 0.3, 0.8])
    mapped = jax.jit(jax.vmap(gradients))(rates)
    assert_close(mapped, stack_trees([one(rate) for rate in rates]), 1e-10)
