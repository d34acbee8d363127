"""Keras' cells and layers are ours, given our masks; its masks are the preset's.

Keras on JAX computes its own tanh in float32 whatever the dtype. The cells are
therefore compared in float64 with JAX's tanh, and the layers in float32 exactly as
Keras has them.
"""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, quickly

import rdrop
from rdrop import Masks, presets

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported
keras = pytest.importorskip("keras")

BATCH, TIME, FEATURES, UNITS = 8, 3, 4, 3


@pytest.fixture(autouse=True)
def lenient():
    """Lets Keras promote dtypes and ranks as it is used to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Case(NamedTuple):
    """A cell of Keras, a layer of it, and the same cell of ours."""

    theirs: str
    ours: type[rdrop.Cell]
    options: dict

    def cell(self, *rates, **options):
        return self._build("Cell", *rates, **options)

    def layer(self, *rates, **options):
        return self._build("", *rates, **options)

    def _build(self, kind, dropout, recurrent_dropout=0.0, **options):
        return getattr(keras.layers, self.theirs + kind)(
            UNITS,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            **self.options,
            **options,
        )

    def preset(self, dropout, recurrent_dropout=0.0):
        """Keras' preset has one mask per gate; without gates it is Gal's."""
        if recurrent_dropout and self.ours is rdrop.SimpleCell:
            return presets.gal(dropout, recurrent_dropout)
        return presets.keras(dropout, recurrent_dropout)

    def draw(self, rates):
        sites = self.ours(UNITS).sites(FEATURES)
        dropout, keys = self.preset(*rates), rdrop.stream_keys(jax.random.key(0))
        return jax.jit(lambda keys: rdrop.draw(dropout, keys, sites, BATCH))(keys)


CASES = {
    "lstm": Case("LSTM", rdrop.LSTMCell, {}),
    "gru_reset_after": Case("GRU", rdrop.GRUCell, {"reset_after": True}),
    "gru_reset_before": Case("GRU", rdrop.GRUCell, {"reset_after": False}),
    "simple": Case("SimpleRNN", rdrop.SimpleCell, {}),
}
RATES = {"dropout": (0.3,), "both": (0.3, 0.4)}  # implementations 2 and 1 of Keras
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def random_arguments(rng, case, shapes, dtype):
    """Weights as Keras has them, inputs, and a carry as we have it."""
    state = rng.normal(size=(2, BATCH, UNITS))
    carry = tuple(state) if case.ours is rdrop.LSTMCell else state[0]
    weights = [rng.normal(size=shape) for shape in shapes]
    xs = rng.normal(size=(BATCH, TIME, FEATURES))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (weights, xs, carry))


def with_gradients(run, arguments):
    """What `run` returns, and the gradients of a sum over it by all arguments."""

    def loss(*arguments):
        results = run(*arguments)
        leaves = enumerate(jax.tree.leaves(results), start=1)
        return sum(n * (leaf**2).sum() for n, leaf in leaves), results

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, results), gradients = jax.jit(gradient)(*arguments)
    return results, gradients


def to_ours(case, weights):
    """Weights of Keras as our parameters."""
    kernel, recurrent_kernel, bias = weights
    params = {"kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias}
    if bias.ndim == 2:
        z_and_r = bias[1].at[2 * UNITS :].set(0)
        params["bias"] = bias[0] + z_and_r
        params["recurrent_bias"] = bias[1, 2 * UNITS :]
    return {"params": params}


def to_keras(carry):
    """Our carry as the states of Keras: (c, h) is [h, c] there."""
    return list(carry[::-1]) if isinstance(carry, tuple) else [carry]


def from_keras(states):
    return tuple(states[::-1]) if len(states) == 2 else states[0]


def inject(cell, masks: Masks, dtype):
    """Puts masks where Keras keeps those that it has drawn."""
    cell._dropout_mask = as_keras(cell, masks.inputs, dtype)
    cell._recurrent_dropout_mask = as_keras(cell, masks.recurrent, dtype)


def as_keras(cell, mask, dtype):
    """One array, or a list of one per gate if Keras asks for several."""
    if mask is None:
        return None
    parts = list(jnp.moveaxis(mask.astype(dtype), -2, 0))
    return parts if getattr(cell, "dropout_mask_count", None) else parts[0]


def by_keras_cell(cell, training=True):
    def run(weights, xs, carry):
        states, ys = to_keras(carry), []
        others = [variable.value for variable in cell.non_trainable_variables]
        for t in range(TIME):
            (y, states), _ = cell.stateless_call(
                weights, others, xs[:, t], states, training=training
            )
            ys.append(y)
        return from_keras(states), jnp.stack(ys, axis=1)

    return run


def by_rdrop(case, dropout, dtype, lengths=None, reverse=False):
    rnn = rdrop.RNN(
        case.ours(UNITS, param_dtype=dtype, **case.options), reverse=reverse
    )

    def run(weights, xs, carry):
        params = to_ours(case, weights)
        return rnn.apply(params, xs, dropout, initial_carry=carry, lengths=lengths)

    return run


def float64_cell(case, *rates):
    cell = case.cell(*rates, activation=jnp.tanh, dtype="float64")
    cell.build((BATCH, FEATURES))
    return cell, [variable.shape for variable in cell.trainable_variables]


@pytest.mark.parametrize(
    ("case", "rates"),
    quickly(
        [(case, rates) for case in CASES for rates in RATES],
        ("gru_reset_before", "both"),
        ("simple", "dropout"),
    ),
)
def test_cell_is_that_of_keras_given_our_masks(rng, case, rates):
    case, rates = CASES[case], RATES[rates]
    cell, shapes = float64_cell(case, *rates)
    arguments = random_arguments(rng, case, shapes, jnp.float64)
    masks = case.draw(rates)
    inject(cell, masks, jnp.float64)
    expected = with_gradients(by_keras_cell(cell), arguments)
    actual = with_gradients(by_rdrop(case, masks, jnp.float64), arguments)
    assert_close(actual, expected, tolerance=1e-10)


@pytest.mark.parametrize("case", quickly(CASES, "lstm", "gru_reset_after"))
def test_evaluation_is_that_of_keras(rng, case):
    case = CASES[case]
    cell, shapes = float64_cell(case, *RATES["both"])
    arguments = random_arguments(rng, case, shapes, jnp.float64)
    expected = jax.jit(by_keras_cell(cell, training=False))(*arguments)
    ours = by_rdrop(case, case.preset(*RATES["both"]), jnp.float64)
    assert_close(jax.jit(ours)(*arguments), expected, tolerance=1e-10)


def by_keras_layer(layer, masks, lengths, reverse):
    valid = jnp.arange(TIME)[None] < lengths[:, None]

    def run(weights, xs, carry):
        inject(layer.cell, masks, jnp.float32)  # the layer clears them after use
        others = [variable.value for variable in layer.non_trainable_variables]
        (ys, *states), _ = layer.stateless_call(
            weights,
            others,
            xs,
            initial_state=to_keras(carry),
            mask=valid,
            training=True,
        )
        return from_keras(states), ys[:, ::-1] if reverse else ys

    return run


@pytest.mark.parametrize(
    ("case", "rates", "reverse"),
    quickly(
        [
            ("lstm", "dropout", False),
            ("lstm", "both", True),
            ("gru_reset_after", "both", True),
            ("gru_reset_before", "both", False),
            ("simple", "both", True),
        ],
        ("lstm", "both", True),
    ),
)
def test_layer_is_that_of_keras_given_our_masks(rng, case, rates, reverse):
    """With padding, and an empty sequence, in both directions."""
    case, rates = CASES[case], RATES[rates]
    lengths = jnp.array([TIME, 1, 2, 0] * 2)
    layer = case.layer(
        *rates,
        return_sequences=True,
        return_state=True,
        zero_output_for_mask=True,
        go_backwards=reverse,
    )
    layer.build((BATCH, TIME, FEATURES))
    shapes = [variable.shape for variable in layer.trainable_variables]
    arguments = random_arguments(rng, case, shapes, jnp.float32)
    masks = case.draw(rates)
    theirs = by_keras_layer(layer, masks, lengths, reverse)
    ours = by_rdrop(case, masks, jnp.float32, lengths, reverse)
    expected = with_gradients(theirs, arguments)
    assert_close(with_gradients(ours, arguments), expected, 2e-5)


def drawn_by_keras(cell):
    """The masks (B, G, U) that a cell holds after a step of training."""
    states = cell.get_initial_state(batch_size=BATCH)
    cell(jnp.ones((BATCH, FEATURES)), states, training=True)
    inputs = getattr(cell, "_dropout_mask", None)
    recurrent = getattr(cell, "_recurrent_dropout_mask", None)
    return Masks(inputs=from_masks(inputs), recurrent=from_masks(recurrent))


def from_masks(masks):
    """A mask of Keras, or its list of one per gate, with the axes of ours."""
    if masks is None:
        return None
    return jnp.stack(masks if isinstance(masks, list) else [masks], axis=1)


@pytest.mark.parametrize(
    ("case", "rates"),
    quickly(
        [(case, r) for case in CASES for r in ((0.3,), (0.0, 0.4), (0.3, 0.4))],
        ("lstm", (0.3,)),
        ("gru_reset_after", (0.3, 0.4)),
    ),
)
def test_keras_draws_the_masks_that_the_preset_has(case, rates):
    """As many, of the same shape and values, and held over the steps."""
    case = CASES[case]
    cell = case.cell(*rates, seed=0)
    first, second = drawn_by_keras(cell), drawn_by_keras(cell)
    ours = case.draw(rates)
    for site, rate in zip(("inputs", "recurrent"), (*rates, 0.0), strict=False):
        theirs, mask = getattr(first, site), getattr(ours, site)
        if rate == 0:
            assert theirs is None
            assert mask is None or (mask == 1).all()
            continue
        assert theirs.shape == mask.shape
        for drawn in (theirs, mask):
            np.testing.assert_allclose(np.unique(drawn), [0, 1 / (1 - rate)], 1e-6)
            gates = np.moveaxis(np.asarray(drawn), 1, 0)
            assert len({gate.tobytes() for gate in gates}) == len(gates)
        np.testing.assert_array_equal(theirs, getattr(second, site))


@each_case
def test_keras_ignores_a_rate_of_one_if_the_preset_says_so(case):
    cell = case.cell(1.0, 1.0)
    states = [jnp.ones((BATCH, UNITS))] * len(cell.get_initial_state(batch_size=1))
    x = jnp.ones((BATCH, FEATURES))
    trained, evaluated = (cell(x, states, training=on)[0] for on in (True, False))
    ignored = np.array_equal(trained, evaluated)
    assert ignored == (case.ours is not rdrop.SimpleCell)


def test_dropout_changes_the_recurrent_masks_of_keras_but_not_ours():
    """Keras draws both from one generator; we have a stream for each."""
    case, (without, beside) = CASES["lstm"], ((0.0, 0.4), (0.3, 0.4))
    theirs = [drawn_by_keras(case.cell(*rates, seed=0)) for rates in (without, beside)]
    assert not np.array_equal(theirs[0].recurrent, theirs[1].recurrent)
    ours = [case.draw(rates) for rates in (without, beside)]
    np.testing.assert_array_equal(ours[0].recurrent, ours[1].recurrent)
