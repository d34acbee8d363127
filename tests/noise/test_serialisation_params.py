"""Parameters in safetensors files and orbax checkpoints come back bitwise."""

import os
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop.serialisation import load_metadata, load_params, save_params

safetensors = pytest.importorskip("safetensors")
SUPPORTED = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float8_e4m3fn float8_e5m2 "
    "bfloat16 float16 float32 float64"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.safetensors"


@pytest.fixture
def params(rng):
    """Parameters of a stack of both directions and one."""
    both_ways = rdrop.Bidirectional(rdrop.GRUCell(3), rdrop.GRUCell(3))
    module = rdrop.Stack([both_ways, rdrop.RNN(rdrop.LSTMCell(4))])
    xs = jnp.ones((2, 5, 2), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), xs)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes
    )


def assert_same(actual, expected):
    """Bitwise, and with the same dtypes, as JAX arrays."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert isinstance(a, jax.Array)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_stack_comes_back(params, path):
    save_params(path, params)
    assert_same(load_params(path), params)


def test_metadata_comes_back(params, path):
    save_params(path, params)
    assert load_metadata(path) == {}
    texts = {"config": "units = 4\n", "source": "é"}
    save_params(path, params, texts)
    assert load_metadata(path) == texts
    assert_same(load_params(path), params)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_metadata(path)


def test_another_reader_finds_the_names_of_the_modules(params, path):
    save_params(str(path), params)
    gru = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
    names = {f"layers_1.{weight}" for weight in gru[:3]}
    for direction in ("forward", "backward"):
        names |= {f"layers_0.{direction}.{weight}" for weight in gru}
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.keys()) == {f"params.{name}" for name in names}
        kernel = file.get_tensor("params.layers_1.kernel")
    np.testing.assert_array_equal(kernel, params["params"]["layers_1"]["kernel"])


@pytest.mark.parametrize("dtype", SUPPORTED.split())
def test_dtypes_are_kept(rng, path, dtype):
    """All bits of a float, those of NaN included."""
    size, values = jnp.dtype(dtype).itemsize, 2 if dtype == "bool" else 256
    data = rng.integers(0, values, (256, size), np.uint8).view(dtype)
    params = {"params": {"kernel": jnp.asarray(data)}}
    save_params(path, params)
    assert_same(load_params(path), params)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0)[::2],
        np.arange(6.0, dtype=">f8"),
        np.array(0.5),
        np.zeros((0, 3)),
    ],
    ids=["columns first", "strided", "big-endian", "no axes", "empty"],
)
def test_any_layout_of_memory_is_read_right(path, array):
    save_params(path, {"a": array})
    again = load_params(path)["a"]
    assert again.shape == array.shape
    np.testing.assert_array_equal(again, array)


def test_a_file_of_torch_is_read(path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    lstm = torch.nn.LSTM(2, 3).to(torch.bfloat16)
    state = {f"encoder.{name}": value for name, value in lstm.state_dict().items()}
    save_file(state, path)
    again = load_params(path)["encoder"]
    assert set(again) == set(lstm.state_dict())
    for name, value in lstm.state_dict().items():
        assert again[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            again[name].astype(jnp.float32), value.to(torch.float32).numpy()
        )


def test_torch_reads_the_file(params, path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    save_params(path, halves)
    bias = load_file(path)["params.layers_1.bias"].float().numpy()
    expected = halves["params"]["layers_1"]["bias"].astype(jnp.float32)
    np.testing.assert_array_equal(bias, expected)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_written_as_a_whole_or_not_at_all(path, monkeypatch, step):
    def full(*_):
        raise OSError("disk full")

    save_params(path, {"a": np.ones(3)})
    before = path.read_bytes()
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="disk full"):
        save_params(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (np.ones(3), TypeError, "`params` must be a dict that is not empty, got arra"),
        ({}, TypeError, "`params` must be a dict that is not empty, got {}"),
        ({"a": {}}, ValueError, r"`params\['a'\]` must not be an empty dict"),
        ({"a": {"b.c": np.ones(3)}}, ValueError, r"not contain dots.* got 'b.c' in"),
        ({"": np.ones(3)}, ValueError, "Keys of `params` .*be empty.* got ''"),
        ({"__metadata__": np.ones(3)}, ValueError, "Keys of .* got '__metadata__'"),
        ({0: np.ones(3)}, TypeError, "Keys of `params` must be text, got 0"),
        ({"a": {"b": 0.5}}, TypeError, r"`params\['a'\]\['b'\]` must be an array, got"),
        ({"a": [np.ones(3)]}, TypeError, r"`params\['a'\]` must be an array, got \["),
        ({"a": np.array(["x"])}, ValueError, "must have one of the dtypes .* str"),
        ({"a": jax.random.key(0)}, ValueError, r"must have one of the .* got key<fry>"),
    ],
)  # fmt: skip
def test_params_that_a_file_cannot_hold_are_rejected(path, params, error, message):
    with pytest.raises(error, match=message):
        save_params(path, params)
    assert not path.exists()


def test_a_tracer_is_rejected(path):
    with pytest.raises(TypeError, match=r"`params\['a'\]` must be an array, got"):
        jax.jit(lambda a: save_params(path, {"a": a}))(1.0)


@pytest.mark.parametrize("content", [b"", b"no such thing at all", "cut"])
def test_another_file_is_rejected(path, content):
    save_params(path, {"a": np.ones(3)})
    path.write_bytes(path.read_bytes()[:-1] if content == "cut" else content)
    with pytest.raises(
        ValueError, match=f"`path` must be a safetensors file, .*{path}"
    ):
        load_params(path)


def test_a_name_for_an_array_and_a_dict_is_rejected(path):
    from safetensors.numpy import save_file

    save_file({"a.b.c": np.ones(3), "a": np.ones(3)}, path)
    with pytest.raises(
        ValueError, match=r"`a` names both an array and the dict of `a.b.c`"
    ):
        load_params(path)


def test_another_dtype_is_rejected(path):
    """By its name, if safetensors knows it."""
    header = b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=r"dtype C64|must be a safetensors file"):
        load_params(path)


def test_64_bits_are_not_halved_silently(path):
    save_params(path, {"a": np.ones(3)})
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"Tensor `a` is float64, .*jax_enable_x64"),
    ):
        load_params(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=str(path)):
        load_params(path)


@pytest.mark.parametrize("call", [load_params, lambda p: save_params(p, {"a": 1})])
def test_a_missing_package_is_named(path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"safetensors .* pip install '\.\[inter"):
        call(path)


def test_orbax_needs_no_help(params, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: params)
        assert_same(checkpointer.restore(tmp_path / "params", shapes), params)
