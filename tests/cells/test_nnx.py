"""The nnx face is bitwise the linen one, and behaves as nnx modules do."""

import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, quick_jit, quickly

import rdrop
from rdrop import Bernoulli, DropConnect, Dropout, Zoneout
from rdrop import nnx as rnnx

pytestmark = pytest.mark.usefixtures("compiled_in_less_time")
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

    @quick_jit
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


# Keys: from Rngs, or the cell's own.

RNGS = {
    "streams": {"inputs": 1, "recurrent": 2},
    "default": {"default": 3},
    "dropout": {"dropout": 4},
    "dropout beside params": {"params": 0, "dropout": 4},
}


def keys_by_hand(rngs):
    """One key per stream; or both split from one key of flax's own stream."""
    if "dropout" in rngs:
        return rdrop.stream_keys(rngs.dropout())
    return rdrop.StreamKeys(rngs.inputs(), rngs.recurrent())


@pytest.mark.parametrize("streams", RNGS)
def test_rngs_give_a_layer_its_keys(xs, streams):
    """The same as explicit keys; each call draws again."""
    rnn = rnnx.RNN(rnnx.SimpleCell(FEATURES, UNITS, rngs=nnx.Rngs(0)))
    rngs, again = (nnx.Rngs(**RNGS[streams]) for _ in range(2))
    drawn = [rnnx.stream_keys(rngs) for _ in range(2)]
    by_hand = [keys_by_hand(again) for _ in range(2)]
    chex.assert_trees_all_equal(data_of(drawn), data_of(by_hand))
    assert drawn[0].inputs != drawn[1].inputs
    noise = Dropout(inputs=Bernoulli(0.5))

    @quick_jit
    def run(keys):
        from_rngs = rnn(xs, noise, nnx.Rngs(**RNGS[streams]))[1]
        return from_rngs, rnn(xs, noise, keys)[1], rnn(xs)[1]

    from_rngs, explicit, quiet = run(drawn[0])
    assert_close(from_rngs, explicit)
    assert (from_rngs != quiet).any()


def data_of(keys):
    return [jax.random.key_data(key) for k in keys for key in (k.inputs, k.recurrent)]


LIVES = Dropout(inputs=Bernoulli(0.4), hidden_state=Zoneout(0.3))  # held, and per step


def noisy(dropout=LIVES, **streams):
    """A cell with noise of its own, and with streams of these seeds."""
    rngs = nnx.Rngs(**(streams or {"default": 0}))
    return rnnx.SimpleCell(FEATURES, UNITS, dropout=dropout, rngs=rngs)


def test_a_cell_of_its_own_noise_may_have_the_stream_dropout_only(xs):
    """In addition to `params`, as other modules of flax do."""
    rngs = nnx.Rngs(params=0, dropout=4)
    cell = rnnx.SimpleCell(FEATURES, UNITS, dropout=LIVES, rngs=rngs)
    by_hand = nnx.Rngs(dropout=4).dropout.fork()
    by_hand()  # drawn when the cell is made
    rnn, keys = rnnx.RNN(cell), rdrop.stream_keys(by_hand())

    @nnx.jit
    def run(rnn):
        return rnn(xs)[1], rnn(xs, LIVES, keys)[1], rnn(xs, Dropout())[1]

    own, explicit, quiet = run(rnn)
    assert_close(own, explicit, tolerance=1e-6)
    assert (own != quiet).any()


@pytest.mark.parametrize("reverse", quickly([False, True], False))
def test_inside_the_rnn_of_nnx_masks_live_as_they_say(xs, reverse):
    """Held, drawn at each step, and new in each sequence; that RNN is flax's own."""
    cell = noisy()
    rnn = nnx.RNN(cell, reverse=reverse, keep_order=True, return_carry=True)

    @nnx.jit
    def run(rnn):
        carry, ys = rnn(xs)
        keys = rnn.cell.own.now()
        flipped = xs[:, ::-1] if reverse else xs
        ours = rnnx.RNN(rnn.cell, loop="plain")
        expected = ours(flipped, LIVES, keys.replace(step=0))
        return (carry, ys[:, ::-1] if reverse else ys), expected, keys.step

    (theirs, ours, step), (again, *_) = run(rnn), run(rnn)
    assert step == TIME
    assert_close(theirs, ours, tolerance=1e-6)
    assert (theirs[1] != again[1]).any()


OUTPUTS = Dropout(outputs=Bernoulli(0.5))  # a dropped unit is zero at all steps


def both_ways():
    return rnnx.Bidirectional(*(noisy(OUTPUTS, default=n) for n in (1, 2)))


NEW_SEQUENCE = {
    "rnn": lambda: rnnx.RNN(noisy(OUTPUTS)),
    "bidirectional": both_ways,
    "stack": lambda: rnnx.Stack([both_ways()]),
}


@pytest.mark.parametrize("name", quickly(NEW_SEQUENCE, "rnn", "stack"))
def test_a_sequence_begins_without_a_carry_or_if_it_is_told_to(xs, name):
    """A new sequence has new masks, in each direction; otherwise they are held.

    A decoder starts from the carry of an encoder, and says that its sequence is new.
    """
    layer = NEW_SEQUENCE[name]()

    @nnx.jit
    def run(layer):
        carry, first = layer(xs)
        options = [
            {"initial_carry": carry},
            {"initial_carry": carry, "new_sequence": True},
            {"initial_carry": carry, "new_sequence": True},
            {"initial_carry": carry, "new_sequence": False},
            {"new_sequence": False},
            {},
        ]
        return [ys == 0 for ys in (first, *(layer(xs, **o)[1] for o in options))]

    patterns = [np.split(p, p.shape[-1] // UNITS, axis=-1) for p in run(layer)]
    for first, continued, told, again, held, also_held, new in zip(
        *patterns, strict=True
    ):
        assert first.any()
        assert (continued == first).all()
        assert (held == again).all()
        assert (also_held == again).all()
        for a, b in ((told, first), (again, told), (new, again)):
            assert (a != b).any()


def test_a_new_sequence_begins_at_step_0(xs):
    rnn = rnnx.RNN(noisy(Dropout()))
    carry, _ = rnn(xs)
    rnn(xs, initial_carry=carry)
    assert rnn.cell.own.now().step == 2 * TIME
    rnn(xs, initial_carry=carry, new_sequence=True)
    assert rnn.cell.own.now().step == TIME


@pytest.mark.parametrize("kind", quickly(["ours", "of flax"], "ours"))
def test_a_carry_continues_the_sequence(xs, kind):
    """Two halves, the carry passed on, are the whole."""
    build = rnnx.RNN
    if kind == "of flax":
        build = lambda cell: nnx.RNN(cell, return_carry=True)  # noqa: E731

    @nnx.jit
    def run(whole, halves):
        carry, ys = halves(xs[:, :2])
        carry, zs = halves(xs[:, 2:], initial_carry=carry)
        return (carry, jnp.concatenate([ys, zs], axis=1)), whole(xs)

    assert_close(*run(build(noisy()), build(noisy())), tolerance=1e-6)


# Modules.


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
