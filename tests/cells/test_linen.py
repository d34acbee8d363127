"""The linen face: keys from rng collections, in our layers and in flax's own RNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_close, quickly

import rdrop
from rdrop import Bernoulli, DropConnect, Dropout, Zoneout

BATCH, TIME, FEATURES, UNITS = 3, 4, 2, 5
RNGS = {"inputs": jax.random.key(1), "recurrent": jax.random.key(2)}
HELD = Dropout(
    inputs=Bernoulli(0.4),
    recurrent=Bernoulli(0.5),
    update=Bernoulli(0.3),
    recurrent_weights=DropConnect(0.2),
)
CELLS = {
    "lstm": rdrop.LSTMCell,
    "layer_norm": rdrop.LayerNormLSTMCell,
    "gru": rdrop.GRUCell,
    "min_gru": rdrop.MinGRUCell,
}


def split(inputs, recurrent):
    return {"params": False, "inputs": inputs, "recurrent": recurrent}


class Drawn(nn.Module):
    """Returns the keys that a module in its place draws from some collections."""

    names: tuple[str, ...] = ("inputs", "recurrent")

    def __call__(self):
        return [self.make_rng(name) for name in self.names]


class DrawnAtEachStep(nn.RNNCellBase):
    """Returns, at each step, the keys that a cell in its place draws."""

    names: tuple[str, ...] = ("inputs", "recurrent")

    @nn.compact
    def __call__(self, carry, x):
        keys = [self.make_rng(name) for name in self.names]
        return carry, jnp.stack([jax.random.key_data(key) for key in keys])[None]

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    num_feature_axes = 1


@pytest.fixture
def xs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)))


def cell_of(kind, dropout=HELD):
    return kind(UNITS, param_dtype=jnp.float64, dropout=dropout)


def init(module, xs):
    """Random parameters of a module."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), xs)
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)


def drawn_in_flax(split_rngs, xs, rngs=RNGS):
    """The keys of each step, [T] of each collection, in flax's RNN."""
    rnn = nn.RNN(DrawnAtEachStep(tuple(rngs)), split_rngs=split_rngs)
    data = rnn.apply({}, xs, rngs=rngs)[0]
    return [jax.random.wrap_key_data(data[:, n]) for n in range(len(rngs))]


@pytest.mark.parametrize("name", quickly(["lstm", "gru"], "gru"))
def test_masks_are_held_if_flax_holds_the_collections(xs, name):
    """Then explicit keys, in our own RNN, give the same results."""
    cell = cell_of(CELLS[name])
    rnn = nn.RNN(cell, split_rngs=split(False, False), return_carry=True)

    @jax.jit
    def run(params):
        inputs, recurrent = drawn_in_flax(split(False, False), xs)
        keys = rdrop.StreamKeys(inputs[0], recurrent[0])
        own = {"params": params["params"]["cell"]}
        ours = rdrop.RNN(cell, loop="plain").apply(own, xs, HELD, keys)
        return inputs == inputs[0], rnn.apply(params, xs, rngs=RNGS), ours

    held, theirs, ours = run(init(rnn, xs))
    assert held.all()
    assert_close(theirs, ours)


def test_a_mask_is_drawn_at_each_step_if_flax_splits_the_collection(xs):
    """Here only the collection of the inputs: the streams have separate lifetimes."""
    dropout = Dropout(inputs=Bernoulli(0.4), recurrent=Bernoulli(0.5))
    cell = cell_of(rdrop.SimpleCell, dropout)
    rnn = nn.RNN(cell, split_rngs=split(True, False))

    @jax.jit
    def run(params):
        inputs, recurrent = drawn_in_flax(split(True, False), xs)
        own = {"params": params["params"]["cell"]}
        carry, ys = cell.initialize_carry(jax.random.key(0), xs[:, 0].shape), []
        for t in range(TIME):
            keys = rdrop.StreamKeys(inputs[t], recurrent[0])
            carry, y = cell.apply(own, carry, xs[:, t], dropout, keys)
            ys.append(y)
        words = [jax.random.key_data(keys) for keys in (inputs, recurrent)]
        return words, rnn.apply(params, xs, rngs=RNGS), jnp.stack(ys, axis=1)

    (inputs, recurrent), theirs, ours = run(init(rnn, xs))
    assert len({*map(tuple, inputs.tolist())}) == TIME
    assert (recurrent == recurrent[:1]).all()
    assert_close(theirs, ours)


@pytest.mark.parametrize("name", quickly(CELLS, "min_gru"))
def test_every_cell_runs_in_flax_and_is_noisy_only_with_keys(xs, name):
    rnn = nn.RNN(cell_of(CELLS[name], Dropout(inputs=Bernoulli(0.5))))
    noisy = rnn.clone(split_rngs=split(False, False))

    @jax.jit
    def run(params):
        ways = rnn.apply(params, xs), noisy.apply(params, xs)
        return *ways, noisy.apply(params, xs, rngs=RNGS)

    quiet, also_quiet, loud = run(init(rnn, xs))
    assert (quiet == also_quiet).all()
    assert (quiet != loud).any()


class Model(nn.Module):
    """A module around a layer."""

    layer: nn.Module

    def __call__(self, *arguments):
        return self.layer(*arguments)


def test_our_rnn_draws_from_the_collections(xs):
    """One key of each per call; so it may draw at each step."""
    dropout = Dropout(inputs=Bernoulli(0.4), update=Bernoulli(0.3, per="step"))
    rnn = rdrop.RNN(rdrop.MinGRUCell(UNITS, param_dtype=jnp.float64))

    @jax.jit
    def run(params):
        _, actual = Model(rnn).apply(params, xs, dropout, rngs=RNGS)
        keys = rdrop.StreamKeys(*Model(Drawn()).apply({}, rngs=RNGS))
        own = {"params": params["params"]["layer"]}
        return actual, rnn.apply(own, xs, dropout, keys)[1]

    assert_close(*run(init(Model(rnn), xs)))


# The collection `dropout` alone, as other modules of flax use it.


DROPOUT = {"dropout": jax.random.key(3)}


class Layers(nn.Module):
    """Calls the first of some modules, which has the name that it has in a Stack."""

    layers: list[nn.Module]

    def __call__(self):
        return self.layers[0]()


def test_both_streams_are_split_from_the_collection_dropout(xs):
    """In an RNN, a cell, a Stack and flax's RNN: they use `stream_keys` of its key."""
    dropout = Dropout(inputs=Bernoulli(0.4), hidden_state=Bernoulli(0.5))
    cell = cell_of(rdrop.SimpleCell, dropout)
    rnn, stack = rdrop.RNN(cell), rdrop.Stack([rdrop.RNN(cell.clone())])
    held = {"params": False, "dropout": False}
    theirs = nn.RNN(cell, split_rngs=held, return_carry=True)
    h, drawn = jnp.zeros((BATCH, UNITS)), Drawn(("dropout",))

    def run_all(params, **rngs):
        own = params["params"]
        _, stacked = stack.apply({"params": {"layers_0": own}}, xs, **rngs)
        return [
            rnn.apply(params, xs, **rngs)[1],
            cell.apply(params, h, xs[:, 0], **rngs)[1],
            stacked,
            theirs.apply({"params": {"cell": own}}, xs, **rngs)[1],
        ]

    @jax.jit
    def run(params):
        (at_top,) = drawn.apply({}, rngs=DROPOUT)
        (in_stack,) = Layers([drawn]).apply({}, rngs=DROPOUT)
        ((in_flax, *_),) = drawn_in_flax(held, xs, DROPOUT)
        at_top, in_stack, in_flax = map(rdrop.stream_keys, (at_top, in_stack, in_flax))
        expected = [
            rnn.apply(params, xs, None, at_top)[1],
            cell.apply(params, h, xs[:, 0], None, at_top)[1],
            rnn.apply(params, xs, None, in_stack)[1],
            rnn.apply(params, xs, None, in_flax)[1],
        ]
        return run_all(params, rngs=DROPOUT), expected, run_all(params)

    noisy, expected, quiet = run(init(rnn, xs))
    assert_close(noisy, expected)
    assert all((a != b).any() for a, b in zip(noisy, quiet, strict=True))


def test_layers_and_directions_draw_different_masks(xs):
    def both():
        cells = (rdrop.SimpleCell(UNITS, param_dtype=jnp.float64) for _ in range(2))
        return rdrop.Bidirectional(*cells)

    stack, one = rdrop.Stack([both(), both()]), rdrop.Stack([both()])
    dropout = Dropout(outputs=Bernoulli(0.5))

    @jax.jit
    def run(params):
        def dropped(*noises):
            return stack.apply(params, xs, [*noises], rngs=RNGS)[1] == 0

        own = {"params": {"layers_0": params["params"]["layers_0"]}}
        below = one.apply(own, xs, dropout, rngs=RNGS)[1] == 0
        above = dropped(Dropout(), dropout)
        return above, dropped(Dropout(), [Dropout(), dropout]), below

    above, backward, below = run(init(stack, xs))
    ahead, back = jnp.split(above, 2, axis=-1)
    assert ahead.any()
    assert back.any()
    assert (ahead != back).any()
    assert not backward[..., :UNITS].any()
    assert (backward[..., UNITS:] == back).all()
    assert (below != above).any()


def test_arguments_come_before_collections_and_the_noise_of_the_cell(xs):
    """The streams come before the collection `dropout`, explicit keys before both."""
    rnn = rdrop.RNN(cell_of(rdrop.MinGRUCell, Dropout(inputs=Bernoulli(0.4))))
    keys, both = rdrop.stream_keys(RNGS["inputs"]), RNGS | DROPOUT

    @jax.jit
    def run(params):
        def ys(*arguments, **rngs):
            return rnn.apply(params, xs, *arguments, **rngs)[1]

        return {
            "own noise, explicit keys": ys(None, keys),
            "explicit noise and keys": ys(rnn.cell.dropout, keys),
            "explicit and rngs": ys(rnn.cell.dropout, keys, rngs=both),
            "no noise": ys(Dropout(), keys),
            "masks and rngs": ys(rdrop.Masks(), rngs=both),
            "quiet": ys(Dropout()),
            "streams": ys(rngs=RNGS),
            "streams and dropout": ys(rngs=both),
        }

    ys = run(init(rnn, xs))
    for same in (
        ("own noise, explicit keys", "explicit noise and keys", "explicit and rngs"),
        ("no noise", "masks and rngs", "quiet"),
        ("streams", "streams and dropout"),
    ):
        for name in same[1:]:
            assert (ys[name] == ys[same[0]]).all(), name
    assert (ys["quiet"] != ys["own noise, explicit keys"]).any()
    assert (ys["quiet"] != ys["streams"]).any()


# Collections that would not reach the cell, or not tell it what it needs.


@pytest.mark.parametrize("name", ["inputs", "recurrent"])
def test_one_collection_alone_is_refused(xs, name):
    rnn = rdrop.RNN(cell_of(rdrop.LSTMCell))
    for rngs in ({name: RNGS[name]}, {name: RNGS[name], **DROPOUT}):
        with pytest.raises(ValueError, match=rf"`rngs` must have .*got `{name}` only"):
            rnn.apply(init(rnn, xs), xs, rngs=rngs)


@pytest.mark.parametrize(("rngs", "name"), [(RNGS, "inputs"), (DROPOUT, "dropout")])
def test_keys_that_flax_would_keep_back_are_asked_for(xs, rngs, name):
    """Without this error there would be no noise, and no sign of it."""
    rnn = nn.RNN(cell_of(rdrop.LSTMCell))
    params = init(rnn, xs)

    def run(rnn, **rngs):
        return jax.eval_shape(lambda: rnn.apply(params, xs, **rngs))

    with pytest.raises(ValueError, match=f"must name the collection `{name}`"):
        run(rnn, rngs=rngs)
    run(rnn)
    run(nn.RNN(cell_of(rdrop.LSTMCell, None)), rngs=rngs)
    run(nn.RNN(cell_of(rdrop.LSTMCell), split_rngs={True: False}), rngs=rngs)


@pytest.mark.parametrize(
    "dropout",
    [
        Dropout(update=Bernoulli(0.5, per="step")),
        Dropout(hidden_state=Zoneout(0.1)),
        Dropout(recurrent=Bernoulli(0.5, per=rdrop.Drift(0.5))),
    ],
)
def test_noise_that_must_know_the_step_is_refused_in_flaxs_rnn(xs, dropout):
    rnn = nn.RNN(cell_of(rdrop.LSTMCell, dropout), split_rngs=split(True, True))
    params = init(rnn, xs)
    with pytest.raises(ValueError, match='`per` must be "sequence" if a cell draws'):
        rnn.apply(params, xs, rngs=RNGS)
    jax.eval_shape(rnn.apply, params, xs)
