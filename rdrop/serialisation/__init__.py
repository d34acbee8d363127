"""Serialisation: a `Dropout` as text, and parameters as a safetensors file."""

from rdrop.serialisation.tensors import load_metadata, load_params, save_params
from rdrop.serialisation.text import (
    from_dict,
    from_json,
    from_toml,
    to_dict,
    to_json,
    to_toml,
)

__all__ = [
    "from_dict",
    "from_json",
    "from_toml",
    "load_metadata",
    "load_params",
    "save_params",
    "to_dict",
    "to_json",
    "to_toml",
]
