"""Layers of Keras and ours are the same, ported in either direction.

Keras on JAX computes tanh in float32 whatever the dtype, so outputs are compared in
float32. The weights are compared to the bit.
"""

import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop import interop
from rdrop.interop.layouts import LAYOUTS

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported
keras = pytest.importorskip("keras")

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3
LENGTHS = np.array([5, 3, 1, 0])
TOLERANCE = 1e-6
COMPILER = {"xla_backend_optimization_level": 0}  # compiles in less time


@pytest.fixture(autouse=True)
def lenient():
    """Lets Keras promote dtypes and ranks as it is used to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Case(NamedTuple):
    """A layer of Keras, and the same cell of ours."""

    theirs: str
    ours: type[rdrop.Cell]
    options: dict

    def layer(self, **options):
        options = {"return_sequences": True, "return_state": True, **options}
        options |= {"zero_output_for_mask": True}
        layer = getattr(keras.layers, self.theirs)
        return layer(UNITS, **self.options, **options)

    def cell(self):
        return self.ours(UNITS, param_dtype=np.dtype("float32"), **self.options)


CASES = {
    "lstm": Case("LSTM", rdrop.LSTMCell, {}),
    "gru": Case("GRU", rdrop.GRUCell, {"reset_after": True}),
    "gru_reset_before": Case("GRU", rdrop.GRUCell, {"reset_after": False}),
    "simple": Case("SimpleRNN", rdrop.SimpleCell, {}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SLOW = pytest.mark.slow
each_shape = pytest.mark.parametrize(
    "shape",
    [*(pytest.param(s, marks=SLOW) for s in ("rnn", "reverse", "both")), "stack"],
)
each_setting = pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        pytest.param("rnn", None, marks=SLOW),
        ("reverse", LENGTHS),
        pytest.param("both", LENGTHS, marks=SLOW),
        pytest.param("stack", None, marks=SLOW),
        ("stack", LENGTHS),
    ],
)


def theirs(case, shape):
    """Layers of Keras, built, from the input upwards."""

    def both():
        return keras.layers.Bidirectional(case.layer())

    layers = {
        "rnn": lambda: [case.layer()],
        "reverse": lambda: [case.layer(go_backwards=True)],
        "both": lambda: [both()],
        "stack": lambda: [both(), case.layer()],
    }[shape]()
    features = FEATURES
    for layer in layers:
        layer.build((BATCH, TIME, features))
        features = 2 * UNITS if isinstance(layer, keras.layers.Bidirectional) else UNITS
    return layers


def ours(case, shape):
    def both():
        return rdrop.Bidirectional(case.cell(), case.cell())

    return {
        "rnn": lambda: rdrop.RNN(case.cell()),
        "reverse": lambda: rdrop.RNN(case.cell(), reverse=True),
        "both": both,
        "stack": lambda: rdrop.Stack([both(), rdrop.RNN(case.cell())]),
    }[shape]()


def randomise(rng, layers):
    """Weights of which none is zero."""
    for layer in layers:
        layer.set_weights([rng.normal(size=w.shape) / 2 for w in layer.weights])


def held(layer):
    """Its weights; `get_weights` warns of what Keras does to NumPy."""
    return [np.asarray(variable) for variable in layer.weights]


def random_params(rng, module):
    xs = jnp.zeros((1, 1, FEATURES), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), xs)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, jnp.float32), shapes
    )


def random_inputs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)), jnp.float32)


def whole(layers):
    return layers if len(layers) > 1 else layers[0]


def by_keras(layers, xs, lengths):
    """Outputs of the top at their time steps, and all final states."""
    mask = None if lengths is None else np.arange(TIME) < lengths[:, None]

    def run(xs):
        states = []
        for layer in layers:
            xs, *ends = layer(xs, mask=mask)
            states += ends
        if getattr(layers[-1], "go_backwards", False):
            xs = xs[:, ::-1]
        return [xs, *states]

    return jax.jit(run, compiler_options=COMPILER)(xs)


def by_rdrop(ported, xs, lengths):
    run = jax.jit(ported.module.apply, compiler_options=COMPILER)
    carry, ys = run(ported.params, xs, lengths=lengths)
    leaves = jax.tree.leaves(carry)
    if "LSTM" in str(ported.module):  # (c, h) of each cell is h, c there
        pairs = zip(leaves[1::2], leaves[::2], strict=True)
        leaves = [leaf for pair in pairs for leaf in pair]
    return [ys, *leaves]


def difference(actual, expected):
    pairs = zip(actual, expected, strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def assert_same(actual, expected):
    """Equal to the bit, but for the sign of a zero."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    dtypes = [[a.dtype for a in jax.tree.leaves(tree)] for tree in (actual, expected)]
    assert dtypes[0] == dtypes[1]


@each_setting
@each_case
def test_port_of_a_layer_of_keras_computes_what_it_does(rng, case, shape, lengths):
    layers = theirs(case, shape)
    randomise(rng, layers)
    xs = random_inputs(rng)
    ported = interop.from_keras(whole(layers))
    expected = by_keras(layers, xs, lengths)
    assert difference(by_rdrop(ported, xs, lengths), expected) < TOLERANCE


@each_shape
@each_case
def test_layer_of_keras_computes_what_it_is_ported_from(rng, case, shape):
    module, layers = ours(case, shape), theirs(case, shape)
    params, xs = random_params(rng, module), random_inputs(rng)
    arrays = interop.to_keras(params)
    for layer, each in zip(layers, arrays if layers[1:] else [arrays], strict=True):
        layer.set_weights(each)
    ported = interop.Ported(module, params)
    expected = by_rdrop(ported, xs, LENGTHS)
    assert difference(by_keras(layers, xs, LENGTHS), expected) < TOLERANCE
    back = interop.from_keras(whole(layers))
    assert_same(back.params, params)
    assert str(back.module) == str(module)


@pytest.mark.parametrize("case", ["lstm", "gru_reset_before", "simple"])
def test_single_biases_return_to_keras_to_the_bit(rng, case):
    (layer,) = theirs(CASES[case], "both")
    randomise(rng, [layer])
    back = interop.to_keras(interop.from_keras(layer).params)
    assert_same(back, held(layer))


def test_double_biases_return_to_keras_as_their_sum(rng):
    (layer,) = theirs(CASES["gru"], "rnn")
    randomise(rng, [layer])
    *kernels, bias = held(layer)
    *same, back = interop.to_keras(interop.from_keras(layer).params)
    assert_same(same, kernels)
    gates = slice(0, 2 * UNITS)
    assert_same(back[0, gates], bias[0, gates] + bias[1, gates])
    assert_same(back[1, gates], np.zeros(2 * UNITS, np.float32))
    assert_same(back[:, 2 * UNITS :], bias[:, 2 * UNITS :])


@each_case
def test_layer_without_biases_has_biases_of_zero(rng, case):
    layer = case.layer(use_bias=False)
    layer.build((BATCH, TIME, FEATURES))
    xs = random_inputs(rng)
    ported = interop.from_keras(layer)
    assert not ported.params["params"]["bias"].any()
    with jax.enable_x64(False):  # Keras' GRU fails otherwise
        expected = by_keras([layer], xs, None)
    assert difference(by_rdrop(ported, xs, None), expected) < TOLERANCE
    assert_same(interop.to_keras(ported.params)[:2], held(layer))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_keep_their_dtype(dtype):
    start = {"recurrent_initializer": "glorot_uniform"}  # JAX's qr needs float32
    layer = CASES["gru"].layer(dtype=dtype, **start)
    layer.build((BATCH, TIME, FEATURES))
    ported = interop.from_keras(layer)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(ported.params)}
    assert dtypes == {jnp.dtype(dtype)} == {jnp.dtype(ported.module.cell.param_dtype)}
    assert_same(interop.to_keras(ported.params), held(layer))


def built(layer):
    layer.build((BATCH, TIME, FEATURES))
    return layer


L = keras.layers


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (lambda: L.LSTM(3), ValueError, "`layer` must be built, got 'lstm"),
        (
            lambda: built(L.LSTM(3, activation="relu")),
            ValueError,
            "`activation` must be \"tanh\", got 'relu'",
        ),
        (
            lambda: built(L.GRU(3, recurrent_activation="hard_sigmoid")),
            ValueError,
            "`recurrent_activation` must be \"sigmoid\", got 'hard_sigmoid'",
        ),
        (
            lambda: built(L.Bidirectional(L.LSTM(3), merge_mode="sum")),
            ValueError,
            "`merge_mode` must be \"concat\", got 'sum'",
        ),
        (
            lambda: built(L.Bidirectional(L.LSTM(3, activation="relu"))),
            ValueError,
            "`activation` must be",
        ),
        (
            lambda: built(
                L.Bidirectional(L.LSTM(3, go_backwards=True), backward_layer=L.LSTM(3))
            ),
            ValueError,
            "`go_backwards` must be False in the forward",
        ),
        (lambda: L.Dense(3), TypeError, "got 'dense.*' of class Dense"),
        (lambda: L.RNN(L.LSTMCell(3)), TypeError, "of class RNN"),
        (lambda: np.zeros(3), TypeError, "must be a layer of Keras, got ndarray"),
        (lambda: [], ValueError, "at least one layer, got none"),
        (
            lambda: [L.LSTM(3, go_backwards=True), L.LSTM(3)],
            ValueError,
            "must not go backwards below the top of a stack.*got layer 0",
        ),
    ],
)
def test_layers_that_rdrop_has_not_are_refused(layer, error, match):
    with pytest.raises(error, match=match):
        interop.from_keras(layer())


def params_of(cell):
    module = rdrop.RNN(cell)
    return module.init(jax.random.key(0), jnp.zeros((1, 1, FEATURES), jnp.float32))


@pytest.mark.parametrize(
    ("params", "match"),
    [
        (lambda: params_of(rdrop.LayerNormLSTMCell(3)), "got those of a LayerNormLSTM"),
        (lambda: params_of(rdrop.MinGRUCell(3)), "got those of a MinGRUCell"),
        (lambda: {"params": {"scale": np.ones(3)}}, r"got the names \['scale'\]"),
        (lambda: {"kernel": np.ones(3)}, r"`params` must be the variables.*'kernel'"),
        (lambda: tree(bias=np.ones(4)), r"`bias` must have the shape \(6,\), got \(4,"),
        (lambda: tree(kernel=np.ones(4)), r"`kernel` must have the shape \('D', 6\)"),
        (lambda: tree(recurrent_kernel=np.ones((3, 6))), "4.*3.*or 1.*got 2 times"),
        (
            lambda: tree(recurrent_kernel=np.ones((3, 4))),
            "`kernel` must have the shape",
        ),
    ],
)
def test_params_that_are_of_no_such_layer_are_refused(params, match):
    with pytest.raises(ValueError, match=match):
        interop.to_keras(params())


def tree(**other):
    weights = {
        "kernel": np.ones((2, 6)),
        "recurrent_kernel": np.ones((6, 6)),
        "bias": np.ones(6),
    }
    return {"params": weights | other}


def test_table_of_the_docstring_is_the_data():
    def cells(gates):
        return "one" if gates == ("",) else "".join(gates) or "-"

    rows = {
        (layout.library, name, *map(cells, own))
        for layout in LAYOUTS
        for name, own in layout.cells.items()
    }
    rows |= {
        (
            layout.library,
            "yes" if layout.side_by_side else "no",
            *(shape(layout, size) for size in "DH"),
        )
        for layout in LAYOUTS
    }
    table = re.findall(r"^\| (.*) \|$", interop.__doc__, flags=re.M)
    written = {tuple(cell.strip() for cell in row.split("|")) for row in table}
    assert {row for row in written if row[0] != "library"} == rows


def shape(layout, size):
    gates = "GH" if layout.side_by_side else "H"
    axes = [gates, size] if layout.transposed else [size, gates]
    return f"[{', '.join(axes)}]"
