"""What the fast loops are for: less work inside the loop over time, and less memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, optimised_jit, quickly
from jax.interpreters import partial_eval
from loop_cases import (
    CELLS,
    FAST,
    FEATURES,
    KEYS,
    SETTINGS,
    masks_of,
    problem_of,
    with_gradients,
)

import rdrop
from rdrop import Bernoulli, Dropout

# Work.


@pytest.fixture(autouse=True)
def without_compiled_code(monkeypatch):
    """The statements here are about the fused loop."""
    monkeypatch.setattr("rdrop.loops.run.is_installed", lambda: False)


def loops_over_time(function, *arguments):
    """The text of each loop of a program, without what its results do not depend on."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    program, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return [str(e.params["jaxpr"]) for e in program.eqns if e.primitive.name == "scan"]


def products_in_loops(layer, noise):
    """How many matrix products there are in each loop over time of the gradient."""
    loops = loops_over_time(with_gradients(layer), noise, *problem_of(layer))
    return [loop.count("dot_general") for loop in loops]


PRODUCTS = {  # of a step forwards: with one mask for all gates, and with one per gate
    "lstm": (1, 4),
    "layer_norm_lstm": (1, 4),
    "gru": (1, 3),
    "gru_reset_before": (2, 3),
    "simple": (1, 1),
}


@pytest.mark.parametrize(
    ("name", "gates"),
    quickly(
        [(name, gates) for name in PRODUCTS for gates in ("shared", "each")],
        ("lstm", "each"),
        ("gru", "shared"),
        ("gru_reset_before", "shared"),
    ),
)
def test_no_gradient_of_a_kernel_is_taken_inside_the_loop(name, gates):
    """A step multiplies once forwards and once back, and the plain loop once more."""
    masks = masks_of(CELLS[name], Dropout(recurrent=Bernoulli(0.4, gates=gates)))
    count = PRODUCTS[name][gates == "each"]
    for loop in FAST:
        rnn = rdrop.RNN(CELLS[name], loop=loop)
        assert products_in_loops(rnn, masks) == [count, count]
    plain = rdrop.RNN(CELLS[name], loop="plain")
    assert products_in_loops(plain, masks) == [count, 2 * count]


def test_both_directions_take_no_gradient_of_a_kernel_inside_the_loop():
    cells = CELLS["gru"].clone(), CELLS["simple"].clone()
    assert products_in_loops(rdrop.Bidirectional(*cells), None) == [1] * 4
    plain = rdrop.Bidirectional(*cells, loop="plain")
    assert products_in_loops(plain, None) == [1, 1, 2, 2]


@pytest.mark.parametrize("name", quickly(CELLS, "lstm"))
def test_kernel_is_transposed_before_the_loop_unless_it_is_large(name, monkeypatch):
    """Which is faster; the results are the same."""
    if "recurrent" not in CELLS[name].sites(FEATURES):
        pytest.skip("an affine cell does not have a recurrent kernel")
    rnn = rdrop.RNN(CELLS[name])
    masks = masks_of(CELLS[name], SETTINGS["multiplied_states"].dropout)
    arguments = (masks, *problem_of(rnn))

    def results():
        train = with_gradients(rnn)  # a new function, that is traced again
        _, back = loops_over_time(train, *arguments)
        return "transpose[" in back, jax.jit(train)(*arguments)

    turned_in_loop, expected = results()
    assert not turned_in_loop
    size = problem_of(rnn)[0]["params"]["recurrent_kernel"].nbytes
    monkeypatch.setattr("rdrop.loops.backwards.LARGE_BYTES", size // 3 - 1)
    turned_in_loop, actual = results()
    assert turned_in_loop
    assert_close(actual, expected)


@pytest.mark.parametrize(
    ("name", "gates", "vmapped"),
    quickly(
        [
            (name, gates, vmapped)
            for name in PRODUCTS
            for gates in ("shared", "each")
            for vmapped in (False, True)
            if (name, gates) != ("simple", "each")
        ],
        ("lstm", "shared", False),
        ("gru", "shared", True),
    ),
)
def test_buffers_are_written_in_place(name, gates, vmapped):
    """Otherwise XLA would copy a whole one at each step."""
    cell = CELLS[name].clone(units=16, param_dtype=jnp.float32)
    rnn, xs = rdrop.RNN(cell), jnp.ones((3, 7, 2), jnp.float32)
    params = jax.eval_shape(rnn.init, jax.random.key(0), xs)

    def loss(params, rate):
        dropout = Dropout(recurrent=Bernoulli(rate, gates=gates))
        lengths = np.array([7, 3, 0])
        return (rnn.apply(params, xs, dropout, KEYS, lengths=lengths)[1] ** 2).sum()

    gradient, rates = jax.grad(loss), jnp.float32(0.5)
    if vmapped:
        gradient, rates = jax.vmap(gradient, (None, 0)), jnp.full(2, rates)
    program = optimised_jit(gradient).lower(params, rates).compile().as_text()
    size = 16 * cell.equations.GATES
    whole = rf"f32\[(2,)?3,7,{size}\]"
    assert re.search(whole, program)
    assert not re.search(rf"{whole}\S* copy\(", program)


# Memory.


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
    compiled = optimised_jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def memory_of_gradient(*arguments):
    loss, shapes = large_loss(*arguments)
    return memory(jax.grad(loss, argnums=(0, 1)), shapes)


# As in the docstring of rdrop/loops/fused.py: fused, and recompute.
KEPT = {
    "lstm": (6, 1),
    "layer_norm_lstm": (10, 1),
    "gru": (4, 0),
    "gru_reset_before": (3, 0),
    "simple": (1, 0),
}


@pytest.mark.parametrize("name", KEPT)
def test_numbers_kept_for_the_gradient_are_those_promised(name):
    """For each step, example and unit, in addition to inputs and outputs."""
    for loop, promised in zip(FAST, KEPT[name], strict=True):
        loss, (params, xs) = large_loss(name, loop)
        _, pull_back = jax.eval_shape(functools.partial(jax.vjp, loss), params, xs)
        kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.ndim == 3]
        assert {leaf.shape[:2] for leaf in kept} == {(16, 64)}
        assert sum(leaf.size for leaf in kept) == (2 + promised) * xs.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"), [*((name, 1) for name in PRODUCTS), ("lstm", 2)]
)
def test_gradient_needs_less_memory_than_that_of_the_plain_loop(name, depth):
    """Of sequences that a loop with recomputation reads in several blocks."""
    plain = memory_of_gradient(name, "plain", depth, 1024)
    assert all(memory_of_gradient(name, loop, depth, 1024) < plain for loop in FAST)


@pytest.mark.parametrize("depth", quickly([1, 2], 1))
def test_recompute_needs_half_the_memory(depth):
    fused, recompute = (
        memory_of_gradient("lstm", loop, depth, 2048) for loop in ("fused", "recompute")
    )
    assert recompute < fused / 2


def test_memory_without_gradient_does_not_grow_with_time():
    """Except that of the outputs, which are not counted."""
    shorter, longer = (
        memory(*large_layers("lstm", "fused", 1, time)) for time in (1024, 2048)
    )
    assert longer < 1.1 * shorter
