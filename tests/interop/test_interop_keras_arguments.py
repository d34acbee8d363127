"""What Keras' arguments become runs, and gives what Keras gives."""

import functools
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop import presets
from rdrop.interop import from_keras, masks_to_keras, translate_keras
from rdrop.interop.keras_notes import ARGUMENTS

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported
keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of get_weights
]

BATCH, TIME, FEATURES, UNITS = 4, 7, 3, 2
CASES = {
    "last output": ("LSTM", {"dropout": 0.3}),
    "last output backwards": ("LSTM", {"dropout": 0.3, "go_backwards": True}),
    "recurrent": ("LSTM", {"recurrent_dropout": 0.4, "return_sequences": True}),
    "all outputs": (
        "LSTM",
        {
            "dropout": 0.3,
            "recurrent_dropout": 0.4,
            "return_sequences": True,
            "return_state": True,
            "go_backwards": True,
        },
    ),
    "a mask a gate": (
        "LSTM",
        {"dropout": 0.3, "implementation": 1, "use_cudnn": False},
    ),
    "no bias": ("LSTM", {"recurrent_dropout": 0.4, "use_bias": False}),
    "half precision": ("LSTM", {"dropout": 0.3, "dtype": "mixed_bfloat16"}),
    "gru": ("GRU", {"dropout": 0.3, "return_state": True, "unroll": False}),
    "reset before": (
        "GRU",
        {"reset_after": False, "dropout": 0.3, "recurrent_dropout": 0.4},
    ),
    "simple": (
        "SimpleRNN",
        {"dropout": 0.3, "recurrent_dropout": 0.4, "go_backwards": True},
    ),
    "no noise": ("SimpleRNN", {"return_sequences": True}),
}
QUICK = ("recurrent", "gru")
each_case = pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        pytest.param(*case, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, case in CASES.items()
    ],
)


@pytest.fixture(autouse=True)
def lenient():
    """Lets Keras promote ranks as it is used to."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def xs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)), jnp.float32)


def build(kind, arguments, **options):
    layer = getattr(keras.layers, kind)(UNITS, **arguments, **options)
    layer.build((BATCH, TIME, FEATURES))
    return layer


@functools.cache
def execute(code):
    names: dict = {}
    exec(code, names)
    return names


def run(translation):
    """The names that its code leaves behind."""
    return execute(translation.code)


def draw(translation):
    keys = rdrop.stream_keys(jax.random.key(0))
    sites = translation.module.cell.sites(FEATURES)
    return rdrop.draw(translation.dropout, keys, sites, BATCH)


def assert_same(actual, expected, tolerance=2e-6):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        a, b = (np.asarray(part, np.float32) for part in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@each_case
def test_code_is_the_layer_of_keras(xs, kind, arguments):
    """With the same masks, those that its own dropout draws, and without."""
    layer = build(kind, {"unroll": True} | arguments)
    translation = translate_keras(kind, UNITS, **arguments)
    ours, (_, params) = run(translation), from_keras(layer)
    assert jax.tree.map(jnp.shape, ours["params"]) == jax.tree.map(jnp.shape, params)
    tolerance = 1e-2 if "dtype" in arguments else 2e-6
    masks = draw(translation)
    masks_to_keras(masks, layer)
    noisy = layer(xs, training=True)
    assert_same(ours["layer"](params, xs, masks), noisy, tolerance)
    assert_same(ours["layer"](params, xs), layer(xs), tolerance)
    if any(layer.get_config()[name] for name in ("dropout", "recurrent_dropout")):
        first = [np.asarray(jax.tree.leaves(each)[0]) for each in (noisy, layer(xs))]
        assert np.abs(first[0] - first[1]).max() > 0.005


@each_case
def test_code_is_module_and_dropout(kind, arguments):
    translation = translate_keras(kind, UNITS, **arguments)
    ours = run(translation)
    assert ours["rnn"] == translation.module
    assert ours["dropout"] == translation.dropout
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(ours["evaluated"])]
    assert shapes == [jnp.shape(leaf) for leaf in jax.tree.leaves(ours["trained"])]


@pytest.mark.parametrize(("kind", "arguments"), CASES.values(), ids=CASES)
def test_a_live_layer_is_its_arguments(kind, arguments):
    layer = getattr(keras.layers, kind)(UNITS, **arguments)
    live, written = translate_keras(layer), translate_keras(kind, UNITS, **arguments)
    assert live[:3] == written[:3]
    assert set(written.notes) <= set(live.notes)


def test_arguments_are_over_those_of_a_live_layer():
    layer = keras.layers.LSTM(UNITS, dropout=0.3, seed=3)
    translation = translate_keras(layer, 9, dropout=0.5)
    assert translation.module.cell.units == 9
    assert translation.dropout == presets.keras(0.5)
    assert "jax.random.key(3)" in translation.code


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_every_argument_of_keras_is_known(kind):
    """Those of the layer, of `RNN` and of `Layer`; with the same defaults."""
    own, base = getattr(keras.layers, kind), keras.layers.RNN
    parameters: dict = {}
    for owner in (keras.layers.Layer, base, own):
        parameters |= inspect.signature(owner).parameters
    for name in set(parameters) - {"args", "kwargs", "cell"}:
        entry = ARGUMENTS[name]
        assert kind in entry.layers
        assert 3 in entry.versions
        default = parameters[name].default
        assert default is inspect.Parameter.empty or default == entry.default
        if name != "units":
            assert name in translate_keras(kind, UNITS, **{name: default}).notes


@pytest.mark.parametrize(
    "arguments",
    [{}, {"unit_forget_bias": False}, {"use_bias": False}],
)
def test_biases_start_as_those_of_keras(arguments):
    _, params = from_keras(build("LSTM", arguments))
    ours = run(translate_keras("LSTM", UNITS, **arguments))["params"]["params"]["bias"]
    np.testing.assert_array_equal(ours, params["params"]["bias"])


def test_stateful_is_the_carry_handed_on(xs):
    arguments = {"stateful": True, "recurrent_dropout": 0.4}
    layer = build("LSTM", arguments)
    translation = translate_keras("LSTM", UNITS, **arguments)
    ours, masks, carry = run(translation)["layer"], draw(translation), None
    _, params = from_keras(layer)
    for chunk in (xs, xs[:, ::-1]):
        masks_to_keras(masks, layer)
        y, carry = ours(params, chunk, masks, initial_carry=carry)
        assert_same(y, layer(chunk, training=True))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_padding_differs_as_its_note_says(xs, zero, sequences):
    arguments = {"return_sequences": sequences, "zero_output_for_mask": zero}
    layer = build("GRU", arguments)
    lengths = jnp.array([7, 3, 1, 5])
    valid = jnp.arange(TIME)[None] < lengths[:, None]
    translation = translate_keras("GRU", UNITS, **arguments)
    _, params = from_keras(layer)
    ours = run(translation)["layer"](params, xs, lengths=lengths)
    theirs = layer(xs, mask=valid)
    differs = bool(translation.notes.get("zero_output_for_mask", ("", "", ""))[2])
    assert differs == (sequences != zero)
    assert np.allclose(ours, theirs, atol=2e-6) != differs
    if sequences:
        assert_same(ours, theirs * valid[..., None])


BOTH = {"dropout": 0.3, "recurrent_dropout": 0.4}
ONE = {"dropout": 0.3}


@pytest.mark.parametrize(
    ("kind", "keras_version", "arguments", "expected"),
    [
        ("LSTM", 3, BOTH, presets.keras(0.3, 0.4)),
        ("LSTM", 3, ONE, presets.keras(0.3)),
        ("LSTM", 3, {}, rdrop.Dropout()),
        ("LSTM", 3, ONE | {"implementation": 1}, presets.keras2(0.3, 0.0)),
        ("GRU", 3, ONE | {"unroll": True}, presets.keras(0.3)),
        ("SimpleRNN", 3, BOTH, presets.gal(0.3, 0.4)),
        ("LSTM", 2, BOTH, presets.keras2(0.3, 0.4)),
        ("LSTM", 2, ONE, presets.keras2_fused(0.3)),
        ("GRU", 2, ONE | {"implementation": 1}, presets.keras2_fused(0.3)),
        ("GRU", 2, ONE | {"reset_after": False}, presets.keras(0.3)),
        ("LSTM", 2, ONE | {"unroll": True}, presets.keras(0.3)),
        ("LSTM", 2, ONE | {"use_bias": False}, presets.keras(0.3)),
        (
            "LSTM",
            2,
            ONE | {"unroll": True, "implementation": 1},
            presets.keras2(0.3, 0.0),
        ),
        ("SimpleRNN", 2, ONE, presets.keras(0.3)),
        ("SimpleRNN", 2, BOTH, presets.gal(0.3, 0.4)),
    ],
)
def test_noise_is_that_of_the_version(kind, keras_version, arguments, expected):
    translation = translate_keras(kind, UNITS, keras=keras_version, **arguments)
    assert translation.dropout == expected
    assert run(translation)["dropout"] == expected


def test_time_major_of_keras_2(xs):
    options = {"time_major": True, "go_backwards": True, "return_sequences": True}
    translation = translate_keras("GRU", UNITS, keras=2, **options)
    layer = build("GRU", {n: v for n, v in options.items() if n != "time_major"})
    _, params = from_keras(layer)
    ours = run(translation)["layer"](params, xs.swapaxes(0, 1))
    assert_same(ours.swapaxes(0, 1), layer(xs))


def test_the_account_has_each_argument():
    given = {
        "dropout": 0.2,
        "recurrent_dropout": 0.5,
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "recurrent_initializer": "he_normal",
        "input_shape": (5, 3),
        "name": "first",
    }
    account = str(translate_keras("LSTM", UNITS, **given))
    code, table = account.split("\n\n|")
    assert code + "\n" == translate_keras("LSTM", UNITS, **given).code
    for written in (
        "`units=2`",
        "`recurrent_dropout=0.5` | site `recurrent`",
        "`kernel_regularizer=l2(l2=0.1)` | a term of your loss",
        "`recurrent_initializer=he_normal` | write it into `params` | rdrop's is",
        "`input_shape=(5, 3)` | nothing",
        "`name=first` | nothing",
        "one generator",
    ):
        assert written in table
    assert "kernel_constraint" not in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recurent_dropout": 0.1}, "closest name is `recurrent_dropout`"),
        ({"reset_after": True}, "LSTM of Keras 3 .* `reset_after`: GRU alone has it"),
        ({"time_major": True}, "`time_major`: it is one of keras=2"),
        ({"use_cudnn": True, "keras": 2}, "`use_cudnn`: it is one of keras=3"),
    ],
)
def test_an_unknown_argument_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        translate_keras("LSTM", UNITS, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "relu"}, "`activation` must be tanh in rdrop, got relu"),
        ({"activation": None}, "`activation` must be tanh in rdrop, got None"),
        ({"recurrent_activation": "hard_sigmoid"}, "must be sigmoid .* hard_sigmoid"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": "0.1"}, r"`recurrent_dropout` must .* got '0.1'"),
        ({"implementation": 0}, "`implementation` must be 1 or 2, got 0"),
        ({"dtype": "int8"}, "`dtype` must be one of .* got 'int8'"),
        ({"units": 0}, "`units` must be a positive integer, got 0"),
        ({"units": None}, "`units` must be a positive integer, got None"),
        ({"keras": 1}, "`keras` must be 2 or 3, got 1"),
    ],
)
def test_a_value_that_rdrop_has_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        translate_keras("LSTM", **({"units": UNITS} | arguments))


@pytest.mark.parametrize("layer", ["Dense", keras.layers.Dense(3), keras.layers.LSTM])
def test_another_layer(layer):
    with pytest.raises(TypeError, match=r"one of LSTM, GRU, SimpleRNN.*got .*[eT]"):
        translate_keras(layer)


def test_other_ways_to_write_a_value():
    """Functions and objects of Keras, and NumPy's dtypes."""
    written = translate_keras("LSTM", UNITS, dtype="bfloat16")
    for dtype in (jnp.bfloat16, keras.DTypePolicy("bfloat16")):
        ours = translate_keras("LSTM", UNITS, dtype=dtype, activation=keras.ops.tanh)
        assert ours[:3] == written[:3]
