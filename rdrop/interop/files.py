"""Files: weights in the files of Keras and PyTorch, read without either library.

A `.keras` archive holds `config.json`, with the settings of every layer, and
`model.weights.h5`; a `.weights.h5` file holds arrays alone. In both, the weights of a
cell are `<layer>/cell/vars/0`, `1`, `2`, and the name of a layer is an attribute of
`<layer>/vars`. Checked with Keras 3.15, keras/src/saving/saving_lib.py.
"""

import importlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from rdrop.interop.keras import (
    NEWEST,
    Release,
    Settings,
    build,
    join,
    preset_of,
    release_of,
    settings_of,
)
from rdrop.interop.layouts import Array
from rdrop.interop.ported import Ported
from rdrop.interop.torch import from_torch

File: TypeAlias = str | os.PathLike[str]
Group: TypeAlias = Any  # a group of an HDF5 file; h5py is optional
DIRECTIONS = ("forward_layer", "backward_layer")
CELLS = ("cell", "forward_layer/cell")


def read_keras(path: File, layer: str | Sequence[str]) -> Ported:
    """Returns a recurrent layer of a saved Keras model, without importing Keras.

    An archive states the version of Keras that wrote it, and `dropout` is the preset of
    that version. A `.weights.h5` file has no settings: its layers are taken to have the
    default activations, to run forwards, and a GRU without biases to have the reset
    after; `dropout` is None.

    Args:
        path: a `.keras` archive, or a `.weights.h5` file.
        layer: name of a layer, or its path in the file if two have the same name; or
            several, from the input upwards, for a `Stack`.

    Raises:
        ImportError: h5py is not installed.
        ValueError: a file of another kind, an unknown name, or a layer that rdrop
            cannot represent, as in `from_keras`.
    """
    h5py = _optional("h5py")
    weights, *model = _load(Path(path))
    with h5py.File(io.BytesIO(weights), "r") as file:
        groups = _recurrent_layers(file)
        if isinstance(layer, str):
            return _read_layer(_find(groups, layer), *model)
        return join([_read_layer(_find(groups, name), *model) for name in layer])


def read_torch(path: File, prefix: str = "") -> Ported:
    """Returns a recurrent layer of a `.safetensors` file, without importing PyTorch.

    The file contains weights only: `dropout` is None.

    Args:
        path: a file with the names of a state_dict.
        prefix: prefix of the layer's names, for example "encoder.lstm.".

    Raises:
        ImportError: safetensors is not installed.
        ValueError: as `from_torch`.
    """
    return from_torch(_optional("safetensors.numpy").load_file(path), prefix)


def _load(path: Path) -> tuple[bytes, Any, Release]:
    """The HDF5 file of a saved model, its config or None, and its version of Keras."""
    if path.suffix == ".h5":
        return path.read_bytes(), None, NEWEST
    if path.suffix != ".keras":
        raise ValueError(
            f"`path` must end with .keras or .weights.h5, got {path.name!r}."
        )
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        version = json.loads(archive.read("metadata.json"))["keras_version"]
        return archive.read("model.weights.h5"), config, release_of(version)


def _recurrent_layers(file: Group) -> dict[str, Group]:
    """The recurrent layers of a file by their paths."""
    found: dict[str, Group] = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "keys") and any(f"{cell}/vars/0" in item for cell in CELLS):
            found[name] = item

    file.visititems(visit)
    return found


def _find(groups: Mapping[str, Group], name: str) -> Group:
    if name in groups:
        return groups[name]
    named = {path: group for path, group in groups.items() if _name(group) == name}
    if len(named) == 1:
        return next(iter(named.values()))
    if named:
        raise ValueError(
            f"`layer` must be a path, since several layers are named {name!r}: "
            f"{', '.join(sorted(named))}."
        )
    names = ", ".join(sorted({_name(group) for group in groups.values()}))
    raise ValueError(
        f"`layer` must be a recurrent layer of the file, one of {names}, got {name!r}."
    )


def _name(group: Group) -> str:
    """The name of a layer; files of older versions have it in the path only."""
    own = group["vars"].attrs.get("name") if "vars" in group else None
    return own or group.name.rsplit("/", 1)[-1]


def _read_layer(group: Group, model: Any, release: Release) -> Ported:
    both = DIRECTIONS[0] in group
    cells = [group[part] for part in DIRECTIONS] if both else [group]
    arrays = [_arrays(cell["cell/vars"]) for cell in cells]
    unknown: list[Settings] = [{} for _ in cells]
    settings = unknown if model is None else _settings(model, _name(group), release)
    return build(settings, arrays)


def _arrays(variables: Group) -> list[Array]:
    return [_array(variables[name]) for name in sorted(variables)]


def _array(dataset: Any) -> Array:
    """The array of a dataset; bfloat16 is stored as bytes with an attribute."""
    array = np.asarray(dataset[...])
    is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
    return array.view(jnp.bfloat16) if is_bfloat16 else array


def _settings(model: Any, name: str, release: Release) -> list[Settings]:
    """The settings of a layer in a model's config."""
    found = [each for each in _configs(model) if each[1]["name"] == name]
    if not found:
        raise ValueError(
            f"config.json in `path` lacks the settings of {name!r}, as it does for a "
            "model of your own class; extract model.weights.h5 and read that."
        )
    settings = [settings_of(*each, release) for each in found]
    if any(
        list(map(_port, each)) != list(map(_port, settings[0])) for each in settings
    ):
        raise ValueError(
            f"`layer` must be a name that config.json contains once, got {name!r}, "
            f"which it contains {len(found)} times with different settings."
        )
    return settings[0]


def _port(settings: Settings) -> tuple[Any, ...]:
    """The settings that change a port."""
    names = ("kind", "go_backwards", "reset_after")
    return *(settings.get(name) for name in names), preset_of(settings)


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


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name.split('.')[0]} is not installed; from a checkout of rdrop: "
            "pip install '.[interop]'."
        ) from error
