"""Tasks read what users have, refuse it in one line, and score it as NumPy does."""

import re
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from experiments import axes, tasks
from experiments.classify import consistency
from experiments.classify.model import Network
from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.data.convert_japanese_vowels import read_ts
from experiments.task import Batch
from experiments.tasks import characters, classify, japanese_vowels, label, regress

FIRST_FRAME = [1.860936, -0.207383, 0.261557, -0.214562, -0.171253, -0.118167]
TEST_UTTERANCES = [31, 35, 88, 44, 29, 24, 40, 50, 29]
TEXT = "the quick brown fox jumps over the lazy dog; " * 20


@pytest.fixture
def save(tmp_path):
    """Writes arrays, or the text of a table, and returns the options that name them."""

    def write(content, name="my", **options):
        if isinstance(content, dict):
            path = tmp_path / f"{name}.npz"
            np.savez(path, **content)
        else:
            path = tmp_path / (name if "." in name else f"{name}.csv")
            path.write_text(content, encoding="utf-8")
        return Options(data=str(path), **options)

    return write


def whole(**changes):
    """Arrays of a valid archive for classify: 10 sequences, 3 steps, 2 features."""
    x = np.random.default_rng(0).normal(size=(10, 3, 2))
    return {"x": x, "y": np.arange(10) % 2} | changes


def divided(**changes):
    """Arrays of a valid archive that gives its splits."""
    x = np.random.default_rng(0).normal(size=(6, 3, 2))
    arrays = {"train_x": x[:4], "train_y": np.array([0, 1, 0, 1])}
    return arrays | {"test_x": x[4:], "test_y": np.array([0, 1])} | changes


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


def spoilt(x, place, value):
    x = x.copy()
    x[place] = value
    return x


def table(*rows, header="sequence,split,target,f,g"):
    return "\n".join([header, *rows]) + "\n"


ROWS = ("a,train,0,1,2", "a,train,0,2,3", "b,train,1,3,4", "c,test,1,4,5")


def check_shapes(data):
    """What the protocol says of every split."""
    for batch in (data.train, data.test, *([data.valid] if data.valid else [])):
        count, time = batch.inputs.shape[:2]
        assert batch.lengths.dtype == np.int32
        assert batch.lengths.shape == (count,)
        assert len(batch.targets) == count
        assert ((batch.lengths >= 1) & (batch.lengths <= time)).all()
        assert (batch.inputs[np.arange(time) >= batch.lengths[:, None]] == 0).all()


# Japanese Vowels


def test_sizes_of_the_vowels_are_the_published_ones():
    data = japanese_vowels.load(Options())
    check_shapes(data)
    assert data.train.inputs.shape == (270, 26, 12)
    assert data.test.inputs.shape == (370, 29, 12)
    assert data.train.lengths.min() == data.test.lengths.min() == 7
    assert np.bincount(data.train.targets).tolist() == [30] * 9
    assert np.bincount(data.test.targets).tolist() == TEST_UTTERANCES
    assert data.strata is data.train.targets
    assert data.units == {"nll": "nats per utterance", "accuracy": ""}
    assert "CC BY 4.0" in data.source


def test_numbers_of_the_vowels_are_the_published_ones():
    with np.load(japanese_vowels.FILE) as arrays:
        actual = arrays["train_frames"][0, :6]
    np.testing.assert_array_equal(actual, np.float32(FIRST_FRAME))


def test_frames_of_the_vowels_are_normalised_and_padding_is_zero():
    train = japanese_vowels.load(Options()).train
    inside = np.arange(train.inputs.shape[1]) < train.lengths[:, None]
    frames = train.inputs[inside].astype(np.float64)
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=0), 1, rtol=1e-5)
    assert (train.inputs[~inside] == 0).all()


def test_ts_reader(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text("@problemName x\n@data\n1,2,3:4,5,6:1\n7:8:9\n")
    utterances, speakers = read_ts(path)
    np.testing.assert_array_equal(utterances[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(utterances[1], [[7, 8]])
    assert speakers.tolist() == [0, 8]


@pytest.mark.parametrize("name", ["train", "test"])
def test_lengths_and_frames_of_the_vowels_agree(name):
    with np.load(japanese_vowels.FILE) as arrays:
        lengths = arrays[f"{name}_lengths"].astype(int)
        assert lengths.sum() == len(arrays[f"{name}_frames"])


# Files


def test_features_are_standardised_by_the_valid_steps_of_training(save):
    arrays = divided(train_lengths=np.array([3, 1, 2, 3]))
    arrays["train_x"][1, 1:] = np.nan
    arrays["train_x"][..., 1] = 0.1
    data = classify.load(save(arrays))
    check_shapes(data)
    inside = np.arange(3) < np.array([3, 1, 2, 3])[:, None]
    steps = arrays["train_x"][inside]
    mean, sd = steps.mean(axis=0), np.array([steps[:, 0].std(), 1])
    np.testing.assert_allclose(
        data.train.inputs[inside], (steps - mean) / sd, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        data.test.inputs, (arrays["test_x"] - mean) / sd, rtol=1e-5, atol=1e-6
    )


def test_a_matrix_has_one_feature(save):
    data = classify.load(save(whole(x=np.arange(30).reshape(10, 3))))
    assert data.train.inputs.shape == (8, 3, 1)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a", "b", "a"], [1, 0, 1, 0]),
        ([10, 9, 10, -1], [2, 1, 2, 0]),
        ([True, False, True, True], [1, 0, 1, 1]),
    ],
)
def test_classes_are_numbered_in_sorted_order(save, names, expected):
    arrays = divided(train_y=np.array(names), test_y=np.array(names[:2]))
    data = classify.load(save(arrays))
    assert data.train.targets.tolist() == expected
    assert data.test.targets.tolist() == expected[:2]
    assert data.train.targets.dtype == np.int32
    assert data.outputs == len(set(names))
    assert data.strata.tolist() == expected


def test_test_sequences_are_set_aside_from_each_class_in_proportion(save):
    y = np.repeat([0, 1, 2, 3], [40, 20, 10, 1])
    x = np.arange(71.0)[:, None]
    data = classify.load(save(whole(x=x, y=y), test=0.3))
    assert np.bincount(data.test.targets, minlength=4).tolist() == [12, 6, 3, 0]
    assert np.bincount(data.train.targets).tolist() == [28, 14, 7, 1]
    rows = np.concatenate([data.train.inputs, data.test.inputs])[:, 0, 0]
    assert len(set(rows.tolist())) == 71
    again = classify.load(save(whole(x=x, y=y), test=0.3))
    jax.tree.map(np.testing.assert_array_equal, data.test, again.test)


def test_a_class_is_left_to_training_whatever_the_share(save):
    data = classify.load(save(whole(), test=0.99))
    assert sorted(data.train.targets.tolist()) == [0, 1]


def test_a_file_may_have_a_validation_split(save):
    arrays = divided()
    arrays |= {"valid_x": arrays["test_x"], "valid_y": arrays["test_y"]}
    data = classify.load(save(arrays))
    jax.tree.map(np.testing.assert_array_equal, data.valid, data.test)
    assert classify.load(save(divided())).valid is None


def test_a_table_says_what_an_archive_says(save):
    header = " sequence , target, g, f, split"
    rows = ["s1,b,0,1,train", "", "s2,a,5,2,train", "s1,b,3,4,train", "s3,a,1,1,test"]
    data = classify.load(save("\ufeff" + table(*rows, header=header)))
    arrays = {
        "train_x": np.array([[[0, 1], [3, 4]], [[5, 2], [0, 0]]]),
        "train_y": np.array(["b", "a"]),
        "train_lengths": np.array([2, 1]),
        "test_x": np.array([[[1, 1], [0, 0]]]),
        "test_y": np.array(["a"]),
        "test_lengths": np.array([1]),
    }
    expected = classify.load(save(arrays))
    jax.tree.map(np.testing.assert_array_equal, data.train, expected.train)
    jax.tree.map(np.testing.assert_array_equal, data.test, expected.test)
    assert data.outputs == 2


def test_classes_of_a_table_are_sorted_as_numbers_where_they_are_numbers(save):
    rows = [f"{i},{'train' if i < 9 else 'test'},{i % 3 * 5},0,{i}" for i in range(12)]
    assert classify.load(save(table(*rows))).train.targets.tolist() == [0, 1, 2] * 3


def test_a_table_without_splits_is_split(save):
    rows = [f"{i},{i % 2},{i}" for i in range(20)]
    data = classify.load(save(table(*rows, header="sequence,target,f")))
    assert np.bincount(data.test.targets).tolist() == [2, 2]
    assert len(data.train.lengths) == 16


def test_labels_of_steps(save):
    rows = ["a,train,n,1,0", "a,train,v,2,0", "b,train,v,3,0", "c,test,n,0,0"]
    data = label.load(save(table(*rows)))
    check_shapes(data)
    assert data.train.targets.tolist() == [[0, 1], [1, 0]]
    assert data.train.lengths.tolist() == [2, 1]
    assert (data.outputs, data.readout, data.strata) == (2, "each", None)


def test_labels_in_padding_are_no_class(save):
    y = np.array([[0, 1, -1], [1, -1, -1]])
    x = np.arange(6.0).reshape(2, 3)
    lengths = np.array([2, 1])
    splits = {f"{s}_{n}": a for s in ("train", "test") for n, a in
              {"x": x, "y": y, "lengths": lengths}.items()}  # fmt: skip
    data = label.load(save(splits))
    assert data.train.targets.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert data.outputs == 2


def test_several_numbers_of_a_table(save):
    header = "sequence,split,target_a,target_b,f"
    rows = ["a,train,1,10,0", "b,train,3,50,1", "c,test,5,30,2", "c,test,5.0,30,2"]
    data = regress.load(save(table(*rows, header=header)))
    check_shapes(data)
    assert data.outputs == 2
    expected = [[[-1, -1], [1, 20]], [[1, 1], [1, 20]]]
    np.testing.assert_allclose(data.train.targets, expected)
    np.testing.assert_allclose(data.test.targets, [[[3, 0], [1, 20]]])
    assert data.train.targets.dtype == np.float32


def test_numbers_of_an_archive(save):
    arrays = divided(train_y=np.array([1, 2, 3, 6]), test_y=np.array([3.0, 4.0]))
    arrays |= {"valid_x": arrays["test_x"], "valid_y": arrays["test_y"]}
    data = regress.load(save(arrays))
    sd = np.array([1, 2, 3, 6]).std()
    np.testing.assert_allclose(data.test.targets[:, 0, 0], [0, 1 / sd], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, data.valid, data.test)


# Scores


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_score_of_classify(rng):
    logits, targets = rng.normal(size=(4, 3)), np.array([2, 0, 1, 1], np.int32)
    batch = Batch(np.zeros((4, 5, 2)), np.full(4, 5, np.int32), targets)
    values, weight = classify.score(jnp.asarray(logits), batch)
    nll = [-log_softmax(logits)[n, targets[n]] for n in range(4)]
    np.testing.assert_allclose(values["nll"], nll, rtol=1e-12)
    np.testing.assert_array_equal(values["accuracy"], logits.argmax(-1) == targets)
    assert weight.tolist() == [1] * 4
    assert list(values) == ["nll", "accuracy"]


def test_score_of_label_counts_valid_steps_only(rng):
    logits = rng.normal(size=(3, 4, 3))
    targets = rng.integers(0, 3, size=(3, 4)).astype(np.int32)
    lengths = np.array([4, 1, 2], np.int32)
    batch = Batch(np.zeros((3, 4, 2)), lengths, targets)
    score = jax.jit(label.score)
    values, weight = score(logits, batch)
    for n, length in enumerate(lengths):
        log_p = log_softmax(logits[n])
        nll = [-log_p[t, targets[n, t]] for t in range(length)]
        right = [log_p[t].argmax() == targets[n, t] for t in range(length)]
        np.testing.assert_allclose(values["nll"][n], np.mean(nll), rtol=1e-12)
        np.testing.assert_allclose(values["accuracy"][n], np.mean(right), rtol=1e-12)
    assert weight.tolist() == [4, 1, 2]

    padding = np.arange(4) >= lengths[:, None]
    other = batch._replace(targets=np.where(padding, np.int32(1), targets))
    changed = np.where(padding[..., None], np.nan, logits)
    again, _ = score(changed, other)
    jax.tree.map(np.testing.assert_array_equal, values, again)


NARROW = (np.int8, np.uint8, np.int32)


def test_narrow_lengths_count_more_steps_than_their_type(rng):
    """In the score of label, in the weights of a second pass, and at the last step."""
    logits = np.float32(rng.normal(size=(2, 300, 3)))
    targets, lengths = rng.integers(0, 3, (2, 300)), [100, 50]
    network = Network(rdrop.SimpleCell, 2, 1, 1, "last")
    shapes = jax.eval_shape(network.init, jax.random.key(0), logits, np.array(lengths))
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.3, s.dtype), shapes)

    @jax.jit
    def run(logits, targets, many):
        found = []
        for each in many:
            batch = Batch(logits, each, targets)
            score = label.score(logits, batch)
            weights = consistency.weights(logits, score, batch)
            found.append((score, weights, network.apply(params, logits, each)))
        return found

    with jax.numpy_dtype_promotion("standard"):
        found = run(logits, targets, [np.array(lengths, d) for d in NARROW])
    log_p = np.take_along_axis(log_softmax(logits), targets[..., None], 2)[..., 0]
    nll = [-row[:length].mean() for row, length in zip(log_p, lengths, strict=True)]
    for (values, weight), weights, _ in found:
        np.testing.assert_allclose(values["nll"], nll, rtol=1e-5)
        assert weight.tolist() == weights.sum(axis=1).tolist() == lengths
    chex.assert_trees_all_close(*(last for _, _, last in found))


def test_narrow_classes_are_more_than_their_type_counts():
    """300 classes, of which the last is answered; in eight bits it would be 43."""
    logits = jnp.asarray(np.eye(300)[299:])
    for dtype in NARROW:
        batch = Batch(logits, np.ones(1, np.int32), np.array([43], dtype))
        assert classify.score(logits, batch).values["accuracy"] == 0


def test_score_of_regress_is_in_variances_and_in_units_of_the_file(rng, save):
    y = rng.normal(size=(10, 2)) * np.array([100.0, 0.1]) + 7
    train = regress.load(save(whole(y=y), test=0.1)).train
    scale = train.targets[:, 1]
    values, weight = jax.jit(regress.score)(np.zeros((9, 2), np.float32), train)
    np.testing.assert_allclose(values["mse"].mean(), 1, rtol=1e-5)
    error = np.abs(train.targets[:, 0]) * scale
    np.testing.assert_allclose(values["mae"], error.mean(axis=1), rtol=1e-6)
    assert np.array_equal(scale.min(axis=0), scale.max(axis=0))
    assert scale[0, 0] > 100 * scale[0, 1]
    assert weight.tolist() == [1] * 9


@pytest.mark.parametrize("task", [classify, label, regress])
def test_what_the_network_reads_is_the_features(task):
    batch = Batch(np.ones((2, 3, 4), np.float32), np.full(2, 3), np.zeros(2))
    assert task.inputs(batch) is batch.inputs


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_scores_keep_the_dtype_of_the_outputs(dtype):
    lengths = np.full(2, 3, np.int32)
    one = Batch(np.zeros((2, 3, 1)), lengths, np.zeros(2, np.int32))
    each = one._replace(targets=np.zeros((2, 3), np.int32))
    scores = jax.eval_shape(
        lambda: (
            classify.score(jnp.zeros((2, 4), dtype), one),
            label.score(jnp.zeros((2, 3, 4), dtype), each),
        )
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(scores)} == {jnp.dtype(dtype)}


# Characters


def decode(data, part, text):
    """The text of a part from its windows, and the text that they predict."""
    vocabulary = [*sorted(set(text[: len(text) * 9 // 10])), "?"]
    inside = np.arange(part.inputs.shape[1]) < part.lengths[:, None]
    one_hot = np.asarray(characters.inputs(part))
    assert one_hot.dtype == np.float32
    assert (one_hot.sum(axis=-1) == inside).all()
    assert data.outputs == len(vocabulary) <= one_hot.shape[-1] < data.outputs + 8
    read = "".join(vocabulary[i] for i in one_hot.argmax(-1)[inside])
    return read, "".join(vocabulary[i] for i in part.targets[inside])


def test_characters_decode_back_to_the_text(save):
    text = TEXT + "é; ö and 日本"
    data = characters.load(save(text, "my.txt", window=7))
    check_shapes(data)
    at = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
    parts = (data.train, data.valid, data.test)
    for part, start, end in zip(parts, at[:-1], at[1:], strict=True):
        expected = re.sub("[éö日本]", "?", text[start:end])
        assert decode(data, part, text) == (expected[:-1], expected[1:])
    assert data.train.inputs.shape[1] == 7
    assert (data.train.lengths[:-1] == 7).all()


def test_what_characters_say_of_themselves(save):
    data = characters.load(save(TEXT, "my.txt", window=20))
    assert data.outputs == len(set(TEXT)) + 1
    assert (data.readout, data.strata) == ("each", None)
    assert data.units == {"nll": "nats per character", "accuracy": ""}
    assert characters.score is label.score


# Tasks by name


@pytest.mark.parametrize("name", tasks.BUILTIN)
def test_builtin_tasks_have_the_functions(name):
    task = tasks.find(name)
    assert all(callable(getattr(task, function)) for function in tasks.FUNCTIONS)


def test_the_example_of_an_own_task(pytestconfig):
    path = pytestconfig.rootpath / "examples" / "own_task.py"
    task = tasks.find(str(path))
    data = task.load(Options(name=str(path)))
    check_shapes(data)
    values, numbers = data.train.inputs[..., 0], data.train.inputs
    assert (numbers[..., 1].sum(axis=1) == 2).all()
    np.testing.assert_allclose(
        data.train.targets, (values * numbers[..., 1]).sum(axis=1), rtol=1e-6
    )
    score = task.score(jnp.ones((2000, 1), jnp.float32), data.train)
    np.testing.assert_allclose(score.values["mse"].mean(), 1 / 6, atol=0.01)
    assert list(score.values) == list(data.units)


MADE_OR_SHIPPED = {"japanese_vowels", "selective_copy", "forecast"}


@pytest.mark.parametrize("name", sorted({*tasks.BUILTIN} - MADE_OR_SHIPPED))
def test_the_config_of_a_task_lacks_only_the_data(pytestconfig, name):
    path = pytestconfig.rootpath / "configs" / f"{name}.toml"
    options = axes.make_sweep(axes.read_toml(path), str(path)).base.task
    assert options.name == name
    assert refusal(tasks.find(name).load, options).startswith("task.data: must name a")


def test_the_examples_of_the_readme_are_valid(pytestconfig, tmp_path, monkeypatch):
    readme = pytestconfig.rootpath / "experiments" / "tasks" / "README.md"
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
        exec(block, {})
    assert len(classify.load(Options(data="my.npz")).test.lengths) == 40
    assert classify.load(Options(data="my.csv")).train.inputs.shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "No such file or directory."),
        ("def load(o): ...\ndef score(o, b): ...", "must define a function inputs(b"),
        ("load = inputs = score = 3", "must define a function load(options)."),
        ("def load(", "cannot be loaded: SyntaxError: '(' was never closed ("),
        ("import no_such", "cannot be loaded: ModuleNotFoundError: No module named 'n"),
        ("raise ValueError('a\\nb')", "cannot be loaded: ValueError: a b."),
        ("raise ValueError('a.')", "cannot be loaded: ValueError: a."),
    ],
)
def test_a_wrong_task_of_ones_own_is_one_clear_line(tmp_path, source, message):
    path = tmp_path / "own.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ConfigError) as error:
        tasks.find(str(path))
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
    assert not str(error.value).endswith("..")


def test_an_unknown_task_is_told_the_known_ones():
    with pytest.raises(ConfigError) as error:
        tasks.find("imdb")
    assert str(error.value) == (
        "task.name: must be one of japanese_vowels, classify, regress, label, "
        "characters, piano_roll, selective_copy, forecast, or the path of a "
        ".py file, got 'imdb'."
    )


# What is refused, and how. {} stands for the file.

X = whole()["x"]
ARCHIVES = [
    ({"a": X}, "must have an array train_x or x, got a."),
    ({}, "must have an array train_x or x, got none."),
    (without(whole(), "y"), "must have an array y, got x."),
    (
        without(divided(), "test_y"),
        "must have an array test_y, got test_x, train_x, train_y.",
    ),
    (
        whole(length=np.ones(10, int)),
        "unknown array length; there may be x, y, lengths.",
    ),
    (
        divided(valid_y=np.zeros(2, int)),
        "must have an array valid_x, got test_x, test_y, train_x, train_y, valid_y.",
    ),
    (
        whole(x=np.zeros(10)),
        "x must be numbers of shape [N, T, D] or [N, T], got float64 of shape (10,).",
    ),
    (
        whole(x=np.full((10, 3), "a")),
        "x must be numbers of shape [N, T, D] or [N, T], got <U1 of shape (10, 3).",
    ),
    (
        whole(x=X[:, :0]),
        "x must have a sequence, a step and a feature at least, got shape (10, 0, 2).",
    ),
    (
        divided(test_x=X[:0], test_y=np.zeros(0, int)),
        "test_x must have a sequence, a step and a feature at least, got shape "
        "(0, 3, 2).",
    ),
    (
        divided(test_x=X[:2, :, :1]),
        "test_x must have 2 columns as in training, got 1.",
    ),
    (
        whole(x=spoilt(X, (4, 2, 1), np.nan)),
        "x[4, 2, 1] (sequence, step, feature) must be a finite float32 number, got "
        "nan.",
    ),
    (
        divided(test_x=spoilt(X[:2, :, 0], (1, 2), -np.inf), train_x=X[:4, :, 0]),
        "test_x[1, 2] (sequence, step) must be a finite float32 number, got -inf.",
    ),
    (
        whole(x=spoilt(X, (0, 0, 0), 1e300)),
        "x[0, 0, 0] (sequence, step, feature) must be a finite float32 number, got "
        "1e+300.",
    ),
    (
        whole(lengths=np.full(9, 3)),
        "lengths must be integers of shape (10,), got int64 of shape (9,).",
    ),
    (
        whole(lengths=np.full(10, 3.0)),
        "lengths must be integers of shape (10,), got float64 of shape (10,).",
    ),
    (
        divided(train_lengths=np.array([3, 3, 0, 3])),
        "train_lengths[2] must lie in 1 to 3, got 0.",
    ),
    (
        divided(test_lengths=np.array([4, 3])),
        "test_lengths[0] must lie in 1 to 3, got 4.",
    ),
    (
        whole(y=np.zeros(9, int)),
        "y must be integers or text of shape (10,), got int64 of shape (9,).",
    ),
    (
        whole(y=np.zeros(10)),
        "y must be integers or text of shape (10,), got float64 of shape (10,).",
    ),
    (
        whole(y=np.array([b"a", b"b"] * 5)),
        "y must be integers or text of shape (10,), got |S1 of shape (10,).",
    ),
    (
        whole(y=np.array([{}] * 10)),
        "y must be numbers or text, got Python objects, which are not unpickled.",
    ),
    (
        whole(y=np.full(10, 5)),
        "y must have at least two classes in training, got only 5.",
    ),
    (
        divided(test_y=np.array([0, 7])),
        "test_y of sequence 1 must be a class of the training sequences, got 7.",
    ),
    (
        divided(test_y=np.array(["0", "1"])),
        "test_y of sequence 0 must be a class of the training sequences, got '0'.",
    ),
    (
        whole(x=X[:2], y=np.array([0, 1])),
        "task.test must set aside at least one of 2 sequences, got 0.2.",
    ),
]
TABLES = [
    ("", "must have a header, got an empty file."),
    ("\n\n", "must have a header, got an empty file."),
    (table(), "must have rows below its header."),
    (
        table(header="sequence;target;f"),
        "must have commas between the columns of its header, got 'sequence;target;f'.",
    ),
    (table(header="sequence,f"), "must have a column target, got sequence, f."),
    (
        table(header="sequence,split,target"),
        "must have a column of features, got sequence, split, target.",
    ),
    (
        table(header="sequence,target,target_b,f"),
        "must have one column target, got target, target_b.",
    ),
    (
        table(header="sequence,target,f,f"),
        "column 4 must have a name of its own, got 'f'.",
    ),
    (
        table(header=",sequence,target,f"),
        "column 1 must have a name of its own, got ''.",
    ),
    (
        table(*ROWS, "d,test,1,2"),
        ":6: must have 5 cells, as the header has, separated by commas, got 4.",
    ),
    (
        table(*ROWS, "d,test,1,2,3,4"),
        ":6: must have 5 cells, as the header has, separated by commas, got 6.",
    ),
    (
        table("a,train,0,1,two"),
        ":2: g must be a finite float32 number, got 'two'.",
    ),
    (table("a,train,0,,2"), ":2: f must be a finite float32 number, got ''."),
    (
        table("", "a,train,0,nan,2"),
        ":3: f must be a finite float32 number, got 'nan'.",
    ),
    (table("a,train,,1,2"), ":2: target must name a class, got an empty cell."),
    (table(",train,0,1,2"), ":2: sequence must have a name, got an empty cell."),
    (
        table("a,training,0,1,2"),
        ":2: split must be one of train, valid, test, got 'training'.",
    ),
    (
        table(*ROWS, "b,train,0,1,2"),
        ":6: target must be the same in all rows of sequence 'b', got '0' after '1'.",
    ),
    (
        table(*ROWS, "b,test,1,1,2"),
        ":6: split must be the same in all rows of sequence 'b', got 'test' after "
        "'train'.",
    ),
    (
        table("a,train,1,1,2", "b,train,1.5,1,2", "c,test,1,1,2"),
        "target of sequence 'b' must be an integer or text, got '1.5'.",
    ),
    (
        table("a,train,up,1,2", "b,test,up,1,2"),
        "target must have at least two classes in training, got only 'up'.",
    ),
    (
        table(*ROWS, "d,valid,2,1,2"),
        "target of sequence 'd' must be a class of the training sequences, got 2.",
    ),
    (
        table(*ROWS[:3]),
        "split must be test for at least one sequence, got train.",
    ),
    (
        table("a,valid,0,1,2", "b,test,0,1,2"),
        "split must be train for at least one sequence, got test, valid.",
    ),
    (
        table("a,0,1", "b,1,2", header="sequence,target,f"),
        "task.test must set aside at least one of 2 sequences, got 0.2.",
    ),
]
OTHER_KINDS = [
    (
        regress,
        whole(y=np.zeros((10, 2, 2))),
        "y must be numbers of shape (10,) or (10, K), got float64 of shape (10, 2, 2).",
    ),
    (
        regress,
        whole(y=np.array(["a", "b"] * 5)),
        "y must be numbers of shape (10,) or (10, K), got <U1 of shape (10,).",
    ),
    (
        regress,
        whole(y=spoilt(np.ones(10), 3, np.nan)),
        "y[3] must be a finite float32 number, got nan.",
    ),
    (
        regress,
        whole(y=np.stack([np.arange(10), np.ones(10)], axis=1)),
        "y must vary among training sequences, got only 1.0 for number 1.",
    ),
    (
        regress,
        divided(train_y=np.arange(8.0).reshape(4, 2)),
        "test_y must have 2 columns as in training, got 1.",
    ),
    (
        regress,
        table("a,train,1,1,2", "a,train,2,1,2"),
        ":3: target must be the same in all rows of sequence 'a', got 2.0 after 1.0.",
    ),
    (
        regress,
        table("a,train,tall,1,2"),
        ":2: target must be a finite float32 number, got 'tall'.",
    ),
    (
        label,
        whole(),
        "y must be integers or text of shape (10, 3), got int64 of shape (10,).",
    ),
    (
        label,
        divided(
            train_y=np.arange(12).reshape(4, 3) % 2,
            test_y=np.array([[0, 1, 0], [0, 0, 2]]),
        ),
        "test_y of sequence 1, step 2, must be a class of the training sequences, "
        "got 2.",
    ),
    (
        label,
        table("a,train,n,1,2", "a,train,v,1,2", "c,test,x,1,2"),
        "target of sequence 'c', step 0, must be a class of the training sequences, "
        "got 'x'.",
    ),
]
REFUSED = [(classify, c, m) for c, m in (*ARCHIVES, *TABLES)] + OTHER_KINDS


def refusal(load, options):
    with pytest.raises(ConfigError) as error:
        load(options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("task", "content", "message"), REFUSED, ids=[m for _, _, m in REFUSED]
)
def test_wrong_data_are_refused_in_one_line(save, task, content, message):
    options = save(content)
    between = "" if message.startswith(":") else ": "
    assert refusal(task.load, options) == options.data + between + message


def write_truncated(path):
    np.savez(path, **whole())
    path.write_bytes(path.read_bytes()[:500])


def write_corrupt(path):
    np.savez(path, **whole())
    content = bytearray(path.read_bytes())
    content[300:310] = bytes(10)
    path.write_bytes(content)


def write_pickle(path):
    path.write_bytes(b"\x80\x04K\x01.")


def write_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def write_text_in_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "1, 2")


NOT_AN_ARCHIVE = "must be an archive as np.savez writes it."


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("no.npz", None, "No such file or directory."),
        ("folder.npz", lambda path: path.mkdir(), "Is a directory."),
        ("my.txt", lambda path: path.touch(), "must be a .npz or .csv file."),
        ("no_ending", lambda path: path.touch(), "must be a .npz or .csv file."),
        ("my.npz", lambda path: path.touch(), NOT_AN_ARCHIVE),
        ("my.npz", lambda path: path.write_text("1, 2"), NOT_AN_ARCHIVE),
        ("my.npz", write_pickle, NOT_AN_ARCHIVE),
        ("my.npz", write_array, NOT_AN_ARCHIVE),
        ("my.npz", write_truncated, NOT_AN_ARCHIVE),
        (
            "my.npz",
            write_corrupt,
            "x cannot be read: Bad CRC-32 for file 'x.npy'.",
        ),
        (
            "my.npz",
            write_text_in_zip,
            "x must be an array as np.savez writes it.",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, name, write, message):
    path = tmp_path / name
    if write is not None:
        write(path)
    assert refusal(classify.load, Options(data=str(path))) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,train,0,1,\xff", ":2: must be UTF-8 text, got byte 0xff."),
        (
            b"2" * 200_000,
            ":2: not a .csv: field larger than field limit (131072).",
        ),
    ],
    ids=["bytes", "long"],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "my.csv"
    path.write_bytes(table().encode() + content)
    options = Options(data=str(path))
    assert refusal(classify.load, options) == f"{path}{message}"


@pytest.mark.parametrize(
    ("content", "window", "message"),
    [
        (
            b"short",
            100,
            "validation, 5 % of the text, must have at least window + 1 = 101 "
            "characters, got 0.",
        ),
        (
            b"a" * 100,
            2,
            "must have at least two different characters, got only 'a'.",
        ),
        (b"ab\xff" * 100, 2, "must be UTF-8 text, got byte 0xff at position 2."),
        (None, 100, "No such file or directory."),
    ],
)
def test_wrong_text_is_refused_in_one_line(tmp_path, content, window, message):
    path = tmp_path / "my.txt"
    if content is not None:
        path.write_bytes(content)
    options = Options(data=str(path), window=window)
    assert refusal(characters.load, options) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (classify, Options(), "task.data: must name a .npz or .csv file, got ''."),
        (characters, Options(), "task.data: must name a text file, got ''."),
        (characters, Options(window=1), "task.window: must be at least 2, got 1."),
    ],
)
def test_wrong_options_are_refused_in_one_line(task, options, message):
    assert refusal(task.load, options) == message
