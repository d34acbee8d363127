"""Weights: the parameters of a lane, with its config, in a safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired

import numpy as np
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from experiments import axes
from experiments.axes import Lane
from experiments.config import ConfigError
from experiments.runs.files import SAFE, StorageError, fingerprint
from rdrop import serialisation

WEIGHTS = "weights"
Keep = Literal["none", "best", "all"]


class LaneFacts(TypedDict):
    """Metadata of a file: those of `Weights`, and the hash of the parameters."""

    config: str
    data: str
    names: list[str]
    parameters: NotRequired[str]


FACTS = TypeAdapter(LaneFacts)


class Weights(NamedTuple):
    """Contents of a file.

    Attributes:
        params: nested dicts of arrays.
        config: the config of the lane, as TOML.
        data: fingerprint of the data it was trained on.
        names: of the classes or tokens, by their numbers; empty if there are none.
    """

    params: dict[str, Any]
    config: str
    data: str
    names: tuple[str, ...]


def weights_path(folder: Path, place: int) -> Path:
    """Returns the file of a lane, by its place from 0; lines are counted from 1."""
    return folder / WEIGHTS / f"{place + 1}.safetensors"


def save_weights(
    path: Path, lane: Lane, params: Mapping[str, Any], data: str, names=()
) -> None:
    """Writes the parameters of a lane, as a whole or not at all.

    Args:
        path: the file.
        lane: the lane.
        params: nested dicts of arrays.
        data: fingerprint of the data it was trained on.
        names: of the classes or tokens.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    facts = {
        "config": axes.to_toml(axes.alone(lane)),
        "data": data,
        "names": list(names),
        "parameters": fingerprint(params),
    }
    # One entry: safetensors writes several in random order.
    metadata = {"lane": json.dumps(facts)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        serialisation.save_params(path, params, metadata)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}."
        raise StorageError(f"{path}: {reason} {SAFE}") from None


def load_weights(path: Path) -> Weights:
    """Reads the parameters of a lane.

    Raises:
        ConfigError: the file does not exist.
        StorageError: it is damaged, or another program wrote it.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the run kept no weights of the lane.")
    try:
        params = serialisation.load_params(path)
        metadata = serialisation.load_metadata(path)
        facts = FACTS.validate_json(metadata["lane"])
        if facts.get("parameters", found := fingerprint(params)) != found:
            raise ValueError("its arrays are not the ones that were saved")
        return Weights(params, facts["config"], facts["data"], tuple(facts["names"]))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{path}: has no weights of a lane: {reason}.") from None


def prune_weights(folder: Path, records: list[dict], loss: str, keep: Keep) -> None:
    """Removes the files that a run does not keep.

    Args:
        folder: the run.
        records: of all lanes, by place.
        loss: the metric of validation by which a setting is chosen.
        keep: "all" removes none, "none" all; "best" keeps the lanes of the setting with
            the lowest mean loss over its seeds.
    """
    if keep == "all":
        return
    chosen = _chosen(records, loss) if keep == "best" else None
    for place, record in enumerate(records):
        if chosen is None or record["setting"] != chosen:
            weights_path(folder, place).unlink(missing_ok=True)
    if keep == "none" and (folder / WEIGHTS).is_dir():
        (folder / WEIGHTS).rmdir()


def _chosen(records: list[dict], loss: str) -> dict | None:
    """Returns the setting with the lowest mean loss; None if none is finite."""
    losses: dict[str, list[float]] = {}
    for record in records:
        last = (record["metrics"].get(loss) or [None])[-1]
        diverged = last is None or record["status"] == "diverged"
        key = json.dumps(record["setting"])
        losses.setdefault(key, []).append(np.nan if diverged else last)
    means = {key: np.mean(values) for key, values in losses.items()}
    finite = {key: mean for key, mean in means.items() if np.isfinite(mean)}
    return json.loads(min(finite, key=finite.__getitem__)) if finite else None
