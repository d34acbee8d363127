"""Translated arguments of Keras run, and give the outputs of Keras."""

import ast
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import ZEROS, compiled, randomise

import rdrop
from rdrop import presets
from rdrop.interop import from_keras, masks_to_keras, translate_keras
from rdrop.interop.keras_arguments import LAYERS, VERSIONS, _rows

keras = pytest.importorskip("keras")
L = keras.layers
pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # of get_weights
]

BATCH, TIME, FEATURES, UNITS = 4, 3, 3, 2
SEQUENCES = {"return_sequences": True}
CASES = {
    "last output": ("LSTM", {"dropout": 0.3}),
    "last output backwards": ("LSTM", {"dropout": 0.3, "go_backwards": True}),
    "recurrent": ("LSTM", {"recurrent_dropout": 0.4} | SEQUENCES),
    "all outputs": (
        "LSTM",
        {
            "dropout": 0.3,
            "recurrent_dropout": 0.4,
            "return_state": True,
            "go_backwards": True,
        }
        | SEQUENCES,
    ),
    "a mask per gate": (
        "LSTM",
        {"dropout": 0.3, "implementation": 1, "use_cudnn": False},
    ),
    "no bias": ("LSTM", {"recurrent_dropout": 0.4, "use_bias": False}),
    "half precision": ("LSTM", {"dropout": 0.3, "dtype": "mixed_bfloat16"}),
    "gru": ("GRU", {"dropout": 0.3, "return_state": True}),
    "reset before": (
        "GRU",
        {"reset_after": False, "dropout": 0.3, "recurrent_dropout": 0.4},
    ),
    "simple": (
        "SimpleRNN",
        {"dropout": 0.3, "recurrent_dropout": 0.4, "go_backwards": True},
    ),
    "no noise": ("SimpleRNN", SEQUENCES),
}
BOTH_WAYS = {
    "last output": ("LSTM", {"dropout": 0.3}),
    "all outputs": ("LSTM", {"dropout": 0.3, "return_state": True} | SEQUENCES),
    "states": ("GRU", {"recurrent_dropout": 0.4, "return_state": True}),
}
each_case = pytest.mark.parametrize(("kind", "arguments"), CASES.values(), ids=CASES)


def quick(name, case, names):
    slow = [] if name in names else [pytest.mark.slow]
    return pytest.param(*case, id=name, marks=slow)


@pytest.fixture
def xs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)), jnp.float32)


def build(kind, arguments, both=False):
    layer = getattr(L, kind)(UNITS, **ZEROS, **arguments)
    layer = L.Bidirectional(layer) if both else layer
    layer.build((BATCH, TIME, FEATURES))
    return layer


def random(rng, layer):
    randomise(rng, [layer])
    return layer


def defined(translation):
    """The module, the dropout and the function of the code, which is not run."""
    names: dict = {}
    exec(translation.code.split("\nxs = ")[0], names)
    assert names["rnn"] == translation.module
    assert names["dropout"] == translation.dropout
    return names


def draw(dropout, cell, **place):
    keys = rdrop.stream_keys(jax.random.key(0)).replace(**place)
    dropout = rdrop.Dropout() if dropout is None else dropout
    return rdrop.draw(dropout, keys, cell.sites(FEATURES), BATCH)


def assert_close(actual, expected, tolerance=2e-6):
    actual, expected = (
        [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]
        for tree in (actual, expected)
    )
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_is_the_layer(layer, translation, xs, masks, tolerance=2e-6):
    """With masks that rdrop drew, and without noise, in one program."""
    ours, ported = defined(translation)["layer"], from_keras(layer)
    assert ported.dropout == translation.dropout
    if tolerance == 2e-6:  # the compute dtype is not ported
        assert ported.module == translation.module

    @compiled
    def run(xs):
        outputs = []
        for training in (True, False):
            masks_to_keras(masks, layer)
            theirs = layer(xs, training=training)
            outputs.append(
                (ours(ported.params, xs, masks if training else None), theirs)
            )
        return outputs

    noisy, clean = run(xs)
    assert_close(*noisy, tolerance)
    assert_close(*clean, tolerance)
    if translation.dropout is not None:
        first = [np.asarray(jax.tree.leaves(each)[0]) for each in (noisy, clean)]
        assert np.abs(first[0] - first[1]).max() > 0.005


@pytest.mark.parametrize(
    ("kind", "arguments"), [quick(n, c, ["all outputs"]) for n, c in CASES.items()]
)
def test_code_is_the_layer_of_keras(rng, xs, kind, arguments):
    layer = random(rng, build(kind, arguments))
    translation = translate_keras(kind, UNITS, **arguments)
    tolerance = 1e-2 if "dtype" in arguments else 2e-6
    masks = draw(translation.dropout, translation.module.cell)
    assert_is_the_layer(layer, translation, xs, masks, tolerance)


@pytest.mark.parametrize(
    ("kind", "arguments"), [quick(n, c, ["states"]) for n, c in BOTH_WAYS.items()]
)
def test_code_is_the_bidirectional_layer_of_keras(rng, xs, kind, arguments):
    layer = random(rng, build(kind, arguments, both=True))
    translation = translate_keras(layer)
    cell = translation.module.forward
    masks = tuple(
        draw(translation.dropout, cell, direction=way)
        for way in ("forward", "backward")
    )
    assert_is_the_layer(layer, translation, xs, masks)


def test_directions_that_differ_have_a_pair_of_dropouts():
    backward = L.LSTM(UNITS, dropout=0.4, go_backwards=True, unit_forget_bias=False)
    layer = L.Bidirectional(L.LSTM(UNITS), backward_layer=backward)
    translation = translate_keras(layer)
    assert translation.dropout == (None, presets.keras(0.4))
    assert "backward_layer.dropout" in translation.notes
    cells = "rdrop.LSTMCell(2), rdrop.LSTMCell(2, forget_bias=None)"
    assert f"rdrop.Bidirectional({cells})" in translation.code
    assert defined(translation)
    assert translate_keras(layer, dropout=0.1).dropout == presets.keras(0.1)


def test_directions_may_have_different_cells():
    backward = L.GRU(UNITS, return_state=True, go_backwards=True)
    layer = L.Bidirectional(L.LSTM(UNITS, return_state=True), backward_layer=backward)
    translation = translate_keras(layer)
    assert "((c, h), h_back), ys = " in translation.code
    assert "axis=-1), h, c, h_back)" in translation.code
    assert defined(translation)


@pytest.mark.parametrize(
    "translation",
    [
        *(
            lambda c=case: translate_keras(c[0], UNITS, **c[1])
            for case in CASES.values()
        ),
        lambda: translate_keras(build("LSTM", {"use_bias": False}, both=True)),
        lambda: translate_keras(build("GRU", {"stateful": True}, both=True)),
    ],
)
def test_code_runs_by_itself(translation):
    """Traced, not compiled."""
    code = translation().code

    def run():
        names: dict = {}
        exec(code, names)
        return names["trained"], names["evaluated"]

    trained, evaluated = jax.eval_shape(run)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, evaluated)


@each_case
def test_a_live_layer_is_its_arguments(kind, arguments):
    layer = getattr(L, kind)(UNITS, **arguments)
    live, written = translate_keras(layer), translate_keras(kind, UNITS, **arguments)
    assert live[:3] == written[:3]
    assert {n for n in written.notes if arguments.get(n)} <= set(live.notes)
    assert defined(live)


def test_arguments_override_those_of_a_live_layer():
    layer = L.LSTM(UNITS, dropout=0.3, seed=3)
    translation = translate_keras(layer, 9, dropout=0.5)
    assert translation.module.cell.units == 9
    assert translation.dropout == presets.keras(0.5)
    assert "jax.random.key(3)" in translation.code


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_every_argument_of_keras_is_known(kind):
    """The arguments of the layer, of `RNN` and of `Layer`, at their defaults."""
    parameters: dict = {}
    for owner in (L.Layer, L.RNN, getattr(L, kind)):
        parameters |= inspect.signature(owner.__init__).parameters
    plain = translate_keras(kind, UNITS)
    for name in set(parameters) - {"self", "args", "kwargs", "cell", "units"}:
        default = parameters[name].default
        if default is not inspect.Parameter.empty:
            translation = translate_keras(kind, UNITS, **{name: default})
            assert name in translation.notes
            assert translation[:3] == plain[:3]
    assert {*LAYERS, *VERSIONS} <= set(_rows())


@pytest.mark.parametrize(
    "arguments",
    [{}, {"unit_forget_bias": False}, {"use_bias": False}],
)
def test_biases_start_as_those_of_keras(arguments):
    _, params, _ = from_keras(build("LSTM", arguments))
    module = translate_keras("LSTM", UNITS, **arguments).module
    started = module.init(jax.random.key(0), jnp.ones((1, 2, 3)))["params"]
    assert ("bias" in started) == arguments.get("use_bias", True)
    bias = started.get("bias", jnp.zeros(4 * UNITS))
    chex.assert_trees_all_equal(bias, params["params"]["bias"])


def test_activations_are_options_of_the_cell():
    given = {"activation": "relu", "recurrent_activation": "hard_sigmoid"}
    translation = translate_keras("GRU", UNITS, **given)
    assert translation.module.cell.activation is jax.nn.relu
    assert translation.module.cell.recurrent_activation is jax.nn.hard_sigmoid
    options = "activation=jax.nn.relu, recurrent_activation=jax.nn.hard_sigmoid"
    assert f"rdrop.GRUCell({UNITS}, {options})" in translation.code
    assert defined(translation)


@pytest.mark.slow
def test_stateful_is_the_carry_carried_over(rng, xs):
    arguments = {"stateful": True, "recurrent_dropout": 0.4}
    layer = random(rng, build("LSTM", arguments))
    translation = translate_keras("LSTM", UNITS, **arguments)
    masks = draw(translation.dropout, translation.module.cell)
    ours, carry = defined(translation)["layer"], None
    params = from_keras(layer).params
    for chunk in (xs, xs[:, ::-1]):
        masks_to_keras(masks, layer)
        y, carry = ours(params, chunk, masks, initial_carry=carry)
        assert_close(y, layer(chunk, training=True))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_padding_differs_as_its_note_says(rng, xs, zero, sequences):
    arguments = {"return_sequences": sequences, "zero_output_for_mask": zero}
    layer = random(rng, build("GRU", arguments))
    lengths = jnp.array([3, 1, 2, 3])
    valid = jnp.arange(TIME)[None] < lengths[:, None]
    translation = translate_keras("GRU", UNITS, **arguments)
    params = from_keras(layer).params
    ours = defined(translation)["layer"](params, xs, lengths=lengths)
    theirs = layer(xs, mask=valid)
    assert np.allclose(ours, theirs, atol=2e-6) == (sequences == zero)
    if sequences:
        assert_close(ours, theirs * valid[..., None])


BOTH = {"dropout": 0.3, "recurrent_dropout": 0.4}
ONE = {"dropout": 0.3}


@pytest.mark.parametrize(
    ("kind", "version", "arguments", "expected"),
    [
        ("LSTM", 3, BOTH, presets.keras(0.3, 0.4)),
        ("LSTM", 3, ONE, presets.keras(0.3)),
        ("LSTM", 3, {}, None),
        ("LSTM", 3, ONE | {"implementation": 1}, presets.keras2(0.3, 0.0)),
        ("GRU", 3, ONE | {"unroll": True}, presets.keras(0.3)),
        ("SimpleRNN", 3, BOTH, presets.gal(0.3, 0.4)),
        ("LSTM", "3.10", BOTH, presets.keras(0.3, 0.4)),
        ("LSTM", "3.7.0", BOTH, presets.keras3_0(0.3, 0.4)),
        ("LSTM", "3.5", ONE | {"implementation": 1}, presets.keras(0.3)),
        ("GRU", "3.1", BOTH, presets.keras3_0(0.3, 0.3)),
        ("SimpleRNN", "3.2", BOTH, presets.keras3_0(0.3, 0.4)),
        ("LSTM", "2.15.0", ONE, presets.keras2_fused(0.3)),
        ("LSTM", 2, BOTH, presets.keras2(0.3, 0.4)),
        ("LSTM", 2, ONE, presets.keras2_fused(0.3)),
        ("GRU", 2, ONE | {"implementation": 1}, presets.keras2_fused(0.3)),
        ("GRU", 2, ONE | {"reset_after": False}, presets.keras(0.3)),
        ("LSTM", 2, ONE | {"unroll": True}, presets.keras(0.3)),
        ("LSTM", 2, ONE | {"use_bias": False}, presets.keras(0.3)),
        (
            "LSTM", 2, ONE | {"unroll": True, "implementation": 1},
            presets.keras2(0.3, 0.0),
        ),
        ("SimpleRNN", 2, ONE, presets.keras(0.3)),
        ("SimpleRNN", 2, BOTH, presets.gal(0.3, 0.4)),
    ],
)  # fmt: skip
def test_noise_is_that_of_the_version(kind, version, arguments, expected):
    translation = translate_keras(kind, UNITS, keras=version, **arguments)
    assert translation.dropout == expected
    assert defined(translation)


def test_time_major_of_keras_2(rng, xs):
    options = {"time_major": True, "go_backwards": True} | SEQUENCES
    translation = translate_keras("GRU", UNITS, keras=2, **options)
    assert translation.module.time_major
    assert translation.module.reverse
    ours = defined(translation)["layer"]
    params, xs = from_keras(random(rng, build("GRU", {}))).params, xs.swapaxes(0, 1)

    @compiled
    def run(xs):
        return ours(params, xs), translation.module.apply(params, xs)[1][::-1]

    chex.assert_trees_all_equal(*run(xs))


def test_the_account_has_each_argument():
    given = {
        "dropout": 0.2,
        "recurrent_dropout": 0.5,
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "recurrent_initializer": "he_normal",
        "input_shape": (5, 3),
        "name": "first",
        "trainable": False,
    }
    translation = translate_keras("LSTM", UNITS, **given)
    code, table = str(translation).split("\n| argument |")
    assert code == translation.code
    assert ast.parse(code)
    for written in (
        "`units=2`",
        "`recurrent_dropout=0.5` | site `recurrent`",
        "`kernel_regularizer=l2(l2=0.1)` | a term of your loss",
        "`recurrent_initializer=he_normal` | `kernel_init`, `recurrent_init`",
        "`input_shape=(5, 3)` | nothing",
        "`name=first` | nothing",
        "`trainable=False` | nothing | with False exclude",
    ):
        assert written in table
    assert "kernel_constraint" not in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recurent_dropout": 0.1}, "closest name is `recurrent_dropout`"),
        ({"reset_after": True}, "LSTM of Keras 3 .* `reset_after`: only GRU has it"),
        ({"time_major": True}, "`time_major`: only Keras 2 has it"),
        ({"use_cudnn": True, "keras": 2}, "`use_cudnn`: only Keras 3 has it"),
    ],
)
def test_an_unknown_argument_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        translate_keras("LSTM", UNITS, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gelu"}, "`activation` must be one of tanh, .*, got gelu"),
        (
            {"recurrent_activation": "hard_sigmoid", "keras": 2},
            "must not be hard_sigmoid of Keras 2",
        ),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": "0.1"}, r"`recurrent_dropout` must .* got '0.1'"),
        ({"implementation": 0}, "`implementation` must be 1 or 2, got 0"),
        ({"dtype": "int8"}, "`dtype` must be one of .* got 'int8'"),
        ({"units": 0}, "`units` must be a positive integer, got 0"),
        ({"units": None}, "`units` must be a positive integer, got None"),
        ({"keras": 1}, r"`keras` must be 2, 3, or a version such as .*, got 1"),
        ({"keras": "new"}, r"`keras` must be 2, 3, or a version .*, got 'new'"),
    ],
)
def test_a_value_that_rdrop_lacks_is_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        translate_keras("LSTM", **({"units": UNITS} | arguments))


@pytest.mark.parametrize("layer", ["Dense", L.Dense(3), L.LSTM])
def test_another_layer_is_rejected(layer):
    with pytest.raises(TypeError, match=r"`layer` must be .*got .*[eT]"):
        translate_keras(layer)


def test_other_notations_of_a_value():
    """Functions and objects of Keras, and NumPy's dtypes."""
    written = translate_keras("LSTM", UNITS, dtype="bfloat16")
    for dtype in (jnp.bfloat16, keras.DTypePolicy("bfloat16")):
        ours = translate_keras("LSTM", UNITS, dtype=dtype, activation=keras.ops.tanh)
        assert ours[:3] == written[:3]
