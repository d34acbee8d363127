"""The nnx face is bitwise the linen one, and behaves as nnx modules do."""

import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, quickly
from nnx_cases import BATCH, FEATURES, LIVES, OUTPUTS, TIME, UNITS, XS, noisy

import rdrop
from rdrop import Bernoulli, DropConnect, Dropout, Zoneout
from rdrop import nnx as rnnx

LENGTHS = np.array([4, 2, 0])
NOISE = Dropout(
    inputs=Bernoulli(0.4),
    outputs=Bernoulli(0.2, per="step"),
    recurrent=Bernoulli(0.5),
    hidden_state=Zoneout(0.3),
    recurrent_weights=DropConnect(0.2),
)
AFFINE = ("MinGRUCell", "MinLSTMCell", "RGLRUCell")
COMPLEX = ("LRUCell", "S5Cell")
CELLS = ("LSTMCell", "LayerNormLSTMCell", "GRUCell", "SimpleCell", "SLSTMCell")
CELLS = (*CELLS, *AFFINE, *COMPLEX)


@pytest.fixture
def xs():
    return XS


@pytest.fixture
def keys():
    return rdrop.stream_keys(jax.random.key(1)).replace(step=3)


def noise_of(name):
    """On sites that the cell has."""
    lacking = {"recurrent", "recurrent_weights"} if name in AFFINE + COMPLEX else set()
    lacking |= {"hidden_state"} if name in COMPLEX else set()
    return NOISE.replace(**dict.fromkeys(lacking))


def linen_layers():
    """Every kind of layer, and options of it, by name."""
    lstm, gru = rdrop.LSTMCell, rdrop.GRUCell
    before = gru(UNITS, reset_after=False)
    yield from ((name, rdrop.RNN(getattr(rdrop, name)(UNITS))) for name in CELLS)
    yield "reset before", rdrop.RNN(before, loop="plain", reverse=True)
    yield "both ways", rdrop.Bidirectional(lstm(UNITS), gru(UNITS))
    yield (
        "stack",
        rdrop.Stack(
            [rdrop.Bidirectional(gru(UNITS), gru(UNITS)), rdrop.RNN(lstm(UNITS))]
        ),
    )


LAYERS = dict(linen_layers())
QUICK = ("SimpleCell", "stack")


@pytest.fixture
def pair(request, xs):
    """A linen layer, its parameters, and the nnx layer with the same parameters."""
    linen = LAYERS[request.param]
    params = init(linen, xs)
    return linen, params, rnnx.from_linen(linen, params)


def init(module, *arguments):
    """Parameters of a linen module, of any numbers."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(4)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype) / 2, shapes
    )


@pytest.mark.parametrize(
    ("name", "pair"),
    quickly([(n, n) for n in LAYERS], ("SimpleCell",) * 2),
    indirect=["pair"],
)
def test_both_faces_are_bitwise_identical(xs, keys, name, pair):
    """Outputs and carries; and gradients to rounding. From the same keys, padded."""
    linen, params, module = pair
    noise = noise_of(name)

    @jax.jit
    def by_linen(params):
        carry, ys = linen.apply(params, xs, noise, keys, lengths=LENGTHS)
        return (ys**2).sum(), (carry, ys)

    @nnx.jit
    def by_nnx(module):
        carry, ys = module(xs, noise, keys, lengths=LENGTHS)
        return (ys**2).sum(), (carry, ys)

    (gradient, expected), (pure, actual) = (
        jax.jit(jax.grad(by_linen, has_aux=True))(params),
        nnx.jit(nnx.grad(by_nnx, has_aux=True))(module),
    )
    chex.assert_trees_all_equal(actual, expected)
    by_name = rnnx.to_linen(nnx.merge(nnx.graphdef(module), pure))[1]
    assert_close(by_name, gradient, tolerance=1e-6)


@pytest.mark.parametrize("pair", LAYERS, indirect=True)
def test_the_way_to_nnx_and_back_is_exact(pair):
    linen, params, module = pair
    back, again = rnnx.to_linen(module)
    assert back == linen
    chex.assert_trees_all_equal(again, params)


@pytest.mark.parametrize("name", quickly(CELLS, "SimpleCell"))
def test_a_step_is_that_of_the_linen_cell(xs, keys, name):
    cell = getattr(rdrop, name)(UNITS)
    carry = cell.initialize_carry(jax.random.key(0), xs[:, 0].shape)
    params = init(cell, carry, xs[:, 0])
    module = rnnx.from_linen(cell, params)
    assert type(module) is getattr(rnnx, name)

    @jax.jit
    def run(carry, x):
        arguments = (carry, x, noise_of(name), keys)
        return module(*arguments), cell.apply(params, *arguments)

    chex.assert_trees_all_equal(*run(carry, xs[:, 0]))


def test_a_cell_is_initialised_as_its_linen_twin():
    """Names, shapes, dtypes, and the first values of biases and recurrent kernel."""
    cell = rnnx.LSTMCell(FEATURES, UNITS, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    linen, params = rnnx.to_linen(cell)
    shapes = jax.eval_shape(
        lambda x: linen.init(jax.random.key(0), (x[:, :UNITS],) * 2, x[:, :FEATURES]),
        jnp.zeros((1, UNITS), jnp.float16),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(params, shapes)
    assert params["params"]["bias"].tolist() == [0] * 5 + [1] * 5 + [0] * 10
    kernel = params["params"]["recurrent_kernel"].astype(jnp.float32)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(UNITS), atol=2e-3)


def test_train_and_eval_switch_own_noise(xs):
    rnn = rnnx.RNN(noisy())
    linen, params = rnnx.to_linen(rnn)

    @nnx.jit
    def run(rnn):
        noise = rnn(xs)[1]
        rnn.eval()
        quiet, expected = rnn(xs)[1], rnn(xs, LIVES)[1]
        rnn.train()
        return noise, rnn(xs)[1], quiet, expected, linen.apply(params, xs, LIVES)[1]

    noise, other, quiet, expected, by_linen = run(rnn)
    assert_close(quiet, expected)
    assert_close(quiet, by_linen, tolerance=1e-6)
    assert (other != noise).any()
    assert (noise != quiet).any()


def test_without_a_dropout_of_its_own_a_cell_has_no_streams(xs):
    rnn = rnnx.RNN(rnnx.SimpleCell(FEATURES, UNITS, rngs=nnx.Rngs(params=0)))
    assert (rnn(xs, NOISE)[1] == rnn(xs, NOISE)[1]).all()
    _, params, rest = nnx.split(rnn, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    assert {path[-1] for path in nnx.to_flat_state(params).paths} == {
        "kernel",
        "recurrent_kernel",
        "bias",
    }


def test_own_keys_move_inside_jit_and_one_program_serves_all_calls(xs):
    rnn, other = rnnx.RNN(noisy(OUTPUTS)), rnnx.RNN(noisy(OUTPUTS))

    def run(rnn, rate):
        return rnn(xs, OUTPUTS.replace(outputs=Bernoulli(rate)))[1]

    chex.clear_trace_counter()
    jitted = nnx.jit(chex.assert_max_traces(run, n=1))
    for rate in (0.1, 0.5, 0.9):
        assert_close(jitted(rnn, rate), run(other, rate), tolerance=1e-5)


@pytest.mark.slow
def test_vmap_over_models_and_over_rates(xs):
    @nnx.vmap
    def make(key):
        return rnnx.RNN(
            rnnx.LSTMCell(FEATURES, UNITS, dropout=NOISE, rngs=nnx.Rngs(key))
        )

    models = make(jax.random.split(jax.random.key(0), 3))
    ys = nnx.vmap(lambda model: model(xs)[1])(models)
    assert ys.shape == (3, BATCH, TIME, UNITS)
    graph, state = nnx.split(models)
    for n in range(3):
        one = nnx.merge(graph, jax.tree.map(operator.itemgetter(n), state))
        keys = one.cell.own.now().replace(step=0)
        assert_close(one(xs, NOISE, keys)[1], ys[n], tolerance=1e-5)

    rnn, keys = rnnx.RNN(noisy()), rdrop.stream_keys(jax.random.key(5))
    rates = jnp.array([0.0, 0.3, 0.9])

    def of(rate):
        return rnn(xs, Dropout(recurrent=Bernoulli(rate)), keys)[1]

    expected = jnp.stack([of(rate) for rate in rates])
    assert_close(jax.vmap(of)(rates), expected, tolerance=1e-5)


def test_learning_reaches_every_parameter(xs):
    """By nnx.grad alone: the loss falls under own noise."""
    rnn = rnnx.RNN(noisy(Dropout(recurrent=Bernoulli(0.2))))

    @nnx.jit
    def step(rnn):
        def loss(rnn):
            return ((rnn(xs)[1] - 0.3) ** 2).mean()

        value, gradient = nnx.value_and_grad(loss)(rnn)
        params = nnx.state(rnn, nnx.Param)
        nnx.update(rnn, jax.tree.map(lambda p, g: p - g, params, gradient))
        return value, gradient

    results = [step(rnn) for _ in range(100)]
    assert results[-1][0] < 0.3 * results[0][0]
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(results[-1][1]))


# Errors; the others are in test_wrong_uses.py.


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named(xs):
    cell = rnnx.LSTMCell(FEATURES, UNITS, rngs=nnx.Rngs(0))
    rnn = rnnx.RNN(cell)
    with pytest.raises(ValueError, match="`xs` must have 2 features"):
        rnn(xs[..., :1])
    with pytest.raises(ValueError, match=r"`xs` must have the axes \[B, T, D\]"):
        rnn(xs[0])
    linen = rdrop.LSTMCell(UNITS, dropout=NOISE)
    params = rnnx.to_linen(cell)[1]
    with pytest.raises(ValueError, match="`rngs` must be given for a cell"):
        rnnx.from_linen(linen, params)
    with pytest.raises(TypeError, match="`module` must be made of rdrop's cells"):
        rnnx.from_linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), params)
