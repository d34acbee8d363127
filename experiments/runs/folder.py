"""Run folder: names of its files, and which process may use it.

config.toml     the resolved config of the run
results.jsonl   one line per lane
run.json        the command, the axes, and time and memory of each program
checkpoints/    states of lanes in training and of evaluations, removed at their end
weights/        parameters of lanes, one safetensors file each
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from experiments import axes
from experiments.axes import Sweep
from experiments.config import Config, ConfigError
from experiments.runs.files import write_text
from experiments.runs.records import FINAL, read_records
from experiments.wording import count_text

CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
SHOWN = 4  # differences between configs


def folder_of(config: Path, root: Path = Path("runs")) -> Path:
    """Returns the folder of a config's run: runs/NAME, or where a run's config is."""
    of_run = config.name == CONFIG and (config.parent / LOCK).exists()
    return config.parent if of_run else root / config.stem


@contextlib.contextmanager
def open_run(folder: Path, sweep: Sweep) -> Iterator[None]:
    """Creates the folder of a run, or resumes one, for this process alone.

    A run of one setting that is trained may get more seeds, at the end of those that
    it has.

    Raises:
        ConfigError: the folder belongs to another config, is not a run, is in use by
            another process, or cannot be written; or seeds are added in training.
    """
    make_folder(folder, CONFIG, "run")
    with _locked(folder):
        keep_config(folder / CONFIG, sweep, "run", grows=not sweep.axes)
        yield


def make_folder(folder: Path, config: str, kind: str) -> None:
    """Creates a folder, unless it is there.

    Args:
        folder: of a run or a study.
        config: name of the file that each of this kind has.
        kind: "run" or "study".

    Raises:
        ConfigError: it is something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None
    foreign = [n for n in holds if n != LOCK and not n.endswith(".partial")]
    if foreign and config not in holds:
        raise ConfigError(
            f"{folder}: has {foreign[0]} but is not a {kind}; use another folder with "
            "--out."
        )


def keep_config(path: Path, sweep: Sweep, kind: str, grows: bool = False) -> None:
    """Writes the config of a run or study, or checks that it is the same.

    With more seeds it is not yet written: other files of the run may not fit.

    Args:
        path: of the config in its folder.
        sweep: the config.
        kind: "run" or "study".
        grows: whether it may have more seeds than before, once those are trained.

    Raises:
        ConfigError: it is another one, cannot be read by this version, or is in
            training and gets more seeds; the text names what differs.
    """
    if not path.exists():
        write_text(path, axes.to_toml(sweep))
        return
    try:
        before = axes.make_sweep(axes.read_toml(path), str(path), type(sweep.base))
    except ConfigError as error:
        raise ConfigError(
            f"{error} Another version wrote this {kind}, or it is damaged; use another "
            "folder with --out."
        ) from None
    count = len(before.seeds)
    if grows and sweep.seeds[:count] == before.seeds != sweep.seeds:
        keep_config(path, sweep._replace(seeds=before.seeds), kind)
        _check_trained(path.parent, count)
        return
    if changed := axes.differences(before, sweep):
        more = [f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        raise ConfigError(
            f"{path.parent}: is a {kind} of another config "
            f"({'; '.join([*changed[:SHOWN], *more])}); use another folder with --out."
        )


def _check_trained(folder: Path, seeds: int) -> None:
    """Raises a ConfigError if a run of one setting is in training."""
    ended = sum(record["status"] in FINAL for record in read_records(folder))
    if ended < seeds:
        raise ConfigError(
            f"{folder}: seeds: can be added when its {count_text(seeds, 'seed')} are "
            f"trained, got {ended}; train them first, or use another folder with --out."
        )


def read_sweep(folder: Path, kind: type = Config) -> Sweep:
    """Reads the config of a run, whose lanes have a kind of config.

    Raises:
        ConfigError: the folder is not a run, or its config is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: is not the folder of a run: no {CONFIG}.")
    return axes.make_sweep(axes.read_toml(path), str(path), kind)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however the process ends."""
    try:
        opened = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(f"{folder}: {_holder(file.read())}.") from None
        file.seek(0)
        file.truncate()
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        file.write(json.dumps(owner))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        owner = json.loads(text)
        told = f" (pid {owner['pid']} on {owner['host']}, since {owner['since']})"
    except (ValueError, TypeError, KeyError):
        told = ""
    return f"another process{told} is using this folder"
