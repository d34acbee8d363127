"""Wrong values of the arguments of cells and layers are refused by name.

Arguments that do not exist are in tests/cells/test_wrong_uses.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rdrop
from rdrop import Bernoulli, Dropout
from rdrop import nnx as rnnx

GRUCell = functools.partial(rdrop.GRUCell, param_dtype=jnp.float64)
NOISE = Dropout(inputs=Bernoulli(0.4, per="step"), recurrent=Bernoulli(0.5))


def apply(problem, xs=None, time_major=False, **arguments):
    rnn = rdrop.RNN(problem.cell, time_major=time_major)
    return rnn.apply(problem.params, problem.xs if xs is None else xs, **arguments)


@pytest.mark.parametrize("shape", [(4, 2), (4, 5, 2, 1)])
@pytest.mark.parametrize("time_major", [False, True])
def test_inputs_of_a_wrong_rank_are_refused(problem, shape, time_major):
    axes = "T, B, D" if time_major else "B, T, D"
    message = rf"`xs` must have the axes \[{axes}\], got shape \(4, [25]"
    with pytest.raises(ValueError, match=message):
        apply(problem, jnp.zeros(shape), time_major)


def test_inputs_of_other_features_are_refused(problem):
    message = "`xs` must have 2 features, as the parameters do, got 7"
    with pytest.raises(ValueError, match=message):
        apply(problem, jnp.zeros((4, 5, 7)))


def tuple_of(*shapes, dtype=float):
    return tuple(jnp.zeros(shape, dtype) for shape in shapes)


WRONG_CARRIES = {
    "batch": (tuple_of((5, 3), (5, 3)), "tuple of float64[5, 3], float64[5, 3]"),
    "units": (tuple_of((4, 7), (4, 7)), "tuple of float64[4, 7], float64[4, 7]"),
    "one": (tuple_of((4, 3)), "tuple of float64[4, 3]"),
    "h": (jnp.zeros((4, 3)), "float64[4, 3]"),
    "integers": (
        tuple_of((4, 3), (4, 3), dtype=np.int32),
        "tuple of int32[4, 3], int32[4, 3]",
    ),
    "booleans": (
        (jnp.zeros((4, 3)), jnp.zeros((4, 3), bool)),
        "tuple of float64[4, 3], bool[4, 3]",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", WRONG_CARRIES)
@pytest.mark.parametrize("face", [rdrop, rnnx])
def test_initial_carry_of_a_wrong_shape_or_dtype_is_refused(problem, face, wrong):
    """In both faces, and by cells as well."""
    carry, got = WRONG_CARRIES[wrong]
    calls = {
        "initial_carry": functools.partial(apply, problem, initial_carry=carry),
        "carry": lambda: problem.cell.apply(problem.params, carry, problem.xs[:, 0]),
    }
    if face is rnnx:
        cell = rnnx.from_linen(problem.cell, problem.params)
        calls = {
            "initial_carry": lambda: rnnx.RNN(cell)(problem.xs, initial_carry=carry),
            "carry": lambda: cell(carry, problem.xs[:, 0]),
        }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"`{name}` must be") as error:
            call()
        assert str(error.value) == (
            f"`{name}` must be a tuple (c, h), each of floats of shape [B, H] = "
            f"(4, 3), got {got}."
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [np.int32, bool])
@pytest.mark.parametrize("name", ["GRUCell", "SimpleCell", "MinGRUCell"])
def test_integer_h_is_refused(name, dtype):
    """Its step would be rounded to integers."""
    xs, h = jnp.zeros((4, 5, 2)), jnp.zeros((4, 3), dtype)
    message = (
        rf"must be h of floats of shape \[B, H\] = \(4, 3\), got {h.dtype}\[4, 3\]"
    )
    cell = getattr(rnnx, name)(2, 3, rngs=nnx.Rngs(0))
    linen, params = rnnx.to_linen(cell)
    calls = [
        lambda: cell(h, xs[:, 0]),
        lambda: rnnx.RNN(cell)(xs, initial_carry=h),
        lambda: linen.apply(params, h, xs[:, 0]),
        lambda: rdrop.RNN(linen).apply(params, xs, initial_carry=h),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("lengths", [[5, 6, 1, 0], [5, -1, 1, 0]])
@pytest.mark.parametrize("array", [np.array, jnp.array, list])
def test_lengths_outside_the_sequence_are_refused(problem, lengths, array):
    message = r"`lengths` must lie in \[0, T = 5\], got \[ ?5 +(6|-1)"
    with pytest.raises(ValueError, match=message):
        apply(problem, lengths=array(lengths))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        (3, r"int64\[\]"),
        ([5, 3], r"int64\[2\]"),
        ([5.0, 3, 1, 0], r"float64\[4\]"),
        (np.array([5, 3, 1]), r"int64\[3\]"),
        (np.array([[5, 3, 1, 0]]), r"int64\[1, 4\]"),
        (np.array([True, True, False, False]), r"bool\[4\]"),
    ],
)
def test_lengths_of_a_wrong_kind_are_refused(problem, lengths, got):
    message = rf"`lengths` must be integers of shape \[B\] = \(4,\), got {got}"
    with pytest.raises(ValueError, match=message):
        apply(problem, lengths=lengths)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("keys", [jax.random.PRNGKey(0), jax.random.key(0), 3])
def test_keys_that_are_no_stream_keys_are_refused(problem, keys):
    message = "`keys` must be StreamKeys, made by rdrop.stream_keys"
    with pytest.raises(TypeError, match=message):
        apply(problem, dropout=NOISE, keys=keys)


@pytest.mark.usefixtures("unchecked")
def test_untyped_keys_are_refused(problem):
    raw = jax.random.PRNGKey(0)
    keys = rdrop.StreamKeys(inputs=raw, recurrent=raw)
    message = r"`keys.inputs` must be a typed PRNG key .*, got uint32\[2\]"
    with pytest.raises(TypeError, match=message):
        apply(problem, dropout=NOISE, keys=keys)


@pytest.mark.parametrize("with_keys", [False, True])
def test_rate_that_does_not_fit_is_refused_in_training_and_evaluation(
    problem, with_keys
):
    dropout = Dropout(recurrent=Bernoulli(jnp.zeros(7)))
    keys = problem.keys if with_keys else None
    message = r"Site `recurrent`: `rate` must broadcast .*\(4, 1, 3\), got shape \(7,\)"
    with pytest.raises(ValueError, match=message):
        apply(problem, dropout=dropout, keys=keys)


@pytest.mark.usefixtures("unchecked")
def test_one_entry_is_needed_for_each_layer_and_direction(problem):
    stack = rdrop.Stack([rdrop.RNN(GRUCell(2)), rdrop.RNN(GRUCell(3))])
    both = rdrop.Bidirectional(GRUCell(2), GRUCell(2))
    for layers in (stack, both):
        shapes = jax.eval_shape(layers.init, jax.random.key(0), problem.xs)
        params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
        for argument in ({"dropout": [NOISE] * 3}, {"initial_carry": (None,)}):
            ((name, value),) = argument.items()
            message = f"`{name}` must have 2 entries, one for each, got {len(value)}"
            with pytest.raises(ValueError, match=message):
                layers.apply(params, problem.xs, **argument)


@pytest.mark.parametrize("face", [rdrop, rnnx])
def test_modules_that_stand_twice_are_refused(face):
    cell = GRUCell(2) if face is rdrop else rnnx.GRUCell(2, 2, rngs=nnx.Rngs(0))
    layer = face.RNN(cell)
    message = "must be distinct modules; the same instance was given twice"
    with pytest.raises(ValueError, match=f"`layers` {message}"):
        face.Stack([layer, layer])
    with pytest.raises(ValueError, match=f"`forward, backward` {message}"):
        face.Bidirectional(cell, cell)
