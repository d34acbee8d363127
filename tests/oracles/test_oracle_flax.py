"""Without noise GRU and simple recurrence are those of flax; LSTM is in test_cells.py.

Ours are given flax's own weights, by functions that are differentiated as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import rdrop

BATCH, TIME, FEATURES, UNITS = 4, 5, 2, 3
LENGTHS = np.array([5, 3, 1, 2])  # flax has no empty sequences


def gru(theirs):
    """Flax has a kernel a gate, and a recurrent bias of the candidate alone."""

    def side_by_side(prefix, name):
        return jnp.concatenate([theirs[prefix + gate][name] for gate in "zrn"], axis=-1)

    return {
        "kernel": side_by_side("i", "kernel"),
        "recurrent_kernel": side_by_side("h", "kernel"),
        "bias": side_by_side("i", "bias"),
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
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_close(actual, expected):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def random_arguments(rng, case):
    """Parameters as flax has them, inputs, and a carry."""
    h, x = jnp.zeros((BATCH, UNITS)), jnp.zeros((BATCH, FEATURES))
    shapes = jax.eval_shape(case.theirs.init, jax.random.key(0), h, x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    xs = rng.normal(size=(BATCH, TIME, FEATURES))
    return params, jnp.asarray(xs), jnp.asarray(rng.normal(size=(BATCH, UNITS)))


def with_gradients(run, arguments):
    """What `run` returns, and the gradients of a sum over it by all arguments."""

    def loss(*arguments):
        h, ys = run(*arguments)
        return (h**2).sum() + 2 * (ys**2).sum(), (h, ys)

    (_, results), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},  # compiles in less time
    )(*arguments)
    return results, gradients


@each_case
def test_without_noise_a_step_is_that_of_flax(rng, case):
    arguments = random_arguments(rng, case)

    def theirs(params, xs, h):
        return case.theirs.apply({"params": params}, h, xs[:, 0])

    def ours(params, xs, h):
        return case.ours.apply({"params": case.convert(params)}, h, xs[:, 0])

    assert_close(with_gradients(ours, arguments), with_gradients(theirs, arguments))


@pytest.mark.parametrize("reverse", [False, True])
@each_case
def test_rnns_of_flax_and_ours_agree(rng, case, reverse):
    """Where flax's outputs are padding they are not zero, as ours are."""
    arguments = random_arguments(rng, case)
    valid = jnp.arange(TIME)[None] < LENGTHS[:, None]

    def theirs(params, xs, h):
        rnn = nn.RNN(case.theirs, return_carry=True, reverse=reverse, keep_order=True)
        params = {"params": {"cell": params}}
        h, ys = rnn.apply(params, xs, initial_carry=h, seq_lengths=jnp.asarray(LENGTHS))
        return h, jnp.where(valid[..., None], ys, 0)

    def ours(params, xs, h):
        rnn = rdrop.RNN(case.ours, reverse=reverse)
        params = {"params": case.convert(params)}
        return rnn.apply(params, xs, initial_carry=h, lengths=LENGTHS)

    assert_close(with_gradients(ours, arguments), with_gradients(theirs, arguments))
