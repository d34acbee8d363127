"""Layers of flax, linen and nnx, and ours are the same, ported in either direction."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import rdrop
from rdrop import interop

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3
LENGTHS = np.array([5, 3, 1, 2])  # flax has no empty sequences
TOLERANCE = 1e-12
COMPILER = {"xla_backend_optimization_level": 0}  # compiles in less time


@pytest.fixture(autouse=True)
def lenient():
    """Lets nnx promote dtypes and ranks as it is used to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Case(NamedTuple):
    """The name of a cell of flax, and the same cell of ours."""

    theirs: str
    ours: type[rdrop.Cell]

    def linen(self):
        return getattr(nn, self.theirs)(UNITS, param_dtype=jnp.float64)

    def nnx(self, features=FEATURES, **options):
        dtypes = {"param_dtype": jnp.float64, "dtype": jnp.float64}
        cell = getattr(nnx, self.theirs)
        return cell(features, UNITS, **dtypes, rngs=nnx.Rngs(0), **options)

    def cell(self):
        return self.ours(UNITS, param_dtype=np.dtype(float))


CASES = {
    "lstm": Case("LSTMCell", rdrop.LSTMCell),
    "optimized_lstm": Case("OptimizedLSTMCell", rdrop.LSTMCell),
    "gru": Case("GRUCell", rdrop.GRUCell),
    "simple": Case("SimpleCell", rdrop.SimpleCell),
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


def linen_layers(case, shape):
    def rnn(**options):
        return nn.RNN(case.linen(), return_carry=True, **options)

    def both():
        return nn.Bidirectional(rnn(), rnn(), return_carry=True)

    return {
        "rnn": lambda: [rnn()],
        "reverse": lambda: [rnn(reverse=True, keep_order=True)],
        "both": lambda: [both()],
        "stack": lambda: [both(), rnn()],
    }[shape]()


def nnx_layers(case, shape):
    def rnn(features, **options):
        return nnx.RNN(case.nnx(features), return_carry=True, **options)

    def both(features):
        return nnx.Bidirectional(rnn(features), rnn(features), return_carry=True)

    return {
        "rnn": lambda: [rnn(FEATURES)],
        "reverse": lambda: [rnn(FEATURES, reverse=True, keep_order=True)],
        "both": lambda: [both(FEATURES)],
        "stack": lambda: [both(FEATURES), rnn(2 * UNITS)],
    }[shape]()


def ours(case, shape):
    def both():
        return rdrop.Bidirectional(case.cell(), case.cell())

    return {
        "rnn": lambda: rdrop.RNN(case.cell()),
        "reverse": lambda: rdrop.RNN(case.cell(), reverse=True),
        "both": both,
        "stack": lambda: rdrop.Stack([both(), rdrop.RNN(case.cell())]),
    }[shape]()


def random_like(rng, shapes):
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 2), shapes)


def random_variables(rng, module, features=FEATURES):
    xs = jnp.zeros((BATCH, TIME, features))
    return random_like(rng, jax.eval_shape(module.init, jax.random.key(0), xs))


def variables_of(rng, layers):
    """Variables of each layer of linen, from the input upwards."""
    features, found = FEATURES, []
    for layer in layers:
        found.append(random_variables(rng, layer, features))
        features = 2 * UNITS if isinstance(layer, nn.Bidirectional) else UNITS
    return found


def randomise(rng, module):
    state = nnx.state(module, nnx.Param)
    nnx.update(module, random_like(rng, state))


def random_inputs(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME, FEATURES)))


def whole(layers):
    return layers if len(layers) > 1 else layers[0]


def unrolled(layers, xs, lengths):
    """Outputs of functions of sequences, zero at padding, and all final carries."""
    carries = []
    lengths = None if lengths is None else jnp.asarray(lengths)
    for layer in layers:
        carry, xs = layer(xs, seq_lengths=lengths)
        carries.append(carry)
    if lengths is not None:
        xs = jnp.where((jnp.arange(TIME) < lengths[:, None])[..., None], xs, 0)
    return xs, carries


def by_linen(layers, variables, xs, lengths):
    @partial(jax.jit, compiler_options=COMPILER)
    def run(variables, xs):
        pairs = zip(layers, variables, strict=True)
        functions = [partial(layer.apply, tree) for layer, tree in pairs]
        return unrolled(functions, xs, lengths)

    return run(variables, xs)


def by_nnx(layers, xs, lengths):
    graph, state = nnx.split(layers)

    @partial(jax.jit, compiler_options=COMPILER)
    def run(state, xs):
        return unrolled(nnx.merge(graph, state), xs, lengths)

    return run(state, xs)


def by_rdrop(ported, xs, lengths):
    run = jax.jit(ported.module.apply, compiler_options=COMPILER)
    carry, ys = run(ported.params, xs, lengths=lengths)
    return ys, carry


def difference(actual, expected):
    pairs = zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    dtypes = [[a.dtype for a in jax.tree.leaves(tree)] for tree in (actual, expected)]
    assert dtypes[0] == dtypes[1]


def ported_from_linen(shape, variables):
    """Variables of linen do not say that a layer is reverse."""
    ported = interop.from_flax(whole(variables))
    if shape != "reverse":
        return ported
    return ported._replace(module=ported.module.clone(reverse=True))


@each_setting
@pytest.mark.parametrize("case", [CASES[name] for name in ("lstm", "gru", "simple")])
def test_linen_and_its_port_are_the_same(rng, case, shape, lengths):
    layers, xs = linen_layers(case, shape), random_inputs(rng)
    variables = variables_of(rng, layers)
    ported = ported_from_linen(shape, variables)
    expected = by_linen(layers, variables, xs, lengths)
    assert difference(by_rdrop(ported, xs, lengths), expected) < TOLERANCE
    back = interop.to_flax(ported.params)
    trees = back if isinstance(back, list) else [back]
    if shape == "stack":
        trees[1] = {"params": {"cell": trees[1]["params"]}}
    elif shape != "both":
        trees = [{"params": {"cell": back["params"]}}]
    assert_same(trees, variables)


@each_setting
@each_case
def test_port_of_nnx_computes_what_it_does(rng, case, shape, lengths):
    layers, xs = nnx_layers(case, shape), random_inputs(rng)
    for layer in layers:
        randomise(rng, layer)
    ported = interop.from_flax(whole(layers))
    expected = by_nnx(layers, xs, lengths)
    assert difference(by_rdrop(ported, xs, lengths), expected) < TOLERANCE
    others = nnx_layers(case, shape)
    interop.to_flax(ported.params, whole(others))
    held = [nnx.to_pure_dict(nnx.state(layer, nnx.Param)) for layer in layers]
    assert_same([nnx.to_pure_dict(nnx.state(o, nnx.Param)) for o in others], held)


@each_shape
@each_case
def test_flax_computes_what_it_is_ported_from(rng, case, shape):
    module, xs = ours(case, shape), random_inputs(rng)
    params = without_bias(random_variables(rng, module))
    expected = by_rdrop(interop.Ported(module, params), xs, LENGTHS)
    layers = nnx_layers(case, shape)
    interop.to_flax(params, whole(layers))
    assert difference(by_nnx(layers, xs, LENGTHS), expected) < TOLERANCE
    back = interop.from_flax(whole(layers))
    assert_same(back.params, params)
    assert str(back.module) == str(module)


def without_bias(params):
    """Zero where nnx has no bias, that of a GRU's candidate."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "recurrent_bias" in str(path) else leaf, params
    )


@each_shape
@each_case
def test_from_rdrop_to_linen_and_back_is_exact(rng, case, shape):
    params = random_variables(rng, ours(case, shape))
    assert_same(interop.from_flax(interop.to_flax(params)).params, params)


@each_case
def test_bare_cells_are_those_in_layers(rng, case):
    (variables,) = variables_of(rng, linen_layers(case, "rnn"))
    cell = variables["params"]["cell"]
    expected = interop.from_flax(variables).params
    for source in (cell, {"cell": cell}, {"params": cell}):
        assert_same(interop.from_flax(source).params, expected)
    bare = case.nnx()
    params = without_bias(expected)
    interop.to_flax(params, bare)
    assert_same(interop.from_flax(bare).params, params)


def test_time_major_layer_is_ported_to_one(rng):
    layer = nnx.RNN(CASES["gru"].nnx(), time_major=True)
    assert interop.from_flax(layer).module.time_major
    both = nnx.Bidirectional(layer, nnx.RNN(CASES["gru"].nnx()), time_major=True)
    assert interop.from_flax(both).module.time_major


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_weights_keep_their_dtype(dtype):
    init = nn.initializers.ones  # JAX's qr needs float32
    options = {"param_dtype": dtype, "recurrent_kernel_init": init}
    cell = nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0), **options)
    ported = interop.from_flax(cell)
    assert {leaf.dtype for leaf in jax.tree.leaves(ported.params)} == {jnp.dtype(dtype)}
    back = interop.to_flax(ported.params)["params"]
    assert_same(back["i"]["kernel"], cell.dense_i.kernel[...])


GRU, LSTM, SIMPLE = (CASES[name] for name in ("gru", "lstm", "simple"))


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (
            lambda: SIMPLE.nnx(residual=True),
            ValueError,
            "`residual` must be False in a SimpleCell, got True",
        ),
        (
            lambda: GRU.nnx(activation_fn=jax.nn.relu),
            ValueError,
            "`activation_fn` must be the default, tanh, got .*custom_jvp",
        ),
        (
            lambda: nnx.RNN(LSTM.nnx(gate_fn=jax.nn.hard_sigmoid)),
            ValueError,
            "`gate_fn` must be the default, sigmoid, got .*hard_sigmoid",
        ),
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
        (lambda: rdrop.LSTMCell(3), TypeError, "nnx.LSTMCell.*got LSTMCell"),
        (lambda: {"params": {"if": {}, "hf": {}}}, ValueError, r"got .*\['hf', 'if'\]"),
    ],
)
def test_modules_that_rdrop_has_not_are_refused(source, error, match):
    with pytest.raises(error, match=match):
        interop.from_flax(source())


@pytest.mark.parametrize(
    ("module", "target", "match"),
    [
        (
            lambda: rdrop.RNN(rdrop.GRUCell(3, reset_after=False)),
            lambda: None,
            "flax.linen has no GRU with the reset before",
        ),
        (
            lambda: rdrop.RNN(GRU.cell()),
            GRU.nnx,
            "`recurrent_bias` must be zero for flax.nnx",
        ),
        (
            lambda: rdrop.RNN(GRU.cell()),
            LSTM.nnx,
            "`module` must have the cell of `params`, GRU, got LSTMCell",
        ),
        (
            lambda: rdrop.RNN(SIMPLE.cell()),
            lambda: nnx.SimpleCell(5, UNITS, rngs=nnx.Rngs(0)),
            r"`params` must have float32\[5, 3\] for dense_i.kernel, .* got float64",
        ),
        (
            lambda: ours(SIMPLE, "both"),
            SIMPLE.nnx,
            "`module` must be a Bidirectional of 2, .* got one SimpleCell",
        ),
        (
            lambda: ours(SIMPLE, "stack"),
            lambda: [SIMPLE.nnx()],
            "`module` must be a list of layers of 2, .* got 1 layers",
        ),
    ],
)
def test_modules_that_params_do_not_fit_are_refused(rng, module, target, match):
    params = random_variables(rng, module())
    with pytest.raises(ValueError, match=match):
        interop.to_flax(params, target())


def test_a_pair_for_a_cell_is_refused(rng):
    params = random_variables(rng, ours(SIMPLE, "rnn"))
    with pytest.raises(TypeError, match=r"must be an nnx\.LSTMCell.*got tuple"):
        interop.to_flax(params, nnx_layers(SIMPLE, "both")[0])
