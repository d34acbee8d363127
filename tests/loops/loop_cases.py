"""Cells, settings and masks with which the tests of the loops run."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import random_like

import rdrop
from rdrop import Bernoulli, DropConnect, Dropout, Masks, Mix, Zoneout

BATCH, TIME, FEATURES, UNITS = 4, 6, 2, 3
LENGTHS = np.array([6, 4, 1, 0])
KEYS = rdrop.stream_keys(jax.random.key(0)).replace(step=7)
double = {"units": UNITS, "param_dtype": jnp.float64}
CELLS = {
    "lstm": rdrop.LSTMCell(**double),
    "layer_norm_lstm": rdrop.LayerNormLSTMCell(**double),
    "gru": rdrop.GRUCell(**double),
    "gru_reset_before": rdrop.GRUCell(reset_after=False, **double),
    "simple": rdrop.SimpleCell(**double),
    "min_gru": rdrop.MinGRUCell(**double),
    "min_lstm": rdrop.MinLSTMCell(**double),
    "rg_lru": rdrop.RGLRUCell(**double),
    "lru": rdrop.LRUCell(**double),
    "s5": rdrop.S5Cell(**double),
    "slstm": rdrop.SLSTMCell(**double),
}
LOOPS = ("fused", "recompute", "plain")
FAST = LOOPS[:2]
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


def masks_of(cell, dropout, time=TIME):
    """Masks of the shapes of some noise, of any float64 numbers.

    Drawing takes longest to compile. Masks in float64 have derivatives in float64.
    """
    sites, rng = cell.sites(FEATURES), np.random.default_rng(3)

    def mask(noise, size):
        if isinstance(noise, DropConnect):
            return numbers((size.rows, size.gates, size.units))
        lead = (time,) if noise.per == "step" else ()
        shape = lead + noise.shape(BATCH, size.gates, size.units)
        return Mix(numbers(shape) / 2) if isinstance(noise, Zoneout) else numbers(shape)

    def numbers(shape):
        return jnp.asarray(rng.choice([0.0, 0.5, 1.5], shape))

    return Masks(
        **{
            site: mask(noise, sites[site])
            for site, noise in dropout.sites()
            if site in sites
        }
    )


@functools.cache
def problem_of(layer, time=TIME, batch=BATCH):
    """Random parameters, inputs and initial carry of a layer."""
    major = getattr(layer, "time_major", False)
    shape = (time, batch, FEATURES) if major else (batch, time, FEATURES)
    xs = jax.ShapeDtypeStruct(shape, np.float64)
    key = jax.random.key(0)
    (carry, _), params = jax.eval_shape(layer.init_with_output, key, xs)
    with jax.ensure_compile_time_eval():  # the result is kept
        return random_like(params, 1), random_like(xs, 2), random_like(carry, 3)


def with_gradients(layer, lengths=None, keys=None):
    """Results of a layer, and gradients in noise, parameters, inputs and carry."""

    def both(noise, params, xs, carry):
        def run(noise, params, xs, carry):
            options = {"initial_carry": carry, "lengths": lengths}
            return layer.apply(params, xs, noise, keys, **options)

        results, pull_back = jax.vjp(run, noise, params, xs, carry)
        return results, pull_back(random_like(results, 4))

    return both


@functools.cache
def results_of(name, setting, loop):
    """Results and gradients of a cell by one loop."""
    dropout, time_major, reverse, lengths = SETTINGS[setting]
    rnn = rdrop.RNN(CELLS[name], time_major, reverse, loop)
    train = jax.jit(with_gradients(rnn, lengths))
    return train(masks_of(CELLS[name], dropout), *problem_of(rnn))


def loss_of(rnn, noise=None, lengths=None, keys=None):
    """A loss with curvature, of parameters, inputs and initial carry."""

    def loss(params, xs, carry, noise=noise):
        options = {"initial_carry": carry, "lengths": lengths}
        carry, ys = rnn.apply(params, xs, noise, keys, **options)
        leaves = jax.tree.leaves((carry, ys))
        return sum((leaf * leaf.conj()).real.sum() for leaf in leaves)

    return loss


def noisy_loss(name, loop):
    """A loss of a cell with masks on all its sites, mixed states, and padding."""
    rnn = rdrop.RNN(CELLS[name], loop=loop)
    masks = masks_of(CELLS[name], SETTINGS["mixed_states"].dropout)
    return loss_of(rnn, masks, LENGTHS), problem_of(rnn)
