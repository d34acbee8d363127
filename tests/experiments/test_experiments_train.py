"""A lane trains on what it may see, is judged in expectation, and marked if lost."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from experiments import axes
from experiments.classify.model import dropout_of
from experiments.classify.program import make_lanes
from experiments.classify.splits import split
from experiments.classify.train import NEVER, evaluate, make_train, make_training, take
from experiments.config import ConfigError, Task
from experiments.tasks import find

pytestmark = pytest.mark.usefixtures("as_users_run_it")
SMALL = {
    "seeds": 1,
    "model": {"units": 4, "cell": "simple"},
    "train": {"epochs": 2, "evaluate_every": 1},
}
NO_NOISE = rdrop.Dropout()
LSTM = {"model.cell": "lstm"}


@pytest.fixture(scope="module")
def data():
    return on_device(find("japanese_vowels").load(Task()))


def on_device(data):
    splits = {name: getattr(data, name) for name in ("train", "test", "valid")}
    return data._replace(**jax.tree.map(jnp.asarray, splits))


@pytest.fixture(scope="module")
def lstm(data):
    """The parameters of an LSTM."""
    found = configs(**LSTM)
    lane = first_lane(make_lanes(found, data))
    return jax.jit(make_train(found[0], find("japanese_vowels"), data).init)(
        lane
    ).full.params


def configs(**changes):
    raw = axes.nest(axes.flatten(SMALL) | changes)
    return [lane.config for lane in axes.make_sweep(raw, "test").lanes()]


def first_lane(lanes):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), lanes)


def trained(data, task="japanese_vowels", evaluations=1, **changes):
    """The models and metrics of a lane after some evaluations."""
    found = configs(**changes)
    lane = first_lane(make_lanes(found, data))
    functions = make_train(found[0], find(task), data)
    models = jax.jit(functions.init)(lane)
    advance = jax.jit(functions.advance)
    for _ in range(evaluations):
        models, metrics = advance(models, lane)
    return models, metrics, lane


def same(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all((a == b).all() for a, b in pairs)


@pytest.mark.slow
def test_held_out_sequences_are_not_trained_on(data):
    _, _, lane = trained(data)
    spoilt = data.train.targets.at[lane.valid].set(0)
    other = data._replace(train=data.train._replace(targets=spoilt))
    clean, changed = trained(data)[0], trained(other)[0]
    assert same(clean.held_out.params, changed.held_out.params)
    assert not same(clean.full.params, changed.full.params)


@pytest.mark.slow
def test_test_sequences_are_not_trained_on_or_chosen_by(data):
    spoilt = data._replace(test=data.test._replace(targets=0 * data.test.targets))
    (clean, first, _), (changed, second, _) = trained(data), trained(spoilt)
    assert same(clean, changed)
    assert first["valid_nll"] == second["valid_nll"]
    assert first["test_nll"] != second["test_nll"]


@pytest.mark.parametrize("start", [0.1, pytest.param(0.6, marks=pytest.mark.slow)])
def test_a_rate_is_learned_and_a_validation_split_makes_one_model_do(data, start):
    """The rate moves from where it starts; the split is one that the task gives."""
    learn = {
        "dropout.inputs.kind": "concrete",
        "dropout.inputs.rate": start,
        "dropout.inputs.learn": True,
        "train.learning_rate": 1e-2,
    }
    models, metrics, lane = trained(data._replace(valid=data.test), **learn)
    rate = jax.nn.sigmoid(models.full.params["rates"]["inputs"])
    assert metrics["rate_inputs"] == rate
    assert 0.001 < abs(rate - start) < 0.1
    assert models.held_out is None
    assert lane.fit is None
    assert metrics["valid_nll"] == metrics["test_nll"]


@pytest.mark.parametrize("strata", [True, False])
def test_a_share_of_each_stratum_is_held_out(data, strata):
    speakers = np.asarray(data.train.targets)
    fit, valid = split(data._replace(strata=speakers if strata else None), 0.2, (0, 1))
    assert sorted([*fit, *valid]) == list(range(270))
    assert len(valid) == 54
    counts = np.bincount(speakers[valid], minlength=9)
    assert (counts == 6).all() == strata


@pytest.mark.parametrize(
    ("dropout", "factor"),
    [
        ({"dropout.recurrent.rate": 0.5}, None),
        ({"dropout.inputs.rate": 0.5, "dropout.inputs.scale": "expectation"}, 0.5),
        ({"dropout.method": "zoneout", "dropout.rate": 0.5}, "mix"),
    ],
)
def test_evaluation_is_in_expectation_over_the_noise(data, lstm, dropout, factor):
    """Inverted noise vanishes; a factor, or the mix of zoneout, stays."""
    found = configs(**LSTM, **dropout)
    task = find("japanese_vowels")
    lane = first_lane(make_lanes(found, data))
    training = make_training(found[0], task, data)
    few = take(data.test, slice(20))

    def by_hand(params):
        noise = {None: None, 0.5: lane.dropout, "mix": lane.dropout}[factor]
        lstm, readout = params["LSTMCell_0"], params["readout"]
        _, ys = rdrop.RNN(rdrop.LSTMCell(4)).apply(
            {"params": lstm}, few.inputs, noise, lengths=few.lengths
        )
        last = ys[jnp.arange(len(ys)), few.lengths - 1]
        logits = last @ readout["kernel"] + readout["bias"][None]
        return task.score(logits, few).values["nll"].mean()

    @jax.jit
    def run(params):
        actual, plain = (
            evaluate(training, params, noise, few)["nll"]
            for noise in (lane.dropout, NO_NOISE)
        )
        return by_hand(params["network"]["params"]), actual, plain

    expected, actual, plain = run(lstm)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert (actual == plain) == (factor is None)


def test_many_sequences_are_evaluated_in_parts_to_the_same_figures(
    data, lstm, monkeypatch
):
    training = make_training(configs(**LSTM)[0], find("japanese_vowels"), data)
    few = take(data.test, slice(50))
    figures = []
    for most in (100, 20):
        monkeypatch.setattr("experiments.classify.train.EVALUATED_AT_ONCE", most)
        judge = jax.jit(lambda params: evaluate(training, params, NO_NOISE, few))
        figures.append(judge(lstm))
    chex.assert_trees_all_close(*figures, rtol=1e-5)


@pytest.mark.parametrize(
    ("rate", "at"),
    [
        pytest.param(3e-3, NEVER, marks=pytest.mark.slow),
        (1e30, 0),
        pytest.param(float(np.float32(3e38)), 0, marks=pytest.mark.slow),
    ],
)
def test_the_first_step_that_is_not_finite_is_marked(data, rate, at):
    models, _, _ = trained(data, evaluations=2, **{"train.learning_rate": rate})
    assert models.full.diverged_at == at
    assert models.held_out.diverged_at == at


@pytest.mark.slow
def test_weight_decay_shrinks_the_network_and_not_the_learned_rates(data):
    learn = {
        "dropout.recurrent.kind": "concrete",
        "dropout.recurrent.rate": 0.3,
        "dropout.recurrent.learn": True,
    }
    strong = {"train.weight_decay": 50.0}
    plain, decayed = (trained(data, **learn, **more)[0] for more in ({}, strong))

    def size(models):
        return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(models)))

    assert size(decayed.full.params["network"]) < 0.5 * size(
        plain.full.params["network"]
    )
    logits = [m.full.params["rates"]["recurrent"] for m in (plain, decayed)]
    np.testing.assert_allclose(logits[0], logits[1], atol=0.1)


def test_the_price_of_a_rate_follows_the_authors(data):
    """l^2 / 2N times the squares over 1 - p, and K / N times the negative entropy."""
    learn = {
        "model.layers": 2,
        "dropout.outputs.kind": "concrete",
        "dropout.outputs.rate": 0.3,
        "dropout.outputs.learn": True,
        "dropout.outputs.length_scale": 2.0,
    }
    found, task = configs(**learn), find("japanese_vowels")
    lane = first_lane(make_lanes(found, data))
    params = jax.jit(make_train(found[0], task, data).init)(lane).full.params
    price = make_training(found[0], task, data).price(params)
    p, count = 0.3, 270
    kernels = [
        params["network"]["params"][name]["kernel"]
        for name in ("SimpleCell_1", "readout")
    ]
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    expected = sum(
        2.0**2 / (2 * count) * float((np.asarray(k, float) ** 2).sum()) / (1 - p)
        - len(k) / count * entropy
        for k in kernels
    )
    np.testing.assert_allclose(price, expected, rtol=1e-5)


def test_noise_is_built_from_every_lane(data):
    found = configs(**{"dropout.inputs.rate": [0.0, 0.5], "dropout.gates.rate": 0.1})
    built = dropout_of(found)
    assert [name for name, _ in built.sites()] == ["inputs", "gates"]
    np.testing.assert_array_equal(built.inputs.rate, np.float32([0, 0.5]))
    np.testing.assert_array_equal(built.gates.rate, np.float32([0.1, 0.1]))
    options = dataclasses.asdict(found[0].dropout.inputs)
    assert {"per", "gates", "batch"} <= options.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "gaussian", "rate": [0.5, 1.0]},
            'dropout.inputs.rate: must be below 1 for kind = "gaussian", got 1.',
        ),
        (
            {"kind": "concrete", "learn": True, "rate": 0.0},
            "dropout.inputs.rate: must lie inside (0, 1) if it is learned, got 0.",
        ),
        (
            {"kind": "concrete", "learn": True, "rate": [0.5, 1.0]},
            "dropout.inputs.rate: must lie inside (0, 1) if it is learned, got 1.",
        ),
        (
            {"kind": "gaussian", "learn": True, "rate": 0.5},
            'dropout.inputs.learn: the kind must be "concrete", whose mask has a '
            'gradient in the rate, got "gaussian".',
        ),
    ],
)
def test_options_of_a_site_that_exclude_one_another_are_refused(options, message):
    changes = {f"dropout.inputs.{name}": value for name, value in options.items()}
    with pytest.raises(ConfigError) as error:
        dropout_of(configs(**changes))
    assert str(error.value) == message


def test_what_rdrop_refuses_is_an_error_of_the_config(monkeypatch):
    """In one line, however many lanes there are."""

    def refuse(rate, **_):
        raise ValueError(f"`rate` is bad, got {rate}.")

    monkeypatch.setattr(rdrop, "Bernoulli", refuse)
    found = configs(**{"dropout.inputs.rate": list(np.arange(1, 100) / 100)})
    with pytest.raises(ConfigError, match=r"^dropout.inputs: `rate` is bad, .*\]\.$"):
        dropout_of(found)


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        (
            {"method": "keras", "inputs.rate": 0.5},
            "dropout.inputs.rate: must be 0 with the method keras.",
        ),
        (
            {"rate": 0.5},
            "dropout.rate: must be 0 without a method; set dropout.method ",
        ),
    ],
)
def test_a_method_and_sites_are_not_combined(dropout, message):
    found = configs(**{f"dropout.{name}": value for name, value in dropout.items()})
    with pytest.raises(ConfigError) as error:
        dropout_of(found)
    assert str(error.value).startswith(message)
