"""Folder: where a run is kept, which config it is of, and what it took.

config.toml     the resolved config; the folder is a run of this one
results.jsonl   a line a lane
run.json        the command, the axes, and what each program took
checkpoints/    where the lanes being trained stand; gone when they are done
parameters/     of language models: those of each lane, by its place
"""

import json
from pathlib import Path
from typing import Any

from experiments import axes
from experiments.axes import Sweep
from experiments.config import Config, ConfigError
from experiments.results import write_text

CONFIG, RESULTS, RUN, CHECKPOINTS, PARAMETERS = (
    "config.toml",
    "results.jsonl",
    "run.json",
    "checkpoints",
    "parameters",
)


def of_config(path: Path, root: Path = Path("runs")) -> Path:
    """Returns where a run of a config goes: runs/NAME."""
    if path.name == CONFIG:
        return path.parent
    return root / path.stem


def open_run(folder: Path, sweep: Sweep) -> None:
    """Makes a folder for a run, or goes on in the one there is.

    Raises:
        ConfigError: the folder is that of another config, or of no run, or cannot be
            written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None
    if CONFIG not in holds:
        if [name for name in holds if not name.endswith(".partial")]:
            raise ConfigError(
                f"{folder}: not empty, and no run; name another by --out."
            )
        write_text(folder / CONFIG, axes.to_toml(sweep))
        return
    there = read_sweep(folder, type(sweep.base))
    if changed := axes.differences(there, sweep):
        raise ConfigError(
            f"{folder}: is a run of another config ({'; '.join(changed)}); name "
            "another by --out."
        )


def read_sweep(folder: Path, kind: type = Config) -> Sweep:
    """Reads the config of a run, whose lanes are configs of a kind."""
    path = folder / CONFIG
    return axes.sweep(axes.load(path), str(path), kind)


def took(
    setting: dict[str, Any],
    *,
    lanes: int,
    resident: int,
    compiles: int,
    compile_seconds: float,
    train_seconds: float,
    needed: int,
) -> dict[str, Any]:
    """Returns what run.json says of a program: of `needed` bytes of memory, say."""
    return {
        "setting": setting,
        "lanes": lanes,
        "resident": resident,
        "compiles": compiles,
        "compile_seconds": round(compile_seconds, 2),
        "train_seconds": round(train_seconds, 2),
        "megabytes": round(needed / 1e6, 1),
    }


def write_run(folder: Path, facts: dict[str, Any]) -> None:
    """Writes what there is to know of a run besides its results."""
    write_text(folder / RUN, json.dumps(facts, indent=1) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    """Returns what `write_run` wrote; nothing where there is none yet."""
    path = folder / RUN
    return json.loads(path.read_text()) if path.exists() else {}
