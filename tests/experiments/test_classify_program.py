"""One program trains every lane, and each lane as if it were alone, wherever it is."""

import json
import subprocess
import sys
from typing import get_args

import jax
import numpy as np
import pytest

import rdrop
from experiments import axes
from experiments.classify.model import CELLS, cell_of
from experiments.classify.program import compile_sweep
from experiments.config import CellName, Config, ConfigError, Model
from experiments.tasks import find

pytestmark = pytest.mark.usefixtures("as_users_run_it")
SMALL = {
    "seeds": 2,
    "model": {"units": 4, "cell": "simple"},
    "dropout": {"inputs": {"rate": [0.0, 0.5]}, "recurrent": {"rate": [0.0, 0.5]}},
    "train": {"epochs": 2, "evaluate_every": 1},
}


def compiled(raw=SMALL, **options):
    found = axes.make_sweep(raw, "test")
    task = find(found.base.task.name)
    configs = [lane.config for lane in found.lanes()]
    return compile_sweep(configs, task, task.load(found.base.task), **options)


def trained(program, which=None, bounds=None):
    """The history of all lanes, or of those of one round within bounds."""
    parts = []
    for which in program.rounds(range(len(program.lanes.key))):
        lanes = program.place(which)
        state = program.start(lanes, program.data)
        for evaluation in range(2):
            within = program.all_of(len(which)) if bounds is None else bounds
            state = program.step(state, lanes, within, evaluation)
        slots = program.slots(len(which))
        parts.append({k: np.asarray(v)[slots] for k, v in state.history.items()})
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


@pytest.fixture(scope="module")
def program():
    return compiled()


@pytest.fixture(scope="module")
def history(program):
    return trained(program)


def test_lanes_are_every_pair_of_rates_at_every_seed(program):
    dropout = program.lanes.dropout
    pairs = zip(dropout.inputs.rate, dropout.recurrent.rate, strict=True)
    assert [tuple(map(float, pair)) for pair in pairs] == [
        (i, r) for i in (0, 0.5) for r in (0, 0.5) for _ in range(2)
    ]


def test_lanes_of_one_seed_share_key_and_split(program):
    lanes = program.lanes
    keys = jax.random.key_data(lanes.key).reshape(4, 2, -1)
    assert (keys == keys[:1]).all()
    assert (keys[:, 0] != keys[:, 1]).any()
    valid = lanes.valid.reshape(4, 2, -1)
    assert (valid == valid[:1]).all()
    assert (valid[:, 0] != valid[:, 1]).any()


def test_lanes_of_one_seed_start_alike_and_rates_tell_them_apart(program, history):
    lanes = program.place(program.rounds(range(len(program.lanes.key)))[0])
    start = program.start(lanes, program.data).models.full.params
    for leaf in jax.tree.leaves(start):
        by_seed = leaf.reshape(4, 2, *leaf.shape[1:])
        assert (by_seed == by_seed[:1]).all()
    assert len(set(history["train_nll"][:, 0, 0].tolist())) == 8


def test_two_runs_are_bitwise_equal(program, history):
    equal(trained(program), history)


@pytest.mark.parametrize("lane", [0, 5, 7])
def test_a_lane_alone_is_bitwise_that_lane_of_the_sweep(program, history, lane):
    alone = trained(program, bounds=program.only(lane))
    for name, values in alone.items():
        np.testing.assert_array_equal(values[lane], history[name][lane])
        others = np.delete(values, lane, axis=0)
        assert np.isnan(others).all()


@pytest.mark.slow
def test_lanes_that_do_not_fit_are_trained_some_at_a_time(program, history):
    few = compiled(memory=program.needed - 1.0)
    assert few.needed < program.needed
    assert [program.resident, few.resident] == [8, 7]
    assert few.rounds(range(8)) == [range(7), range(7, 8)]
    assert few.compiles == 2
    equal(trained(few), history)


@pytest.mark.slow
def test_where_not_one_lane_fits_it_is_said():
    with pytest.raises(ConfigError, match=r"One lane needs .* MB .*, which has"):
        compiled(memory=1000.0)


@pytest.mark.slow
def test_vmap_over_all_lanes_is_the_same_to_rounding(history):
    side_by_side = trained(compiled(group=8))
    for name in ("train_nll", "valid_nll", "test_nll"):
        np.testing.assert_allclose(side_by_side[name], history[name], rtol=1e-4)


def test_every_rate_is_served_by_one_program(program, history):
    which = program.rounds(range(len(program.lanes.key)))[0]
    inputs = program.lanes.dropout.inputs
    dropout = program.lanes.dropout.replace(
        inputs=inputs.replace(rate=inputs.rate * np.float32(0.3))
    )
    moved = program._replace(lanes=program.lanes._replace(dropout=dropout))
    changed = trained(moved)["train_nll"]
    differs = (changed != history["train_nll"]).any(axis=(1, 2))
    np.testing.assert_array_equal(differs, np.asarray(inputs.rate) > 0)
    assert moved.place(which).dropout.inputs.rate[-1] == np.float32(0.15)


@pytest.mark.slow
def test_learning_rate_and_weight_decay_are_data_too():
    raw = SMALL | {
        "seeds": 1,
        "dropout": {},
        "train": {
            "epochs": 2,
            "evaluate_every": 1,
            "learning_rate": [1e-3, 1e-2],
            "weight_decay": [0.0, 0.1],
        },
    }
    losses = trained(compiled(raw))["train_nll"][:, -1, 0]
    assert len(set(losses.tolist())) == 4


def equal(first, second):
    for name, values in second.items():
        np.testing.assert_array_equal(first[name], values)


def masks(mesh=None):
    """Masks held and drawn anew, spread over the batch where there is a mesh."""
    noise = rdrop.Bernoulli(0.5)
    dropout = rdrop.Dropout(inputs=noise, recurrent=noise.replace(per="step"))
    keys, sites = rdrop.stream_keys(jax.random.key(0)), rdrop.LSTMCell(16).sites(3)

    def draw():
        drawn = rdrop.draw(dropout, keys, sites, batch=8, time=5)
        return drawn.inputs, drawn.recurrent

    if mesh is None:
        drawn = jax.jit(draw)()
    else:
        specs = jax.P("data"), jax.P(None, "data")
        places = tuple(jax.NamedSharding(mesh, spec) for spec in specs)
        drawn = jax.jit(draw, out_shardings=places)()
    return [np.asarray(mask).tolist() for mask in drawn]


CHILD = """
import json, sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
sys.path.insert(0, "tests/experiments")
from experiments.devices import make_mesh
from test_classify_program import compiled, masks, trained
drawn = masks(make_mesh(1, int(sys.argv[2])))
history = trained(compiled(data_devices=int(sys.argv[2])))
history = {k: np.asarray(v, float).tolist() for k, v in history.items()}
print(json.dumps({"history": history, "masks": drawn}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "data_devices"), [(2, 1), (8, 1), (8, 4), (2, 2)])
def test_more_devices_give_the_same_lanes(pytestconfig, history, devices, data_devices):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(devices), str(data_devices)],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["masks"] == masks()
    for name, values in history.items():
        np.testing.assert_allclose(found["history"][name], values, rtol=2e-5)


def test_each_name_of_a_cell_is_a_cell():
    assert set(CELLS) == set(get_args(CellName))
    before = cell_of(Config(model=Model(cell="gru_reset_before")))(3).equations
    assert before == rdrop.GRUCell(3, reset_after=False).equations
    assert before != cell_of(Config(model=Model(cell="gru")))(3).equations
