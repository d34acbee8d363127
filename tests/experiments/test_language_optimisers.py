"""Optimisers of language models are those of the papers and of their code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from experiments.language.config import Config, Train
from experiments.language.optimisers import (
    average,
    decays,
    is_non_monotone,
    make_optimiser,
)


@pytest.mark.parametrize("interval", [1, 3])
def test_nt_asgd_is_the_algorithm_of_the_paper(interval):
    """On a quadratic of too large a rate, whose loss stops falling."""
    rng = np.random.default_rng(1)
    noise = iter(rng.normal(size=(200, 3)))
    drawn = [next(noise) for _ in range(40)]
    curvature, start = np.array([1.0, 1.9, 0.3]), np.array([3.0, -2.0, 4.0])

    def loss(w):
        return float((curvature * w * w).sum())

    steps = iter(drawn)
    last, evaluated, triggered = reference.nt_asgd(
        start, lambda w: curvature * w + next(steps), 1.0, 10, 4, loss, interval
    )
    assert triggered is not None
    assert triggered < 9

    train = Train(averaging="nt_asgd", non_monotone=interval, clip=0.0)
    params = jnp.asarray(start)
    state, logs, found = None, [], []
    for epoch in range(10):
        for n in range(4):
            optimiser = make_optimiser(Config(train=train), 1.0, 0.0)
            state = optimiser.init(params) if state is None else state
            gradient = curvature * params + drawn[4 * epoch + n]
            averaging = jnp.bool(is_non_monotone(logs, interval))
            updates, state = optimiser.update(
                gradient, state, params, triggered=averaging
            )
            params = optax.apply_updates(params, updates)
        found.append(is_non_monotone(logs, interval))
        logs.append(loss(average(state)))
    assert found.index(True) == triggered + 1
    np.testing.assert_allclose(params, last, rtol=1e-12)
    np.testing.assert_allclose(average(state), evaluated, rtol=1e-12)


def test_without_averaging_there_is_no_average():
    params = jnp.ones(3)
    assert average(make_optimiser(Config(), 1.0, 0.0).init(params)) is None


@pytest.mark.parametrize(
    ("losses", "interval", "triggered"),
    [
        ([], 2, False),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 2, False),
        ([1.0, 2.0, 3.0], 5, False),  # not enough to look back at
        ([1.0, 2.0, 3.0], 3, False),
        ([1.0, 2.0, 3.0, 0.5, 1.0], 3, False),  # equal is not higher
        ([1.0, 2.0, 3.0, 0.5, 1.5], 3, True),
        (
            [5.0, 4.0, 3.0, 4.5, 1.0],
            2,
            False,
        ),  # higher than 3, but not than those before
        ([4.0, 5.0, 6.0, 4.5, 1.0, 0.5], 2, True),  # stays triggered
    ],
)
def test_non_monotone_looks_back_an_interval(losses, interval, triggered):
    assert is_non_monotone(losses, interval) is triggered


@pytest.mark.parametrize(
    ("train", "losses", "count"),
    [
        (Train(hold=5), [], 0),
        (Train(hold=5), [9.0] * 4, 0),  # before epoch 5
        (Train(hold=5), [9.0] * 5, 1),  # before epoch 6
        (Train(hold=5), [9.0] * 12, 8),  # before epoch 13
        (Train(patience=2), [3.0, 2.0, 2.5], 0),
        (Train(patience=2), [3.0, 2.0, 2.5, 2.0], 1),
        (Train(patience=2), [3.0, 2.0, 2.5, 2.0, 2.1], 1),  # waits anew after a decay
        (Train(patience=2), [3.0, 2.0, 2.5, 2.0, 2.1, 2.2], 2),
        (Train(patience=2), [3.0, 2.0, 2.5, 1.9, 2.1], 0),
        (Train(patience=1), [3.0, 3.1, 2.9, 3.0], 2),
    ],
)
def test_learning_rate_decays_by_the_epoch_or_by_patience(train, losses, count):
    assert decays(train, losses) == count


def loop_of_fraternal_dropout(figures):
    """Loop of main.py in kondiz/fraternal-dropout, with 3 epochs for its 21."""
    best, waited, count = None, 0, 0
    for figure in figures:
        if best is None or figure < best:
            best, waited = figure, 0
        else:
            waited += 1
            if waited > 2:
                waited, best, count = 0, None, count + 1
    return count


def loop_of_lstm_char_cnn(figures):
    """Loop of main.lua in yoonkim/lstm-char-cnn; it begins with the third epoch."""
    pairs = itertools.pairwise(figures)
    return sum(before - now < 1.0 for before, now in list(pairs)[1:])


def loop_of_drop_rnn(figures):
    """Loop of sgd_optimizer.py in stas-semeniuta/drop-rnn."""
    best, count = 1e6, 0
    for figure in figures:
        count += figure >= best
        best = min(best, figure)
    return count


@pytest.mark.parametrize(
    ("loop", "train"),
    [
        (loop_of_fraternal_dropout, Train(patience=3, forget_best=True)),
        (
            loop_of_lstm_char_cnn,
            Train(patience=1, improves_on="previous", least_improvement=1.0),
        ),
        (loop_of_drop_rnn, Train(patience=1)),
    ],
)
def test_learning_rate_decays_as_in_the_code_of_the_authors(loop, train):
    for seed in range(20):
        steps = np.random.default_rng(seed).normal(-0.5, 2.0, 38)
        figures = [400.0, 200.0, *(150 + np.cumsum(steps))]
        found = [decays(train, figures[:n]) for n in range(len(figures))]
        assert found == [loop(figures[:n]) for n in range(len(figures))]
        assert found[-1] > 0


def test_a_clipped_step_is_adams(rng):
    """Two steps, in NumPy."""
    train = Train(optimiser="adam", clip=0.01, clip_on="step")
    optimiser = make_optimiser(Config(train=train), 0.1, 0.0)
    params = jnp.zeros(4)
    state, mean, square = optimiser.init(params), np.zeros(4), np.zeros(4)
    for n in (1, 2):
        g = rng.normal(size=4)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        adam = mean / (1 - 0.9**n) / (np.sqrt(square / (1 - 0.999**n)) + 1e-8)
        step = -0.1 * adam
        step *= min(1, 0.01 / np.linalg.norm(step))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(
                jnp.asarray(g), state, params, triggered=jnp.bool(False)
            )
        np.testing.assert_allclose(updates, step, rtol=1e-5)
