"""Files: weights in the files of Keras and PyTorch, without either of them.

Keras: a `.keras` archive holds `config.json`, with the settings of every layer, and
`model.weights.h5`; a `.weights.h5` file holds arrays alone. There the weights of a cell
are `<layer>/cell/vars/0`, `1`, `2`, and the name of a layer is an attribute of
`<layer>/vars`. Checked with Keras 3.15, keras/src/saving/saving_lib.py.

PyTorch: `.safetensors`, the names of a state_dict.

What is written takes the old file's place at once, or not at all.
"""

import importlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from rdrop.interop.keras import (
    check_config,
    check_order,
    configs_of_both,
    read_weights,
    write_weights,
)
from rdrop.interop.layouts import Array, Weights, check_like
from rdrop.interop.ported import Ported, port, stack, weights_of
from rdrop.interop.torch import from_torch, to_arrays

File: TypeAlias = str | os.PathLike[str]
# Groups of HDF5, of a package that need not be installed.
Group: TypeAlias = Any
H5 = "model.weights.h5"
PARTS = ("forward_layer", "backward_layer")


def read_keras(path: File, layer: str | Sequence[str]) -> Ported:
    """Returns a recurrent layer of a saved model of Keras, without importing Keras.

    A `.weights.h5` file has no settings: its layers are taken to have the default
    activations, to run forwards, and a GRU without biases to have the reset after.

    Args:
        path: a `.keras` archive, or a `.weights.h5` file.
        layer: a layer's name, or its path in the file where two have the same name; or
            several, from the input upwards, for a `Stack`.

    Raises:
        ImportError: h5py is not installed.
        ValueError: a file of another kind, a name that is not there, or a layer that
            computes what rdrop does not, as in `from_keras`.
    """
    model, config = _load(path)
    with _h5().File(io.BytesIO(model), "r") as file:
        groups = _layers(file)
        if isinstance(layer, str):
            return _read_layer(_find(groups, layer), config)
        found = [_find(groups, name) for name in layer]
        ported = [_read_layer(group, config) for group in found]
    check_order([getattr(each.module, "reverse", False) for each in ported])
    return stack(ported)


def write_keras(
    path: File, params: Mapping[str, Any], layer: str | Sequence[str]
) -> None:
    """Replaces the weights of a recurrent layer in a saved model of Keras.

    Everything else in the file stays, the state of an optimizer included.

    Args:
        path: a `.keras` archive or `.weights.h5` file that has the layer.
        params: variables of an `RNN`, a `Bidirectional` or a `Stack`, of the shapes and
            dtypes that are in the file.
        layer: as in `read_keras`.

    Raises:
        ImportError: h5py is not installed.
        ValueError: as in `read_keras`; or the layer in the file has other weights, or
            no biases where those of `params` are not zero.
    """
    model, _ = _load(path)
    buffer = io.BytesIO(model)
    with _h5().File(buffer, "r+") as file:
        groups = _layers(file)
        weights = weights_of(params)
        names = [layer] if isinstance(layer, str) else list(layer)
        layers = [weights] if isinstance(layer, str) else weights
        if not isinstance(layers, list) or len(names) != len(layers):
            raise ValueError(
                "`layer` must be one name, or one for each layer of the Stack that "
                f"`params` are of, got {layer!r}."
            )
        for name, each in zip(names, layers, strict=True):
            _write_layer(_find(groups, name), each)
    _store(Path(path), buffer.getvalue())


def read_torch(path: File, prefix: str = "") -> Ported:
    """Returns a recurrent layer of a `.safetensors` file, without importing PyTorch.

    Args:
        path: the file; its names are those of a state_dict.
        prefix: of the layer's names, for example "encoder.lstm.".

    Raises:
        ImportError: safetensors is not installed.
        ValueError: as `from_torch`.
    """
    return from_torch(_load_tensors(path), prefix)


def write_torch(path: File, params: Mapping[str, Any], prefix: str = "") -> None:
    """Writes a recurrent layer into a `.safetensors` file, as PyTorch names it.

    In a file that exists, other tensors and the metadata stay.

    Args:
        path: the file.
        params: variables of an `RNN`, a `Bidirectional` or a `Stack` of layers alike;
            of the shapes and dtypes that are in the file, where it has the layer.
        prefix: of the names.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: as `to_torch`, or the layer in the file has other weights.
    """
    arrays = to_arrays(params, prefix)
    path = Path(path)
    old = _load_tensors(path) if path.exists() else {}
    for name in set(arrays) & set(old):
        check_like(f"`{name}`", arrays[name], old[name])
    metadata = _metadata(path) if old else {"format": "pt"}
    with _replacing(path) as new:
        _safetensors().numpy.save_file(old | arrays, new, metadata)


def _load(path: File) -> tuple[bytes, Any]:
    """The HDF5 file of a saved model, and its config if the file has one."""
    path = Path(path)
    if path.suffix == ".h5":
        return path.read_bytes(), None
    if path.suffix != ".keras":
        raise ValueError(
            f"`path` must end with .keras or .weights.h5, got {path.name!r}."
        )
    with zipfile.ZipFile(path) as archive:
        return archive.read(H5), json.loads(archive.read("config.json"))


def _store(path: Path, model: bytes) -> None:
    with _replacing(path) as new:
        if path.suffix == ".h5":
            new.write_bytes(model)
            return
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as archive:
            for member in old.infolist():
                data = model if member.filename == H5 else old.read(member)
                archive.writestr(member, data)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file that takes the place of another if all goes well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    new = Path(name)
    try:
        yield new
        if path.exists():
            shutil.copymode(path, new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _layers(file: Group) -> dict[str, Group]:
    """The recurrent layers of a file by their paths."""
    found: dict[str, Group] = {}

    def visit(name, item):
        if "cell/vars/0" in item or f"{PARTS[0]}/cell/vars/0" in item:
            found[name] = item

    file.visititems(
        lambda name, item: visit(name, item) if hasattr(item, "keys") else None
    )
    return found


def _find(groups: Mapping[str, Group], name: str) -> Group:
    if name in groups:
        return groups[name]
    named = {path: group for path, group in groups.items() if _name(group) == name}
    if len(named) == 1:
        return next(iter(named.values()))
    if named:
        raise ValueError(
            f"`layer` must be one of the paths {sorted(named)}, as all these layers "
            f"have the name, got {name!r}."
        )
    names = sorted({_name(group) for group in groups.values()})
    raise ValueError(
        f"`layer` must be one of the recurrent layers of the file, {names}, got "
        f"{name!r}."
    )


def _name(group: Group) -> str:
    """The name of a layer; older files do not have it, and then it is the path's."""
    own = group["vars"].attrs.get("name") if "vars" in group else None
    return own or group.name.rsplit("/", 1)[-1]


def _read_layer(group: Group, model: Any) -> Ported:
    config = {} if model is None else _config(model, _name(group))
    if PARTS[0] not in group:
        return port(_read_cell(group, config), config.get("go_backwards", False))
    configs = configs_of_both(config) if config else [{}, {}]
    pairs = zip(PARTS, configs, strict=True)
    return port(tuple(_read_cell(group[part], each) for part, each in pairs))


def _read_cell(group: Group, config: Mapping[str, Any]) -> Weights:
    return read_weights([_array(dataset) for dataset in _datasets(group)], config)


def _write_layer(group: Group, weights: Any) -> None:
    if isinstance(weights, tuple) != (PARTS[0] in group):
        raise ValueError(
            f"`params` must be of a {'Bidirectional' if PARTS[0] in group else 'RNN'}, "
            f"as {_name(group)!r} is, got those of another layer."
        )
    if not isinstance(weights, tuple):
        return _write_cell(group, weights)
    for part, each in zip(PARTS, weights, strict=True):
        _write_cell(group[part], each)


def _write_cell(group: Group, weights: Weights) -> None:
    arrays, datasets = write_weights(weights), _datasets(group)
    if len(datasets) < len(arrays) and arrays[-1].any():
        raise ValueError(
            f"`bias` must be zero, as {_name(group)!r} has none, got one that is not."
        )
    for array, dataset in zip(arrays, datasets, strict=False):
        check_like(dataset.name, array, _array(dataset))
        dataset[...] = array.view(dataset.dtype)


def _datasets(group: Group) -> list[Any]:
    variables = group["cell/vars"]
    return [variables[name] for name in sorted(variables)]


def _array(dataset: Any) -> Array:
    """What a dataset holds; bfloat16 is stored as plain bytes, and said so."""
    array = np.asarray(dataset[...])
    is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
    return array.view(jnp.bfloat16) if is_bfloat16 else array


def _config(model: Any, name: str) -> Mapping[str, Any]:
    """The settings of a layer, which are checked."""
    found = [
        (kind, config) for kind, config in _configs(model) if config["name"] == name
    ]
    if not found:
        raise ValueError(
            f"`path` must have the settings of {name!r} in its config.json, got none. "
            "That of a model of your own class has none; extract model.weights.h5 then."
        )
    settings = {
        (kind, config.get("go_backwards"), config.get("reset_after"))
        for kind, config in found
    }
    if len(settings) > 1:
        raise ValueError(
            f"`layer` must be a name that config.json has once, got {name!r}, which "
            f"has the settings {sorted(settings, key=str)}."
        )
    for kind, config in found:
        check_config(kind, config)
    return found[0][1]


def _configs(node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The class and the config of every named object in a model's config."""
    if isinstance(node, dict):
        config = node.get("config")
        if isinstance(config, dict) and "class_name" in node and "name" in config:
            yield node["class_name"], config
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _configs(child)


def _load_tensors(path: File) -> dict[str, Array]:
    return _safetensors().numpy.load_file(path)


def _metadata(path: Path) -> dict[str, str] | None:
    with _safetensors().safe_open(path, "numpy") as file:
        return file.metadata()


def _h5() -> Any:
    return _optional("h5py")


def _safetensors() -> Any:
    _optional("safetensors.numpy")
    return _optional("safetensors")


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This needs {name.split('.')[0]}: pip install 'rdrop[interop]'."
        ) from error
