"""The affine loop: step after step, as on CPU, and at once, as elsewhere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, quickly, random_like
from loop_cases import CELLS, LENGTHS, SETTINGS, masks_of, problem_of, with_gradients

import rdrop
from rdrop.loops import affine as loop

AFFINE = [
    name for name in CELLS if isinstance(CELLS[name].equations, rdrop.cells.Affine)
]


@pytest.mark.parametrize("setting", quickly(SETTINGS, "mixed_states"))
@pytest.mark.parametrize("name", quickly(AFFINE, "lru"))
def test_both_ways_agree_in_values_and_gradients(name, setting, monkeypatch):
    dropout, time_major, reverse, lengths = SETTINGS[setting]
    rnn = rdrop.RNN(CELLS[name], time_major, reverse)
    arguments = masks_of(CELLS[name], dropout), *problem_of(rnn)

    def results():
        train = with_gradients(rnn, lengths)  # a new function, that is traced again
        return jax.jit(train)(*arguments)

    expected = results()
    called = []

    def at_once(*arguments):
        called.append(len(arguments))
        return loop._at_once(*arguments)

    monkeypatch.setattr(loop, "_in_turn", at_once)
    assert_close(results(), expected)
    assert called


def test_states_follow_their_definition():
    """With constant factors and without; padded; forwards and in reverse."""
    rng = np.random.default_rng(0)
    terms, state = rng.normal(size=(6, 4, 3)), rng.normal(size=(4, 3))
    valid = np.arange(6)[:, None] < LENGTHS
    for factors in (rng.normal(size=(6, 4, 3)), rng.normal(size=(1, 1, 3))):
        for reverse in (False, True):
            before, after, h = np.empty_like(terms), np.empty_like(terms), state
            for t in reversed(range(6)) if reverse else range(6):
                before[t] = h
                new = factors[min(t, len(factors) - 1)] * h + terms[t]
                h = after[t] = np.where(valid[t][:, None], new, h)
            arguments = map(jnp.asarray, (factors, terms, state, valid))
            actual = jax.jit(loop.affine_scan, static_argnums=4)(*arguments, reverse)
            assert_close(actual, (before, after))


def test_derivatives_are_those_that_jax_takes_of_the_scan():
    """Forwards and in reverse, with factors of every step and constant ones."""
    shapes = (6, 4, 3), (6, 4, 3), (4, 3)
    point = random_like([jax.ShapeDtypeStruct(s, jnp.float64) for s in shapes], 1)
    tangent, cotangent = random_like(point, 2), random_like(point[0], 3)

    @jax.jit
    def derivatives(*point):
        found = []
        for run in (loop._states, loop._in_turn):
            run = partial(run, True)
            forwards = jax.jvp(run, point, tuple(tangent))
            found.append((forwards, jax.vjp(run, *point)[1](cotangent)))
        return found

    assert_close(*derivatives(*point))
    point[0], tangent[0] = point[0][:1, :1], tangent[0][:1, :1]
    assert_close(*derivatives(*point))
