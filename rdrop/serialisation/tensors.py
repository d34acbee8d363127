"""Tensors: parameters as a safetensors file.

Parameters are nested dicts of arrays. Their keys, joined by dots, name the tensors of
the file, for example `params.layers_0.kernel`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

MISSING = (
    "safetensors is not installed; from a checkout of rdrop: pip install '.[interop]'."
)
DTYPES: dict[str, Any] = {  # by their names in a file
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


def save_params(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes parameters to a safetensors file, as a whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        params: nested dicts of arrays with text as keys, such as `module.init` returns.
        metadata: texts by name, which `load_metadata` returns. With several names, the
            bytes of the file differ between calls, as safetensors does not order them.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: a leaf is not an array (a tracer, for example), or a key not text.
        ValueError: a key contains a dot, a dict is empty, or safetensors lacks the
            dtype (of typed keys, save `jax.random.key_data`).
        OSError: the file cannot be written.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise ImportError(MISSING) from None
    if not isinstance(params, Mapping) or not params:
        raise TypeError(f"`params` must be a dict that is not empty, got {params!r}.")
    flat = flatten_dict(dict(params), keep_empty_nodes=True)
    for keys in flat:
        _check_keys(keys)
    arrays = {".".join(k): _array(k, leaf) for k, leaf in flat.items()}
    _write(Path(path), save(arrays, dict(metadata) if metadata else None))


def load_params(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a safetensors file of `save_params` or another program.

    Returns:
        Nested dicts of JAX arrays with the dtypes of the file; a dot in the name of a
        tensor separates two levels.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is of another kind, has another dtype (64 bits need
            `jax_enable_x64`), or uses a name for both an array and a dict.
        OSError: the file cannot be read.
    """
    # `safetensors.flax.load_file` (0.8) raises an AttributeError for float8, and reads
    # 64 bits as 32 without `jax_enable_x64`.
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


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the metadata of a safetensors file; empty if it has none.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is of another kind.
        OSError: the file cannot be read.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(MISSING) from None
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"`path` must be a safetensors file, got {path}: {error}."
        ) from None


def _check_keys(keys: tuple[Any, ...]) -> None:
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"Keys of `params` must be text, got {key!r} in {keys}.")
        if "." in key or key in ("", "__metadata__"):
            raise ValueError(
                'Keys of `params` must not contain dots, be empty or be "__metadata__"'
                f", got {key!r} in {keys}."
            )


def _array(keys: tuple[str, ...], value: Any) -> np.ndarray:
    place = f"`params{''.join(f'[{key!r}]' for key in keys)}`"
    if value is empty_node:
        raise ValueError(
            f"{place} must not be an empty dict, which a file cannot hold."
        )
    known = isinstance(value, (np.ndarray, jax.Array))
    if not known or isinstance(value, jax.core.Tracer):
        raise TypeError(f"{place} must be an array, got {value!r}.")
    names = [jnp.dtype(dtype).name for dtype in DTYPES.values()]
    if (name := value.dtype.name) not in names:
        raise ValueError(
            f"{place} must have one of the dtypes {', '.join(names)}, got {name}."
        )
    return np.asarray(value, order="C")


def _tensor(name: str, dtype: str, shape: Sequence[int], data: bytearray) -> jax.Array:
    if dtype not in DTYPES:
        raise ValueError(f"Tensor `{name}` has the dtype {dtype}, which JAX lacks.")
    array: np.ndarray = np.ndarray(shape, DTYPES[dtype], data)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"Tensor `{name}` is {array.dtype}, which JAX stores only with "
            '`jax.config.update("jax_enable_x64", True)`.'
        )
    return jnp.array(array)


def _check_nested(names: Mapping[str, Any]) -> None:
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts)):
            if (parent := ".".join(parts[:end])) in names:
                raise ValueError(
                    f"`{parent}` names both an array and the dict of `{name}`."
                )


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
