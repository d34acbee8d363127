"""A task that breaks its contract is refused by name, before anything is compiled."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from experiments import tasks
from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Batch, Data, Score
from experiments.tasks import classify, regress
from experiments.tasks.contract import check_contract

pytestmark = pytest.mark.usefixtures("unchecked")


def batch(count=6, **changes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 5, 2)).astype(np.float32)
    lengths = np.full(count, 5, np.int32)
    return Batch(x, lengths, np.arange(count) % 3)._replace(**changes)


def facts(**changes):
    """Valid data of three classes; `train_...` changes the training split."""
    train = {n[6:]: changes.pop(n) for n in [*changes] if n.startswith("train_")}
    units = {"nll": "nats", "accuracy": ""}
    whole = Data(batch(**train), batch(), None, 3, "last", None, units)
    return whole._replace(**changes)


def own(**functions):
    return types.SimpleNamespace(
        **{"inputs": classify.inputs, "score": classify.score} | functions
    )


def refusal(task, data):
    with pytest.raises(ConfigError) as error:
        check_contract(task, data, "own.py")
    assert "\n" not in str(error.value)
    return str(error.value)


def spoilt(values, place, value):
    values = values.copy()
    values[place] = value
    return values


SIGNS, FROM_ONE = np.array([-1, 1] * 3), np.array([1, 2, 3] * 2)
X, CLASSES = batch().inputs, batch().targets
STEPS = np.zeros((6, 5), int)
DATA = [
    ({"train_targets": SIGNS}, "train: targets[0] must be a class from 0 to 2, got -1"),
    (
        {"train_targets": FROM_ONE},
        "train: targets[2] must be a class from 0 to 2, got 3; return numbers that are "
        "not classes as floats.",
    ),
    (
        {"train_targets": np.uint8([0, 1, 2, 3, 4, 5])},
        "train: targets[3] must be a class from 0 to 2, got 3",
    ),
    (
        {"test": batch(targets=FROM_ONE)},
        "test: targets[2] must be a class from 0 to 2, got 3",
    ),
    (
        {"valid": batch(targets=jnp.asarray(FROM_ONE))},
        "valid: targets[2] must be a class from 0 to 2, got 3",
    ),
    (
        {"train_targets": spoilt(STEPS, (1, 3), -100), "readout": "each"},
        "train: targets[1, 3] must be a class from 0 to 2, got -100",
    ),
    ({"train_inputs": X.tolist()}, "train: inputs must be a NumPy or JAX array, got l"),
    ({"train_lengths": [5] * 6}, "train: lengths must be a NumPy or JAX array, got li"),
    ({"train_targets": None}, "train: targets must be a NumPy or JAX array, got None"),
    ({"train_inputs": X.astype(object)}, "train: inputs must be real numbers, got obj"),
    ({"train_inputs": X.astype(complex)}, "train: inputs must be real numbers, got co"),
    ({"train_targets": np.array(list("abcabc"))}, "train: targets must be real number"),
    (
        {"train_inputs": spoilt(X, (4, 2, 1), np.nan)},
        "train: inputs[4, 2, 1] must be a finite float32 number, also in padding, got",
    ),
    (
        {"train_inputs": spoilt(X, (0, 0, 0), -np.inf).astype(np.float16)},
        "train: inputs[0, 0, 0] must be a finite float32 number, also in padding, got",
    ),
    (
        {"train_inputs": spoilt(X.astype(np.float64), (0, 0, 1), 1e39)},
        "train: inputs[0, 0, 1] must be a finite float32 number, also in padding, got",
    ),
    (
        {"train_inputs": jnp.bfloat16(X).at[0, 1, 1].set(np.inf)},
        "train: inputs[0, 1, 1] must be a finite float32 number, also in padding, got",
    ),
    (
        {"train_targets": spoilt(np.ones(6), 2, np.inf), "outputs": 1},
        "train: targets[2] must be a finite float32 number, also in padding, got inf.",
    ),
    (
        {"train_inputs": np.zeros(6)},
        "train: inputs must have shape [N, T, ...] with at",
    ),
    (
        {"train_inputs": X[:, :0]},
        "train: inputs must have shape [N, T, ...] with at le",
    ),
    (
        {"test": Batch(X[:0], np.zeros(0, int), np.zeros(0, int))},
        "test: inputs must have shape [N, T, ...] with at least one sequence and one s",
    ),
    (
        {"train_lengths": np.full(6, 5.0)},
        "train: lengths must be integers of shape (6,), got float64 of shape (6,).",
    ),
    (
        {"train_lengths": np.full((6, 1), 5)},
        "train: lengths must be integers of shape (6,), got int64 of shape (6, 1).",
    ),
    (
        {"train_lengths": np.ones(6, bool)},
        "train: lengths must be integers of shape (6",
    ),
    (
        {"train_lengths": np.uint8([5, 5, 0, 5, 5, 5])},
        "train: lengths[2] must lie in 1 to 5 steps, got 0.",
    ),
    (
        {"test": batch(lengths=np.int8([5, 5, 5, 5, 5, 6]))},
        "test: lengths[5] must lie in 1 to 5 steps, got 6.",
    ),
    (
        {"train_targets": CLASSES[:5]},
        "train: targets must have shape [6, ...], got int",
    ),
    ({"train": (X, CLASSES)}, "train: must be a Batch, got tuple."),
    ({"test": None}, "test: must be a Batch, got NoneType."),
    ({"valid": {}}, "valid: must be a Batch, got dict."),
    ({"outputs": 3.0}, "outputs must be an integer, got 3.0."),
    ({"outputs": True}, "outputs must be an integer, got True."),
    ({"outputs": 0}, "outputs must be at least 1, got 0."),
    ({"readout": "first"}, 'readout must be "last" or "each", got \'first\'.'),
    (
        {"units": {}},
        "units must be a dict from each name in a score, the loss first, t",
    ),
    (
        {"units": {"nll": None}},
        "units must be a dict from each name in a score, the lo",
    ),
    (
        {"units": ["nll"]},
        "units must be a dict from each name in a score, the loss fir",
    ),
    ({"source": None}, "source must be text, got None."),
    (
        {"strata": np.zeros(5, int)},
        "strata must be integers of shape (6,), one per training sequence, got int64 o",
    ),
    (
        {"strata": np.zeros(6)},
        "strata must be integers of shape (6,), one per training",
    ),
    (
        {"strata": [0] * 6},
        "strata must be integers of shape (6,), one per training seq",
    ),
    (
        {"test": batch(inputs=X[..., :1])},
        "test.inputs must be like train.inputs, float32 of shape (6, 5, 2), got float3",
    ),
    (
        {"test": batch(inputs=X.astype(np.float64))},
        "test.inputs must be like train.inputs, float32 of shape (6, 5, 2), got float6",
    ),
    (
        {"valid": batch(targets=CLASSES.astype(np.float32))},
        "valid.targets must be like train.targets, int64 of shape (6,), got float32 of",
    ),
]


@pytest.mark.parametrize(("changes", "message"), DATA)
def test_data_that_break_the_contract_are_refused(changes, message):
    place, _, field = message.partition(": ")
    in_split = place in ("train", "test", "valid")
    expected = f"own.py: {place}: {field}" if in_split else f"own.py: {message}"
    assert refusal(own(), facts(**changes)).startswith(expected)


def test_integers_of_64_bits_must_be_those_of_32():
    with jax.enable_x64(False):
        wide = batch().inputs.astype(np.int64) + 2**31
        found = refusal(own(), facts(train_inputs=wide))
    assert "train: inputs[0, 0, 0] must be an int32, got 214748364" in found


def test_data_must_be_data():
    expected = "own.py: load must return a Data, got tuple."
    assert refusal(own(), (batch(), batch())) == expected


def judged(**changes):
    """A score that is changed in one place."""

    def score(outputs, batch):
        found = classify.score(outputs, batch)
        values = found.values | changes.get("values", {})
        return Score(values, changes.get("weight", found.weight))

    return score


def flipped(outputs, batch):
    values, weight = classify.score(outputs, batch)
    return Score(dict(reversed(values.items())), weight)


def fails(*_):
    raise ValueError("a.\nb")


FUNCTIONS = [
    (
        {"inputs": lambda b: b.inputs[..., 0]},
        "inputs(batch) must return floats [B, T, D], here (2, 5, D), got float32 of sh",
    ),
    (
        {"inputs": lambda b: b.inputs.swapaxes(0, 1)},
        "inputs(batch) must return floats [B, T, D], here (2, 5, D), got float32 of sh",
    ),
    (
        {"inputs": lambda b: b.inputs.astype(jnp.int32)},
        "inputs(batch) must return floats [B, T, D], here (2, 5, D), got int32 of shap",
    ),
    (
        {"inputs": lambda b: None},
        "inputs(batch) must return floats [B, T, D], here (2, 5, D), got NoneType.",
    ),
    ({"inputs": fails}, "inputs(batch) fails: ValueError: a."),
    (
        {"inputs": lambda b: np.asarray(b.inputs)},
        "inputs(batch) fails: TracerArrayConversionError: The numpy.ndarray conversio",
    ),
    ({"score": fails}, "score(outputs, batch) fails: ValueError: a."),
    (
        {"score": lambda o, b: b.targets},
        "score(outputs, batch): must return a Score, g",
    ),
    (
        {"score": judged(values={"f1": jnp.zeros(2)})},
        "score(outputs, batch): must return values named as units are: nll, accuracy;",
    ),
    (
        {"score": flipped},
        "score(outputs, batch): must return values named as units are: nll, accuracy;",
    ),
    (
        {"score": judged(values={"nll": jnp.float32(0)})},
        "score(outputs, batch): must return nll as floats [B], here (2,), got float32",
    ),
    (
        {"score": judged(values={"nll": jnp.zeros(2, int)})},
        "score(outputs, batch): must return nll as floats [B], here (2,), got int",
    ),
    (
        {"score": judged(values={"accuracy": jnp.zeros((2, 5))})},
        "score(outputs, batch): must return accuracy as floats [B], here (2,), got flo",
    ),
    (
        {"score": judged(weight=1.0)},
        "score(outputs, batch): must return weight as floats [B], here (2,), got float",
    ),
]


@pytest.mark.parametrize(("functions", "message"), FUNCTIONS)
def test_functions_that_break_the_contract_are_refused(functions, message):
    assert refusal(own(**functions), facts()).startswith(f"own.py: {message}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"valid": batch(3), "outputs": np.int64(3), "source": "me"},
        {"strata": jnp.asarray(CLASSES)},
        {"train_targets": CLASSES.astype(bool), "test": batch(targets=SIGNS > 0)},
        {"train_lengths": np.uint8([1, 2, 3, 4, 5, 5])},
        {"test": batch(inputs=np.zeros((6, 9, 2), np.float32))},
        jax.tree.map(jnp.asarray, {"train_inputs": X, "test": batch()}),
    ],
)
def test_data_that_keep_the_contract_pass(changes):
    check_contract(own(), facts(**changes), "own.py")


def test_numbers_are_not_taken_for_classes():
    """Floats, several numbers per sequence, and the answers of a single output."""
    score = {"score": lambda o, b: Score({"mse": o[:, 0]}, jnp.ones(len(o)))}
    for targets, outputs in (
        (SIGNS, 1),
        (FROM_ONE.astype(np.float32), 3),
        (np.stack([SIGNS] * 3, 1), 3),
    ):
        both = {n: batch(targets=targets) for n in ("train", "test")}
        data = facts(**both, outputs=outputs, units={"mse": ""})
        check_contract(own(**score), data, "own.py")


def test_labels_in_padding_are_not_classes():
    lengths = np.full(6, 3)
    targets = spoilt(STEPS, (0, 4), -100)
    steps = {n: batch(targets=targets, lengths=lengths) for n in ("train", "test")}
    score = {"score": lambda o, b: Score({"nll": o[:, 0, 0]}, jnp.ones(len(o)))}
    data = facts(**steps, readout="each", units={"nll": "nats"})
    check_contract(own(**score), data, "own.py")


def test_nothing_is_compiled_or_computed():
    """The functions see two sequences of the right shapes, without values."""
    seen = []

    def inputs(few):
        seen.append(few)
        return few.inputs

    check_contract(own(inputs=inputs), facts(), "own.py")
    assert seen
    for few in seen:
        assert isinstance(few.inputs, jax.core.Tracer)
        assert few.inputs.shape == (2, 5, 2)


@pytest.mark.parametrize("name", tasks.BUILTIN)
def test_builtin_tasks_keep_the_contract(tmp_path, name):
    path = tmp_path / "my.npz"
    y = {"label": np.tile([0, 1, 0, 1, 0], (6, 1)), "regress": np.arange(6.0)}
    np.savez(path, x=X, y=y.get(name, CLASSES))
    if name == "characters":
        path = tmp_path / "my.txt"
        path.write_text("the quick brown fox " * 50)
    if name == "piano_roll":
        path, pieces = tmp_path / "my.mat", np.empty((1, 2), object)
        pieces[0, :] = [np.zeros((5, 88)), np.ones((3, 88))]
        splits = ("traindata", "validdata", "testdata")
        scipy.io.savemat(path, dict.fromkeys(splits, pieces))
    path = "" if name in ("selective_copy", "forecast") else str(path)
    task, data = tasks.load_task(Options(name, path, test=0.4, window=10))
    assert task is tasks.find(name)
    assert isinstance(data, Data)


def test_the_example_of_an_own_task_keeps_the_contract(pytestconfig):
    path = str(pytestconfig.rootpath / "examples" / "own_task.py")
    _, data = tasks.load_task(Options(name=path))
    assert len(data.train.lengths) == 2000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise OSError(2, 'No such file', 'x.h5')", "load(options) fails: FileNotFou"),
        ("raise KeyError('speed')", "load(options) fails: KeyError: 'speed'."),
        ("return {}", "load must return a Data, got dict."),
    ],
)
def test_what_a_load_of_ones_own_does_wrong_is_one_line(tmp_path, source, message):
    path = tmp_path / "own.py"
    path.write_text(f"def load(options):\n    {source}\ninputs = score = load\n")
    with pytest.raises(ConfigError) as error:
        tasks.load_task(Options(name=str(path)))
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "arrays", "message"),
    [
        (
            "classify",
            {"train_x": [[0.0], [1e-30]], "test_x": [[3e38], [0]]},
            "test: inputs[0, 0, 0] must be a finite float32 number, also in padding, g",
        ),
        (
            "regress",
            {"train_y": [0.0, 1e-30], "test_y": [3e38, 0.0]},
            "test: targets[0, 0, 0] must be a finite float32 number, also in padding, ",
        ),
    ],
)
def test_numbers_that_standardisation_makes_infinite(tmp_path, task, arrays, message):
    path = str(tmp_path / "my.npz")
    x, y = [[0.0], [1]], [0, 1]
    both = {"train_x": x, "train_y": y, "test_x": x, "test_y": y} | arrays
    np.savez(path, **{name: np.array(values) for name, values in both.items()})
    with pytest.raises(ConfigError) as error:
        tasks.load_task(Options(task, path))
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_feature_that_varies_less_than_its_square_can_hold_is_centred(tmp_path):
    path = str(tmp_path / "my.npz")
    x = np.array([[0.0], [1e-200]] * 4)
    np.savez(path, x=x, y=np.arange(8) % 2)
    _, data = tasks.load_task(Options("classify", path))
    assert not data.train.inputs.any()
    np.savez(path, x=np.arange(8.0)[:, None], y=x[:, 0])
    with pytest.raises(ConfigError, match="more than float32 can hold, got a standard"):
        regress.load(Options("regress", path))
