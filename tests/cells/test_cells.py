"""Parameters, carries, dtypes and errors; values are in tests/laws.

Errors of the carry are in tests/loops/test_layers.py, with the ones of layers.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import assert_close, quickly

import rdrop
import rdrop.nnx
from rdrop import Bernoulli, DropConnect, Dropout, Masks

CELLS = {
    "lstm": rdrop.LSTMCell,
    "layer_norm_lstm": rdrop.LayerNormLSTMCell,
    "gru": rdrop.GRUCell,
    "gru_reset_before": lambda *args, **kw: rdrop.GRUCell(
        *args, reset_after=False, **kw
    ),
    "simple": rdrop.SimpleCell,
    "min_gru": rdrop.MinGRUCell,
}
GATES = {"lstm": 4, "layer_norm_lstm": 4, "gru": 3, "gru_reset_before": 3, "simple": 1}
GATES["min_gru"] = 2
every_cell = pytest.mark.parametrize("name", CELLS)


ZEROS = {
    site: Masks(**{site: jnp.zeros((4, 1, 3), jnp.float32)})
    for site in ("outputs", "cell_state", "hidden_state")
}


def test_masks_of_outputs_and_states_reach_what_they_name(problem):
    """A mask of h_t as the next step sees it is not one of y_t; a mask of c is."""

    @jax.jit
    def run(params, carry, x):
        apply = functools.partial(problem.cell.apply, params, carry, x)
        return {site: apply(masks) for site, masks in ZEROS.items()}

    results = run(problem.params, problem.carry, problem.xs[:, 0])
    reached = {
        site: [name for name, leaf in (("c", c), ("h", h), ("y", y)) if not leaf.any()]
        for site, ((c, h), y) in results.items()
    }
    expected = {"outputs": ["y"], "cell_state": ["c", "h", "y"], "hidden_state": ["h"]}
    assert reached == expected


def test_flax_rnn_initialises_and_runs_our_cell(problem):
    rnn = nn.RNN(problem.cell)

    @jax.jit
    def run(key):
        params = rnn.init(key, problem.xs)
        own = {"params": params["params"]["cell"]}
        expected = rdrop.RNN(problem.cell).apply(own, problem.xs)[1]
        return rnn.apply(params, problem.xs), expected

    assert_close(*run(jax.random.key(0)))


@pytest.fixture(scope="module")
def initial():
    """The initial parameters of each cell, for 5 features and 8 units."""
    xs = jnp.ones((2, 1, 5), jnp.float32)

    @jax.jit
    def init(key):
        return {name: rdrop.RNN(cell(8)).init(key, xs) for name, cell in CELLS.items()}

    return {name: params["params"] for name, params in init(jax.random.key(0)).items()}


BIASES = {
    "lstm": {"bias": np.repeat([0, 1, 0, 0], 8)},
    "layer_norm_lstm": {
        "gain": np.ones(32),
        "shift": np.zeros(32),
        "cell_gain": np.ones(8),
        "cell_shift": np.zeros(8),
    },
    "gru": {"bias": np.zeros(24), "recurrent_bias": np.zeros(8)},
    "gru_reset_before": {"bias": np.zeros(24)},
    "simple": {"bias": np.zeros(8)},
    "min_gru": {"bias": np.zeros(16)},
}


@every_cell
def test_initial_parameters_are_those_documented(initial, name):
    params = dict(initial[name])
    kernel = params.pop("kernel")
    bound = math.sqrt(6 / (5 + 8 * GATES[name]))
    assert kernel.shape == (5, 8 * GATES[name])
    assert 0.8 * bound < kernel.max() <= bound
    assert -bound <= kernel.min() < -0.8 * bound
    if name != "min_gru":
        recurrent = params.pop("recurrent_kernel")
        assert recurrent.shape == (8, 8 * GATES[name])
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(8), atol=1e-5)
    assert set(params) == set(BIASES[name])
    for bias, expected in BIASES[name].items():
        np.testing.assert_array_equal(params[bias], expected)


@every_cell
def test_initial_carry_is_zero_in_its_dtypes(name):
    cell = CELLS[name](8, dtype=jnp.bfloat16)
    carry = cell.initialize_carry(jax.random.key(0), (2, 5))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(carry)]
    assert dtypes == [jnp.float32, jnp.bfloat16][-len(dtypes) :]
    for leaf in jax.tree.leaves(carry):
        assert leaf.shape == (2, 8)
        assert not leaf.any()


@pytest.mark.parametrize("name", quickly(CELLS, "lstm"))
def test_half_precision_computes_close_to_full(rng, name):
    """The memory c is carried in full; outputs are in half."""
    xs = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    noise = Bernoulli(0.4, per="step")
    dropout = Dropout(inputs=noise, input_weights=DropConnect(0.2), outputs=noise)

    @jax.jit
    def run(key):
        full, half = CELLS[name](3), CELLS[name](3, dtype=jnp.bfloat16)
        start = full.initialize_carry(key, xs.shape)
        params = full.init(key, start, xs)
        keys = rdrop.stream_keys(key)
        carries = [cell.initialize_carry(key, xs.shape) for cell in (full, half)]
        return [
            cell.apply(params, carry, xs, dropout, keys)
            for cell, carry in zip((full, half), carries, strict=True)
        ]

    (_, expected), (carry, y) = run(jax.random.key(0))
    dtypes = [leaf.dtype for leaf in (*jax.tree.leaves(carry), y)]
    assert dtypes == [jnp.float32, jnp.bfloat16, jnp.bfloat16][-len(dtypes) :]
    np.testing.assert_allclose(np.float32(y), expected, atol=0.05)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2,), (4, 5, 2)])
def test_input_of_a_wrong_rank_is_refused(problem, shape):
    message = r"`x` must have the axes \[B, D\], got shape \(" + str(shape[0])
    with pytest.raises(ValueError, match=message):
        problem.cell.apply(problem.params, problem.carry, jnp.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_input_of_other_features_is_refused(problem):
    message = "`x` must have 2 features, as the parameters do, got 7"
    with pytest.raises(ValueError, match=message):
        problem.cell.apply(problem.params, problem.carry, jnp.zeros((4, 7)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_carry_of_a_wrong_rank_is_refused(problem, shape):
    carry = (jnp.zeros(shape),) * 2
    with pytest.raises(ValueError, match=r"`carry` must be a tuple \(c, h\), each of"):
        problem.cell.apply(problem.params, carry, problem.xs[:, 0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("units", [0, -3, 8.0, "8", None])
def test_a_size_that_is_no_count_is_refused(units):
    """In a linen module, in an nnx one, and in the equations alone."""
    for build in (
        rdrop.LSTMCell,
        rdrop.cells.GRU,
        lambda units: rdrop.nnx.GRUCell(2, units, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match="`units` must be an integer of 1 or more"):
            build(units)
