"""Layers of flax, linen and nnx, and their ports compute the same, both ways."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from interop_cases import (
    BATCH,
    FEATURES,
    TIME,
    UNITS,
    combinations,
    compiled,
    make,
    ours,
    random_like,
    random_params,
    whole,
)

import rdrop
from rdrop import interop

LENGTHS = np.array([3, 2, 1, 3])  # flax has no empty sequences
ONES = nn.initializers.ones  # takes less time than JAX's qr, which needs float32
START = {"kernel_init": ONES, "recurrent_kernel_init": ONES}


class Case(NamedTuple):
    """The name of a cell of flax, and the same cell of rdrop."""

    theirs: str
    ours: type[rdrop.linen.Cell]

    def linen(self):
        return getattr(nn, self.theirs)(UNITS, param_dtype=jnp.float64)

    def nnx(self, features=FEATURES, **options):
        options |= {"param_dtype": jnp.float64, "dtype": jnp.float64} | START
        cell = getattr(nnx, self.theirs)
        return cell(features, UNITS, rngs=nnx.Rngs(0), **options)

    def cell(self):
        return self.ours(UNITS, param_dtype=np.dtype(float))


CASES = {
    "lstm": Case("LSTMCell", rdrop.LSTMCell),
    "optimized_lstm": Case("OptimizedLSTMCell", rdrop.LSTMCell),
    "gru": Case("GRUCell", rdrop.GRUCell),
    "simple": Case("SimpleCell", rdrop.SimpleCell),
}
LSTM, OPTIMIZED, GRU, SIMPLE = CASES.values()
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_shape = pytest.mark.parametrize("shape", ["reverse", "stack"])


def linen_layers(case, shape):
    def rnn(_, reverse=False):
        options = {"reverse": True, "keep_order": True} if reverse else {}
        return nn.RNN(case.linen(), return_carry=True, **options)

    def both(_):
        return nn.Bidirectional(rnn(0), rnn(0), return_carry=True)

    return make(shape, rnn, both)


def nnx_layers(case, shape):
    def rnn(features, reverse=False):
        options = {"reverse": True, "keep_order": True} if reverse else {}
        return nnx.RNN(case.nnx(features), return_carry=True, **options)

    def both(features):
        return nnx.Bidirectional(rnn(features), rnn(features), return_carry=True)

    return make(shape, rnn, both)


def variables_of(rng, layers):
    """Variables of each layer of linen, from the input upwards."""
    features, found = FEATURES, []
    for layer in layers:
        found.append(random_params(rng, layer, features))
        features = 2 * UNITS if isinstance(layer, nn.Bidirectional) else UNITS
    return found


def randomise(rng, layers):
    for layer in layers:
        nnx.update(layer, random_like(rng, nnx.state(layer, nnx.Param)))


def held(layers):
    return [nnx.to_pure_dict(nnx.state(layer, nnx.Param)) for layer in layers]


def unrolled(layers, xs):
    """Outputs of functions of sequences, zero at padding, and all final carries."""
    carries = []
    for layer in layers:
        carry, xs = layer(xs, seq_lengths=jnp.asarray(LENGTHS))
        carries.append(carry)
    valid = (jnp.arange(TIME) < LENGTHS[:, None])[..., None]
    return jnp.where(valid, xs, 0), carries


def assert_same_outputs(rng, ported, theirs, state):
    """Compares `theirs(state, xs)` with the port, in one program."""
    xs = jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)))

    @compiled
    def run(params, state, xs):
        carry, ys = ported.module.apply(params, xs, lengths=LENGTHS)
        return (ys, carry), theirs(state, xs)

    actual, expected = run(ported.params, state, xs)
    pairs = map(jax.tree.leaves, (actual, expected))
    chex.assert_trees_all_close(*pairs, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "shape"),
    combinations(
        {name: CASES[name] for name in ("lstm", "gru", "simple")},
        [("lstm", "reverse"), ("gru", "stack")],
    ),
)
def test_linen_and_its_port_compute_the_same(rng, case, shape):
    layers = linen_layers(case, shape)
    variables = variables_of(rng, layers)
    ported = interop.from_flax(whole(variables))
    if shape == "reverse":  # which variables do not state
        ported = ported._replace(module=ported.module.clone(reverse=True))

    def theirs(variables, xs):
        pairs = zip(layers, variables, strict=True)
        return unrolled([partial(layer.apply, tree) for layer, tree in pairs], xs)

    assert_same_outputs(rng, ported, theirs, variables)
    assert ported.dropout is None


@pytest.mark.parametrize(
    ("case", "shape"),
    combinations(
        CASES,
        [("lstm", "rnn"), ("optimized_lstm", "both"), ("gru", "reverse")],
    ),
)
def test_nnx_and_its_port_compute_the_same(rng, case, shape):
    layers = nnx_layers(case, shape)
    randomise(rng, layers)
    graph, state = nnx.split(layers)

    def theirs(state, xs):
        return unrolled(nnx.merge(graph, state), xs)

    assert_same_outputs(rng, interop.from_flax(whole(layers)), theirs, state)


@each_shape
@each_case
def test_parameters_of_flax_return_exactly(rng, case, shape):
    variables = variables_of(rng, linen_layers(case, shape))
    back = interop.to_flax(interop.from_flax(whole(variables)).params)
    trees = back if isinstance(back, list) else [back]
    if shape != "both":  # to_flax returns the variables of a bare cell
        trees[-1] = {"params": {"cell": trees[-1]["params"]}}
    chex.assert_trees_all_equal(trees, variables, strict=True)
    layers, others = nnx_layers(case, shape), nnx_layers(case, shape)
    randomise(rng, layers)
    interop.to_flax(interop.from_flax(whole(layers)).params, whole(others))
    chex.assert_trees_all_equal(held(others), held(layers), strict=True)


def without_bias(params):
    """Zero where nnx lacks a bias, at the candidate of a GRU."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "recurrent_bias" in str(path) else leaf, params
    )


@each_shape
@each_case
def test_from_rdrop_to_flax_and_back_is_exact(rng, case, shape):
    module = ours(shape, case.cell)
    params = random_params(rng, module)
    back = interop.from_flax(interop.to_flax(params))
    chex.assert_trees_all_equal(back.params, params, strict=True)
    layers, params = nnx_layers(case, shape), without_bias(params)
    interop.to_flax(params, whole(layers))
    back = interop.from_flax(whole(layers))
    chex.assert_trees_all_equal(back.params, params, strict=True)
    assert back.module == module


@each_case
def test_bare_cells_are_those_in_layers(rng, case):
    (variables,) = variables_of(rng, linen_layers(case, "rnn"))
    cell = variables["params"]["cell"]
    expected = interop.from_flax(variables).params
    for source in (cell, {"cell": cell}, {"params": cell}):
        chex.assert_trees_all_equal(interop.from_flax(source).params, expected)
    bare, params = case.nnx(), without_bias(expected)
    interop.to_flax(params, bare)
    chex.assert_trees_all_equal(interop.from_flax(bare).params, params)


def test_cells_of_a_compact_method_are_passed_by_name(rng):
    """They store their parameters in the module around the Bidirectional."""

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, xs):
            rnns = (nn.RNN(SIMPLE.linen()) for _ in range(2))
            return nn.Bidirectional(*rnns)(xs)

    tree = random_params(rng, Encoder())["params"]
    pair = {"forward": tree["SimpleCell_0"], "backward": tree["SimpleCell_1"]}
    module, params, _ = interop.from_flax(pair)
    xs = jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)))

    @compiled
    def run(xs):
        return module.apply(params, xs)[1], Encoder().apply({"params": tree}, xs)

    chex.assert_trees_all_close(*run(xs), atol=1e-12)
    with pytest.raises(ValueError, match=r'\'SimpleCell_1\'\].* {"forward": ..., "ba'):
        interop.from_flax(tree)


def test_a_time_major_layer_is_ported_to_one():
    layer = nnx.RNN(GRU.nnx(), time_major=True)
    assert interop.from_flax(layer).module.time_major
    both = nnx.Bidirectional(layer, nnx.RNN(GRU.nnx()), time_major=True)
    assert interop.from_flax(both).module.time_major


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_weights_keep_their_dtype(dtype):
    cell = nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0), param_dtype=dtype, **START)
    ported = interop.from_flax(cell)
    assert {leaf.dtype for leaf in jax.tree.leaves(ported.params)} == {jnp.dtype(dtype)}
    back = interop.to_flax(ported.params)["params"]["i"]["kernel"]
    chex.assert_trees_all_equal(back, cell.dense_i.kernel[...], strict=True)


@each_case
def test_activations_of_a_live_cell_are_ported(rng, case):
    options = {"activation_fn": jax.nn.relu}
    if case is not SIMPLE:
        options["gate_fn"] = jax.nn.hard_sigmoid
    layer = nnx.RNN(case.nnx(**options))
    randomise(rng, [layer])
    xs = jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)))
    ported = interop.from_flax(layer)
    ys = ported.module.apply(ported.params, xs)[1]
    chex.assert_trees_all_close(ys, layer(xs), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (lambda: SIMPLE.nnx(residual=True), ValueError, "`residual` must be False"),
        (
            lambda: nnx.Bidirectional(
                nnx.RNN(GRU.nnx()), nnx.RNN(GRU.nnx()), merge_fn=jnp.add
            ),
            ValueError,
            "`merge_fn` must be the default, concatenation, got .*add",
        ),
        (
            lambda: [nnx.RNN(GRU.nnx(), reverse=True), nnx.RNN(GRU.nnx(UNITS))],
            ValueError,
            "`keep_order` must be True in a reverse RNN .* got False in layer 0",
        ),
        (lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), TypeError, "got Linear"),
        (lambda: rdrop.LSTMCell(3), TypeError, r"nnx\.LSTMCell.*got LSTMCell"),
        (lambda: {"params": {"if": {}, "hf": {}}}, ValueError, r"got .*\['hf', 'if'\]"),
    ],
)  # fmt: skip
def test_a_source_that_rdrop_cannot_represent_is_rejected(source, error, match):
    with pytest.raises(error, match=match):
        interop.from_flax(source())


@pytest.mark.parametrize(
    ("module", "target", "match"),
    [
        (
            lambda: rdrop.RNN(rdrop.GRUCell(3, reset_after=False)), lambda: None,
            "a GRU with reset_after=False, which flax.linen lacks",
        ),
        (
            lambda: rdrop.RNN(GRU.cell()), GRU.nnx,
            "`recurrent_bias` must be zero for flax.nnx",
        ),
        (
            lambda: rdrop.RNN(GRU.cell()), LSTM.nnx,
            "`module` must have the cell of `params`, GRU, got LSTMCell",
        ),
        (
            lambda: rdrop.RNN(SIMPLE.cell()),
            lambda: nnx.SimpleCell(5, UNITS, rngs=nnx.Rngs(0), **START),
            r"`dense_i.kernel` .* is float32\[5, 3\], but .* have float64\[2, 3\]",
        ),
        (
            lambda: ours("both", SIMPLE.cell), SIMPLE.nnx,
            "`module` must be a Bidirectional, .* got one cell",
        ),
        (
            lambda: ours("rnn", SIMPLE.cell), lambda: nnx_layers(SIMPLE, "both")[0],
            "`module` must be one cell, .* got a Bidirectional",
        ),
        (
            lambda: ours("stack", SIMPLE.cell), lambda: [SIMPLE.nnx()],
            "`module` must be a list of 2 layers, .* got a list of 1 layers",
        ),
    ],
)  # fmt: skip
def test_a_module_that_params_do_not_fit_is_rejected(rng, module, target, match):
    with pytest.raises(ValueError, match=match):
        interop.to_flax(random_params(rng, module()), target())
