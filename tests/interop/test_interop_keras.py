"""Layers of Keras and their ports compute the same, in both directions.

Keras on JAX computes tanh in float32 whatever the dtype, so outputs are compared in
float32. Weights are compared bitwise.
"""

import re
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import (
    BATCH,
    FEATURES,
    TIME,
    UNITS,
    ZEROS,
    combinations,
    compiled,
    make,
    ours,
    random_params,
    randomise,
    whole,
)

import rdrop
from rdrop import interop, presets
from rdrop.interop.keras import FUNCTIONS, functions_of
from rdrop.interop.layouts import LAYOUTS

keras = pytest.importorskip("keras")
L = keras.layers

LENGTHS = np.array([3, 2, 1, 0])
INPUT = (BATCH, TIME, FEATURES)
REFERENCE = Path(__file__).parents[2] / "docs/reference/interop.md"


class Case(NamedTuple):
    """A layer of Keras, and the same cell of rdrop."""

    theirs: str
    ours: type[rdrop.linen.Cell]
    options: dict

    def layer(self, **options):
        options = {"return_sequences": True, "return_state": True, **options}
        options = ZEROS | {"zero_output_for_mask": True} | self.options | options
        return getattr(L, self.theirs)(UNITS, **options)

    def cell(self):
        return self.ours(UNITS, param_dtype=np.dtype("float32"), **self.options)


CASES = {
    "lstm": Case("LSTM", rdrop.LSTMCell, {}),
    "gru": Case("GRU", rdrop.GRUCell, {"reset_after": True}),
    "gru_reset_before": Case("GRU", rdrop.GRUCell, {"reset_after": False}),
    "simple": Case("SimpleRNN", rdrop.SimpleCell, {}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def built(layer, features=FEATURES):
    layer.build((BATCH, TIME, features))
    return layer


def theirs(case, shape):
    """Layers of Keras, built, from the input upwards."""
    return make(
        shape,
        lambda features, reverse=False: built(
            case.layer(go_backwards=reverse), features
        ),
        lambda features: built(L.Bidirectional(case.layer()), features),
    )


def held(layer):
    """Its weights; `get_weights` warns of NumPy's changes."""
    return [np.asarray(variable) for variable in layer.weights]


def by_keras(layers, xs, lengths):
    """Outputs of the top layer at their time steps, and all final states."""
    mask = None if lengths is None else np.arange(TIME) < lengths[:, None]
    states = []
    for layer in layers:
        xs, *ends = layer(xs, mask=mask)
        states += ends
    return [xs[:, ::-1] if getattr(layers[-1], "go_backwards", False) else xs, *states]


def by_rdrop(ported, xs, lengths):
    carry, ys = ported.module.apply(ported.params, xs, lengths=lengths)
    leaves = jax.tree.leaves(carry)
    if "LSTM" in str(ported.module):  # (c, h) of each cell is h, c in Keras
        pairs = zip(leaves[1::2], leaves[::2], strict=True)
        leaves = [leaf for pair in pairs for leaf in pair]
    return [ys, *leaves]


def assert_same_outputs(rng, layers, lengths=LENGTHS):
    """Compares layers of Keras with their port, in one program."""
    xs = jnp.asarray(rng.normal(size=INPUT), jnp.float32)
    ported = interop.from_keras(whole(layers))

    @compiled
    def run(xs):
        return by_rdrop(ported, xs, lengths), by_keras(layers, xs, lengths)

    actual, expected = run(xs)
    chex.assert_trees_all_close(actual, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "shape"),
    combinations(
        CASES,
        [("lstm", "reverse"), ("gru", "stack"), ("gru_reset_before", "rnn")],
    ),
)
def test_a_layer_of_keras_and_its_port_compute_the_same(rng, case, shape):
    layers = theirs(case, shape)
    randomise(rng, layers)
    assert_same_outputs(rng, layers)
    if shape == "reverse" and case.theirs == "SimpleRNN":
        assert_same_outputs(rng, layers, None)


@pytest.mark.parametrize("shape", ["reverse", "stack"])
@each_case
def test_from_rdrop_to_keras_and_back_is_exact(rng, case, shape):
    module, layers = ours(shape, case.cell), theirs(case, shape)
    params = random_params(rng, module, dtype=jnp.float32)
    arrays = interop.to_keras(params)
    for layer, each in zip(layers, arrays if layers[1:] else [arrays], strict=True):
        layer.set_weights(each)
    back = interop.from_keras(whole(layers))
    chex.assert_trees_all_equal(back.params, params, strict=True)
    assert back.module == module
    assert back.dropout is None


@each_case
def test_weights_return_to_keras(rng, case):
    """Exactly; the two biases of a gate as their sum, except for the candidate."""
    (layer,) = theirs(case, "both")
    randomise(rng, [layer])
    expected = [array.copy() for array in held(layer)]
    for bias in (expected[2], expected[5]) if case is CASES["gru"] else ():
        gates = slice(0, 2 * UNITS)
        bias[:, gates] = bias[0, gates] + bias[1, gates], np.zeros(2 * UNITS)
    back = interop.to_keras(interop.from_keras(layer).params)
    chex.assert_trees_all_equal(back, expected, strict=True)


@pytest.mark.parametrize(
    "case",
    [
        CASES["simple"],
        *(
            pytest.param(CASES[name], marks=pytest.mark.slow)
            for name in ("lstm", "gru")
        ),
    ],
)
def test_a_layer_without_biases_has_biases_of_zero(rng, case):
    layer = built(case.layer(use_bias=False))
    randomise(rng, [layer])
    params = interop.from_keras(layer).params
    assert not params["params"]["bias"].any()
    with jax.enable_x64(False):  # Keras' GRU fails otherwise
        assert_same_outputs(rng, [layer])
    chex.assert_trees_all_equal(interop.to_keras(params)[:2], held(layer), strict=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_keep_their_dtype(dtype):
    layer = built(CASES["gru"].layer(dtype=dtype, kernel_initializer="ones"))
    ported = interop.from_keras(layer)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(ported.params)}
    assert dtypes == {jnp.dtype(dtype)} == {jnp.dtype(ported.module.cell.param_dtype)}
    back = interop.to_keras(ported.params)
    chex.assert_trees_all_equal(back, held(layer), strict=True)


def test_dropout_is_the_preset_of_the_arguments():
    """One per direction only if they differ, and one per layer of a list."""

    def layer(kind, *rates, features=FEATURES, **options):
        names = ("dropout", "recurrent_dropout")
        options |= ZEROS | dict(zip(names, rates, strict=False))
        layer = getattr(L, kind)(UNITS, **options)
        return built(layer, features) if features else layer

    def both(*rates, **options):
        return built(L.Bidirectional(layer("GRU", *rates, features=None), **options))

    backward = layer("GRU", 0.3, features=None, go_backwards=True)
    each_gate = layer("GRU", 0.2, implementation=1, use_cudnn=False)
    plain = layer("LSTM", features=2 * UNITS)
    for source, expected in (
        (layer("LSTM", 0.2, 0.5), presets.keras(0.2, 0.5)),
        (each_gate, presets.keras2(0.2, 0.0)),
        (layer("SimpleRNN", 0.2, 0.5), presets.gal(0.2, 0.5)),
        (both(0.2), presets.keras(0.2)),
        (both(backward_layer=backward), (None, presets.keras(0.3))),
        (plain, None),
        ([both(0.2), plain], (presets.keras(0.2), None)),
        ([plain, plain], None),
    ):
        assert interop.from_keras(source).dropout == expected


def test_a_port_runs_with_its_dropout(rng):
    """Of the pair of directions, the noise is on the backward one."""
    noise = {"recurrent_dropout": 0.5, "go_backwards": True}
    backward = L.SimpleRNN(UNITS, **ZEROS, **noise)
    layer = L.Bidirectional(L.SimpleRNN(UNITS, **ZEROS), backward_layer=backward)
    randomise(rng, [built(layer)])
    module, params, dropout = interop.from_keras(layer)
    xs = jnp.asarray(rng.normal(size=INPUT), jnp.float32)
    keys = rdrop.stream_keys(jax.random.key(0))

    @compiled
    def run(keys):
        return [module.apply(params, xs, dropout, k)[1] for k in (keys, None)]

    noisy, clean = run(keys)
    difference = np.abs(noisy - clean).max((0, 1))
    assert not difference[:UNITS].any()
    assert difference[UNITS:].max() > 0.01


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_activations_of_keras_are_those_of_jax(rng, name):
    xs = jnp.asarray(rng.normal(size=(3, 4)) * 3, jnp.float32)
    theirs = keras.activations.get(None if name == "None" else name)
    (ours,) = functions_of(
        {"activation": name, "recurrent_activation": "sigmoid"}
    ).values() or (jnp.tanh,)
    np.testing.assert_allclose(ours(xs), theirs(xs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
@each_case
def test_activations_and_missing_biases_are_ported(rng, case, use_bias):
    options = {"activation": "elu", "use_bias": use_bias}
    if case.theirs != "SimpleRNN":
        options["recurrent_activation"] = "hard_sigmoid"
    layer = built(case.layer(**options))
    randomise(rng, [layer])
    assert_same_outputs(rng, [layer])


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (lambda: L.LSTM(3), ValueError, "`layer` must be built, got 'lstm"),
        (
            lambda: L.LSTM(3, activation="gelu"), ValueError,
            "`activation` must be one of tanh, .*, got gelu",
        ),
        (
            lambda: L.GRU(3, recurrent_activation="hard_tanh"), ValueError,
            "`recurrent_activation` must be one of .*, got hard_tanh",
        ),
        (lambda: L.GRU(3, dropout=1.0), ValueError, r"`dropout` .* in \[0, 1\), got 1"),
        (
            lambda: L.Bidirectional(L.LSTM(3), merge_mode="sum"), ValueError,
            "`merge_mode` must be \"concat\", got 'sum'",
        ),
        (
            lambda: L.Bidirectional(L.LSTM(3, activation="gelu")), ValueError,
            "`activation` must be",
        ),
        (
            lambda: L.Bidirectional(
                L.LSTM(3, go_backwards=True), backward_layer=L.LSTM(3)
            ),
            ValueError,
            "`go_backwards` must be False in the forward",
        ),
        (lambda: L.Dense(3), TypeError, "LSTM, GRU, SimpleRNN, a Bi.* got 'Dense'"),
        (lambda: L.RNN(L.LSTMCell(3)), TypeError, "got 'RNN'"),
        (lambda: np.zeros(3), TypeError, "`layer` must be a Keras layer"),
        (lambda: L.LSTM, TypeError, "`layer` must be a Keras layer, got LSTM"),
        (lambda: [], ValueError, "at least one layer, got none"),
        (
            lambda: [built(L.LSTM(3, go_backwards=True, **ZEROS))] * 2,
            ValueError,
            "must not go backwards.*layer 0 does",
        ),
    ],
)  # fmt: skip
def test_a_layer_that_rdrop_cannot_represent_is_rejected(layer, error, match):
    with pytest.raises(error, match=match):
        interop.from_keras(layer())


def params_of(cell):
    return random_params(np.random.default_rng(0), rdrop.RNN(cell))


def tree(**other):
    weights = {
        "kernel": np.ones((2, 6)),
        "recurrent_kernel": np.ones((6, 6)),
        "bias": np.ones(6),
    }
    return {"params": weights | other}


@pytest.mark.parametrize(
    ("params", "match"),
    [
        (lambda: params_of(rdrop.LayerNormLSTMCell(3)), "names .*'cell_gain'"),
        (lambda: params_of(rdrop.MinGRUCell(3)), r"names \['bias', 'kernel'\]"),
        (lambda: {"params": {"scale": np.ones(3)}}, r"got the names \['scale'\]"),
        (lambda: {"kernel": np.ones(3)}, r"`params` must be the variables.*'kernel'"),
        (lambda: tree(bias=np.ones(4)), r"`bias` must have the shape \(6,\), got \(4,"),
        (lambda: tree(kernel=np.ones((2, 4))), r"`kernel` must .* shape \(2, 6\)"),
        (lambda: tree(recurrent_kernel=np.ones((3, 6))), r"4.*3.*1.*shape \(3, 6"),
        (lambda: tree(recurrent_kernel=np.ones(3)), r"matrix .*got shape \(3,\)"),
    ],
)  # fmt: skip
def test_params_of_another_layer_are_rejected(params, match):
    with pytest.raises(ValueError, match=match):
        interop.to_keras(params())


def test_the_table_of_the_docs_is_the_data():
    def gates(names):
        return "one" if names == ("",) else "".join(names) or "-"

    rows = [
        [layout.library, name, *map(gates, own)]
        for layout in LAYOUTS
        for name, own in layout.cells.items()
    ]
    written = re.findall(r"^\| (.*) \|$", REFERENCE.read_text(), flags=re.M)
    table = [row.split(" | ") for row in written]
    assert table[-len(rows) :] == rows
