"""Inside flax.linen's own RNN the cells are drop-ins, keys from the rng collections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

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


class Probe(nn.RNNCellBase):
    """Puts out, at each step, the keys that a cell in its place would draw."""

    @nn.compact
    def __call__(self, carry, x):
        keys = (self.make_rng("inputs"), self.make_rng("recurrent"))
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


def probed(split_rngs, xs):
    """The keys of each step, [T] of each stream, in flax's RNN."""
    rnn = nn.RNN(Probe(), split_rngs=split_rngs)
    data = rnn.apply({}, xs, rngs=RNGS)[0]
    return jax.random.wrap_key_data(data[:, 0]), jax.random.wrap_key_data(data[:, 1])


@pytest.mark.parametrize("name", [pytest.param("lstm", marks=pytest.mark.slow), "gru"])
def test_masks_are_held_where_flax_holds_the_collections(xs, name):
    """Then explicit keys, in our own RNN, give the same bits."""
    cell = cell_of(CELLS[name])
    rnn = nn.RNN(cell, split_rngs=split(False, False), return_carry=True)
    params = rnn.init(jax.random.key(0), xs)
    carry, ys = rnn.apply(params, xs, rngs=RNGS)
    inputs, recurrent = probed(split(False, False), xs)
    assert (inputs == inputs[0]).all()
    keys = rdrop.StreamKeys(inputs[0], recurrent[0])
    ours = rdrop.RNN(cell, loop="plain")
    expected = ours.apply({"params": params["params"]["cell"]}, xs, HELD, keys)
    for a, b in zip(*map(jax.tree.leaves, ((carry, ys), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_mask_is_drawn_at_each_step_where_flax_splits_the_collection(xs):
    """Here that of the inputs only: the two streams may live differently."""
    dropout = Dropout(inputs=Bernoulli(0.4), recurrent=Bernoulli(0.5))
    cell = cell_of(rdrop.LSTMCell, dropout)
    rnn = nn.RNN(cell, split_rngs=split(True, False), return_carry=True)
    params = rnn.init(jax.random.key(0), xs)
    _, ys = rnn.apply(params, xs, rngs=RNGS)
    inputs, recurrent = probed(split(True, False), xs)
    assert (recurrent == recurrent[0]).all()
    assert len({*map(tuple, jax.random.key_data(inputs).tolist())}) == TIME
    params = {"params": params["params"]["cell"]}
    carry = cell.initialize_carry(jax.random.key(0), xs[:, 0].shape)
    for t in range(TIME):
        keys = rdrop.StreamKeys(inputs[t], recurrent[0])
        carry, y = cell.apply(params, carry, xs[:, t], dropout, keys)
        np.testing.assert_allclose(ys[:, t], y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "min_gru")) for n in CELLS],
)
def test_every_cell_runs_in_flax_and_is_noisy_only_with_keys(xs, name):
    rnn = nn.RNN(cell_of(CELLS[name], Dropout(inputs=Bernoulli(0.5))))
    params = rnn.init(jax.random.key(0), xs)
    noisy = rnn.clone(split_rngs=split(False, False))
    quiet = rnn.apply(params, xs)
    assert (quiet == noisy.apply(params, xs)).all()
    assert (quiet != noisy.apply(params, xs, rngs=RNGS)).any()


class Drawn(nn.Module):
    """Returns the keys that a module in its place draws."""

    def __call__(self):
        return self.make_rng("inputs"), self.make_rng("recurrent")


def test_our_rnn_draws_from_the_collections(xs):
    """One key of each a call; so it may draw at each step."""
    dropout = HELD.replace(update=Bernoulli(0.3, per="step"))
    rnn = rdrop.RNN(rdrop.LSTMCell(UNITS, param_dtype=jnp.float64))

    class Model(nn.Module):
        layer: nn.Module

        def __call__(self, *arguments):
            return self.layer(*arguments)

    params = Model(rnn).init(jax.random.key(0), xs)
    _, actual = Model(rnn).apply(params, xs, dropout, rngs=RNGS)
    keys = rdrop.StreamKeys(*Model(Drawn()).apply({}, rngs=RNGS))
    params = {"params": params["params"]["layer"]}
    assert (actual == rnn.apply(params, xs, dropout, keys)[1]).all()


def test_layers_and_directions_draw_masks_of_their_own(xs):
    def both():
        cells = (rdrop.SimpleCell(UNITS, param_dtype=jnp.float64) for _ in range(2))
        return rdrop.Bidirectional(*cells)

    stack = rdrop.Stack([both(), both()])
    params = stack.init(jax.random.key(0), xs)
    dropout = Dropout(outputs=Bernoulli(0.5))

    @jax.jit
    def run(lower, upper):
        return stack.apply(params, xs, [lower, upper], rngs=RNGS)[1]

    ahead, back = jnp.split(run(Dropout(), dropout) == 0, 2, axis=-1)
    assert ahead.any()
    assert back.any()
    assert (ahead != back).any()
    ahead, back = jnp.split(run(Dropout(), [Dropout(), dropout]) == 0, 2, axis=-1)
    assert back.any()
    assert not ahead.any()
    one = rdrop.Stack([both()])
    params = {"params": {"layers_0": params["params"]["layers_0"]}}
    below = one.apply(params, xs, dropout, rngs=RNGS)[1] == 0
    assert (below != jnp.concatenate([ahead, back], axis=-1)).any()


def test_an_argument_comes_before_the_cells_own_noise(xs):
    rnn = rdrop.RNN(cell_of(rdrop.LSTMCell))
    params, keys = rnn.init(jax.random.key(0), xs), rdrop.stream_keys(RNGS["inputs"])
    own = rnn.apply(params, xs, None, keys)[1]
    assert (own == rnn.apply(params, xs, HELD, keys)[1]).all()
    assert (own != rnn.apply(params, xs, Dropout(), keys)[1]).any()
    explicit = rnn.apply(params, xs, HELD, keys, rngs=RNGS)[1]
    assert (own == explicit).all()


def test_masks_need_no_collections(xs):
    rnn = rdrop.RNN(cell_of(rdrop.LSTMCell))
    params = rnn.init(jax.random.key(0), xs)
    quiet = rnn.apply(params, xs, Dropout())[1]
    assert (rnn.apply(params, xs, rdrop.Masks(), rngs=RNGS)[1] == quiet).all()


@pytest.mark.parametrize("name", ["inputs", "recurrent"])
def test_one_collection_alone_is_refused(xs, name):
    rnn = rdrop.RNN(cell_of(rdrop.LSTMCell))
    params = rnn.init(jax.random.key(0), xs)
    with pytest.raises(ValueError, match=rf"`rngs` must have both .*got `{name}` only"):
        rnn.apply(params, xs, rngs={name: RNGS[name]})


def test_keys_that_flax_would_keep_back_are_asked_for(xs):
    """Without this error there would be no noise, and no sign of it."""
    rnn = nn.RNN(cell_of(rdrop.LSTMCell))
    params = rnn.init(jax.random.key(0), xs)
    with pytest.raises(ValueError, match="must name the collection `inputs`"):
        rnn.apply(params, xs, rngs=RNGS)
    rnn.apply(params, xs)
    nn.RNN(cell_of(rdrop.LSTMCell, None)).apply(params, xs, rngs=RNGS)
    nn.RNN(cell_of(rdrop.LSTMCell), split_rngs={True: False}).apply(
        params, xs, rngs=RNGS
    )


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
    params = rnn.init(jax.random.key(0), xs)
    with pytest.raises(ValueError, match='`per` must be "sequence" where a cell'):
        rnn.apply(params, xs, rngs=RNGS)
    assert np.isfinite(rnn.apply(params, xs)).all()
