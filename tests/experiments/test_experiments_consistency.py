"""Penalties on two passes follow the papers, and vanish if both are the same."""

import tomllib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import traced_once

import rdrop
from experiments import axes
from experiments.classify import consistency
from experiments.classify.program import make_lanes
from experiments.classify.train import make_train, make_training, take
from experiments.config import ConfigError, SecondPass, Task
from experiments.engine import divide
from experiments.task import Batch
from experiments.tasks import find, japanese_vowels, label

pytestmark = pytest.mark.usefixtures("as_users_run_it")
NOISE = {"dropout.inputs.rate": 0.3, "dropout.recurrent.rate": 0.5}
SMALL = {"seeds": 1, "model.units": 4, "model.cell": "simple"}
KEY = jax.random.key(3)
TWO = ("fraternal", "r_drop")


@pytest.fixture(scope="module")
def data():
    """Of sequences of 3 steps."""
    found = find("japanese_vowels").load(Task())
    train = found.train._replace(
        inputs=found.train.inputs[:, :3], lengths=3 + 0 * found.train.lengths
    )
    return found._replace(train=jax.tree.map(jnp.asarray, train))


@pytest.fixture(scope="module")
def params(data):
    configs, lanes = prepared(data)
    return jax.jit(make_train(configs[0], japanese_vowels, data).init)(
        lane(lanes)
    ).full.params


def prepared(data, **changes):
    """The configs of a sweep, and its lanes."""
    changes = {f"second_pass.{name}": value for name, value in changes.items()}
    swept = axes.make_sweep(axes.nest(SMALL | NOISE | changes), "test")
    configs = [lane.config for lane in swept.lanes()]
    return configs, make_lanes(configs, data)


def lane(lanes, n=0):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[n]), lanes)


def losses(data, **changes):
    """A function of (params, lane), and its lanes: loss as minimised, and of labels."""
    configs, lanes = prepared(data, **changes)
    training = make_training(configs[0], japanese_vowels, data)
    batch = take(data.train, jnp.arange(10))
    return lambda params, lane: training.loss(params, lane, batch, KEY), lanes


def read(data, params, keys):
    """The outputs of a pass, and their label loss."""
    configs, lanes = prepared(data)
    training = make_training(configs[0], japanese_vowels, data)
    batch = take(data.train, jnp.arange(10))
    outputs = jax.jit(training.outputs)(params, lane(lanes).dropout, batch, keys)
    return outputs, training.task.score(outputs, batch).values["nll"].mean()


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [*TWO, "expectation_linear"])
def test_what_is_minimised_is_that_of_the_paper(data, params, penalty):
    """The first pass is that without a second one."""
    function, lanes = losses(data, penalty=penalty, weight=0.25)
    found, loss = jax.jit(function)(params, lane(lanes))
    second = rdrop.stream_keys(jax.random.fold_in(KEY, 1))
    outputs, first_loss = read(data, params, rdrop.stream_keys(KEY))
    other, second_loss = read(data, params, second if penalty in TWO else None)
    labels = (first_loss + second_loss) / 2 if penalty in TWO else first_loss
    cost = reference.r_drop if penalty == "r_drop" else reference.fraternal
    price = cost(np.float64(outputs), np.float64(other), [1.0] * 10)
    assert price > 0
    np.testing.assert_allclose(loss, labels, rtol=1e-6)
    np.testing.assert_allclose(found, labels + 0.25 * price, rtol=1e-5)


def test_without_a_difference_all_is_as_without_a_second_pass(data, params):
    """Nothing is compared at weight 0, and nothing differs where all is shared."""

    def gradient(**changes):
        function, lanes = losses(data, **changes)
        slope = jax.jit(jax.value_and_grad(function, has_aux=True))
        return slope(params, lane(lanes))

    shared = {"penalty": "fraternal", "shares": "inputs recurrent"}
    plain = gradient()
    for found in (
        gradient(penalty="expectation_linear", weight=0.0),
        gradient(weight=7.0, **shared),
    ):
        chex.assert_trees_all_close(found, plain, rtol=1e-4, atol=1e-6)


def test_one_program_serves_every_weight(data, params):
    """In proportion to it."""
    weights = [0.0, 0.5, 2.0]
    function, lanes = losses(data, penalty="fraternal", weight=weights)
    program = traced_once(function)
    found = [float(program(params, lane(lanes, n))[0]) for n in range(3)]
    assert found[1] > found[0]
    np.testing.assert_allclose(found[2] - found[0], 4 * (found[1] - found[0]), 1e-4)


def test_the_second_pass_has_other_keys_but_where_it_shares():
    first = rdrop.stream_keys(KEY)
    second = consistency.keys(SecondPass("r_drop", shares="inputs gates"), KEY, first)
    sites = [("inputs", "inputs"), ("inputs", "outputs"), ("recurrent", "gates")]
    equal = [
        bool(
            (
                jax.random.key_data(first.site(*s))
                == jax.random.key_data(second.site(*s))
            ).all()
        )
        for s in sites
    ]
    assert equal == [True, False, True]
    assert consistency.keys(SecondPass("expectation_linear"), KEY, first) is None


def test_weights_are_an_axis_of_one_program_and_survive_a_file():
    raw = {"penalty": ["fraternal", "r_drop"], "weight": [0.1, 1.0], "shares": "gates"}
    swept = axes.make_sweep({"seeds": 1, "second_pass": raw}, "test")
    parts = divide(swept.lanes())
    assert [part.structure for part in parts] == [
        {"second_pass.penalty": "fraternal"},
        {"second_pass.penalty": "r_drop"},
    ]
    again = axes.make_sweep(tomllib.loads(axes.to_toml(swept)), "test")
    assert again == swept


def test_steps_count_as_they_do_in_the_loss(rng):
    """Padding has no weight; a valid step has its weight in the label loss."""
    outputs = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    lengths = jnp.asarray([5, 3, 1], jnp.int32)
    targets = jnp.asarray(rng.integers(0, 4, (3, 5)), jnp.int32)
    batch = Batch(outputs, lengths, targets)
    score = label.score(outputs, batch)
    weights = consistency.weights(outputs, score, batch)
    np.testing.assert_array_equal(weights, np.arange(5) < np.array([[5], [3], [1]]))
    halved = score._replace(weight=score.weight / jnp.float32([1, 2, 1]))
    np.testing.assert_allclose(
        consistency.weights(outputs, halved, batch)[1], [0.5, 0.5, 0.5, 0, 0]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"penalty": "ladder"},
            "second_pass.penalty: must be 'none', 'fraternal', 'r_drop' or",
        ),
        (
            {"penalty": "fraternal", "weight": -1.0},
            "second_pass.weight: must be greater than or equal to 0, got -1.0",
        ),
        (
            {"penalty": "fraternal", "shares": "inputs weights"},
            "second_pass.shares: must be names of sites",
        ),
        (
            {"penalty": "fraternal", "shares": "inputs recurrent_weights"},
            "second_pass.shares: the second pass has no noise at recurrent_weights.",
        ),
        (
            {"penalty": "expectation_linear", "shares": "inputs"},
            "second_pass.shares: the second pass has no noise at inputs.",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(data, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepared(data, **changes)


@pytest.mark.parametrize("penalty", [*TWO, "expectation_linear"])
@pytest.mark.parametrize("method", ["none", "keras"])
def test_without_noise_there_is_nothing_to_compare(data, penalty, method):
    raw = SMALL | {"second_pass.penalty": penalty, "dropout.method": method}
    configs = [lane.config for lane in axes.make_sweep(axes.nest(raw), "test").lanes()]
    with pytest.raises(ConfigError, match=f"penalty: {penalty} compares passes that d"):
        make_lanes(configs, data)


def test_a_method_has_sites_to_share(data):
    raw = SMALL | {
        "second_pass.penalty": "fraternal",
        "second_pass.shares": "recurrent_weights",
        "dropout.method": "awd",
        "dropout.rate": [0.0, 0.5],
    }
    lanes = axes.make_sweep(axes.nest(raw), "test").lanes()
    assert len(make_lanes([lane.config for lane in lanes], data).penalty) == 2


def test_r_drop_compares_classes_only(data):
    numbers = data._replace(units={"mse": "training variances"})
    prepared(numbers, penalty="fraternal")
    with pytest.raises(
        ConfigError, match=r"r_drop compares .* and mse is not; fratern"
    ):
        prepared(numbers, penalty="r_drop")
