"""Keras and its port have the same noise, given the masks of either."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import ZEROS, compiled, randomise

import rdrop
from rdrop import Masks
from rdrop.interop import from_keras, masks_from_keras, masks_to_keras

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of get_weights
]

BATCH, TIME, FEATURES, UNITS = 5, 2, 3, 2
KEYS = rdrop.stream_keys(jax.random.key(0))
OPTIONS = {"return_sequences": True, "seed": 1} | ZEROS
LAYERS = {
    "lstm": ("LSTM", {}, (0.3, 0.0)),
    "lstm_backwards": ("LSTM", {"go_backwards": True}, (0.3, 0.4)),
    "gru": ("GRU", {}, (0.3, 0.0)),
    "gru_recurrent": ("GRU", {}, (0.0, 0.4)),
    "gru_reset_before": ("GRU", {"reset_after": False}, (0.3, 0.4)),
    "simple": ("SimpleRNN", {}, (0.3, 0.4)),
}
QUICK = ("gru", "simple")  # and a list that begins with an LSTM


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
        randomise(np.random.default_rng(0), [layer])
    return layer


def wrapped(seed=1):
    layer = keras.layers.Bidirectional(
        make(features=None, seed=seed),
        backward_layer=make(features=None, go_backwards=True, seed=seed + 1),
    )
    layer.build((BATCH, TIME, FEATURES))
    randomise(np.random.default_rng(0), [layer])
    return layer


def draw(layer):
    """Masks as the layer has them, by the dropout of its port."""
    module, _, dropout = from_keras(layer)
    return rdrop.draw(dropout, KEYS, module.cell.sites(FEATURES), BATCH)


def by_rdrop(layer, xs, masks):
    """As part of a program."""
    module, params, _ = from_keras(layer)
    ys = module.apply(params, xs, masks)[1]
    return ys[:, ::-1] if getattr(layer, "go_backwards", False) else ys


def by_keras(layers, xs, training=True, masks=None):
    """Part of a program only if the layers have masks: they draw no others then."""
    if masks is not None:
        masks_to_keras(masks, layers)
    for layer in layers if isinstance(layers, list) else [layers]:
        xs = layer(xs, training=training)
    return xs


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


def assert_differ(*outputs):
    for n, first in enumerate(outputs):
        for second in outputs[n + 1 :]:
            assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "options", "rates"),
    [
        pytest.param(*case, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, case in LAYERS.items()
    ],
)
def test_both_have_the_masks_of_either(xs, kind, options, rates):
    layer = make(kind, rates, **options)
    drawn, ours = masks_from_keras(layer, xs), draw(layer)
    sites = [mask is None for mask in (drawn.inputs, drawn.recurrent)]
    assert sites == [rate == 0 for rate in rates]

    @compiled
    def run(xs):
        noisy = by_keras(layer, xs)  # with the masks that it drew
        other = by_keras(layer, xs, masks=ours)
        clean = by_keras(layer, xs, training=False, masks=ours)
        return noisy, other, clean, *(by_rdrop(layer, xs, m) for m in (drawn, ours))

    noisy, other, clean, noisy_here, other_here = run(xs)
    assert_close(noisy_here, noisy)
    assert_close(other_here, other)
    assert_differ(noisy, other, clean)


def test_masks_from_keras_are_those_that_the_call_would_draw(xs):
    layer, twin = make("SimpleRNN"), make("SimpleRNN")
    masks_from_keras(layer, xs)
    np.testing.assert_array_equal(by_keras(layer, xs), by_keras(twin, xs))


def test_a_list_with_a_bidirectional_layer(xs):
    layers = [wrapped(), make("GRU", features=2 * UNITS)]
    drawn = masks_from_keras(layers, xs)
    assert drawn[1].inputs.shape == (BATCH, 3, 2 * UNITS)
    assert not np.array_equal(drawn[0][0].recurrent, drawn[0][1].recurrent)
    other = jax.tree.map(lambda mask: mask[::-1], drawn)

    @compiled
    def run(xs):
        theirs = by_keras(layers, xs), by_keras(layers, xs, masks=other)
        return theirs, [by_rdrop(layers, xs, masks) for masks in (drawn, other)]

    theirs, ours = run(xs)
    assert_close(theirs[0], ours[0])
    assert_close(theirs[1], ours[1])
    assert_differ(*ours)


def test_masks_are_used_once_and_evaluation_clears_them(xs):
    layer = make("SimpleRNN")
    masks = draw(layer)
    masks_to_keras(masks, layer)
    first, second = by_keras(layer, xs), by_keras(layer, xs)
    assert np.abs(first - second).max() > 0.01
    masks_to_keras(masks, layer)
    np.testing.assert_array_equal(by_keras(layer, xs), first)
    masks_to_keras(masks, layer)
    by_keras(layer, xs, training=False)
    assert np.abs(by_keras(layer, xs) - first).max() > 0.01


def test_each_draw_is_new(xs):
    layer = make()
    given = draw(layer)
    masks_to_keras(given, layer)
    first, second = masks_from_keras(layer, xs), masks_from_keras(layer, xs)
    for other in (given, second):
        assert not np.array_equal(first.recurrent, other.recurrent)


def test_no_masks_are_no_noise(xs):
    layer = make("SimpleRNN")
    masks_to_keras(Masks(), layer)
    assert_close(by_keras(layer, xs), by_keras(layer, xs, training=False))


def test_shared_masks_are_repeated(xs):
    """Over the gates if Keras has one mask for each, and over the batch."""
    layer = make()
    masks = Masks(
        inputs=jnp.array([[[0.0, 2.0, 2.0]]]), recurrent=jnp.array([[[0.0, 2.0]]])
    )

    @compiled
    def run(xs):
        return by_keras(layer, xs, masks=masks), by_rdrop(layer, xs, masks)

    assert_close(*run(xs))


def test_a_mask_of_ones_is_none_if_keras_reads_none():
    layer = make(rates=(0.3, 0.0))
    masks = draw(layer).replace(recurrent=jnp.ones((BATCH, 4, UNITS)))
    masks_to_keras(masks, layer)
    assert layer.cell._recurrent_dropout_mask is None


@pytest.mark.parametrize(
    ("site", "shape", "rates", "message"),
    [
        ("update", (5, 1, 2), (0.3, 0.4), r"`masks.update` must be None: Keras has"),
        ("inputs", (4, 5, 1, 3), (0.3, 0.4), r"got shape \(4,.* no masks per step"),
        ("inputs", (5, 1, 2), (0.3, 0.4), r"= \(B, 4, 3\), .* got shape \(5, 1, 2\)"),
        ("inputs", (5, 3, 3), (0.3, 0.4), r"= \(B, 4, 3\), .* got shape \(5, 3, 3\)"),
        ("recurrent", (5, 3), (0.3, 0.4), r"= \(B, 4, 2\), .* got shape \(5, 3\)"),
        ("inputs", (5, 4, 3), (0.3, 0.0), r"= \(B, 1, 3\), .* masks per gate only"),
        ("inputs", (5, 1, 3), (0.0, 0.4), r"all ones for a layer with dropout=0"),
    ],
)
def test_masks_that_keras_cannot_use_are_rejected(site, shape, rates, message):
    masks = Masks(**{site: jnp.zeros(shape)})
    with pytest.raises(ValueError, match=message):
        masks_to_keras(masks, make(rates=rates))


def test_masks_of_another_type_are_rejected():
    with pytest.raises(TypeError, match="`masks` must be Masks, got list"):
        masks_to_keras([Masks()], make())


def test_nothing_is_set_if_one_of_several_is_rejected():
    layers = [make(), make(features=UNITS)]
    wrong = Masks(inputs=jnp.ones((1, 1, 9)))
    with pytest.raises(ValueError, match=r"`masks\[1\].inputs` must have the axes"):
        masks_to_keras([draw(layers[0]), wrong], layers)
    assert getattr(layers[0].cell, "_dropout_mask", None) is None


@pytest.mark.parametrize("masks", [Masks(), [Masks()] * 3])
def test_there_must_be_one_for_each_direction(masks):
    with pytest.raises(ValueError, match="must be 2 Masks, one per direction"):
        masks_to_keras(masks, wrapped())


def test_layers_without_masks_are_rejected(xs):
    with pytest.raises(TypeError, match=r"a Keras LSTM, GRU, .* got Dense"):
        masks_to_keras(Masks(), keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"must be built: .* 'mine' is not"):
        masks_from_keras(make(features=None, name="mine"), xs)
    with pytest.raises(ValueError, match=r"`layer.dropout` must lie in .* got 1\.0"):
        masks_from_keras(make(rates=(1.0, 0.0)), xs)


def test_inputs_of_another_size_are_rejected(xs):
    with pytest.raises(ValueError, match=r"D = 3, got shape \(5, 2, 2\)"):
        masks_from_keras(make(), xs[..., :2])
    with pytest.raises(ValueError, match=r"\[B, T, D\] .* got shape \(2, 3\)"):
        masks_from_keras(make(), xs[0])


def test_another_keras_is_rejected(xs, monkeypatch):
    layer = make()
    base = next(c for c in type(layer.cell).__mro__ if c.__name__ == "DropoutRNNCell")
    with monkeypatch.context() as patch:
        patch.setattr(base, "reset_dropout_mask", lambda self: None)
        patch.delattr(layer.cell, "_dropout_mask", raising=False)
        with pytest.raises(RuntimeError, match=r"Keras 3\.\d.* has no `_dropout_mask`"):
            masks_to_keras(Masks(), layer)
    monkeypatch.setattr(keras, "__version__", "3.7.0")
    with pytest.raises(RuntimeError, match=r"3\.8 or newer.* got 3\.7\.0"):
        masks_from_keras(layer, xs)


def test_a_missing_keras_is_named(monkeypatch):
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
    rnn, params, _ = from_keras(layer)
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
