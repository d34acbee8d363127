"""PyTorch's recurrent layers are ours, in float64: values, final states, gradients.

Ours are given PyTorch's own weights, by functions that are differentiated as well, so
all gradients are compared weight by weight.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, quickly

import rdrop
from rdrop import Masks, presets

torch = pytest.importorskip("torch")

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3
LENGTHS = [5, 3, 1, 4]  # PyTorch has no empty sequences
RATE = 0.4


def fused(w_ih, w_hh, b_ih, b_hh):
    """The two biases of PyTorch add up."""
    return {"kernel": w_ih.T, "recurrent_kernel": w_hh.T, "bias": b_ih + b_hh}


def gru(*weights):
    """PyTorch's order of gates is r, z, n; the bias b_hn is reset with U h."""
    w_ih, w_hh, b_ih, b_hh = (
        jnp.concatenate([z, r, n])
        for r, z, n in (jnp.split(weight, 3) for weight in weights)
    )
    candidate = b_hh[2 * UNITS :]
    params = fused(w_ih, w_hh, b_ih, b_hh.at[2 * UNITS :].set(0))
    return params | {"recurrent_bias": candidate}


class Case(NamedTuple):
    """A layer of PyTorch, the cell of ours, and our parameters of PyTorch's weights."""

    theirs: str
    ours: type[rdrop.Cell]
    convert: object

    def module(self, layers=1, bidirectional=False, **options):
        torch.manual_seed(0)
        return getattr(torch.nn, self.theirs)(
            FEATURES,
            UNITS,
            num_layers=layers,
            bidirectional=bidirectional,
            batch_first=True,
            dtype=torch.float64,
            **options,
        )


CASES = {
    "lstm": Case("LSTM", rdrop.LSTMCell, fused),
    "gru": Case("GRU", rdrop.GRUCell, gru),
    "simple": Case("RNN", rdrop.SimpleCell, fused),
}


def random_arguments(rng, case, module):
    """Weights, inputs and initial states of PyTorch: (h, c), or (h,)."""
    places = module.num_layers * (1 + module.bidirectional)
    states = rng.normal(size=(2, places, BATCH, UNITS))
    return (
        {name: weight.detach().numpy() for name, weight in module.named_parameters()},
        rng.normal(size=(BATCH, TIME, FEATURES)),
        tuple(states) if case.theirs == "LSTM" else (states[0],),
    )


def weighted(leaves):
    """A scalar in which every output counts, and no two alike."""
    return sum(n * (leaf**2).sum() for n, leaf in enumerate(leaves, start=1))


def by_torch(module, arguments, lengths=None, unroll=None):
    """Outputs and final states, and the gradients by all arguments."""
    unroll = unroll or unroll_torch
    _, xs, states = jax.tree.map(torch.tensor, arguments)
    for tensor in (xs, *states):
        tensor.requires_grad_()
    ys, *final = unroll(module, xs, states, lengths)
    weighted([ys, *final]).backward()
    weights = {name: weight.grad for name, weight in module.named_parameters()}
    gradients = weights, xs.grad, tuple(state.grad for state in states)
    return jax.tree.map(
        lambda tensor: tensor.detach().numpy(), ((ys, *final), gradients)
    )


def unroll_torch(module, xs, states, lengths):
    """Padded if there are lengths; returns y, h and, of an LSTM, c."""
    start = states if len(states) == 2 else states[0]
    if lengths is None:
        ys, end = module(xs, start)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            xs, lengths, batch_first=True, enforce_sorted=False
        )
        packed, end = module(packed, start)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(
            packed, batch_first=True, total_length=TIME
        )
    return ys, *(end if isinstance(end, tuple) else (end,))


def by_rdrop(case, module, arguments, dropout=None, lengths=None):
    """What `by_torch` returns, computed by ours."""
    layers, both = module.num_layers, module.bidirectional

    def run(weights, xs, states):
        params = {"params": to_params(case, weights, layers, both)}
        carry, ys = layer_of(case, layers, both).apply(
            params,
            xs,
            dropout,
            initial_carry=to_carry(states, layers, both),
            lengths=lengths,
        )
        return ys, *from_carry(carry, len(states))

    def loss(*arguments):
        results = run(*arguments)
        return weighted(results), results

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    arguments = jax.tree.map(jnp.asarray, arguments)
    (_, results), gradients = jax.jit(gradient)(*arguments)
    return results, gradients


def layer_of(case, layers, both):
    def one():
        cells = [case.ours(UNITS, param_dtype=jnp.float64) for _ in range(1 + both)]
        return rdrop.Bidirectional(*cells) if both else rdrop.RNN(*cells)

    return one() if layers == 1 else rdrop.Stack([one() for _ in range(layers)])


def to_params(case, weights, layers, both):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

    def cell(place):
        return case.convert(*(weights[name + place] for name in names))

    def one(n):
        if not both:
            return cell(f"_l{n}")
        return {"forward": cell(f"_l{n}"), "backward": cell(f"_l{n}_reverse")}

    if layers == 1:
        return one(0)
    return {f"layers_{n}": one(n) for n in range(layers)}


def to_carry(states, layers, both):
    """PyTorch stacks the states of layers and, innermost, of directions."""
    cells = list(zip(*states[::-1], strict=True))  # (c, h) or (h,) of each place
    cells = cells if len(states) == 2 else [h for (h,) in cells]
    if both:
        cells = list(zip(cells[::2], cells[1::2], strict=True))
    return cells[0] if layers == 1 else cells


def from_carry(carry, count):
    leaves = jax.tree.leaves(carry)
    return tuple(jnp.stack(leaves[n::count]) for n in reversed(range(count)))


@pytest.mark.parametrize(
    ("case", "layers", "bidirectional", "padded"),
    quickly(
        [
            (case, layers, bidirectional, padded)
            for case in CASES
            for layers in (1, 2)
            for bidirectional in (False, True)
            for padded in (False, True)
        ],
        ("lstm", 1, True, True),
        ("gru", 2, False, True),
        ("simple", 2, True, False),
    ),
)
def test_layer_is_that_of_torch(rng, case, layers, bidirectional, padded):
    case, lengths = CASES[case], LENGTHS if padded else None
    module = case.module(layers, bidirectional)
    arguments = random_arguments(rng, case, module)
    expected = by_torch(module, arguments, lengths)
    actual = by_rdrop(case, module, arguments, lengths=lengths)
    assert_close(actual, expected, tolerance=1e-10)
    if lengths is not None:
        padding = np.arange(TIME)[None] >= np.array(lengths)[:, None]
        for (ys, *_), _ in (actual, expected):
            assert (ys[padding] == 0).all()


def drawn_by_preset(case, layers):
    """The masks of each layer, from the keys that a `Stack` gives it."""
    keys = rdrop.stream_keys(jax.random.key(0))
    sizes = [FEATURES] + [UNITS] * (layers - 1)
    return [
        rdrop.draw(
            dropout, keys.replace(layer=n), case.ours(UNITS).sites(size), BATCH, TIME
        )
        for n, (dropout, size) in enumerate(
            zip(presets.torch(RATE, layers), sizes, strict=True)
        )
    ]


def shapes_of(masks):
    return [[leaf.shape for leaf in jax.tree.leaves(mask)] for mask in masks]


@pytest.mark.parametrize("case", quickly(CASES, "simple"))
def test_dropout_between_layers_is_that_of_torch(rng, case):
    """PyTorch draws the same masks again from the same seed: they can be recorded."""
    case = CASES[case]
    module = case.module(layers=3, dropout=RATE)
    arguments = random_arguments(rng, case, module)
    torch.manual_seed(1)
    expected = by_torch(module, arguments)
    torch.manual_seed(1)
    ones = torch.ones(TIME, BATCH, UNITS, dtype=torch.float64)
    recorded = [torch.nn.functional.dropout(ones, RATE)[:, :, None] for _ in range(2)]
    masks = [Masks(), *(Masks(inputs=jnp.asarray(mask.numpy())) for mask in recorded)]
    assert shapes_of(drawn_by_preset(case, 3)) == shapes_of(masks)
    actual = by_rdrop(case, module, arguments, masks)
    assert_close(actual, expected, tolerance=1e-10)


def test_preset_is_layers_of_torch_with_a_mask_between(rng):
    """PyTorch's layers one by one; the preset draws what multiplies in between."""
    case = CASES["lstm"]
    module = case.module(layers=2)
    masks = drawn_by_preset(case, 2)
    between = torch.tensor(np.asarray(masks[1].inputs[:, :, 0]).swapaxes(0, 1))

    def unroll(module, xs, states, lengths):
        start = [(h[None], c[None]) for h, c in zip(*states, strict=True)]
        ys, lower = single(module, 0)(xs, start[0])
        ys, upper = single(module, 1)(ys * between, start[1])
        return ys, *(torch.cat(pair) for pair in zip(lower, upper, strict=True))

    arguments = random_arguments(rng, case, module)
    expected = by_torch(module, arguments, unroll=unroll)
    actual = by_rdrop(case, module, arguments, masks)
    assert_close(actual, expected, tolerance=1e-10)


def single(module, n):
    """Layer n of a stack of PyTorch's, with the very parameters of the stack."""
    size = UNITS if n else FEATURES
    layer = type(module)(size, UNITS, batch_first=True, dtype=torch.float64)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(layer, f"{name}_l0", getattr(module, f"{name}_l{n}"))
    return layer
