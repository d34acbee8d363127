"""The tasks, one module each, by their names; a user's own by its path."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Data, Task
from experiments.tasks.contract import check_contract

BUILTIN = (
    "japanese_vowels",
    "classify",
    "regress",
    "label",
    "characters",
    "piano_roll",
    "selective_copy",
    "forecast",
)
FUNCTIONS = {
    "load": "load(options)",
    "inputs": "inputs(batch)",
    "score": "score(outputs, batch)",
}


def load_task(options: Options) -> tuple[Task, Data]:
    """Returns the task of a config, and its data, checked against the contract.

    Raises:
        ConfigError: the task or its data are not as `experiments.task` says.
    """
    task, builtin = find(options.name), options.name in BUILTIN
    try:
        data = task.load(options)
    except Exception as error:
        if isinstance(error, ConfigError) or builtin:
            raise
        reason = _reason(error)
        raise ConfigError(f"{options.name}: load(options) fails: {reason}.") from error
    check_contract(task, data, (builtin and options.data) or options.name)
    return task, data


def find(name: str) -> Task:
    """Returns the module of a task.

    Args:
        name: one of `BUILTIN`, or the path of a Python file with the three functions
            of `experiments.task`.

    Raises:
        ConfigError: the name is unknown, or the file cannot be loaded or lacks one of
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
    """Runs a Python file as a module with a name that is not an installed module's."""
    name = f"user_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # as it is for any .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their annotations here
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from None
    except Exception as error:
        reason = _reason(error)
        raise ConfigError(f"{path}: cannot be loaded: {reason}.") from error
    return module


def _reason(error: Exception) -> str:
    """Returns an error in one line, without a full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
