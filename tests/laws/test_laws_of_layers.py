"""The laws of DESIGN.md that are about layers, for every cell, site and kind."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    quickly,
)
from law_cases import (
    BATCH,
    CELLS,
    KEYS,
    KINDS,
    LENGTHS,
    TIME,
    by_definition,
    draw,
    draw_all,
    each_pair,
    every_site,
    forward,
    in_each_program,
    is_reversed,
    problem_of,
    program,
    train,
)

import rdrop

# Law 1: the definition and the fast path agree.


@each_pair(CELLS, KINDS, *in_each_program)
def test_rnn_is_its_definition(name, kind):
    """Values, and gradients in parameters, inputs and carry, with padding."""
    cell, masks = CELLS[name], draw_all(name, kind)
    slow = program(cell, is_reversed(kind), by_definition)
    expected = slow(masks, LENGTHS, *problem_of(cell))
    assert_close(train(cell, kind, masks), expected, tolerance=1e-10)


@pytest.mark.parametrize("name", quickly(CELLS, "simple"))
def test_keys_give_what_their_masks_give(name):
    cell = CELLS[name]
    dropout = every_site(cell, "bernoulli", 0.4)

    @jax.jit
    def run(keys, params, xs, carry):
        rnn = functools.partial(rdrop.RNN(cell).apply, params, xs, initial_carry=carry)
        step = functools.partial(cell.apply, params, carry, xs[:, 0])
        masks = draw(cell, dropout, keys=keys), draw(cell, dropout, None, keys)
        from_masks = rnn(masks[0]), step(masks[1])
        return (rnn(dropout, keys=keys), step(dropout, keys=keys)), from_masks

    chex.assert_trees_all_equal(*run(KEYS, *problem_of(cell)))


# Laws 8 and 9: time is absolute, and padding is invisible.


@each_pair(CELLS, KINDS, *in_each_program)
def test_two_chunks_are_one_sequence(name, kind):
    """The chunks are padded to the whole length, so one program runs them all."""
    cell, whole = CELLS[name], draw_all(name, kind)
    _, xs, carry = problem_of(cell)
    full = np.full(BATCH, TIME)
    (last, ys), _ = train(cell, kind, whole, lengths=full)
    parts = [None, None]
    for n in (1, 0) if is_reversed(kind) else (0, 1):
        masks = draw_all(name, kind, keys=KEYS.replace(step=7 + 3 * n))
        part = jnp.roll(xs, -3 * n, axis=1)
        results, _ = train(cell, kind, masks, part, full - 3, carry)
        carry, parts[n] = results[0], results[1][:, :3]
    assert_close((carry, jnp.concatenate(parts, axis=1)), (last, ys))


PADDING = np.arange(TIME)[None] >= LENGTHS[:, None]


@each_pair(CELLS, KINDS, *in_each_program)
def test_padding_is_invisible(name, kind):
    """Even if it is not finite: in outputs, the final carry, and every gradient."""
    cell, masks = CELLS[name], draw_all(name, kind)
    _, xs, carry = problem_of(cell)
    expected = train(cell, kind, masks)
    chex.assert_tree_all_finite(expected)
    for filling in (1e30, np.inf, np.nan):
        padded = jnp.where(PADDING[..., None], filling, xs)
        chex.assert_trees_all_equal(train(cell, kind, masks, padded), expected)
    (last, ys), (_, gradient_in_xs, _) = expected
    assert not ys[PADDING].any()
    assert not gradient_in_xs[PADDING].any()
    of_empty, initial = jax.tree.map(lambda leaf: leaf[3], (last, carry))
    chex.assert_trees_all_equal(of_empty, initial)


# Law 10: the same key gives bitwise identical results.


@each_pair(CELLS, ("bernoulli", "zoneout"), ("lstm", "bernoulli"), ("gru", "zoneout"))
def test_resumed_training_is_bitwise_the_uninterrupted(name, kind):
    """The parameters are stored after two steps; keys come from the step alone."""
    cell = CELLS[name]

    def descend(params, first, last):
        for step in range(first, last):
            keys = rdrop.stream_keys(jax.random.fold_in(jax.random.key(3), step))
            masks = draw_all(name, kind, 0.1 * step, keys)
            _, (gradient, *_) = train(cell, kind, masks, params=params)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
        return params

    start = problem_of(cell)[0]
    stored = jax.tree.map(np.asarray, descend(start, 0, 2))
    resumed = descend(jax.tree.map(jnp.asarray, stored), 2, 4)
    chex.assert_trees_all_equal(resumed, descend(start, 0, 4))


@pytest.mark.parametrize("name", quickly(CELLS, "lstm"))
def test_two_programs_of_the_same_key_are_bitwise_identical(name):
    cell, masks = CELLS[name], draw_all(name, "bernoulli")
    arguments = (masks, LENGTHS, *problem_of(cell))
    first, second = (forward.__wrapped__(cell)(*arguments) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
