"""Blocks: the loops give the same in blocks of any size, and need less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_all_matter,
    assert_close,
    quickly,
    stack_trees,
)
from loop_cases import CELLS, SETTINGS, loss_of, masks_of, problem_of, results_of
from test_gradients import curvature

import rdrop
from rdrop.loops.blocks import LEAST_BYTES, LEAST_ROWS, over_blocks, steps_of_block

# Of the six steps: three blocks, and one of four with two left over.
EVEN, WITH_REST = 2, 4
every_size = pytest.mark.parametrize("size", [EVEN, WITH_REST])


@pytest.fixture
def in_blocks_of(monkeypatch):
    """Makes the loops take so many steps at a time."""

    def to(size):
        monkeypatch.setattr("rdrop.loops.fused.steps_of_block", lambda *_: size)

    return to


# Sizes.


def test_a_block_is_as_large_as_it_must_be():
    """By its bytes, or by its rows where the kernels have many."""
    assert steps_of_block(10**6, 64, 2, LEAST_BYTES // 8) == 8
    assert steps_of_block(10**6, 64, 640, LEAST_BYTES) == LEAST_ROWS * 10


@pytest.mark.parametrize(
    ("time", "size"),
    [(1, 1), (7, 7), (9, 9), (24, 8), (27, 9), (28, 14), (31, 8), (34, 8)],
)
def test_blocks_are_even_where_they_can_be(time, size):
    assert steps_of_block(time, 64, 2, LEAST_BYTES // 8) == size


def test_nothing_to_multiply_is_one_block():
    assert steps_of_block(5, 0, 3, 0) == 5
    assert steps_of_block(5, 1, 10**13, 0) == 5  # without a search for ages


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("time", "size"), [(6, 6), (6, 2), (6, 4), (7, 2), (1, 1)])
def test_every_step_is_in_one_block_and_has_its_own_leavings(time, size, reverse):
    """Numbers what it meets in order; a second pass finds what the first left."""

    def first(state, start, count, left):
        assert left is None
        count_so_far, seen = state
        number = jnp.broadcast_to(count_so_far, count)
        seen = jax.lax.dynamic_update_slice_in_dim(seen, number, start, 0)
        return (count_so_far + 1, seen), jnp.asarray(start, jnp.int32)

    def second(state, start, count, left):
        return state & (left == start), None

    (count, seen), left = over_blocks(
        first, (jnp.array(0), jnp.zeros(time, int)), time, size, reverse=reverse
    )
    assert count == -(-time // size)
    numbers = np.arange(time) // size
    np.testing.assert_array_equal(seen, count - 1 - numbers if reverse else numbers)
    found, _ = over_blocks(second, jnp.array(True), time, size, left, not reverse)
    assert found


# Results.

CASES = [
    (name, size, setting)
    for name in CELLS
    for size in (EVEN, WITH_REST)
    for setting in SETTINGS
]


@pytest.mark.parametrize(
    ("name", "size", "setting"),
    quickly(
        CASES,
        ("lstm", WITH_REST, "mixed_states"),
        ("layer_norm_lstm", EVEN, "some_shared"),
    ),
)
def test_results_in_blocks_are_those_of_the_plain_loop(
    name, size, setting, in_blocks_of
):
    """Values and all gradients; and values if no derivative is taken."""
    in_blocks_of(size)
    expected = results_of(name, setting, "plain")
    assert_all_matter(expected)
    in_blocks = results_of.__wrapped__(name, setting, "recompute")
    assert_close(in_blocks, expected, tolerance=1e-10)
    dropout, time_major, reverse, lengths = SETTINGS[setting]
    rnn = rdrop.RNN(CELLS[name], time_major, reverse)
    params, xs, carry = problem_of(rnn)
    run = jax.jit(functools.partial(rnn.apply, lengths=lengths))
    masks = masks_of(CELLS[name], dropout)
    assert_close(run(params, xs, masks, initial_carry=carry), expected[0])


@pytest.mark.slow
@every_size
def test_second_derivatives_in_blocks_are_those_of_the_plain_loop(size, in_blocks_of):
    in_blocks_of(size)
    expected = curvature("gru", "plain")
    assert_all_matter(expected)
    in_blocks = curvature.__wrapped__("gru", "recompute")
    assert_close(in_blocks, expected, tolerance=1e-10)


@pytest.mark.parametrize("size", quickly([EVEN, WITH_REST], WITH_REST))
def test_models_side_by_side_are_each_alone(size, in_blocks_of):
    """And they read and write the blocks in place: slices stay slices."""
    in_blocks_of(size)
    rnn = rdrop.RNN(CELLS["simple"], loop="recompute")
    params, xs, carry = problem_of(rnn)
    masks = masks_of(CELLS["simple"], SETTINGS["multiplied_states"].dropout)
    gradient = jax.grad(loss_of(rnn, masks))
    models = [params, jax.tree.map(lambda leaf: 2 * leaf, params)]
    both = stack_trees(models)
    side_by_side = jax.vmap(gradient, (0, None, None))
    program = str(jax.make_jaxpr(side_by_side)(both, xs, carry))
    assert "dynamic_slice" in program
    assert "gather" not in program
    assert "scatter" not in program
    one = jax.jit(gradient)
    alone = stack_trees([one(model, xs, carry) for model in models])
    assert_close(jax.jit(side_by_side)(both, xs, carry), alone, tolerance=1e-10)


def test_gradients_of_narrow_kernels_are_added_up_in_float32(in_blocks_of):
    """In bfloat16, 256 plus 1 is 256: adding up 300 blocks of 1 would end there."""
    in_blocks_of(1)
    cell = rdrop.SimpleCell(1, dtype=jnp.bfloat16)
    rnn = rdrop.RNN(cell, loop="recompute")
    xs = jnp.ones((1, 300, 1), jnp.bfloat16)
    shapes = jax.eval_shape(rnn.init, jax.random.key(0), xs)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradient = jax.grad(lambda p: rnn.apply(p, xs)[1].astype(jnp.float32).sum())
    assert jax.jit(gradient)(params)["params"]["kernel"] == 300
