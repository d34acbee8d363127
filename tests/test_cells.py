"""The LSTM is the papers' (reference.py) and flax's; wrong arguments are refused."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn

import rdrop
from rdrop import Masks

SITES = ("inputs", "outputs", "recurrent", "update")
SUBSETS = [s for n in range(5) for s in itertools.combinations(SITES, n)]


def assert_close(actual, expected):
    """Both are a carry and outputs."""
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def only(masks, sites):
    return Masks(**{name: getattr(masks, name) for name in sites})


def by_cell(problem, masks):
    """The cell step by step, given the masks of each step."""
    steps = jax.tree.map(
        lambda mask: jnp.broadcast_to(mask, (5, *mask.shape[-3:])), masks
    )

    def step(carry, x_and_masks):
        return problem.cell.apply(problem.params, carry, *x_and_masks)

    carry, ys = jax.lax.scan(step, problem.carry, (problem.xs.swapaxes(0, 1), steps))
    return carry, ys.swapaxes(0, 1)


def by_rnn(problem, masks, lengths=None, reverse=False):
    rnn = rdrop.RNN(problem.cell, reverse=reverse)
    return rnn.apply(
        problem.params, problem.xs, masks, initial_carry=problem.carry, lengths=lengths
    )


def by_reference(problem, masks, lengths=(5, 5, 5, 5), reverse=False):
    batch, time, features = problem.xs.shape
    sizes = {"inputs": (4, features), "recurrent": (4, 3), "update": (1, 3)}
    dense = {
        name: np.broadcast_to(
            1.0 if (mask := getattr(masks, name)) is None else np.float64(mask),
            (time, batch, *sizes.get(name, (1, 3))),
        )
        for name in SITES
    }
    xs, c, h, weights = jax.tree.map(
        np.asarray, (problem.xs, *problem.carry, problem.params["params"])
    )
    examples = [
        reference.lstm(
            xs[n],
            c[n],
            h[n],
            weights["kernel"],
            weights["recurrent_kernel"],
            weights["bias"],
            dense["inputs"][:, n],
            dense["recurrent"][:, n],
            dense["update"][:, n, 0],
            dense["outputs"][:, n, 0],
            lengths[n],
            reverse,
        )
        for n in range(batch)
    ]
    ys, c, h = (np.stack(results) for results in zip(*examples, strict=True))
    return (c, h), ys


OPTIONS = [  # each pair of options meets
    {"gates": "shared", "per": "sequence", "batch": "each"},
    {"gates": "shared", "per": "step", "batch": "shared"},
    {"gates": "each", "per": "sequence", "batch": "shared"},
    {"gates": "each", "per": "step", "batch": "each"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_cell_and_rnn_match_the_equations(problem, every_site, options):
    @jax.jit
    def run(masks):
        chosen = [only(masks, subset) for subset in SUBSETS]
        return [(by_cell(problem, m), by_rnn(problem, m)) for m in chosen]

    for scale in ("inverted", "expectation"):
        masks = problem.draw(every_site(0.4, scale=scale, **options), time=5)
        for subset, (from_cell, from_rnn) in zip(SUBSETS, run(masks), strict=True):
            expected = by_reference(problem, only(masks, subset))
            assert_close(from_cell, expected)
            assert_close(from_rnn, expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gates", ["shared", "each"])
def test_padded_rnn_matches_the_equations(problem, every_site, gates, reverse):
    masks = problem.draw(every_site(0.4, gates=gates, per="step"), time=5)
    arguments = (problem, masks, problem.lengths, reverse)
    assert_close(by_rnn(*arguments), by_reference(*arguments))


def test_definition_by_masks_is_the_definition_by_keys(problem, every_site):
    dropout = every_site(0.4, gates="each", per="step")
    arguments = (problem.params, problem.carry, problem.xs[:, 0])
    expected = problem.cell.apply(*arguments, problem.draw(dropout))
    assert_close(problem.cell.apply(*arguments, dropout, problem.keys), expected)


def test_outputs_mask_leaves_the_carry_alone(problem):
    mask = jnp.zeros((4, 1, 3), jnp.float32)
    (_, h), y = problem.cell.apply(
        problem.params, problem.carry, problem.xs[:, 0], Masks(outputs=mask)
    )
    assert (y == 0).all()
    assert (h != 0).all()


def flax_params(params):
    """Our kernels as those of flax.linen.LSTMCell, whose gates have one each."""
    kernel, recurrent, bias = (
        jnp.split(params["params"][name], 4, axis=-1)
        for name in ("kernel", "recurrent_kernel", "bias")
    )
    tree = {f"i{gate}": {"kernel": kernel[n]} for n, gate in enumerate("ifgo")}
    tree |= {
        f"h{gate}": {"kernel": recurrent[n], "bias": bias[n]}
        for n, gate in enumerate("ifgo")
    }
    return {"params": tree}


def test_without_noise_a_step_is_that_of_flax(problem):
    theirs = nn.LSTMCell(3, param_dtype=jnp.float64)
    arguments = (problem.carry, problem.xs[:, 0])
    expected = theirs.apply(flax_params(problem.params), *arguments)
    assert_close(problem.cell.apply(problem.params, *arguments), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_rnns_of_flax_and_ours_agree(problem, reverse):
    """Flax's RNN of flax's cell, of our cell, and our RNN."""
    options = {"return_carry": True, "reverse": reverse, "keep_order": True}
    lengths = jnp.array([5, 3, 1, 2])  # flax has no empty sequences
    theirs = nn.RNN(nn.LSTMCell(3, param_dtype=jnp.float64), **options)
    mixed = nn.RNN(problem.cell, **options)
    ours = rdrop.RNN(problem.cell, reverse=reverse)

    def nested(params):
        return {"params": {"cell": params["params"]}}

    carry = {"initial_carry": problem.carry}
    outputs = [
        theirs.apply(
            nested(flax_params(problem.params)),
            problem.xs,
            seq_lengths=lengths,
            **carry,
        ),
        mixed.apply(nested(problem.params), problem.xs, seq_lengths=lengths, **carry),
        ours.apply(problem.params, problem.xs, lengths=lengths, **carry),
    ]
    valid = np.arange(5)[None] < np.asarray(lengths)[:, None]
    (expected_carry, expected), *others = outputs
    for other_carry, ys in others:
        assert_close((other_carry, ys[valid]), (expected_carry, expected[valid]))


def test_flax_rnn_initialises_our_cell(problem):
    rnn = nn.RNN(problem.cell)
    params = rnn.init(jax.random.key(0), problem.xs)
    ys = rnn.apply(params, problem.xs)
    expected = rdrop.RNN(problem.cell).apply(
        {"params": params["params"]["cell"]}, problem.xs
    )
    assert_close(ys, expected[1])


@pytest.fixture
def initial():
    cell = rdrop.LSTMCell(8)
    x = jnp.ones((2, 5), jnp.float32)
    carry = cell.initialize_carry(jax.random.key(0), x.shape)
    return cell.init(jax.random.key(0), carry, x)["params"]


def test_initial_bias_is_one_for_the_forget_gate(initial):
    np.testing.assert_array_equal(initial["bias"], np.repeat([0, 1, 0, 0], 8))


def test_initial_recurrent_kernel_is_orthogonal(initial):
    kernel = initial["recurrent_kernel"]
    assert kernel.shape == (8, 32)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), atol=1e-5)


def test_initial_kernel_is_glorot_uniform(initial):
    kernel = initial["kernel"]
    bound = math.sqrt(6 / (5 + 32))
    assert kernel.shape == (5, 32)
    assert abs(kernel).max() <= bound
    assert kernel.max() > 0.9 * bound
    assert kernel.min() < -0.9 * bound


def test_initial_carry_is_zero_in_its_dtypes():
    cell = rdrop.LSTMCell(8, dtype=jnp.bfloat16)
    c, h = cell.initialize_carry(jax.random.key(0), (2, 5))
    assert (c.shape, c.dtype, h.shape, h.dtype) == (
        (2, 8), jnp.float32, (2, 8), jnp.bfloat16
    )  # fmt: skip
    assert not c.any()
    assert not h.any()


def test_half_precision_computes_close_to_full(problem, every_site):
    full = rdrop.LSTMCell(3)
    half = rdrop.LSTMCell(3, dtype=jnp.bfloat16)
    params, xs = jax.tree.map(jnp.float32, (problem.params, problem.xs))
    masks = problem.draw(every_site(0.4, gates="each", per="step"), time=5)
    _, expected = rdrop.RNN(full).apply(params, xs, masks)
    (c, h), ys = rdrop.RNN(half).apply(params, xs, masks)
    assert (c.dtype, h.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(np.float32(ys), expected, atol=0.05)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2,), (4, 5, 2)])
def test_input_of_a_wrong_rank_is_refused(problem, shape):
    message = r"`x` must have the axes \[B, D\], got shape \(" + str(shape[0])
    with pytest.raises(ValueError, match=message):
        problem.cell.apply(problem.params, problem.carry, jnp.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_input_of_other_features_is_refused(problem):
    message = r"inputs must have 2 features, as the parameters do, got shape \(4, 7\)"
    with pytest.raises(ValueError, match=message):
        problem.cell.apply(problem.params, problem.carry, jnp.zeros((4, 7)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shapes", [[(3, 3)] * 2, [(4, 7)] * 2, [(4, 3)], [(3,)] * 2])
def test_carry_of_a_wrong_shape_is_refused(problem, shapes):
    carry = tuple(jnp.zeros(shape) for shape in shapes)
    message = r"`carry` must be \(c, h\), each of shape \[B, H\] = \(4, 3\), got \[\("
    with pytest.raises(ValueError, match=message):
        problem.cell.apply(problem.params, carry, problem.xs[:, 0])
