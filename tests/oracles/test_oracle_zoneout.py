"""Zoneout is the authors' code, and the `haste` preset is Haste's rule.

Both are rewritten in NumPy from their code: teganmaharaj/zoneout,
recurrent.py (ZoneoutLSTM.apply with model_type 6, ZoneoutGRU, ZoneoutSimpleRecurrent),
and lmnt-com/haste, frameworks/pytorch. Their masks d are 1 where the new value is kept.

Derivatives are compared along one random direction of all arguments together, by the
complex step: the imaginary part of f(x + i e v) / e is the derivative of f along v.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly

import rdrop
from rdrop import presets

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mixed(d, new, old):
    return d * new + (1 - d) * old


def authors_lstm(weights, x, state, d_c, d_h, d_i):
    c, h = state
    a = x @ weights["kernel"] + weights["bias"] + h @ weights["recurrent_kernel"]
    i, f, g, o = np.split(a, 4, axis=-1)
    i, f, o = sigmoid(i) * d_i, sigmoid(f + 1), sigmoid(o)
    next_c = f * c + i * np.tanh(g)
    next_h = o * np.tanh(next_c)
    return mixed(d_c, next_c, c), mixed(d_h, next_h, h)


def authors_gru(weights, x, state, d_c, d_h, d_i):
    (h,) = state
    u_z, u_r, u_n = np.split(weights["recurrent_kernel"], 3, axis=-1)
    z, r, n = np.split(x @ weights["kernel"] + weights["bias"], 3, axis=-1)
    z, r = sigmoid(z + h @ u_z), sigmoid(r + h @ u_r)
    n = np.tanh(n + (r * h) @ u_n)
    return (mixed(d_h, z * h + (1 - z) * n * d_i, h),)


def authors_simple(weights, x, state, d_c, d_h, d_i):
    (h,) = state
    z = x @ weights["kernel"] + weights["bias"] + h @ weights["recurrent_kernel"]
    return (mixed(d_h, np.tanh(z), h),)


def haste_lstm(weights, x, state, d_h):
    c, h = state
    v = h @ weights["recurrent_kernel"] + x @ weights["kernel"] + weights["bias"]
    i, g, f, o = np.split(v, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, (sigmoid(o) * np.tanh(c) - h) * d_h + h


def haste_gru(weights, x, state, d_h):
    (h,) = state
    z, r, g = np.split(x @ weights["kernel"] + weights["bias"], 3, axis=-1)
    bias = weights["recurrent_bias"]
    u_z, u_r, u_g = np.split(h @ weights["recurrent_kernel"] + bias, 3, axis=-1)
    z, r = sigmoid(z + u_z), sigmoid(r + u_r)
    new = z * h + (1 - z) * np.tanh(g + r * u_g)
    return ((new - h) * d_h + h,)


def unrolled(step, arguments, masks):
    """Final state and outputs h of a step, with the masks (T, B, H) of each."""
    weights, xs, state = arguments
    ys = []
    for t in range(TIME):
        state = step(weights, xs[:, t], state, *(mask[t] for mask in masks))
        ys.append(state[-1])
    return [*state, np.stack(ys, axis=1)]


def random_arguments(rng, cell):
    """Parameters, inputs and a carry, as NumPy arrays."""
    xs = rng.normal(size=(BATCH, TIME, FEATURES))
    carry = cell.initialize_carry(jax.random.key(0), (BATCH, FEATURES))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, xs[:, 0])["params"]
    weights, state = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape), (shapes, jax.tree.leaves(carry))
    )
    return weights, xs, state


def assert_same(rng, cell, dropout, expected):
    """Values and derivatives of ours are those of `expected`, a function in NumPy."""
    arguments = random_arguments(rng, cell)
    structure = jax.tree.structure(cell.initialize_carry(jax.random.key(0), (1, 1)))

    def ours(arguments):
        weights, xs, state = arguments
        carry, ys = rdrop.RNN(cell, loop="plain").apply(
            {"params": weights}, xs, dropout, initial_carry=structure.unflatten(state)
        )
        return [*jax.tree.leaves(carry), ys]

    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), arguments)
    point = jax.tree.map(jnp.asarray, (arguments, direction))
    actual = jax.jit(lambda a, v: jax.jvp(ours, (a,), (v,)))(*point)
    tiny = 1e-30
    moved = jax.tree.map(lambda a, v: a + 1j * tiny * v, arguments, direction)
    for value, derivative, both in zip(*actual, expected(moved), strict=True):
        np.testing.assert_allclose(value, both.real, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(derivative, both.imag / tiny, rtol=1e-10, atol=1e-10)


def draw(cell, dropout):
    sites = cell.sites(FEATURES)
    return jax.jit(lambda keys: rdrop.draw(dropout, keys, sites, BATCH, TIME))(
        rdrop.stream_keys(jax.random.key(0))
    )


def new_shares(masks, *sites):
    """The masks of these sites in the authors' sense, (T, B, H) or (T, 1, 1)."""
    for site in sites:
        mask = getattr(masks, site)
        mask = 1 - mask.share if isinstance(mask, rdrop.Mix) else mask
        mask = np.ones((1, 1, 1)) if mask is None else np.asarray(mask, np.float64)
        yield np.broadcast_to(mask, (TIME, *mask.shape[-3:]))[:, :, 0]


def shifted(weights, name, gate, by):
    """Weights with a constant added to one gate of a bias."""
    part = np.arange(len(weights[name])) // UNITS == gate
    return weights | {name: weights[name] + by * part}


MIX, UPDATE = rdrop.Zoneout(0.25), presets.semeniuta(0.5)  # rates that float32 has
AUTHORS = {
    "lstm": (authors_lstm, rdrop.LSTMCell, {}, presets.zoneout(0.5, 0.25)),
    "gru": (
        authors_gru,
        rdrop.GRUCell,
        {"reset_after": False},
        rdrop.Dropout(hidden_state=MIX),
    ),
    "simple": (authors_simple, rdrop.SimpleCell, {}, rdrop.Dropout(hidden_state=MIX)),
}


@pytest.mark.parametrize(
    ("name", "input_gates", "phase"),
    quickly(
        [
            (name, input_gates, phase)
            for name in AUTHORS
            for input_gates in ([False] if name == "simple" else [False, True])
            for phase in ("training", "evaluation")
        ],
        ("lstm", True, "training"),
        ("lstm", False, "evaluation"),
        ("gru", False, "training"),
        ("simple", False, "training"),
    ),
)
def test_zoneout_is_that_of_the_authors_code(rng, name, input_gates, phase):
    """Also with their dropout of input gates, which is ours of the update."""
    training = phase == "training"
    step, kind, options, dropout = AUTHORS[name]
    cell = kind(UNITS, param_dtype=jnp.float64, **options)
    if input_gates:
        dropout = dropout.replace(update=UPDATE.update)
    masks = draw(cell, dropout) if training else dropout.expected()
    shares = list(new_shares(masks, "cell_state", "hidden_state", "update"))

    def expected(arguments):
        weights, xs, state = arguments
        if name == "lstm":  # they add one to the forget gate
            weights = shifted(weights, "bias", 1, -1)
        return unrolled(step, (weights, xs, state), shares)

    assert_same(rng, cell, masks if training else dropout, expected)


HASTE = {"lstm": (haste_lstm, rdrop.LSTMCell), "gru": (haste_gru, rdrop.GRUCell)}


def to_haste(name, weights, mask):
    """Its order of gates or its second bias, and its dropped recurrent kernel."""
    if mask is not None:
        kernel = weights["recurrent_kernel"]
        dropped = kernel * np.asarray(mask, np.float64).reshape(kernel.shape)
        weights = weights | {"recurrent_kernel": dropped}
    if name == "lstm":

        def igfo(a):
            i, f, g, o = np.split(a, 4, axis=-1)
            return np.concatenate([i, g, f, o], axis=-1)

        return {name: igfo(weight) for name, weight in weights.items()}
    bias = np.concatenate([np.full(2 * UNITS, 0.3), weights["recurrent_bias"]])
    weights = weights | {"recurrent_bias": bias}
    return shifted(shifted(weights, "bias", 0, -0.3), "bias", 1, -0.3)


@pytest.mark.parametrize(
    ("name", "phase"),
    quickly(
        [(name, phase) for name in HASTE for phase in ("training", "evaluation")],
        ("lstm", "training"),
        ("gru", "evaluation"),
    ),
)
def test_haste_zones_the_hidden_state_alone(rng, name, phase):
    training = phase == "training"
    step, kind = HASTE[name]
    cell = kind(UNITS, param_dtype=jnp.float64)
    dropout = presets.haste(0.4, 0.25)
    masks = draw(cell, dropout) if training else dropout.expected()
    assert (masks.recurrent_weights is not None) == training
    shares = list(new_shares(masks, "hidden_state"))

    def expected(arguments):
        weights, xs, state = arguments
        weights = to_haste(name, weights, masks.recurrent_weights)
        return unrolled(step, (weights, xs, state), shares)

    assert_same(rng, cell, masks if training else dropout, expected)
