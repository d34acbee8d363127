"""Parameters, carries, dtypes and errors; for values see test_combinations.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import rdrop
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


def test_outputs_mask_leaves_the_carry_alone(problem):
    mask = jnp.zeros((4, 1, 3), jnp.float32)
    (_, h), y = problem.cell.apply(
        problem.params, problem.carry, problem.xs[:, 0], Masks(outputs=mask)
    )
    assert (y == 0).all()
    assert (h != 0).all()


@pytest.mark.parametrize("site", ["cell_state", "hidden_state"])
def test_a_mask_for_h_handed_on_is_not_that_of_y_but_one_for_c_is(problem, site):
    zeros = jnp.zeros((4, 1, 3), jnp.float32)
    arguments = (problem.params, problem.carry, problem.xs[:, 0])
    (c, h), y = problem.cell.apply(*arguments, Masks(**{site: zeros}))
    assert c.any() == (site == "hidden_state")
    assert y.any() == (site == "hidden_state")
    assert not h.any()


def test_flax_rnn_initialises_our_cell(problem):
    rnn = nn.RNN(problem.cell)
    params = rnn.init(jax.random.key(0), problem.xs)
    ys = rnn.apply(params, problem.xs)
    own = {"params": params["params"]["cell"]}
    _, expected = rdrop.RNN(problem.cell).apply(own, problem.xs)
    np.testing.assert_allclose(ys, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def initial():
    """The initial parameters of each cell, for 5 features and 8 units."""
    xs = jnp.ones((2, 1, 5), jnp.float32)
    return {
        name: rdrop.RNN(cell(8)).init(jax.random.key(0), xs)["params"]
        for name, cell in CELLS.items()
    }


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


@pytest.mark.slow
@every_cell
def test_half_precision_computes_close_to_full(rng, name):
    """The memory c is carried in full; outputs are in half."""
    full, half = CELLS[name](3), CELLS[name](3, dtype=jnp.bfloat16)
    xs = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    carry = full.initialize_carry(jax.random.key(0), xs.shape)
    params = full.init(jax.random.key(0), carry, xs)
    noise = Bernoulli(0.4, per="step")
    dropout = Dropout(inputs=noise, input_weights=DropConnect(0.2), outputs=noise)
    if name != "min_gru":
        dropout = dropout.replace(recurrent=noise)
    keys = rdrop.stream_keys(jax.random.key(0))
    _, expected = full.apply(params, carry, xs, dropout, keys)
    carry = half.initialize_carry(jax.random.key(0), xs.shape)
    carry, y = half.apply(params, carry, xs, dropout, keys)
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
@pytest.mark.parametrize("shapes", [[(3, 3)] * 2, [(4, 7)] * 2, [(4, 3)], [(3,)] * 2])
def test_carry_of_a_wrong_shape_is_refused(problem, shapes):
    carry = tuple(jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="`carry` must be") as error:
        problem.cell.apply(problem.params, carry, problem.xs[:, 0])
    assert str(error.value) == (
        "`carry` must be a tuple (c, h), each of shape [B, H] = (4, 3), got tuple of "
        f"{shapes}."
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["gru", "simple", "min_gru"])
def test_carry_that_is_not_h_alone_is_refused(name):
    cell, xs = CELLS[name](3), jnp.zeros((4, 2), jnp.float32)
    h = jnp.zeros((4, 3), jnp.float32)
    params = cell.init(jax.random.key(0), h, xs)
    for carry, got in (((h, h), "tuple of [(4, 3), (4, 3)]"), (h[:2], "of [(2, 3)]")):
        with pytest.raises(ValueError, match="`carry` must be h of shape") as error:
            cell.apply(params, carry, xs)
        message = str(error.value)
        assert message.startswith("`carry` must be h of shape [B, H] = (4, 3), got ")
        assert message.endswith(f"{got}.")
