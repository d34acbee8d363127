"""Files of Keras and PyTorch are read without those libraries."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from interop_cases import ZEROS

from rdrop import interop, presets

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

# Keras does to NumPy what this warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
ROOT = Path(__file__).parents[2]
L = keras.layers
UNITS = 3
SEQUENCES = {"return_sequences": True} | ZEROS
NAMES = ["encoder", "before", "after", "both"]


def build_model():
    """Every kind of layer, one of them in a model inside the model."""
    simple = L.SimpleRNN(UNITS, name="twice", **SEQUENCES)
    inner = keras.Sequential([keras.Input((5, UNITS)), simple], name="inner")
    layers = [
        L.LSTM(UNITS, dropout=0.2, recurrent_dropout=0.5, name="encoder", **SEQUENCES),
        L.GRU(UNITS, reset_after=False, name="before", **SEQUENCES),
        L.GRU(UNITS, go_backwards=True, name="after", **SEQUENCES),
        L.Bidirectional(L.LSTM(UNITS, dropout=0.3, **SEQUENCES), name="both"),
        L.Dense(UNITS, name="dense"),
        inner,
        L.SimpleRNN(UNITS, use_bias=False, name="twice", **SEQUENCES),
        L.LSTM(UNITS, activation="gelu", name="gelu", **ZEROS),
    ]
    x = start = keras.Input((5, 2))
    for layer in layers:
        x = layer(x)
    return keras.Model(start, x), inner


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


@pytest.fixture
def archive(saved, tmp_path):
    return Path(shutil.copy(saved[2] / "model.keras", tmp_path))


@pytest.fixture
def weights(saved, tmp_path):
    return Path(shutil.copy(saved[2] / "model.weights.h5", tmp_path))


@pytest.mark.parametrize("name", [*NAMES, ["encoder", "before", "both"]])
def test_a_layer_of_a_file_is_the_live_one(saved, archive, weights, name):
    """Except for its direction and its dropout in a file of weights alone."""
    names = name if isinstance(name, list) else [name]
    layers = [saved[0].get_layer(each) for each in names]
    expected = interop.from_keras(layers if isinstance(name, list) else layers[0])
    ported = interop.read_keras(archive, name)
    assert (ported.module, ported.dropout) == (expected.module, expected.dropout)
    bare = interop.read_keras(weights, name)
    assert bare.dropout is None
    if name == "after":
        assert bare.module == expected.module.clone(reverse=False)
    else:
        assert bare.module == expected.module
    for each in (ported, bare):
        chex.assert_trees_all_equal(each.params, expected.params, strict=True)


def test_the_dropout_of_an_archive_is_the_preset(archive):
    assert interop.read_keras(archive, "encoder").dropout == presets.keras(0.2, 0.5)
    assert interop.read_keras(archive, "both").dropout == presets.keras(0.3)
    assert interop.read_keras(archive, "before").dropout is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.15.0", presets.keras2(0.2, 0.5)),
        ("3.1.1", presets.keras3_0(0.2, 0.2)),
        ("3.5.0", presets.keras3_0(0.2, 0.5)),
        ("3.10.0", presets.keras(0.2, 0.5)),
    ],
)
def test_the_dropout_of_an_archive_is_that_of_its_version(archive, version, expected):
    path = rewritten(
        archive, "metadata.json", lambda facts: facts | {"keras_version": version}
    )
    assert interop.read_keras(path, "encoder").dropout == expected


def test_layers_of_one_name_are_distinguished_by_their_paths(saved, archive, weights):
    model, inner, _ = saved
    for path in (archive, weights):
        with pytest.raises(
            ValueError, match=r"must be a path.*layers/sequential/.*, l"
        ):
            interop.read_keras(path, "twice")
        for owner, place in ((inner, "sequential/layers/"), (model, "")):
            ported = interop.read_keras(path, f"layers/{place}simple_rnn")
            expected = interop.from_keras(owner.get_layer("twice"))
            chex.assert_trees_all_equal(ported.params, expected.params, strict=True)


def test_settings_of_an_archive_are_checked(archive, weights):
    assert interop.read_keras(weights, "gelu")
    with pytest.raises(ValueError, match="`activation` must be"):
        interop.read_keras(archive, "gelu")
    with pytest.raises(ValueError, match="below the top of a stack must not go back"):
        interop.read_keras(archive, ["after", "both"])


def test_a_missing_layer_is_named_with_those_that_are_there(archive):
    with pytest.raises(ValueError, match=r"one of after, .*encoder, .*got 'encode'"):
        interop.read_keras(archive, "encode")


def rewritten(archive, part, change):
    """The archive with another config.json, or another part of it."""
    path = archive.with_name("other.keras")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == part:
                data = json.dumps(change(json.loads(data)))
            new.writestr(name, data)
    return path


def test_an_archive_without_settings_is_rejected(archive):
    path = rewritten(archive, "config.json", lambda _: {"config": {"layers": []}})
    with pytest.raises(ValueError, match=r"lacks the settings of 'encoder'"):
        interop.read_keras(path, "encoder")


def test_settings_of_one_name_must_agree(archive):
    """If they change the port: those of `use_bias`, which differ here, do not."""

    def change(config):
        layers = {each["name"]: each for each in config["config"]["layers"]}
        layers["twice"]["config"]["dropout"] = 0.5
        return config

    with pytest.raises(ValueError, match=r"'twice', which it contains 2 times with"):
        interop.read_keras(
            rewritten(archive, "config.json", change), "layers/simple_rnn"
        )


def test_files_of_older_versions_have_no_names(weights):
    with h5py.File(weights, "r+") as file:
        del file["layers/lstm/vars"].attrs["name"]
    expected = interop.read_keras(weights, "layers/lstm").params
    actual = interop.read_keras(weights, "lstm").params
    chex.assert_trees_all_equal(actual, expected, strict=True)


def test_other_files_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"must end with \.keras or .*got 'model.npz'"):
        interop.read_keras(tmp_path / "model.npz", "lstm")


def test_bfloat16_of_keras_is_read(tmp_path):
    path = tmp_path / "model.weights.h5"
    layer = L.LSTM(UNITS, name="lstm", dtype="bfloat16", **ZEROS)
    keras.Sequential([keras.Input((5, 2)), layer]).save_weights(path)
    params = interop.read_keras(path, "lstm").params
    expected = interop.from_keras(layer).params
    chex.assert_trees_all_equal(params, expected, strict=True)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_safetensors_of_torch_are_read(tmp_path, dtype):
    """And rdrop's parameters are written by `to_torch` and safetensors."""
    path = tmp_path / "model.safetensors"
    module = torch.nn.GRU(2, UNITS, 2, bidirectional=True, bias=False, dtype=dtype)
    expected = interop.from_torch(module.state_dict()).params
    state = {f"encoder.{name}": each for name, each in module.state_dict().items()}
    safetensors.save_file(state | {"head.weight": torch.ones(3)}, path)
    ported = interop.read_torch(path, "encoder.")
    chex.assert_trees_all_equal(ported.params, expected, strict=True)
    assert ported.dropout is None
    safetensors.save_file(interop.to_torch(ported.params), path)
    again = interop.read_torch(path).params
    chex.assert_trees_all_equal(again, expected, strict=True)


def test_missing_packages_are_named(archive, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py .*: pip install '\.\[interop\]'"):
        interop.read_keras(archive, "encoder")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"safetensors .* install '\.\[interop\]'"):
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
