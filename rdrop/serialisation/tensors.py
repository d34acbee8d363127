"""Tensors: parameters as a safetensors file.

Parameters are nested dicts of arrays. Their keys, joined by dots, name the tensors of
the file, `params.layers_0.kernel` say.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

MISSING = "safetensors is not installed: pip install 'rdrop[interop]'"
DTYPES: dict[str, Any] = {  # by their names in a safetensors file
    "BOOL": jnp.bool_,
    "I8": jnp.int8,
    "I16": jnp.int16,
    "I32": jnp.int32,
    "I64": jnp.int64,
    "U8": jnp.uint8,
    "U16": jnp.uint16,
    "U32": jnp.uint32,
    "U64": jnp.uint64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "BF16": jnp.bfloat16,
    "F16": jnp.float16,
    "F32": jnp.float32,
    "F64": jnp.float64,
}


def save_params(path: str | os.PathLike[str], params: Mapping[str, Any]) -> None:
    """Writes parameters to a safetensors file, as a whole or not at all.

    Args:
        path: of the file, which is replaced where there is one.
        params: nested dicts of arrays with text for keys, such as `module.init`
            returns.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: a leaf is no array (a tracer, say), or a key no text.
        ValueError: a key has a dot, a dict is empty, or safetensors has no such dtype
            (typed keys: store `jax.random.key_data`).
        OSError: the file cannot be written.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise ImportError(MISSING) from None
    _write(Path(path), save(dict(_flat("params", params))))


def load_params(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a safetensors file, `save_params`'s or another one.

    Returns:
        Nested dicts of JAX arrays with the dtypes of the file; each dot in the name of
        a tensor leads one dict down.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is not of that kind, has another dtype (64 bits need
            `jax_enable_x64`), or one name for both an array and a dict.
        OSError: the file cannot be read.
    """
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise ImportError(MISSING) from None
    try:
        tensors = dict(deserialize(Path(path).read_bytes()))
    except SafetensorError as error:
        raise ValueError(
            f"`path` must be a safetensors file, got {path}: {error}."
        ) from None
    _check_nested(tensors)
    arrays = {name: _tensor(name, **parts) for name, parts in tensors.items()}
    return unflatten_dict(arrays, sep=".")


def _flat(place: str, tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array of nested dicts, with its name in a file."""
    _check_dict(place, tree)
    for key, value in tree.items():
        name, where = f"{prefix}{key}", f"{place}[{key!r}]"
        if isinstance(value, Mapping):
            yield from _flat(where, value, f"{name}.")
        else:
            yield name, _array(where, value)


def _check_dict(place: str, tree: Any) -> None:
    if not isinstance(tree, Mapping):
        raise TypeError(f"`{place}` must be a dict, got {type(tree).__name__}.")
    if not tree:
        raise ValueError(f"`{place}` must not be empty: a file cannot say so.")
    for key in tree:
        if not isinstance(key, str):
            raise TypeError(f"Keys of `{place}` must be text, got {key!r}.")
        if "." in key or key in ("", "__metadata__"):
            raise ValueError(
                f"Keys of `{place}` must have no dots, and not be empty or "
                f'"__metadata__", got {key!r}.'
            )


def _array(place: str, value: Any) -> np.ndarray:
    known = isinstance(value, (np.ndarray, jax.Array))
    if not known or isinstance(value, jax.core.Tracer):
        raise TypeError(f"`{place}` must be an array, got {type(value).__name__}.")
    names = [jnp.dtype(dtype).name for dtype in DTYPES.values()]
    if (name := value.dtype.name) not in names:
        raise ValueError(
            f"`{place}` must have one of the dtypes {', '.join(names)}, got {name}."
        )
    return np.asarray(value, order="C")


def _tensor(name: str, dtype: str, shape: Sequence[int], data: bytearray) -> jax.Array:
    if dtype not in DTYPES:
        raise ValueError(f"Tensor `{name}` is of the dtype {dtype}, which is not read.")
    array: np.ndarray = np.ndarray(shape, DTYPES[dtype], data)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"Tensor `{name}` is {array.dtype}, which JAX holds only with "
            '`jax.config.update("jax_enable_x64", True)`.'
        )
    return jnp.array(array)


def _check_nested(names: Mapping[str, Any]) -> None:
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts)):
            if (parent := ".".join(parts[:end])) in names:
                raise ValueError(f"`{parent}` names an array, and a dict of `{name}`.")


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
