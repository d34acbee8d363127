"""Tasks: one module each, found by name; a user's own is found by its path."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

from experiments.config import ConfigError
from experiments.task import Task

BUILTIN = ("japanese_vowels", "classify", "regress", "label", "characters")
FUNCTIONS = {
    "load": "load(options)",
    "inputs": "inputs(batch)",
    "score": "score(outputs, batch)",
}


def find(name: str) -> Task:
    """Returns the module of a task.

    Args:
        name: one of `BUILTIN`, or the path of a Python file with the three functions
            of `experiments.task`.

    Raises:
        ConfigError: there is no such task, or the file cannot be loaded or lacks one of
            the functions.
    """
    if name in BUILTIN:
        return cast(Task, importlib.import_module(f"{__name__}.{name}"))
    if not name.endswith(".py"):
        raise ConfigError(
            f"task.name: must be one of {', '.join(BUILTIN)}, or the path of a .py "
            f"file, got {name!r}."
        )
    module = _import(Path(name))
    for function, signature in FUNCTIONS.items():
        if not callable(getattr(module, function, None)):
            raise ConfigError(f"{name}: must define a function {signature}.")
    return cast(Task, module)


def _import(path: Path) -> ModuleType:
    """Runs a Python file as a module, under a name that no installed module has."""
    name = f"user_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # so for any .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path}: cannot be loaded: {reason}.") from error
    return module
