"""Layers of PyTorch and ours are the same, ported in either direction."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop import interop

torch = pytest.importorskip("torch")

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3
LENGTHS = [5, 3, 1, 4]  # PyTorch has no empty sequences
COMPILER = {"xla_backend_optimization_level": 0}  # compiles in less time


class Case(NamedTuple):
    """A layer of PyTorch, and the same cell of ours."""

    theirs: str
    ours: type[rdrop.Cell]

    def module(self, layers=1, both=False, dtype=torch.float64, **options):
        options = {"batch_first": True, **options}
        module = getattr(torch.nn, self.theirs)(
            FEATURES, UNITS, layers, bidirectional=both, dtype=dtype, **options
        )
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for parameter in module.parameters():
                parameter.normal_(0, 0.5, generator=generator)
        return module

    def layers(self, count=1, both=False):
        def layer():
            cells = [
                self.ours(UNITS, param_dtype=np.dtype(float)) for _ in range(1 + both)
            ]
            return rdrop.Bidirectional(*cells) if both else rdrop.RNN(*cells)

        return layer() if count == 1 else rdrop.Stack([layer() for _ in range(count)])


CASES = {
    "lstm": Case("LSTM", rdrop.LSTMCell),
    "gru": Case("GRU", rdrop.GRUCell),
    "simple": Case("RNN", rdrop.SimpleCell),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SLOW = pytest.mark.slow
each_shape = pytest.mark.parametrize(
    ("layers", "both"),
    [
        *(pytest.param(*s, marks=SLOW) for s in [(1, False), (1, True), (2, False)]),
        (3, True),
    ],
)
each_length = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "padded"])


def random_inputs(rng, dtype=np.float64):
    return rng.normal(size=(BATCH, TIME, FEATURES)).astype(dtype)


def random_params(rng, module):
    """Variables of the dtypes that the cells of a module have."""
    xs = jnp.zeros((1, 1, FEATURES))
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(module.init, jax.random.key(0), xs)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, s.dtype), shapes
    )


def by_torch(module, xs, lengths):
    """Outputs, and the final states, h and for an LSTM c."""
    xs = torch.tensor(xs)
    with torch.no_grad():
        if lengths is None:
            ys, end = module(xs)
        else:
            packed, end = module(
                torch.nn.utils.rnn.pack_padded_sequence(
                    xs, lengths, batch_first=True, enforce_sorted=False
                )
            )
            ys, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    return [ys, *(end if isinstance(end, tuple) else (end,))]


def by_rdrop(ported, xs, lengths):
    lengths = None if lengths is None else np.array(lengths)
    run = jax.jit(ported.module.apply, compiler_options=COMPILER)
    carry, ys = run(ported.params, jnp.asarray(xs), lengths=lengths)
    leaves = jax.tree.leaves(carry)
    if "LSTM" in str(ported.module):
        return [ys, np.stack(leaves[1::2]), np.stack(leaves[::2])]
    return [ys, np.stack(leaves)]


def difference(actual, expected):
    pairs = zip(actual, expected, strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    dtypes = [[a.dtype for a in jax.tree.leaves(tree)] for tree in (actual, expected)]
    assert dtypes[0] == dtypes[1]


@each_length
@each_shape
@each_case
def test_port_of_a_module_computes_what_it_does(rng, case, layers, both, lengths):
    module, xs = case.module(layers, both), random_inputs(rng)
    expected = by_torch(module, xs, lengths)
    actual = by_rdrop(interop.from_torch(module), xs, lengths)
    assert difference(actual, expected) < 1e-12


@each_case
def test_port_computes_what_a_module_does_in_float32(rng, case):
    module = case.module(2, both=True, dtype=torch.float32)
    xs = random_inputs(rng, np.float32)
    expected = by_torch(module, xs, LENGTHS)
    actual = by_rdrop(interop.from_torch(module), xs, LENGTHS)
    assert actual[0].dtype == np.float32
    assert difference(actual, expected) < 1e-6


@each_shape
@each_case
def test_module_computes_what_it_is_ported_from(rng, case, layers, both):
    ours, theirs = case.layers(layers, both), case.module(layers, both)
    params, xs = random_params(rng, ours), random_inputs(rng)
    theirs.load_state_dict(interop.to_torch(params))
    expected = by_rdrop(interop.Ported(ours, params), xs, LENGTHS)
    assert difference(by_torch(theirs, xs, LENGTHS), expected) < 1e-12
    back = interop.from_torch(theirs)
    assert_same(back.params, params)
    assert str(back.module) == str(ours)


@each_case
def test_biases_return_to_torch_as_their_sum(case):
    state = case.module().state_dict()
    back = interop.to_torch(interop.from_torch(state).params)
    kernels = {name for name in state if "weight" in name}
    assert all(torch.equal(back[name], state[name]) for name in kernels)
    sums = state["bias_ih_l0"] + state["bias_hh_l0"]
    candidate = slice(2 * UNITS, None) if case.theirs == "GRU" else slice(0, 0)
    sums[candidate] = state["bias_ih_l0"][candidate]
    apart = torch.zeros_like(sums)
    apart[candidate] = state["bias_hh_l0"][candidate]
    assert torch.equal(back["bias_ih_l0"], sums)
    assert torch.equal(back["bias_hh_l0"], apart)


@each_case
def test_module_without_biases(rng, case):
    module, xs = case.module(2, bias=False), random_inputs(rng)
    ported = interop.from_torch(module)
    assert not ported.params["params"]["layers_0"]["bias"].any()
    expected = by_torch(module, xs, None)
    assert difference(by_rdrop(ported, xs, None), expected) < 1e-12


def test_module_that_is_not_batch_first_is_time_major(rng):
    module = CASES["lstm"].module(2, both=True, batch_first=False)
    xs = random_inputs(rng)
    expected = by_torch(module, xs, None)
    assert difference(by_rdrop(interop.from_torch(module), xs, None), expected) < 1e-12


@pytest.mark.parametrize("prefix", ["", "encoder.lstm."])
def test_layer_is_found_in_a_state_dict_by_its_prefix(prefix):
    state = CASES["lstm"].module(2, both=True).state_dict()
    named = {prefix + name: tensor.numpy() for name, tensor in state.items()}
    other = {"head.weight": np.zeros(3), "decoder.weight_ih_l0": np.zeros(3)}
    ported = interop.from_torch(named | other, prefix)
    assert_same(ported.params, interop.from_torch(state).params)
    assert interop.to_torch(ported.params, prefix).keys() == named.keys()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_weights_keep_their_dtype(dtype):
    state = CASES["gru"].module(dtype=dtype, bias=False).state_dict()
    ported = interop.from_torch(state)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(ported.params)}
    assert dtypes == {str(dtype).removeprefix("torch.")}
    assert ported.module.cell.param_dtype == ported.params["params"]["kernel"].dtype
    back = interop.to_torch(ported.params)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert {tensor.dtype for tensor in back.values()} == {dtype}


def lstm_state(**changes):
    state = {**CASES["lstm"].module().state_dict(), **changes}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("source", "options", "error", "match"),
    [
        (
            lambda: CASES["simple"].module(nonlinearity="relu"),
            {},
            ValueError,
            "`nonlinearity` must be \"tanh\", got 'relu'",
        ),
        (
            lambda: torch.nn.LSTM(3, 4, proj_size=2),
            {},
            ValueError,
            "no projection.*got weight_hr_l0",
        ),
        (lambda: torch.nn.Linear(3, 4), {}, TypeError, "or a state_dict, got Linear"),
        (
            CASES["lstm"].module,
            {"prefix": "a."},
            ValueError,
            "`prefix` must be \"\" with a module.*got 'a.'",
        ),
        (
            lstm_state,
            {"prefix": "a."},
            ValueError,
            r"`prefix` must be one of \[''\], .* got 'a.'",
        ),
        (
            lambda: lstm_state(weight_hh_l0=None),
            {},
            ValueError,
            "`source` must have weight_hh_l0, got none",
        ),
        (
            lambda: lstm_state(bias_hh_l0=None),
            {},
            ValueError,
            "`source` must have bias_hh_l0, got none",
        ),
        (
            lambda: lstm_state(weight_hh_l0=torch.ones(6, 3)),
            {},
            ValueError,
            r"4 \(LSTM\), 3 \(GRU\) or 1 \(simple\) times .* got 2 times",
        ),
    ],
)
def test_modules_that_rdrop_has_not_are_refused(source, options, error, match):
    with pytest.raises(error, match=match):
        interop.from_torch(source(), **options)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (
            lambda: rdrop.RNN(rdrop.GRUCell(3, reset_after=False)),
            "PyTorch has no GRU with the reset before",
        ),
        (
            lambda: rdrop.Stack(
                [rdrop.RNN(rdrop.GRUCell(3)), rdrop.RNN(rdrop.GRUCell(4))]
            ),
            "one number of units .* got .*'GRU', 3.*'GRU', 4",
        ),
        (
            lambda: rdrop.Stack(
                [rdrop.RNN(rdrop.GRUCell(3)), rdrop.RNN(rdrop.LSTMCell(3))]
            ),
            "one cell, .* got .*'GRU', 3.*'LSTM', 3",
        ),
    ],
)
def test_layers_that_torch_has_not_are_refused(rng, module, match):
    params = random_params(rng, module())
    with pytest.raises(ValueError, match=match):
        interop.to_torch(params)


def test_to_torch_says_what_to_install(rng, monkeypatch):
    params = random_params(rng, CASES["lstm"].layers())
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="`to_torch` needs PyTorch"):
        interop.to_torch(params)
