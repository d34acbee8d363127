"""Layers of PyTorch and their ports compute the same, in both directions."""

import sys
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
    combinations,
    compiled,
    ours,
    random_params,
)

import rdrop
from rdrop import interop, presets

torch = pytest.importorskip("torch")

LENGTHS = [3, 2, 1, 3]  # PyTorch has no empty sequences
LAYERS = {
    "rnn": (1, False),
    "reverse": (2, False),
    "both": (1, True),
    "stack": (3, True),
}


class Case(NamedTuple):
    """A layer of PyTorch, and the same cell of rdrop."""

    theirs: str
    ours: type[rdrop.linen.Cell]

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

    def stack(self, count, both):
        shape = "both" if both else "rnn"
        layers = [ours(shape, self.cell) for _ in range(count)]
        return layers[0] if count == 1 else rdrop.Stack(layers)

    def cell(self):
        return self.ours(UNITS, param_dtype=np.dtype(float))


CASES = {
    "lstm": Case("LSTM", rdrop.LSTMCell),
    "gru": Case("GRU", rdrop.GRUCell),
    "simple": Case("RNN", rdrop.SimpleCell),
}
LSTM, GRU, SIMPLE = CASES.values()
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def random_inputs(rng, dtype=np.float64):
    return rng.normal(size=(BATCH, TIME, FEATURES)).astype(dtype)


def by_torch(module, xs, lengths=None):
    """Outputs and final states, h and in an LSTM c."""
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
    states = end if isinstance(end, tuple) else (end,)
    return [each.numpy() for each in (ys, *states)]


def by_rdrop(ported, xs, lengths=None):
    lengths = None if lengths is None else np.array(lengths)
    apply = compiled(ported.module.apply)
    carry, ys = apply(ported.params, jnp.asarray(xs), lengths=lengths)
    leaves = jax.tree.leaves(carry)
    if "LSTM" in str(ported.module):
        return [ys, np.stack(leaves[1::2]), np.stack(leaves[::2])]
    return [ys, np.stack(leaves)]


@pytest.mark.parametrize(
    ("case", "shape"),
    combinations(CASES, [("lstm", "reverse"), ("gru", "both"), ("simple", "rnn")]),
)
def test_a_module_and_its_port_compute_the_same(rng, case, shape):
    module, xs = case.module(*LAYERS[shape]), random_inputs(rng)
    ported = interop.from_torch(module)
    lengths = None if shape == "rnn" else LENGTHS
    chex.assert_trees_all_close(
        by_rdrop(ported, xs, lengths), by_torch(module, xs, lengths), atol=1e-12
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_a_projection_and_its_port_compute_the_same(rng, both, bias):
    module = LSTM.module(2, both, proj_size=2, bias=bias)
    ported, xs = interop.from_torch(module), random_inputs(rng)
    chex.assert_trees_all_close(by_rdrop(ported, xs), by_torch(module, xs), atol=1e-12)
    state = interop.to_torch(ported.params)
    if bias:
        module.load_state_dict(state)
        again = by_torch(module, xs)
        chex.assert_trees_all_close(by_rdrop(ported, xs), again, atol=1e-12)
    with pytest.raises(ValueError, match="have a projection, which Keras lacks"):
        interop.to_keras(ported.params)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_rectified_module_and_its_port_compute_the_same(rng, layers):
    module = SIMPLE.module(layers, True, nonlinearity="relu")
    ported, xs = interop.from_torch(module), random_inputs(rng)
    chex.assert_trees_all_close(by_rdrop(ported, xs), by_torch(module, xs), atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("both", [False, True])
@each_case
def test_from_rdrop_to_torch_and_back_is_exact(rng, case, count, both):
    module, theirs = case.stack(count, both), case.module(count, both)
    params = random_params(rng, module)
    theirs.load_state_dict(interop.to_torch(params))
    back = interop.from_torch(theirs)
    chex.assert_trees_all_equal(back.params, params, strict=True)
    assert back.module == module


@each_case
def test_biases_return_to_torch_as_their_sum(case):
    """Except for the candidate of a GRU, whose two biases are kept."""
    state = case.module().state_dict()
    back = interop.to_torch(interop.from_torch(state).params)
    candidate = slice(2 * UNITS, None) if case is GRU else slice(0, 0)
    sums = state["bias_ih_l0"] + state["bias_hh_l0"]
    sums[candidate] = state["bias_ih_l0"][candidate]
    second = torch.zeros_like(sums)
    second[candidate] = state["bias_hh_l0"][candidate]
    expected = state | {"bias_ih_l0": sums, "bias_hh_l0": second}
    assert all(torch.equal(back[name], expected[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_keep_their_dtype_and_missing_biases_are_zero(dtype):
    state = GRU.module(dtype=dtype, bias=False).state_dict()
    ported = interop.from_torch(state)
    expected = jnp.dtype(str(dtype).removeprefix("torch."))
    assert {leaf.dtype for leaf in jax.tree.leaves(ported.params)} == {expected}
    assert ported.module.cell.param_dtype == expected
    assert not ported.params["params"]["bias"].any()
    back = interop.to_torch(ported.params)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert {tensor.dtype for tensor in back.values()} == {dtype}


def test_a_module_that_is_not_batch_first_is_time_major(rng):
    module = SIMPLE.module(batch_first=False)
    xs, ported = random_inputs(rng), interop.from_torch(module)
    chex.assert_trees_all_close(by_rdrop(ported, xs), by_torch(module, xs), atol=1e-12)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_dropout_is_that_of_the_preset():
    """A single layer has none; a state_dict does not state it."""
    module = LSTM.module(3, both=True, dropout=0.3)
    ported = interop.from_torch(module)
    assert ported.dropout == presets.torch(0.3, layers=3)
    assert interop.from_torch(module.state_dict()).dropout is None
    assert interop.from_torch(LSTM.module(2)).dropout is None
    assert interop.from_torch(LSTM.module(dropout=0.3)).dropout is None


def test_a_port_runs_with_its_dropout(rng):
    """The first layer is without noise; inputs of the second are masked."""
    module, params, dropout = interop.from_torch(SIMPLE.module(2, dropout=0.5))
    keys = rdrop.stream_keys(jax.random.key(0))
    xs = jnp.asarray(random_inputs(rng))

    @compiled
    def run(keys):
        return [module.apply(params, xs, dropout, k) for k in (keys, None)]

    ((first, _), noisy), ((same, _), clean) = run(keys)
    chex.assert_trees_all_equal(first, same)
    assert np.abs(noisy - clean).max() > 0.01


def test_a_layer_is_found_in_a_state_dict_by_its_prefix():
    prefix, state = "encoder.lstm.", LSTM.module(2, both=True).state_dict()
    named = {prefix + name: tensor.numpy() for name, tensor in state.items()}
    other = {"head.weight": np.zeros(3), "decoder.weight_ih_l0": np.zeros(3)}
    ported = interop.from_torch(named | other, prefix)
    expected = interop.from_torch(state).params
    chex.assert_trees_all_equal(ported.params, expected, strict=True)
    assert interop.to_torch(ported.params, prefix).keys() == named.keys()


def lstm_state(**changes):
    state = {**LSTM.module().state_dict(), **changes}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("source", "prefix", "error", "match"),
    [
        (lambda: torch.nn.Linear(3, 4), "", TypeError, "or a state_dict, got Linear"),
        (LSTM.module, "a.", ValueError, "`prefix` must be \"\" .*got 'a.'"),
        (lstm_state, "a.", ValueError, r"one of \[''\], got 'a.'"),
        (lambda: lstm_state(weight_hh_l0=None), "", ValueError, "lacks weight_hh_l0"),
        (lambda: lstm_state(bias_hh_l0=None), "", ValueError, "lacks bias_hh_l0"),
        (
            lambda: lstm_state(weight_hh_l0=torch.ones(6, 3)), "", ValueError,
            r"4 \(LSTM\), 3 \(GRU\) or 1 \(simple\) times .* got shape \(3, 6\)",
        ),
    ],
)  # fmt: skip
def test_a_source_that_rdrop_cannot_represent_is_rejected(source, prefix, error, match):
    with pytest.raises(error, match=match):
        interop.from_torch(source(), prefix)


def rnn(cell):
    return rdrop.RNN(cell)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (
            lambda: rnn(rdrop.GRUCell(3, reset_after=False)),
            "a GRU with reset_after=False, which PyTorch lacks",
        ),
        (
            lambda: rdrop.Stack([rnn(rdrop.GRUCell(3)), rnn(rdrop.GRUCell(4))]),
            "the same cell, units .* got .*'GRU', 3.*'GRU', 4",
        ),
        (
            lambda: rdrop.Stack([rnn(rdrop.GRUCell(3)), rnn(rdrop.LSTMCell(3))]),
            "the same cell, units .* got .*'GRU', 3.*'LSTM', 3",
        ),
    ],
)
def test_layers_that_torch_lacks_are_rejected(rng, module, match):
    with pytest.raises(ValueError, match=match):
        interop.to_torch(random_params(rng, module()))


def test_a_missing_torch_is_named(rng, monkeypatch):
    params = random_params(rng, ours("rnn", LSTM.cell))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="`to_torch` needs PyTorch: pip install tor"):
        interop.to_torch(params)
