"""`wrap` around live cells of Keras and equinox: the cells of rdrop are the reference.

Masks on activations and kernels are the same bitwise, so values agree to rounding.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_all_matter, assert_close, quickly

import rdrop
from rdrop import interop

BATCH, TIME, FEATURES, UNITS = 3, 5, 2, 4
LENGTHS = np.array([5, 3, 0])
KEYS = rdrop.stream_keys(jax.random.key(1))
STATES = {
    "inputs": rdrop.Bernoulli(0.3),
    "outputs": rdrop.Bernoulli(0.2, per="step"),
    "hidden_state": rdrop.Zoneout(0.3),
}
WEIGHTS = {
    "input_weights": rdrop.DropConnect(0.3),
    "recurrent_weights": rdrop.DropConnect(0.3),
}


@pytest.fixture(autouse=True)
def lenient():
    """Lets the libraries promote dtypes and ranks as usual, in float32."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        yield


@pytest.fixture
def xs():
    return jax.random.normal(jax.random.key(5), (BATCH, TIME, FEATURES), jnp.float32)


@pytest.mark.parametrize("name", quickly(["LSTM", "GRU", "SimpleRNN"], "SimpleRNN"))
def test_a_cell_of_keras(name, xs):
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, name)(UNITS, return_sequences=True)
    layer.build(xs.shape)
    ours, cell = interop.from_keras(layer), layer.cell

    states = ["hidden_state", "cell_state"] if name == "LSTM" else ["hidden_state"]
    seeds = [variable.value for variable in cell.non_trainable_variables]

    def step(params, carry, x):
        (y, carry), _ = cell.stateless_call(params, seeds, x, carry)
        return carry, y

    def zeros(params, shape):
        return [jnp.zeros((shape[0], UNITS), jnp.float32) for _ in states]

    wrapped = rdrop.wrap(
        step,
        carry=zeros,
        states=states,
        output="hidden_state",
        kernels={"input_weights": "0", "recurrent_weights": "1"},
    )
    noise = STATES | WEIGHTS
    if name == "LSTM":
        noise |= {"cell_state": rdrop.Zoneout(0.2)}
    dropout = rdrop.Dropout(**noise)
    params = [variable.value for variable in cell.trainable_variables]
    expected = ours.module.apply(ours.params, xs, dropout, KEYS, lengths=LENGTHS)
    carry, ys = wrapped.apply(params, xs, dropout, KEYS, lengths=LENGTHS)
    assert_close(ys, expected[1], 1e-6)
    assert_close(carry[::-1], list(jax.tree.leaves(expected[0])), 1e-6)


def lstm_of(cell):
    """Equinox has i f g o in rows."""
    return {
        "kernel": cell.weight_ih.T,
        "recurrent_kernel": cell.weight_hh.T,
        "bias": cell.bias,
    }


def gru_of(cell):
    """Equinox has r z n in rows, and a bias inside the reset of the candidate."""

    def ours(rows):
        r, z, n = jnp.split(rows, 3)
        return jnp.concatenate([z, r, n]).T

    return {
        "kernel": ours(cell.weight_ih),
        "recurrent_kernel": ours(cell.weight_hh),
        "bias": ours(cell.bias),
        "recurrent_bias": cell.bias_n,
    }


@pytest.mark.parametrize(
    ("name", "weights", "noise"),
    [
        pytest.param(
            *("LSTMCell", lstm_of, WEIGHTS | {"cell_state": rdrop.Zoneout(0.2)}),
            marks=pytest.mark.slow,
        ),
        pytest.param("GRUCell", gru_of, {}, marks=pytest.mark.slow),
    ],
)
def test_a_cell_of_equinox(name, weights, noise, xs):
    cell = getattr(eqx.nn, name)(FEATURES, UNITS, key=jax.random.key(0))
    wrapped, ours = rdrop.wrap(cell), rdrop.RNN(getattr(rdrop, name)(UNITS))
    dropout = rdrop.Dropout(**STATES, **noise)

    def loss(layer, params, xs):
        ys = layer.apply(params, xs, dropout, KEYS, lengths=LENGTHS)[1]
        return jnp.sin(ys).sum(), ys

    found, d_cell = eqx.filter_value_and_grad(
        lambda cell: loss(wrapped, cell, xs), has_aux=True
    )(cell)
    expected, d_params = jax.value_and_grad(
        lambda params: loss(ours, {"params": params}, xs), has_aux=True
    )(weights(cell))
    assert_all_matter(weights(d_cell))
    assert_close(found, expected, 1e-6)
    assert_close(weights(d_cell), d_params, 1e-5)
