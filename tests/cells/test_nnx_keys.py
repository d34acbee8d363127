"""Keys of the nnx face: from `nnx.Rngs`, or drawn by the cell for each sequence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, quickly
from nnx_cases import FEATURES, LIVES, OUTPUTS, TIME, UNITS, XS, noisy

import rdrop
from rdrop import Bernoulli, Dropout
from rdrop import nnx as rnnx

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
def test_rngs_give_a_layer_its_keys(streams):
    """The same as explicit keys; each call draws again."""
    rnn = rnnx.RNN(rnnx.SimpleCell(FEATURES, UNITS, rngs=nnx.Rngs(0)))
    rngs, again = (nnx.Rngs(**RNGS[streams]) for _ in range(2))
    drawn = [rnnx.stream_keys(rngs) for _ in range(2)]
    by_hand = [keys_by_hand(again) for _ in range(2)]
    chex.assert_trees_all_equal(data_of(drawn), data_of(by_hand))
    assert drawn[0].inputs != drawn[1].inputs
    noise = Dropout(inputs=Bernoulli(0.5))

    @jax.jit
    def run(keys):
        from_rngs = rnn(XS, noise, nnx.Rngs(**RNGS[streams]))[1]
        return from_rngs, rnn(XS, noise, keys)[1], rnn(XS)[1]

    from_rngs, explicit, quiet = run(drawn[0])
    assert_close(from_rngs, explicit)
    assert (from_rngs != quiet).any()


def data_of(keys):
    return [jax.random.key_data(key) for k in keys for key in (k.inputs, k.recurrent)]


def test_a_cell_of_its_own_noise_may_have_the_stream_dropout_only():
    """In addition to `params`, as other modules of flax do."""
    rngs = nnx.Rngs(params=0, dropout=4)
    cell = rnnx.SimpleCell(FEATURES, UNITS, dropout=LIVES, rngs=rngs)
    by_hand = nnx.Rngs(dropout=4).dropout.fork()
    by_hand()  # drawn when the cell is made
    rnn, keys = rnnx.RNN(cell), rdrop.stream_keys(by_hand())

    @nnx.jit
    def run(rnn):
        return rnn(XS)[1], rnn(XS, LIVES, keys)[1], rnn(XS, Dropout())[1]

    own, explicit, quiet = run(rnn)
    assert_close(own, explicit, tolerance=1e-6)
    assert (own != quiet).any()


def test_a_view_that_is_deterministic_evaluates_the_expectation():
    """As `nnx.Dropout` does; the model itself stays noisy."""
    rnn = rnnx.RNN(
        rnnx.SimpleCell(FEATURES, UNITS, dropout=LIVES, rngs=nnx.Rngs(0)), reverse=True
    )
    quiet = nnx.view(rnn, deterministic=True)
    assert_close(quiet(XS)[1], rnn(XS, LIVES.expected())[1])
    assert (rnn(XS)[1] != quiet(XS)[1]).any()
    noisy_again = nnx.view(quiet, deterministic=False)
    assert (noisy_again(XS)[1] != quiet(XS)[1]).any()


@pytest.mark.parametrize("reverse", quickly([False, True], False))
def test_inside_the_rnn_of_nnx_masks_live_as_they_say(reverse):
    """Held, drawn at each step, and new in each sequence; that RNN is flax's own."""
    cell = noisy()
    rnn = nnx.RNN(cell, reverse=reverse, keep_order=True, return_carry=True)

    @nnx.jit
    def run(rnn):
        carry, ys = rnn(XS)
        keys = rnn.cell.own.now()
        flipped = XS[:, ::-1] if reverse else XS
        ours = rnnx.RNN(rnn.cell, loop="plain")
        expected = ours(flipped, LIVES, keys.replace(step=0))
        return (carry, ys[:, ::-1] if reverse else ys), expected, keys.step

    (theirs, ours, step), (again, *_) = run(rnn), run(rnn)
    assert step == TIME
    assert_close(theirs, ours, tolerance=1e-6)
    assert (theirs[1] != again[1]).any()


def both_ways():
    return rnnx.Bidirectional(*(noisy(OUTPUTS, default=n) for n in (1, 2)))


NEW_SEQUENCE = {
    "rnn": lambda: rnnx.RNN(noisy(OUTPUTS)),
    "bidirectional": both_ways,
    "stack": lambda: rnnx.Stack([both_ways()]),
}


@pytest.mark.parametrize("name", quickly(NEW_SEQUENCE, "rnn", "stack"))
def test_a_sequence_begins_without_a_carry_or_if_it_is_told_to(name):
    """A new sequence has new masks, in each direction; otherwise they are held.

    A decoder starts from the carry of an encoder, and says that its sequence is new.
    """
    layer = NEW_SEQUENCE[name]()

    @nnx.jit
    def run(layer):
        carry, first = layer(XS)
        options = [
            {"initial_carry": carry},
            {"initial_carry": carry, "new_sequence": True},
            {"initial_carry": carry, "new_sequence": True},
            {"initial_carry": carry, "new_sequence": False},
            {"new_sequence": False},
            {},
        ]
        return [ys == 0 for ys in (first, *(layer(XS, **o)[1] for o in options))]

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


@pytest.mark.parametrize("time_major", [False, True])
def test_a_new_sequence_begins_at_step_0(time_major):
    rnn = rnnx.RNN(noisy(Dropout()), time_major=time_major)
    xs = XS.swapaxes(0, 1) if time_major else XS
    carry, _ = rnn(xs)
    rnn(xs, initial_carry=carry)
    assert rnn.cell.own.now().step == 2 * TIME
    rnn(xs, initial_carry=carry, new_sequence=True)
    assert rnn.cell.own.now().step == TIME


@pytest.mark.parametrize("kind", quickly(["ours", "of flax"], "ours"))
def test_a_carry_continues_the_sequence(kind):
    """Two halves, the carry passed on, are the whole."""
    build = rnnx.RNN
    if kind == "of flax":
        build = lambda cell: nnx.RNN(cell, return_carry=True)  # noqa: E731

    @nnx.jit
    def run(whole, halves):
        carry, ys = halves(XS[:, :2])
        carry, zs = halves(XS[:, 2:], initial_carry=carry)
        return (carry, jnp.concatenate([ys, zs], axis=1)), whole(XS)

    assert_close(*run(build(noisy()), build(noisy())), tolerance=1e-6)
