"""One compiled program trains every lane, and each lane as if it were alone."""

import jax
import numpy as np
import pytest

from experiments import sweep, vowels
from experiments.config import Model, Noise, Plane, PlaneConfig, Train
from experiments.plane import lanes as lanes_of_plane
from experiments.train import make_train

RATES = Noise(rate=(0.0, 0.5))
CONFIG = PlaneConfig(
    seeds=2,
    model=Model(units=4),
    dropout=Plane(inputs=RATES, recurrent=RATES),
    train=Train(epochs=2, evaluate_every=1),
)


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    """In float32 and with JAX's usual promotion, which optax needs."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def data():
    return vowels.load()


def train_lanes(lanes, data, group=None):
    program = compile_lanes(lanes, data, group)
    return list(sweep.run(program, CONFIG.train.epochs))


def compile_lanes(lanes, data, group=None):
    return sweep.compile_sweep(lanes, CONFIG.model, CONFIG.train, *data, group=group)


@pytest.fixture(scope="module")
def plane(data):
    lanes = lanes_of_plane(CONFIG, data[0])
    return lanes, train_lanes(lanes, data)


def test_lanes_are_every_pair_of_rates_at_every_seed(plane):
    lanes, _ = plane
    pairs = zip(lanes.dropout.inputs.rate, lanes.dropout.recurrent.rate, strict=True)
    assert [tuple(map(float, pair)) for pair in pairs] == [
        (i, r) for i in (0, 0.5) for r in (0, 0.5) for _ in range(2)
    ]


def test_lanes_of_one_seed_share_key_and_split(plane):
    lanes, _ = plane
    keys = jax.random.key_data(lanes.key).reshape(4, 2, -1)
    assert (keys == keys[:1]).all()
    assert (keys[:, 0] != keys[:, 1]).any()
    valid = lanes.valid.reshape(4, 2, -1)
    assert (valid == valid[:1]).all()
    assert (valid[:, 0] != valid[:, 1]).any()


def test_lanes_of_one_seed_start_alike_and_rates_tell_them_apart(plane):
    lanes, (first, _) = plane
    program_init = make_train(CONFIG.model, CONFIG.train, *vowels.load()).init
    start = jax.vmap(program_init)(lanes).full.params
    for leaf in jax.tree.leaves(start):
        by_seed = leaf.reshape(4, 2, *leaf.shape[1:])
        assert (by_seed == by_seed[:1]).all()
    assert len(set(first.train_nll.ravel().tolist())) == 8


def test_two_runs_are_bitwise_equal(plane, data):
    lanes, once = plane
    again = train_lanes(lanes, data)
    jax.tree.map(np.testing.assert_array_equal, once, again)


def test_a_lane_alone_equals_that_lane_of_the_plane(plane, data):
    lanes, together = plane
    for index in (0, 7):
        lane = jax.tree.map(lambda leaf, n=index: leaf[n : n + 1], lanes)
        alone = train_lanes(lane, data)
        expected = jax.tree.map(lambda leaf, n=index: leaf[n : n + 1], together)
        jax.tree.map(close, alone, expected)


def test_vmap_over_all_lanes_is_the_same_to_rounding(plane, data):
    lanes, in_turn = plane
    side_by_side = train_lanes(lanes, data, group=len(lanes.key))
    for name in ("train_nll", "valid_nll", "test_nll"):
        for a, b in zip(in_turn, side_by_side, strict=True):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4)


def test_every_rate_is_served_by_one_program(plane, data):
    lanes, _ = plane
    program = compile_lanes(lanes, data)
    other = lanes.dropout.inputs.replace(rate=lanes.dropout.inputs.rate * 0.3)
    moved = lanes._replace(dropout=lanes.dropout.replace(inputs=other))
    changed = program.advance(program.models, moved)[1]
    same = program.advance(program.models, lanes)[1]
    with_noise = np.asarray(lanes.dropout.inputs.rate) > 0
    differs = np.asarray(changed.train_nll != same.train_nll)[:, 0]
    assert (differs == with_noise).all()


def test_validation_utterances_are_not_trained_on(data):
    train, test = data
    lanes = lanes_of_plane(CONFIG, train)
    lane = jax.tree.map(lambda leaf: leaf[-1], lanes)
    spoilt = train.speakers.copy()
    spoilt[np.asarray(lane.valid)] = 0

    def trained(speakers):
        spoken = train._replace(speakers=speakers)
        functions = make_train(CONFIG.model, CONFIG.train, spoken, test)
        models, _ = jax.jit(functions.advance)(functions.init(lane), lane)
        return models

    clean, changed = trained(train.speakers), trained(spoilt)
    assert same(clean.held_out.params, changed.held_out.params)
    assert not same(clean.full.params, changed.full.params)


def close(first, second):
    np.testing.assert_allclose(first, second, rtol=1e-5)


def same(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all((a == b).all() for a, b in pairs)
