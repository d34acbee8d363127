"""Keras and its port have the same noise, given the masks of either."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop import Masks
from rdrop.interop import from_keras, masks_from_keras, masks_to_keras

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported
keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of get_weights
]

BATCH, TIME, FEATURES, UNITS = 5, 3, 3, 2
KEYS = rdrop.stream_keys(jax.random.key(0))
OPTIONS = {"return_sequences": True, "seed": 1, "unroll": True}
LAYERS = {
    "lstm": ("LSTM", {"unroll": False}, (0.3, 0.0)),
    "lstm_backwards": ("LSTM", {"go_backwards": True}, (0.3, 0.4)),
    "gru": ("GRU", {"unroll": False}, (0.3, 0.0)),
    "gru_recurrent": ("GRU", {}, (0.0, 0.4)),
    "gru_reset_before": ("GRU", {"reset_after": False}, (0.3, 0.4)),
    "simple": ("SimpleRNN", {}, (0.3, 0.4)),
}
each_layer = pytest.mark.parametrize(
    ("kind", "options", "rates"), LAYERS.values(), ids=LAYERS
)


@pytest.fixture(autouse=True)
def lenient():
    """Lets Keras promote ranks as it is used to."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def xs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)), jnp.float32)


def make(kind="LSTM", rates=(0.3, 0.4), features=FEATURES, **options):
    layer = getattr(keras.layers, kind)(
        UNITS,
        dropout=rates[0],
        recurrent_dropout=rates[1],
        **(OPTIONS | options),
    )
    if features:
        layer.build((BATCH, TIME, features))
    return layer


def wrapped(seed=1, features=FEATURES, **options):
    layer = keras.layers.Bidirectional(
        make(features=None, seed=seed),
        backward_layer=make(features=None, go_backwards=True, seed=seed + 1),
    )
    layer.build((BATCH, TIME, features))
    return layer


def draw(layer, features=FEATURES, keys=KEYS):
    """Masks as the layer has them: one a gate beside recurrent dropout."""
    cell, gates = from_keras(layer).module.cell, "shared"
    if layer.recurrent_dropout and not isinstance(cell, rdrop.SimpleCell):
        gates = "each"
    dropout = rdrop.Dropout(
        inputs=rdrop.Bernoulli(layer.dropout, gates=gates),
        recurrent=rdrop.Bernoulli(layer.recurrent_dropout, gates=gates),
    )
    return rdrop.draw(dropout, keys, cell.sites(features), BATCH)


def by_rdrop(layer, xs, masks):
    module, params = from_keras(layer)
    ys = np.asarray(module.apply(params, xs, masks)[1])
    return ys[:, ::-1] if getattr(layer, "go_backwards", False) else ys


def by_keras(layers, xs, training=True):
    for layer in layers if isinstance(layers, list) else [layers]:
        xs = layer(xs, training=training)
    return keras.ops.convert_to_numpy(xs)


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


@each_layer
def test_keras_runs_with_our_masks(xs, kind, options, rates):
    layer = make(kind, rates, **options)
    masks = draw(layer)
    masks_to_keras(masks, layer)
    noisy = by_keras(layer, xs)
    assert_same(noisy, by_rdrop(layer, xs, masks))
    assert np.abs(noisy - by_keras(layer, xs, training=False)).max() > 0.01


@each_layer
def test_we_run_with_the_masks_of_keras(xs, kind, options, rates):
    """They are those that the call would have drawn, and it keeps them."""
    layer, twin = (make(kind, rates, **options) for _ in range(2))
    twin.set_weights(layer.get_weights())
    masks = masks_from_keras(layer, xs)
    noisy = by_keras(layer, xs)
    assert_same(by_rdrop(layer, xs, masks), noisy)
    np.testing.assert_array_equal(by_keras(twin, xs), noisy)
    assert [m is None for m in (masks.inputs, masks.recurrent)] == [
        rate == 0 for rate in rates
    ]
    assert np.abs(noisy - by_keras(layer, xs, training=False)).max() > 0.01


def test_both_directions(xs):
    layer = wrapped()
    masks = draw(layer.forward_layer), draw(layer.backward_layer, keys=KEYS)
    masks = masks[0], masks[1].replace(recurrent=masks[1].recurrent[::-1])
    masks_to_keras(masks, layer)
    assert_same(by_keras(layer, xs), by_rdrop(layer, xs, masks))
    drawn = masks_from_keras(layer, xs)
    assert not np.array_equal(drawn[0].recurrent, drawn[1].recurrent)
    assert_same(by_rdrop(layer, xs, drawn), by_keras(layer, xs))


def test_a_list_of_layers(xs):
    layers = [wrapped(), make("GRU", features=2 * UNITS)]
    drawn = masks_from_keras(layers, xs)
    assert drawn[1].inputs.shape == (BATCH, 3, 2 * UNITS)
    assert_same(by_rdrop(layers, xs, drawn), by_keras(layers, xs))
    first, other = by_keras(layers, xs), by_keras(layers, xs)
    assert np.abs(first - other).max() > 0.01
    masks_to_keras(drawn, layers)
    assert_same(by_keras(layers, xs), by_rdrop(layers, xs, drawn))


def test_masks_are_used_once(xs):
    layer = make()
    masks = draw(layer)
    masks_to_keras(masks, layer)
    first, second = by_keras(layer, xs), by_keras(layer, xs)
    assert np.abs(first - second).max() > 0.01
    masks_to_keras(masks, layer)
    np.testing.assert_array_equal(by_keras(layer, xs), first)


def test_each_draw_is_new(xs):
    layer = make()
    given = draw(layer)
    masks_to_keras(given, layer)
    first, second = masks_from_keras(layer, xs), masks_from_keras(layer, xs)
    for other in (given, second):
        assert not np.array_equal(first.recurrent, other.recurrent)


def test_an_evaluation_clears_them(xs):
    layer, twin = make(), make()
    twin.set_weights(layer.get_weights())
    masks_to_keras(draw(layer), layer)
    by_keras(layer, xs, training=False)
    np.testing.assert_array_equal(by_keras(layer, xs), by_keras(twin, xs))


@pytest.mark.parametrize("name", ["LSTM", "SimpleRNN"])
def test_no_masks_are_no_noise(xs, name):
    layer = make(name)
    masks_to_keras(Masks(), layer)
    assert_same(by_keras(layer, xs), by_keras(layer, xs, training=False))


def test_shared_masks_are_repeated(xs):
    """By the gates where Keras wants one for each, and by the batch."""
    layer = make()
    masks = Masks(
        inputs=jnp.array([[[0.0, 2.0, 2.0]]]), recurrent=jnp.array([[[0.0, 2.0]]])
    )
    masks_to_keras(masks, layer)
    assert_same(by_keras(layer, xs), by_rdrop(layer, xs, masks))


def test_a_mask_of_ones_is_none_where_keras_looks_at_none():
    layer = make(rates=(0.3, 0.0))
    masks = draw(make(rates=(0.3, 0.0))).replace(recurrent=jnp.ones((BATCH, 4, UNITS)))
    masks_to_keras(masks, layer)
    assert layer.cell._recurrent_dropout_mask is None


@pytest.mark.parametrize(
    ("site", "shape", "rates", "message"),
    [
        ("update", (5, 1, 2), (0.3, 0.4), r"`masks.update` must be None: Keras has"),
        ("inputs", (4, 5, 1, 3), (0.3, 0.4), r"none of each step; got shape \(4,"),
        ("inputs", (5, 1, 2), (0.3, 0.4), r"= \(B, 4, 3\), as each axis whole or 1"),
        ("inputs", (5, 3, 3), (0.3, 0.4), r"= \(B, 4, 3\), as each axis whole or 1"),
        ("recurrent", (5, 3), (0.3, 0.4), r"= \(B, 4, 2\), as each axis whole or 1"),
        ("inputs", (5, 4, 3), (0.3, 0.0), r"= \(B, 1, 3\), as .* mask for all gates"),
        ("inputs", (5, 1, 3), (0.0, 0.4), r"all ones for a layer with dropout=0"),
    ],
)
def test_masks_that_keras_cannot_take(site, shape, rates, message):
    masks = Masks(**{site: jnp.zeros(shape)})
    with pytest.raises(ValueError, match=message):
        masks_to_keras(masks, make(rates=rates))


def test_masks_of_another_type():
    with pytest.raises(TypeError, match="`masks` must be Masks, got list"):
        masks_to_keras([Masks()], make())


def test_nothing_is_set_where_one_of_several_is_refused():
    layers = [make(), make(features=UNITS)]
    wrong = Masks(inputs=jnp.ones((1, 1, 9)))
    with pytest.raises(ValueError, match=r"`masks\[1\].inputs` must have the axes"):
        masks_to_keras([draw(layers[0]), wrong], layers)
    assert layers[0].cell._dropout_mask is None


@pytest.mark.parametrize("masks", [Masks(), [Masks()] * 3])
def test_one_for_each_direction(masks):
    with pytest.raises(ValueError, match="must be 2 Masks, one for each direction"):
        masks_to_keras(masks, wrapped())


def test_layers_that_have_no_masks(xs):
    with pytest.raises(TypeError, match=r"a Keras LSTM, GRU, .* got Dense"):
        masks_to_keras(Masks(), keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"must be built: .* got LSTM 'mine'"):
        masks_from_keras(make(features=None, name="mine"), xs)
    with pytest.raises(ValueError, match=r"`layer.dropout` must be below 1, got 1\.0"):
        masks_from_keras(make(rates=(1.0, 0.0)), xs)


def test_inputs_of_another_size(xs):
    with pytest.raises(ValueError, match=r"D = 3, got shape \(5, 3, 2\)"):
        masks_from_keras(make(), xs[..., :2])
    with pytest.raises(ValueError, match=r"\[B, T, D\] .* got shape \(3, 3\)"):
        masks_from_keras(make(), xs[0])


def test_another_keras_is_refused(xs, monkeypatch):
    layer = make()
    base = next(c for c in type(layer.cell).__mro__ if c.__name__ == "DropoutRNNCell")
    with monkeypatch.context() as patch:
        patch.setattr(base, "reset_dropout_mask", lambda self: None)
        with pytest.raises(RuntimeError, match=r"Keras 3\.\d.* has no `_dropout_mask`"):
            masks_to_keras(Masks(), layer)
    monkeypatch.setattr(keras, "__version__", "3.7.0")
    with pytest.raises(RuntimeError, match=r"3\.8 and newer.* got 3\.7\.0"):
        masks_from_keras(layer, xs)


def test_without_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match="pip install keras"):
        masks_to_keras(Masks(), None)


OTHER_BACKEND = """
import jax, keras, numpy as np, rdrop
from rdrop.interop import from_keras, masks_from_keras, masks_to_keras

xs = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
for name, recurrent in (("LSTM", 0.4), ("GRU", 0.0), ("SimpleRNN", 0.4)):
    layer = getattr(keras.layers, name)(2, dropout=0.3, recurrent_dropout=recurrent)
    layer.build(xs.shape)
    rnn, params = from_keras(layer)
    drawn = masks_from_keras(layer, xs)
    for masks in (drawn, jax.tree.map(lambda mask: mask[::-1], drawn)):
        masks_to_keras(masks, layer)
        expected = keras.ops.convert_to_numpy(layer(xs, training=True))
        actual = rnn.apply(params, xs, masks)[1][:, -1]
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
        without = keras.ops.convert_to_numpy(layer(xs, training=False))
        assert np.abs(expected - without).max() > 0.01
print(keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_other_backends(backend):
    if backend == "torch":
        pytest.importorskip("torch")
    output = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.stdout.split() == [backend], output.stderr


@pytest.mark.slow
def test_the_example_shows_the_same_outputs():
    from examples.same_masks import main

    differences = main()
    assert len(differences) == 3
    assert max(differences.values()) < 1e-6
