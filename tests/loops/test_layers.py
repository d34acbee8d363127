"""RNN, Bidirectional and Stack: time, padding, layout and parameters.

That a layer is its definition, and that padding is invisible, is in tests/laws.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import rdrop
from rdrop import Bernoulli, Dropout, Masks

GRUCell = functools.partial(rdrop.GRUCell, param_dtype=jnp.float64)
SimpleCell = functools.partial(rdrop.SimpleCell, param_dtype=jnp.float64)
NOISE = Dropout(inputs=Bernoulli(0.4, per="step"), recurrent=Bernoulli(0.5))


def by_rnn(problem, noise=None, keys=None, lengths=None, reverse=False):
    rnn = rdrop.RNN(problem.cell, reverse=reverse)

    def run(params, xs, carry):
        return rnn.apply(params, xs, noise, keys, initial_carry=carry, lengths=lengths)

    return run


def arguments_of(problem):
    return problem.params, problem.xs, problem.carry


def masks_of(each=4, time=5):
    """Masks of an LSTM on three sites, two of them per step, of any numbers."""
    rng = np.random.default_rng(5)

    def numbers(*shape):
        return jnp.asarray(rng.choice([0.0, 1.5], shape), jnp.float32)

    return Masks(
        inputs=numbers(time, each, 4, 2),
        outputs=numbers(each, 1, 3),
        recurrent=numbers(time, each, 1, 3),
    )


# Time.


def test_two_chunks_are_one_sequence(problem):
    @jax.jit
    def run(params, xs, carry):
        keys = problem.keys.replace(step=7)
        layer = functools.partial(rdrop.RNN(problem.cell).apply, params)
        whole = layer(xs[:, :4], NOISE, keys, initial_carry=carry)
        carry, first = layer(xs[:, :2], NOISE, keys, initial_carry=carry)
        keys = keys.replace(step=9)
        carry, second = layer(xs[:, 2:4], NOISE, keys, initial_carry=carry)
        return whole, (carry, jnp.concatenate([first, second], axis=1))

    assert_close(*run(*arguments_of(problem)))


def test_directions_have_different_masks(problem):
    """A unit that is dropped shows as a zero, as there is noise on outputs alone."""
    noise = Dropout(outputs=Bernoulli(0.5))

    @jax.jit
    def run(*arguments):
        return [
            by_rnn(problem, noise, problem.keys, reverse=reverse)(*arguments)[1] == 0
            for reverse in (False, True)
        ]

    forward, backward = run(*arguments_of(problem))
    assert forward.any()
    assert backward.any()
    assert (forward != backward).any()


# Padding.


@pytest.mark.parametrize("reverse", [False, True])
def test_padded_sequence_is_the_sequence_alone(problem, reverse):
    """Padded outputs are zero, and an empty sequence keeps its carry.

    Masks are shared by the batch, so that they are also those of an example alone.
    """
    masks = masks_of(each=1)

    def one(n, length):
        def only(leaf):
            return leaf[n : n + 1]

        def cut(mask):
            return mask[:length] if mask.ndim == 4 else mask

        own = jax.tree.map(cut, masks)
        params, xs, carry = problem.params, problem.xs, problem.carry
        run = by_rnn(problem, own, reverse=reverse)
        return run(params, only(xs)[:, :length], jax.tree.map(only, carry))

    @jax.jit
    def run(*arguments):
        lengths = problem.lengths
        padded = by_rnn(problem, masks, lengths=lengths, reverse=reverse)(*arguments)
        return padded, [one(n, length) for n, length in enumerate(lengths)]

    (last, ys), alone = run(*arguments_of(problem))
    for n, length in enumerate(problem.lengths):
        own = jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], last)
        assert_close((own, ys[n : n + 1, :length]), alone[n])
        assert not ys[n, length:].any()
    empty = jax.tree.map(lambda leaf: leaf[3], (last, problem.carry))
    chex.assert_trees_all_equal(*empty)


def test_lengths_may_be_traced_a_list_or_of_another_integer_type(problem):
    known = [
        problem.lengths,
        problem.lengths.tolist(),
        tuple(problem.lengths.tolist()),
        jnp.asarray(problem.lengths, jnp.int32),
        np.asarray(problem.lengths, np.uint8),
    ]

    @jax.jit
    def run(traced):
        ways = [by_rnn(problem, lengths=lengths) for lengths in (*known, traced)]
        return [way(*arguments_of(problem)) for way in ways]

    expected, *others = run(jnp.asarray(problem.lengths))
    for actual in others:
        assert_close(actual, expected)


# Layout, carry and parameters.


def test_time_major_is_the_transpose(problem):
    @jax.jit
    def run(masks, params, xs, carry):
        options = {"initial_carry": carry, "lengths": problem.lengths}
        rnn = rdrop.RNN(problem.cell, time_major=True)
        last, ys = rnn.apply(params, xs.swapaxes(0, 1), masks, **options)
        expected = rdrop.RNN(problem.cell).apply(params, xs, masks, **options)
        return (last, ys.swapaxes(0, 1)), expected

    assert_close(*run(masks_of(), *arguments_of(problem)))


def test_initial_carry_is_zero_by_default(problem):
    zeros = jax.tree.map(jnp.zeros_like, problem.carry)

    @jax.jit
    def run(params, xs):
        return [by_rnn(problem)(params, xs, carry) for carry in (None, zeros)]

    chex.assert_trees_all_equal(*run(*arguments_of(problem)[:2]))


def test_parameters_are_those_of_the_cell_and_noise_does_not_change_them(problem):
    @jax.jit
    def init(key):
        rnn = rdrop.RNN(problem.cell)
        return (
            problem.cell.init(key, problem.carry, problem.xs[:, 0]),
            rnn.init(key, problem.xs),
            rnn.init(key, problem.xs, NOISE, problem.keys),
        )

    from_cell, from_rnn, noisy = init(jax.random.key(3))
    chex.assert_trees_all_equal(from_cell, from_rnn, noisy)


# Layers of layers.


def layers_of(*cells):
    return rdrop.Stack([rdrop.RNN(cell) for cell in cells])


def params_of(layer, xs):
    """Small numbers in the shapes of a layer's parameters."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), xs)
    rng = np.random.default_rng(6)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)) / 2, shapes)


def test_stack_is_its_layers_one_after_the_other(problem):
    """Layer n draws n above the keys' layer; one dropout is spread over all layers."""
    cells = [SimpleCell(2), SimpleCell(3)]
    stack = layers_of(*cells)
    params = params_of(stack, problem.xs)
    options = {"lengths": problem.lengths}

    @jax.jit
    def run(params, xs):
        keys = problem.keys.replace(layer=3)
        spread = stack.apply(params, xs, NOISE, keys, **options)
        listed = stack.apply(params, xs, [NOISE, NOISE], keys, **options)
        expected = []
        for depth, cell in enumerate(cells):
            own = {"params": params["params"][f"layers_{depth}"]}
            at = keys.replace(layer=3 + depth)
            carry, xs = rdrop.RNN(cell).apply(own, xs, NOISE, at, **options)
            expected.append(carry)
        return spread, listed, (tuple(expected), xs)

    spread, listed, expected = run(params, problem.xs)
    assert_close(spread, expected)
    assert_close(listed, expected)


def test_stack_continues_from_its_carries(problem):
    stack = layers_of(GRUCell(2), SimpleCell(3))

    @jax.jit
    def run(params, xs):
        _, whole = stack.apply(params, xs)
        carries, first = stack.apply(params, xs[:, :2])
        _, second = stack.apply(params, xs[:, 2:], initial_carry=carries)
        return jnp.concatenate([first, second], axis=1), whole

    assert_close(*run(params_of(stack, problem.xs), problem.xs))


def test_bidirectional_is_both_directions_side_by_side(problem):
    """Each direction has its own masks, and starts at its end of the valid steps."""
    cells = {"forward": SimpleCell(3), "backward": SimpleCell(2)}
    both = rdrop.Bidirectional(**cells)
    noises = (NOISE, Dropout(inputs=Bernoulli(0.5)))
    options = {"keys": problem.keys, "lengths": problem.lengths}

    @jax.jit
    def run(params, xs):
        results = []
        for (name, cell), noise in zip(cells.items(), noises, strict=True):
            own = {"params": params["params"][name]}
            rnn = rdrop.RNN(cell, reverse=name == "backward")
            results.append(rnn.apply(own, xs, noise, **options))
        (first, ys), (last, zs) = results
        expected = (first, last), jnp.concatenate([ys, zs], axis=-1)
        return both.apply(params, xs, noises, **options), expected

    assert_close(*run(params_of(both, problem.xs), problem.xs))
