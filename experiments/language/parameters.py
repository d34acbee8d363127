"""Parameters: those of a trained model, in a file that NumPy alone can read."""

import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.config import ConfigError
from experiments.folder import PARAMETERS
from experiments.results import write_bytes


def path_of(folder: Path, place: int) -> Path:
    """Returns the file of a lane of a run."""
    return folder / PARAMETERS / f"{place}.npz"


def save(path: Path, params: Any) -> None:
    """Writes arrays by the names of their modules, joined by slashes.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    content = io.BytesIO()
    arrays: dict[str, Any] = flatten_dict(params, sep="/")
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def load(path: Path) -> Any:
    """Reads what `save` wrote.

    Raises:
        ConfigError: there is no such file, or it is of another kind.
    """
    try:
        with np.load(path) as file:
            arrays = {name: jnp.asarray(file[name]) for name in file.files}
            return unflatten_dict(arrays, sep="/")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: no parameters can be read: {reason}.") from None
