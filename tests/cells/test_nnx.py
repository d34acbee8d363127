"""The nnx face gives the bits of the linen one, and behaves as nnx modules do."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rdrop
from rdrop import Bernoulli, DropConnect, Dropout, Zoneout
from rdrop import nnx as rnnx

BATCH, TIME, FEATURES, UNITS = 3, 4, 2, 5
LENGTHS = np.array([4, 2, 0])
NOISE = Dropout(
    inputs=Bernoulli(0.4),
    outputs=Bernoulli(0.2, per="step"),
    recurrent=Bernoulli(0.5),
    hidden_state=Zoneout(0.3),
    recurrent_weights=DropConnect(0.2),
)
CELLS = ("LSTMCell", "LayerNormLSTMCell", "GRUCell", "SimpleCell", "MinGRUCell")


@pytest.fixture
def xs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)), jnp.float32)


@pytest.fixture
def keys():
    return rdrop.stream_keys(jax.random.key(1)).replace(step=3)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def noise_of(name):
    """On sites that the cell has."""
    if name == "MinGRUCell":
        return NOISE.replace(recurrent=None, recurrent_weights=None)
    return NOISE


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
each_layer = pytest.mark.parametrize(
    "name",
    [
        name if name == "LSTMCell" else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYERS
    ],
)


@each_layer
def test_both_faces_give_the_same_bits(xs, keys, name):
    """Outputs, carries and gradients; noise on, with lengths, from the same keys."""
    linen = LAYERS[name]
    params = linen.init(jax.random.key(0), xs)
    module = rnnx.from_linen(linen, params)

    @jax.jit
    def by_linen(params):
        carry, ys = linen.apply(params, xs, noise_of(name), keys, lengths=LENGTHS)
        return (ys**2).sum(), (carry, ys)

    @nnx.jit
    def by_nnx(module):
        carry, ys = module(xs, noise_of(name), keys, lengths=LENGTHS)
        return (ys**2).sum(), (carry, ys)

    assert_same_bits(by_nnx(module), by_linen(params))
    gradient = jax.jit(jax.grad(lambda p: by_linen(p)[0]))(params)
    pure = nnx.jit(nnx.grad(lambda m: by_nnx(m)[0]))(module)
    by_name = rnnx.to_linen(nnx.merge(nnx.graphdef(module), pure))[1]
    for a, b in zip(*map(jax.tree.leaves, (by_name, gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@each_layer
def test_the_way_to_nnx_and_back_is_exact(xs, name):
    linen = LAYERS[name]
    params = linen.init(jax.random.key(0), xs)
    back, again = rnnx.to_linen(rnnx.from_linen(linen, params))
    assert back == linen
    assert_same_bits(again, params)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "GRUCell")) for n in CELLS],
)
def test_a_step_is_that_of_the_linen_cell(xs, keys, name):
    cell = getattr(rdrop, name)(UNITS)
    carry = cell.initialize_carry(jax.random.key(0), xs[:, 0].shape)
    params = cell.init(jax.random.key(0), carry, xs[:, 0])
    module = rnnx.from_linen(cell, params)
    arguments = (carry, xs[:, 0], noise_of(name), keys)
    assert_same_bits(module(*arguments), cell.apply(params, *arguments))
    assert type(module) is getattr(rnnx, name)


def test_a_cell_is_initialised_as_its_linen_twin():
    """To the letter: names, shapes, dtypes and what the biases begin with."""
    cell = rnnx.LSTMCell(FEATURES, UNITS, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    linen, params = rnnx.to_linen(cell)
    shapes = jax.eval_shape(
        lambda x: linen.init(jax.random.key(0), (x[:, :UNITS],) * 2, x[:, :FEATURES]),
        jnp.zeros((1, UNITS), jnp.float16),
    )
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(
        lambda p: (p.shape, p.dtype), shapes
    )
    assert params["params"]["bias"].tolist() == [0] * 5 + [1] * 5 + [0] * 10
    kernel = params["params"]["recurrent_kernel"].astype(jnp.float32)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(UNITS), atol=2e-3)


def test_rngs_give_a_layer_its_keys(xs):
    """One of each stream a call."""
    rnn = rnnx.RNN(rnnx.GRUCell(FEATURES, UNITS, rngs=nnx.Rngs(0)))
    rngs = nnx.Rngs(inputs=1, recurrent=2)
    first, second = (rnn(xs, NOISE, rngs)[1] for _ in range(2))
    again = nnx.Rngs(inputs=1, recurrent=2)
    for expected in (first, second):
        keys = rdrop.StreamKeys(again.inputs(), again.recurrent())
        assert (rnn(xs, NOISE, keys)[1] == expected).all()
    assert (first != second).any()


def noisy(kind=rnnx.LSTMCell, dropout=NOISE, seed=0):
    return kind(FEATURES, UNITS, dropout=dropout, rngs=nnx.Rngs(seed))


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_inside_the_rnn_of_nnx_masks_live_as_they_say(xs, reverse):
    """Held, drawn at each step, and anew for each sequence; that RNN is flax's own."""
    cell = noisy()
    rnn = nnx.RNN(cell, reverse=reverse, keep_order=True, return_carry=True)
    outputs = []
    for _ in range(2):
        carry, ys = rnn(xs)
        keys = cell.own.now()
        assert keys.step == TIME
        ours = rnnx.RNN(cell, loop="plain")
        flipped = xs[:, ::-1] if reverse else xs
        expected = ours(flipped, NOISE, keys.replace(step=0))
        ys = ys[:, ::-1] if reverse else ys
        for a, b in zip(*map(jax.tree.leaves, ((carry, ys), expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        outputs.append(ys)
    assert (outputs[0] != outputs[1]).any()


def test_a_layer_without_a_carry_begins_a_sequence(xs):
    """With new masks that are held, and at step 0."""
    rnn = rnnx.RNN(noisy(dropout=Dropout(recurrent=Bernoulli(0.5))))
    first, second = (rnn(xs)[1] for _ in range(2))
    assert (first != second).any()
    assert rnn.cell.own.now().step == TIME


@pytest.mark.parametrize(
    "kind",
    [
        rnnx.RNN,
        pytest.param(
            lambda cell: nnx.RNN(cell, return_carry=True), marks=pytest.mark.slow
        ),
    ],
    ids=["ours", "of flax"],
)
def test_a_carry_goes_on_with_the_sequence(xs, kind):
    """Two halves, the carry handed on, are the whole."""
    whole, halves = kind(noisy()), kind(noisy())
    carry, ys = halves(xs[:, :2])
    carry, zs = halves(xs[:, 2:], initial_carry=carry)
    both = (carry, jnp.concatenate([ys, zs], axis=1))
    for a, b in zip(*map(jax.tree.leaves, (both, whole(xs))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_train_and_eval_switch_own_noise(xs):
    rnn = rnnx.RNN(noisy())
    noise, _ = rnn(xs)[1], rnn.eval()
    expected = rnn(xs, NOISE)[1]
    linen, params = rnnx.to_linen(rnn)
    assert (expected == linen.apply(params, xs, NOISE)[1]).all()
    assert (rnn(xs)[1] == expected).all()
    rnn.train()
    assert (rnn(xs)[1] != noise).any()
    assert (noise != expected).any()


def test_without_a_dropout_of_its_own_a_cell_has_no_streams(xs):
    rnn = rnnx.RNN(rnnx.LSTMCell(FEATURES, UNITS, rngs=nnx.Rngs(params=0)))
    assert (rnn(xs, NOISE)[1] == rnn(xs, NOISE)[1]).all()
    _, params, rest = nnx.split(rnn, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    assert {path[-1] for path in nnx.to_flat_state(params).paths} == {
        "kernel",
        "recurrent_kernel",
        "bias",
    }


def test_own_keys_move_inside_jit_and_one_program_serves_all_calls(xs):
    rnn, eager = rnnx.RNN(noisy()), rnnx.RNN(noisy())
    traces = []

    @nnx.jit
    def run(rnn, rate):
        traces.append(rate)
        return rnn(xs, NOISE.replace(recurrent=Bernoulli(rate)))[1]

    for rate in (0.1, 0.5, 0.9):
        expected = eager(xs, NOISE.replace(recurrent=Bernoulli(rate)))[1]
        np.testing.assert_allclose(run(rnn, rate), expected, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


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
        np.testing.assert_allclose(one(xs, NOISE, keys)[1], ys[n], rtol=1e-5, atol=1e-6)

    rnn, keys = rnnx.RNN(noisy()), rdrop.stream_keys(jax.random.key(5))
    rates = jnp.array([0.0, 0.3, 0.9])

    def of(rate):
        return rnn(xs, Dropout(recurrent=Bernoulli(rate)), keys)[1]

    expected = jnp.stack([of(rate) for rate in rates])
    np.testing.assert_allclose(jax.vmap(of)(rates), expected, rtol=1e-5, atol=1e-6)


def test_learning_reaches_every_parameter(xs):
    """By nnx.grad alone, no optimiser of anyone's: the loss falls under own noise."""
    rnn = rnnx.RNN(noisy(dropout=Dropout(recurrent=Bernoulli(0.2))))

    @nnx.jit
    def step(rnn):
        def loss(rnn):
            return ((rnn(xs)[1] - 0.3) ** 2).mean()

        value, gradient = nnx.value_and_grad(loss)(rnn)
        params = nnx.state(rnn, nnx.Param)
        nnx.update(rnn, jax.tree.map(lambda p, g: p - g, params, gradient))
        return value, gradient

    losses = []
    for _ in range(100):
        value, gradient = step(rnn)
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_wrong_arguments_are_named(xs, unchecked):
    cell = rnnx.LSTMCell(FEATURES, UNITS, rngs=nnx.Rngs(0))
    rnn = rnnx.RNN(cell)
    with pytest.raises(ValueError, match="`xs` must have 2 features"):
        rnn(xs[..., :1])
    with pytest.raises(ValueError, match=r"`xs` must have the axes \[B, T, D\]"):
        rnn(xs[0])
    with pytest.raises(ValueError, match="`layers` must be modules of their own"):
        rnnx.Stack([rnn, rnn])
    with pytest.raises(ValueError, match="`loop` must be one of"):
        rnnx.RNN(cell, loop="fast")
    with pytest.raises(ValueError, match="`forward, backward` must be modules"):
        rnnx.Bidirectional(cell, cell)
    with pytest.raises(AttributeError, match="inputs"):
        rnnx.LSTMCell(FEATURES, UNITS, dropout=NOISE, rngs=nnx.Rngs(params=0))
    with pytest.raises(TypeError, match=r"`keys` must be StreamKeys.* got Rngs"):
        cell(cell.initialize_carry((3, 2)), xs[:, 0], NOISE, nnx.Rngs(0))
    linen = rdrop.LSTMCell(UNITS, dropout=NOISE)
    params = rnnx.to_linen(cell)[1]
    with pytest.raises(ValueError, match="`rngs` must be given for a cell"):
        rnnx.from_linen(linen, params)
    with pytest.raises(TypeError, match="`module` must be made of rdrop's cells"):
        rnnx.from_linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), params)
