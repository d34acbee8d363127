"""Files of Keras and PyTorch are read and written, and opened by those libraries."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from rdrop import interop

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

# Keras does to NumPy what this warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
ROOT = Path(__file__).parents[2]
L = keras.layers
UNITS = 3


@pytest.fixture(autouse=True)
def lenient():
    """Lets Keras promote dtypes and ranks as it is used to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def build_model():
    """Every kind of layer, of which two are in a model of their own."""
    inner = keras.Sequential(
        [
            keras.Input((5, UNITS)),
            L.SimpleRNN(UNITS, return_sequences=True, name="twice"),
            L.SimpleRNN(UNITS, return_sequences=True, name="simple"),
        ],
        name="inner",
    )
    layers = [
        keras.Input((5, 2)),
        L.LSTM(UNITS, return_sequences=True, name="encoder"),
        L.GRU(UNITS, reset_after=False, return_sequences=True, name="before"),
        L.GRU(UNITS, go_backwards=True, return_sequences=True, name="after"),
        L.Bidirectional(L.LSTM(UNITS, return_sequences=True), name="both"),
        L.Dense(UNITS, name="dense"),
        inner,
        L.SimpleRNN(UNITS, use_bias=False, return_sequences=True, name="twice"),
        L.LSTM(UNITS, activation="relu", name="relu"),
    ]
    x = layers[0]
    for layer in layers[1:]:
        x = layer(x)
    model = keras.Model(layers[0], x)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model, inner


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its inner one, and the folder of its two files."""
    folder = tmp_path_factory.mktemp("keras")
    rng = np.random.default_rng(0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, inner = build_model()
        for variable in model.weights:
            variable.assign(rng.normal(size=variable.shape))
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
    return model, inner, folder


@pytest.fixture(params=["model.keras", "model.weights.h5"])
def path(saved, tmp_path, request):
    """A file to be read and changed."""
    return Path(shutil.copy(saved[2] / request.param, tmp_path))


NAMES = ["encoder", "before", "after", "both"]


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def scaled(params):
    return jax.tree.map(lambda leaf: 2 * leaf, params)


@pytest.mark.parametrize("name", NAMES)
def test_layer_of_a_file_of_keras_is_the_live_one(saved, path, name):
    ported = interop.read_keras(path, name)
    expected = interop.from_keras(saved[0].get_layer(name))
    assert_same(ported.params, expected.params)
    has_settings = path.suffix == ".keras"
    if name != "after" or has_settings:
        assert str(ported.module) == str(expected.module)
    else:
        assert not ported.module.reverse


def test_layers_of_a_file_of_keras_are_a_stack(saved, path):
    names = ["encoder", "before", "both"]
    expected = interop.from_keras([saved[0].get_layer(name) for name in names])
    assert_same(interop.read_keras(path, names).params, expected.params)


def test_layers_of_one_name_are_told_by_their_paths(saved, path):
    model, inner, _ = saved
    with pytest.raises(ValueError, match=r"\['layers/sequential/.*', 'layers/simple_r"):
        interop.read_keras(path, "twice")
    for owner, place in ((inner, "sequential/layers/"), (model, "")):
        ported = interop.read_keras(path, f"layers/{place}simple_rnn")
        assert_same(ported, interop.from_keras(owner.get_layer("twice")))


def test_missing_layer_names_those_that_are_there(path):
    with pytest.raises(ValueError, match=r"'after', .*'encoder', .*got 'encode'"):
        interop.read_keras(path, "encode")


def test_settings_of_an_archive_are_checked(path):
    if path.suffix == ".h5":
        assert interop.read_keras(path, "relu")
        return
    with pytest.raises(ValueError, match="`activation` must be"):
        interop.read_keras(path, "relu")
    with pytest.raises(ValueError, match="must not go backwards below the top"):
        interop.read_keras(path, ["after", "both"])


def loaded(saved, path):
    """What Keras reads from a file."""
    if path.suffix == ".keras":
        return keras.models.load_model(path, compile=False)
    model = keras.models.clone_model(saved[0])
    model.load_weights(path)
    return model


def changed(before, after):
    """The names of the layers whose weights differ between two models."""
    return {
        layer.name
        for layer, other in zip(before.layers, after.layers, strict=True)
        for a, b in zip(layer.weights, other.weights, strict=True)
        if not np.array_equal(np.asarray(a), np.asarray(b))
    }


def test_what_is_written_is_read_by_keras_and_the_rest_stays(saved, path):
    names = ["encoder", "both"]
    params = scaled(interop.read_keras(path, names).params)
    interop.write_keras(path, params, names)
    model = loaded(saved, path)
    assert changed(saved[0], model) == set(names)
    layers = [model.get_layer(name) for name in names]
    assert_same(interop.from_keras(layers).params, params)
    assert_same(interop.read_keras(path, names).params, params)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_layer_is_written_back_to_the_bit(saved, path):
    for name in ("encoder", "both", "before", "layers/simple_rnn"):
        params = interop.read_keras(path, name).params
        interop.write_keras(path, params, name)
    assert changed(saved[0], loaded(saved, path)) == set()


def test_other_members_of_an_archive_stay(saved, path):
    if path.suffix == ".h5":
        pytest.skip("not an archive")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("assets/words.txt", "a b")
    interop.write_keras(path, interop.read_keras(path, "both").params, "both")
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(saved[2] / "model.keras") as old,
    ):
        assert archive.read("assets/words.txt") == b"a b"
        for name in ("config.json", "metadata.json"):
            assert archive.read(name) == old.read(name)
        with h5py.File(archive.open("model.weights.h5")) as file:
            assert "optimizer/vars" in file


def wrong_writes(path):
    lstm = interop.read_keras(path, "encoder").params
    gru = interop.read_keras(path, "before").params
    both = interop.read_keras(path, "both").params
    simple = interop.read_keras(path, "layers/sequential/layers/simple_rnn").params
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), lstm)
    return [
        (gru, "encoder", r"float32\[2, 12\] for .*, as is there, got float32\[3, 9\]"),
        (wide, "encoder", r"float32\[2, 12\] for .* got float64"),
        (both, "encoder", "must be of a RNN, as 'encoder' is"),
        (lstm, "both", "must be of a Bidirectional, as 'both' is"),
        (lstm, ["encoder"], "`layer` must be one name, or one for each layer"),
        (simple, "layers/simple_rnn", "`bias` must be zero, as 'twice' has none"),
        (lstm, "none", "got 'none'"),
    ]


def test_refused_write_leaves_the_file(path):
    before = path.read_bytes()
    for params, name, match in wrong_writes(path):
        with pytest.raises(ValueError, match=match):
            interop.write_keras(path, params, name)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_interrupted_write_leaves_the_file(path, monkeypatch):
    before = path.read_bytes()
    params = scaled(interop.read_keras(path, "encoder").params)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        interop.write_keras(path, params, "encoder")
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_bfloat16_of_keras_is_read_and_written(tmp_path):
    path = tmp_path / "model.weights.h5"
    options = {"dtype": "bfloat16", "recurrent_initializer": "glorot_uniform"}
    layer = L.LSTM(UNITS, name="lstm", **options)
    keras.Sequential([keras.Input((5, 2)), layer]).save_weights(path)
    params = interop.read_keras(path, "lstm").params
    assert_same(params, interop.from_keras(layer).params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    interop.write_keras(path, scaled(params), "lstm")
    assert_same(interop.read_keras(path, "lstm").params, scaled(params))


def test_files_of_older_versions_have_no_names(path):
    if path.suffix == ".keras":
        pytest.skip("of weights alone")
    with h5py.File(path, "r+") as file:
        del file["layers/lstm/vars"].attrs["name"]
    expected = interop.read_keras(path, "layers/lstm").params
    assert_same(interop.read_keras(path, "lstm").params, expected)


def test_archive_without_settings_is_refused(saved, path, tmp_path):
    if path.suffix == ".h5":
        pytest.skip("not an archive")
    other = tmp_path / "other.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        new.writestr("config.json", json.dumps({"config": {"layers": []}}))
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    with pytest.raises(ValueError, match=r"settings of 'encoder' in its config\.json"):
        interop.read_keras(other, "encoder")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end with \.keras or .*got 'model.npz'"):
        interop.read_keras(tmp_path / "model.npz", "lstm")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_safetensors_are_those_of_torch(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    module = torch.nn.GRU(2, UNITS, 2, bidirectional=True, bias=False, dtype=dtype)
    head = {"head.weight": torch.ones(3)}
    state = {f"encoder.{name}": each for name, each in module.state_dict().items()}
    safetensors.save_file(state | head, path, {"epoch": "3"})
    ported = interop.read_torch(path, "encoder.")
    assert_same(ported.params, interop.from_torch(module.state_dict()).params)
    params = scaled(ported.params)
    interop.write_torch(path, params, "encoder.")
    tensors = safetensors.load_file(path)
    assert torch.equal(tensors["head.weight"], torch.ones(3))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"epoch": "3"}
    same = torch.nn.GRU(2, UNITS, 2, bidirectional=True, dtype=dtype)
    own = {
        name.removeprefix("encoder."): tensor
        for name, tensor in tensors.items()
        if name.startswith("encoder.")
    }
    same.load_state_dict(own)
    assert_same(interop.from_torch(same.state_dict()).params, params)


def test_safetensors_are_made_where_there_are_none(tmp_path):
    path = tmp_path / "new.safetensors"
    params = interop.from_torch(torch.nn.LSTM(2, UNITS).state_dict()).params
    interop.write_torch(path, params, "lstm.")
    assert_same(interop.read_torch(path, "lstm.").params, params)
    other = interop.from_torch(torch.nn.LSTM(4, UNITS).state_dict()).params
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"float32\[12, 2\] for `lstm.weight_ih_l0`"):
        interop.write_torch(path, other, "lstm.")
    assert path.read_bytes() == before


def test_packages_that_are_missing_are_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="needs h5py: pip install 'rdrop"):
        interop.read_keras(path, "encoder")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="needs safetensors: pip install 'rdrop"):
        interop.read_torch("model.safetensors")


def test_reading_files_imports_neither_keras_nor_torch(saved):
    code = (
        "import sys; from rdrop import interop; "
        f"interop.read_keras({str(saved[2] / 'model.keras')!r}, 'both'); "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert not {"keras", "torch", "tensorflow"} & set(output.stdout.decode().split())
