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
    "min_lstm": rdrop.MinLSTMCell,
    "rg_lru": rdrop.RGLRUCell,
    "slstm": rdrop.SLSTMCell,
    "lru": rdrop.LRUCell,
    "s5": rdrop.S5Cell,
}
GATES = {
    "lstm": 4,
    "layer_norm_lstm": 4,
    "gru": 3,
    "gru_reset_before": 3,
    "simple": 1,
    "min_gru": 2,
    "min_lstm": 3,
    "rg_lru": 3,
    "slstm": 4,
}
AFFINE = ("min_gru", "min_lstm", "rg_lru", "lru", "s5")
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
    "min_lstm": {"bias": np.zeros(24)},
    "rg_lru": {"bias": np.zeros(24)},
    "slstm": {"bias": np.zeros(32)},
}


@pytest.mark.parametrize("name", GATES)
def test_initial_parameters_are_those_documented(initial, name):
    params = dict(initial[name])
    kernel = params.pop("kernel")
    bound = math.sqrt(6 / (5 + 8 * GATES[name]))
    assert kernel.shape == (5, 8 * GATES[name])
    assert 0.8 * bound < kernel.max() <= bound
    assert -bound <= kernel.min() < -0.8 * bound
    if name == "rg_lru":
        radii = np.exp(-np.log1p(np.exp(params.pop("decay"))))
        assert ((radii > 0.9) & (radii < 0.999)).all()
    if name not in AFFINE:
        recurrent = params.pop("recurrent_kernel")
        assert recurrent.shape == (8, 8 * GATES[name])
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(8), atol=1e-5)
    assert set(params) == set(BIASES[name])
    for bias, expected in BIASES[name].items():
        np.testing.assert_array_equal(params[bias], expected)


def test_initial_diagonals_are_those_of_the_papers(initial):
    """Radii and phases of an LRU; eigenvalues and time steps of S5."""
    nu, theta, gamma = initial["lru"]["diagonal"]
    radius = np.exp(-np.exp(nu))
    assert (radius < 1).all()
    assert (np.exp(theta) < 6.28).all()
    np.testing.assert_allclose(np.exp(gamma), np.sqrt(1 - radius**2), rtol=1e-5)
    real, imaginary, log_step = initial["s5"]["diagonal"]
    order = np.arange(16)
    low_rank = np.sqrt(order + 0.5)
    legs = -np.tril(np.outer(np.sqrt(2 * order + 1), np.sqrt(2 * order + 1)), -1)
    normal = legs - np.diag(order + 1) + np.outer(low_rank, low_rank)
    eigenvalues = np.linalg.eigvals(normal)
    expected = sorted(value for value in eigenvalues.imag if value > 0)
    np.testing.assert_allclose(eigenvalues.real, -0.5, rtol=1e-5)
    np.testing.assert_allclose(real, -0.5)
    np.testing.assert_allclose(sorted(imaginary), expected, rtol=1e-5)
    assert ((np.exp(log_step) >= 0.001) & (np.exp(log_step) <= 0.1)).all()


def test_radii_and_steps_are_as_asked_for():
    xs = jnp.ones((2, 1, 5), jnp.float32)
    lru = rdrop.LRUCell(64, radii=(0.9, 0.99), largest_phase=0.3)
    s5 = rdrop.S5Cell(5, state=64, blocks=4, steps=(0.01, 0.02))

    @jax.jit
    def init(key):
        return [rdrop.RNN(cell).init(key, xs)["params"] for cell in (lru, s5)]

    of_lru, of_s5 = init(jax.random.key(0))
    radius = np.exp(-np.exp(of_lru["diagonal"][0]))
    assert 0.9 <= radius.min() < 0.92
    assert 0.98 < radius.max() <= 0.99
    assert np.exp(of_lru["diagonal"][1]).max() <= 0.3
    assert (
        (np.exp(of_s5["diagonal"][2]) >= 0.01) & (np.exp(of_s5["diagonal"][2]) <= 0.02)
    ).all()
    assert len(set(np.round(of_s5["diagonal"][1], 3).tolist())) == 16
    assert of_s5["kernel"].shape == (5, 128)
    assert of_s5["output_kernel"].shape == (128, 5)
    assert of_s5["skip"].shape == (5,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rdrop.LRUCell(3, use_bias=True), "`use_bias` must be False in LRU"),
        (lambda: rdrop.S5Cell(3, state=0), "`state` must be an integer of 1 or more"),
        (lambda: rdrop.LRUCell(3, radii=(0.5, 0.5)), r"`radii` must be .* got \(0.5"),
        (lambda: rdrop.LRUCell(3, radii=(0.5, 1.5)), r"`radii` must be .* got \(0.5"),
        (lambda: rdrop.LRUCell(3, largest_phase=0.0), "`largest_phase` must be above"),
        (lambda: rdrop.S5Cell(6, blocks=4), "`blocks` must divide the state size 6"),
        (lambda: rdrop.S5Cell(6, steps=(0.0, 0.1)), r"`steps` must be .* got \(0.0"),
    ],
)
def test_options_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@every_cell
def test_initial_carry_is_zero_in_its_dtypes(name):
    cell = CELLS[name](8, dtype=jnp.bfloat16)
    carry = cell.initialize_carry(jax.random.key(0), (2, 5))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(carry)]
    assert dtypes == carry_dtypes(name, len(dtypes))
    for part, leaf in zip(cell.equations.CARRY, jax.tree.leaves(carry), strict=True):
        assert leaf.shape == (2, 8)
        assert (leaf == (-1e30 if part == "m" else 0)).all()


def carry_dtypes(name, count):
    """Of a cell that computes in bfloat16: h is in half, unless it is affine."""
    if name in ("lru", "s5"):
        return [jnp.complex64]
    last = jnp.float32 if name in AFFINE else jnp.bfloat16
    return [jnp.float32] * (count - 1) + [last]


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
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(carry)]
    assert dtypes == carry_dtypes(name, len(dtypes))
    assert y.dtype == jnp.bfloat16
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
