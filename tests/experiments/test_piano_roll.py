"""Polyphonic music is read, scored and trained as its authors do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.io

from experiments.axes import make_sweep
from experiments.classify.program import make_lanes
from experiments.classify.train import make_train, make_training, step_counts
from experiments.config import Config, ConfigError, Model, Task, Train
from experiments.task import Batch
from experiments.tasks import load_task, piano_roll

SPLITS = {"traindata": [5, 9, 2], "validdata": [4, 6], "testdata": [7]}


def pieces(rng, lengths):
    cells = np.empty((1, len(lengths)), object)
    for number, frames in enumerate(lengths):
        cells[0, number] = (rng.random((frames, 88)) < 0.1).astype(np.uint8)
    return cells


@pytest.fixture
def content(rng):
    return {name: pieces(rng, lengths) for name, lengths in SPLITS.items()}


def save(tmp_path, content):
    path = tmp_path / "music.mat"
    scipy.io.savemat(path, content)
    return str(path)


def test_the_next_frame_of_each_piece_is_its_target(content, tmp_path):
    task, data = load_task(Task("piano_roll", save(tmp_path, content)))
    for batch, name in zip(data.splits, ("train", "test", "valid"), strict=True):
        for number, piece in enumerate(content[f"{name}data"][0]):
            last = len(piece) - 1
            assert batch.lengths[number] == last
            np.testing.assert_array_equal(batch.inputs[number, :last], piece[:-1])
            np.testing.assert_array_equal(batch.targets[number, :last], piece[1:])
            assert not batch.inputs[number, last:].any()
    assert task.inputs(data.train).dtype == jnp.float32


def test_the_loss_is_the_likelihood_of_all_notes_of_a_frame(rng):
    """In NumPy, as the trace in music_test.py; padding counts for nothing."""
    lengths = np.array([6, 3], np.int32)
    targets = (rng.random((2, 6, 88)) < 0.1).astype(np.uint8)
    logits = rng.normal(size=(2, 6, 88)) * 3
    found = piano_roll.score(jnp.asarray(logits), Batch(targets, lengths, targets))
    for row, length in enumerate(lengths):
        p = 1 / (1 + np.exp(-logits[row, :length]))
        y = targets[row, :length]
        nll = -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)) / length
        assert float(found.values["nll"][row]) == pytest.approx(nll, rel=1e-6)
        assert found.weight[row] == length


def test_the_loss_is_that_of_torch(rng):
    torch = pytest.importorskip("torch")
    targets = (rng.random((1, 5, 88)) < 0.1).astype(np.uint8)
    logits = rng.normal(size=(1, 5, 88)) * 30
    loss = torch.nn.BCEWithLogitsLoss(reduction="sum")
    expected = loss(torch.tensor(logits), torch.tensor(targets, dtype=torch.float64))
    batch = Batch(targets, np.array([5]), targets)
    found = piano_roll.score(jnp.asarray(logits), batch).values["nll"][0]
    assert float(found) == pytest.approx(float(expected) / 5, rel=1e-6)


def change(content, name, **values):
    """The content with another entry, or without it."""
    return {n: v for n, v in (content | values).items() if n != name}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda c: change(c, "validdata"), "validdata is missing"),
        (lambda c: c | {"testdata": np.zeros((3, 88))}, "testdata is not a cell array"),
        (
            lambda c: c | {"testdata": np.empty((1, 0), object)},
            "is not a cell array",
        ),
        (lambda c: c | {"testdata": one((5, 87))}, r"piece 1: .*\[frames, 88\]"),
        (lambda c: c | {"testdata": one((1, 88))}, "piece 1: must have two frames"),
        (lambda c: c | {"testdata": one((0, 0))}, r"piece 1: must have the shape"),
        (lambda c: c | {"testdata": one((5, 88), 2)}, "piece 1: must be zeros and"),
        (lambda c: c | {"testdata": one((5, 88), np.nan)}, "must be zeros and ones"),
    ],
)
def test_another_file_is_refused(content, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_task(Task("piano_roll", save(tmp_path, changed(content))))
    assert "\n" not in str(error.value)


def one(shape, value=1):
    """A cell array of one matrix."""
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.full(shape, value)
    return cells


@pytest.mark.parametrize("name", ["nothing.mat", "", ".", "a\0b"])
def test_a_missing_file_is_named_with_what_is_expected(name):
    with pytest.raises(ConfigError, match=r"task\.data: must name a \.mat file"):
        load_task(Task("piano_roll", name))


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "text.mat"
    path.write_text("no music")
    with pytest.raises(ConfigError, match="it cannot be read"):
        load_task(Task("piano_roll", str(path)))


# Its training.

SMALL = Model(units=3, layers=2)


def training_of(content, tmp_path, **train):
    config = Config(
        task=Task("piano_roll", save(tmp_path, content)),
        model=SMALL,
        train=Train(epochs=1, batch=1, evaluate_every=1, **train),
    )
    task, data = load_task(config.task)
    data = data.with_splits(jax.tree.map(jnp.asarray, data.splits))
    lane = jax.tree.map(lambda leaf: leaf[0], make_lanes([config], data))
    return config, task, data, lane


def test_a_batch_of_one_is_summed_over_its_frames(content, tmp_path):
    config, task, data, lane = training_of(content, tmp_path, per="sequence")
    training = make_training(config, task, data)
    params = jax.jit(make_train(config, task, data).init)(lane).full.params
    loss = jax.jit(training.loss)
    for row, frames in enumerate([4, 8, 1]):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], data.train)
        total, mean = loss(params, lane, one, lane.key)
        assert float(total) == pytest.approx(frames * float(mean), rel=1e-6)
    two = jax.tree.map(lambda leaf: leaf[:2], data.train)
    total, mean = loss(params, lane, two, lane.key)
    assert float(total) == pytest.approx(6 * float(mean), rel=1e-6)


def test_gradients_are_clipped_before_adam(content, tmp_path, rng):
    """Two steps, in NumPy."""
    config, task, data, lane = training_of(content, tmp_path, clip=0.5)
    optimiser = make_training(config, task, data).optimiser(lane)
    params = {"network": jnp.zeros(4), "rates": {}}
    state, mean, square = optimiser.init(params), np.zeros(4), np.zeros(4)
    for n, scale in ((1, 3.0), (2, 0.01)):
        g = rng.normal(size=4) * scale
        gradients = {"network": jnp.asarray(g), "rates": {}}
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(gradients, state, params)
        g = g * min(1, 0.5 / np.linalg.norm(g))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        adam = mean / (1 - 0.9**n) / (np.sqrt(square / (1 - 0.999**n)) + 1e-8)
        np.testing.assert_allclose(updates["network"], -3e-3 * adam, rtol=1e-5)
    assert optax.tree.norm(updates) > 0


def test_forget_gates_start_with_their_bias(content, tmp_path):
    config, task, data, lane = training_of(content, tmp_path)
    other = make_sweep({"model": {"units": 3, "forget_bias": 10.0}}, "test").base.model
    changed = Config(config.seeds, config.seed, config.task, other, train=config.train)
    plain, biased = (
        jax.jit(make_train(c, task, data).init)(lane).full.params["network"]["params"]
        for c in (config, changed)
    )
    expected = [0] * 3 + [10] * 3 + [0] * 6
    np.testing.assert_array_equal(biased["LSTMCell_0"]["bias"], expected)
    for name in ("kernel", "recurrent_kernel"):
        np.testing.assert_array_equal(
            plain["LSTMCell_0"][name], biased["LSTMCell_0"][name]
        )
    np.testing.assert_array_equal(plain["LSTMCell_1"]["bias"][3:6], 1)
    assert not biased["readout"]["bias"].any()
    with pytest.raises(ConfigError, match=r"model\.forget_bias: must be 1"):
        make_sweep({"model": {"cell": "gru", "forget_bias": 2.0}}, "test")


# Short batches.


@pytest.mark.parametrize(
    ("lengths", "size", "steps"),
    [
        ([8, 8, 8, 8], 1, (8,)),
        ([8, 4, 4, 4], 1, (4, 8)),
        ([8, 4, 4, 4], 2, (4, 8)),
        ([8, 4, 4, 4], 20, (8,)),  # 0.75 ** 20 of the batches would fit
        ([7, 1, 1, 2], 1, (1, 2, 4, 7)),
        ([9] * 10 + [1], 1, (9,)),  # one in eleven
        ([1, 1], 1, (1,)),
    ],
)
def test_batches_may_be_cut_to_steps_that_many_of_them_fit_into(lengths, size, steps):
    assert step_counts(np.array(lengths), max(lengths), size) == steps


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(4, 8), (1, 2, 4, 8)])
def test_a_batch_that_is_cut_has_the_losses_and_gradients_of_the_whole(
    content, tmp_path, steps
):
    config, task, data, lane = training_of(content, tmp_path, per="sequence")
    noise = {"dropout": {"recurrent": {"rate": 0.3}, "inputs": {"per": "step"}}}
    noise["dropout"]["inputs"]["rate"] = 0.2
    noise["model"], noise["train"] = {"units": 3, "layers": 2}, {"batch": 1}
    noisy = make_sweep(noise, "test").base
    lane = jax.tree.map(lambda leaf: leaf[0], make_lanes([noisy], data))
    training = make_training(config, task, data)
    cut = training._replace(steps=steps)
    params = jax.jit(make_train(config, task, data).init)(lane).full.params
    whole_of, short_of = jax.jit(training.gradients), jax.jit(cut.gradients)
    for rows in ([0], [1], [2]):
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[jnp.array(rows)], data.train)
        whole, short = (
            of(params, lane, batch, lane.key) for of in (whole_of, short_of)
        )
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(short), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    text = str(
        jax.make_jaxpr(lambda b: cut.gradients(params, lane, b, lane.key))(batch)
    )
    assert " cond[" in text
