"""Files of a run: written as a whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pydantic import ValidationError

SAFE = "Nothing stored before is lost; the same command resumes."


class StorageError(Exception):
    """A file of a run cannot be written or read; its text is one line."""


def fingerprint(values: Any) -> str:
    """Returns a hash of a pytree of arrays."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(values)]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()[:16]


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """Writes JSON lines.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text; raises like `write_lines`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file through a temporary one; raises like `write_lines`."""
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = f"cannot be written: {error.strerror}."
        raise StorageError(f"{path}: {reason} {SAFE}") from None


def read_file(path: Path) -> str:
    """Reads UTF-8 text; empty if the file does not exist.

    Raises:
        StorageError: it is a folder, not UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: not UTF-8 text, at byte {error.start}.") from None


def parse(adapter: Any, text: str, place: str, *, name: str) -> Any:
    """Returns validated JSON.

    Args:
        adapter: a pydantic `TypeAdapter`.
        text: the JSON.
        place: file, or file and line, for errors.
        name: the expected kind of text, such as "a record of a lane".

    Raises:
        StorageError: it is not JSON, or not such a thing; one line says why.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = " ".join(first["msg"].replace("Input should be", "must be").split())
        where = f"{field}: {reason}" if field else reason
        raise StorageError(f"{place}: not {name}: {where}.") from None
