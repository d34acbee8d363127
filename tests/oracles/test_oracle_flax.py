"""Without noise, LSTM, GRU and simple recurrence are the ones of flax.

Ours are given flax's own weights, by functions that are differentiated as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_close, quickly

import rdrop

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3
LENGTHS = np.array([5, 3, 1, 2])  # flax has no empty sequences


def side_by_side(theirs, prefix, gates, name):
    return jnp.concatenate([theirs[prefix + gate][name] for gate in gates], axis=-1)


def lstm(theirs):
    """Flax has one kernel per gate, and its biases beside the recurrent ones."""
    return {
        "kernel": side_by_side(theirs, "i", "ifgo", "kernel"),
        "recurrent_kernel": side_by_side(theirs, "h", "ifgo", "kernel"),
        "bias": side_by_side(theirs, "h", "ifgo", "bias"),
    }


def gru(theirs):
    """Flax has one kernel per gate, and a recurrent bias of the candidate alone."""
    return {
        "kernel": side_by_side(theirs, "i", "zrn", "kernel"),
        "recurrent_kernel": side_by_side(theirs, "h", "zrn", "kernel"),
        "bias": side_by_side(theirs, "i", "zrn", "bias"),
        "recurrent_bias": theirs["hn"]["bias"],
    }


def simple(theirs):
    return {
        "kernel": theirs["i"]["kernel"],
        "recurrent_kernel": theirs["h"]["kernel"],
        "bias": theirs["i"]["bias"],
    }


class Case(NamedTuple):
    """A cell of flax, the same of ours, and our parameters of flax's."""

    theirs: nn.RNNCellBase
    ours: rdrop.Cell
    convert: object


CASES = {
    "lstm": Case(
        nn.LSTMCell(UNITS, param_dtype=jnp.float64),
        rdrop.LSTMCell(UNITS, param_dtype=jnp.float64),
        lstm,
    ),
    "gru": Case(
        nn.GRUCell(UNITS, param_dtype=jnp.float64),
        rdrop.GRUCell(UNITS, param_dtype=jnp.float64),
        gru,
    ),
    "simple": Case(
        nn.SimpleCell(UNITS, param_dtype=jnp.float64, residual=False),
        rdrop.SimpleCell(UNITS, param_dtype=jnp.float64),
        simple,
    ),
}


def random_arguments(rng, case):
    """Parameters as flax has them, inputs, and a carry."""
    key, x = jax.random.key(0), jnp.zeros((BATCH, FEATURES))
    zeros = case.ours.initialize_carry(key, x.shape)
    params = jax.eval_shape(case.theirs.init, key, zeros, x)["params"]
    xs = jnp.zeros((BATCH, TIME, FEATURES))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (params, xs, zeros)
    )


def with_gradients(run, arguments):
    """What `run` returns, and the gradients of a sum over it by all arguments."""

    def loss(*arguments):
        results = run(*arguments)
        leaves = enumerate(jax.tree.leaves(results), start=1)
        return sum(n * (leaf**2).sum() for n, leaf in leaves), results

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, results), gradients = jax.jit(gradient)(*arguments)
    return results, gradients


@pytest.mark.parametrize("case", quickly(CASES, "simple"))
def test_without_noise_a_step_is_that_of_flax(rng, case):
    case = CASES[case]
    arguments = random_arguments(rng, case)

    def theirs(params, xs, carry):
        return case.theirs.apply({"params": params}, carry, xs[:, 0])

    def ours(params, xs, carry):
        return case.ours.apply({"params": case.convert(params)}, carry, xs[:, 0])

    expected = with_gradients(theirs, arguments)
    assert_close(with_gradients(ours, arguments), expected, tolerance=1e-10)


@pytest.mark.parametrize(
    ("case", "reverse"),
    quickly(
        [(case, reverse) for case in CASES for reverse in (False, True)],
        ("lstm", False),
        ("gru", True),
    ),
)
def test_rnns_of_flax_and_ours_agree(rng, case, reverse):
    """Padded outputs of flax are not zero, as ours are."""
    case = CASES[case]
    arguments = random_arguments(rng, case)
    valid = jnp.arange(TIME)[None] < LENGTHS[:, None]

    def theirs(params, xs, carry):
        rnn = nn.RNN(case.theirs, return_carry=True, reverse=reverse, keep_order=True)
        params = {"params": {"cell": params}}
        options = {"initial_carry": carry, "seq_lengths": jnp.asarray(LENGTHS)}
        carry, ys = rnn.apply(params, xs, **options)
        return carry, jnp.where(valid[..., None], ys, 0)

    def ours(params, xs, carry):
        rnn = rdrop.RNN(case.ours, reverse=reverse)
        params = {"params": case.convert(params)}
        return rnn.apply(params, xs, initial_carry=carry, lengths=LENGTHS)

    expected = with_gradients(theirs, arguments)
    assert_close(with_gradients(ours, arguments), expected, tolerance=1e-10)
