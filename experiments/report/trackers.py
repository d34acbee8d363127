"""Trackers: lanes as runs of TensorBoard, Weights & Biases, MLflow or Trackio.

A lane that has ended becomes one run, with its config as hyperparameters and its
metrics as scalars over epochs. Everything is written into the folder of the training,
without a network, unless the variables of a package (such as `WANDB_MODE`,
`MLFLOW_TRACKING_URI` or `TRACKIO_SPACE_ID`) say otherwise.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from experiments import axes
from experiments.axes import value_text
from experiments.config import ConfigError
from experiments.report import tensorboard
from experiments.runs.files import StorageError, parse, read_file, write_text
from experiments.runs.folder import CONFIG
from experiments.runs.records import FINAL, read_records

LOGGED = "logged.json"
ADAPTER = TypeAdapter(dict[str, list[str]])
MOST_PARAMS, MOST_METRICS = 100, 1000  # of one request to MLflow


class LaneRun(NamedTuple):
    """A lane as a tracker shows it.

    Attributes:
        project: the name of the training, the same for all of its lanes.
        name: sorts as the lanes: "003 dropout.rate=0.3 seed=1".
        config: all fields of the lane by their dotted paths; `seeds` is its seed.
        history: the metrics of each epoch that has any; those not finite are left out.
        diverged: whether the lane diverged.
    """

    project: str
    name: str
    config: dict[str, Any]
    history: dict[int, dict[str, float]]
    diverged: bool


class Tracker(NamedTuple):
    """A tracker.

    Attributes:
        packages: the modules it needs.
        extra: of this project, which installs them.
        log: writes a lane; it is given the folder of the training.
    """

    packages: tuple[str, ...]
    extra: str
    log: Callable[[Path, LaneRun], None]


def check_tracker(name: str) -> None:
    """Raises a ConfigError if the packages of a tracker are not installed."""
    tracker = TRACKERS[name]
    if missing := [each for each in tracker.packages if not _is_installed(each)]:
        raise ConfigError(
            f"log: {name} needs {' and '.join(missing)}; install the extra "
            f"{tracker.extra!r} of this checkout: python -m pip install -e "
            f"'.[{tracker.extra}]'."
        )


def log_lanes(folder: Path, name: str) -> int:
    """Writes all lanes that have ended and that this tracker does not have yet.

    Args:
        folder: of the training. Its `logged.json` lists the lanes that each tracker
            has; without the file, all are written again.
        name: the tracker.

    Returns:
        How many were written.

    Raises:
        ConfigError: the tracker is not installed.
        StorageError: a file of the run is damaged, or the tracker fails; the lanes
            before are not written again.
    """
    check_tracker(name)
    text = read_file(folder / LOGGED) or "{}"
    logged = parse(ADAPTER, text, str(folder / LOGGED), name="a list of logged lanes")
    before = logged.setdefault(name, [])
    config = axes.flatten(tomllib.loads(read_file(folder / CONFIG)))
    count = 0
    for number, record in enumerate(read_records(folder)):
        identity = _identity(record)
        if record["status"] not in FINAL or identity in before:
            continue
        _guard(name, folder, _lane_run(folder, number, record, config))
        before.append(identity)
        write_text(folder / LOGGED, json.dumps(logged) + "\n")
        count += 1
    return count


def _lane_run(folder: Path, number: int, record: dict, config: dict) -> LaneRun:
    values = record["setting"] | {"seed": record["seed"]}
    parts = [f"{path}={value_text(value)}" for path, value in values.items()]
    return LaneRun(
        folder.resolve().name,
        " ".join([f"{number:03d}", *parts]),
        config | record["setting"] | {"seeds": record["seed"]},
        _history(record),
        record["status"] == "diverged",
    )


def _history(record: dict) -> dict[int, dict[str, float]]:
    """Metrics by epoch: training losses of every epoch, others of evaluations."""
    found: dict[int, dict[str, float]] = {}
    for name, values in record["metrics"].items():
        every_epoch = range(1, len(values) + 1)
        epochs = every_epoch if name.startswith("train_") else record["evaluated_at"]
        for epoch, value in zip(epochs, values, strict=True):
            if value is not None:
                found.setdefault(epoch, {})[name] = value
    return dict(sorted(found.items()))


def _identity(record: dict) -> str:
    """A hash that another training of the lane does not have."""
    facts = [record[name] for name in ("setting", "seed", "epochs", "parameters")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _is_installed(package: str) -> bool:
    """Whether a package is there; a folder of that name, such as wandb/, is not one."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _guard(name: str, folder: Path, lane: LaneRun) -> None:
    """Turns the many errors of disks and networks into one."""
    try:
        TRACKERS[name].log(folder, lane)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"log: {name} cannot write {lane.name!r}: {reason}. The results are "
            "stored; the same command writes the lanes that are missing."
        ) from error


def _log_wandb(folder: Path, lane: LaneRun) -> None:
    """Shown after `wandb sync FOLDER/wandb/offline-run-*`."""
    # W&B calls its own server to report errors, also offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    run = wandb.init(
        project=lane.project,
        name=lane.name,
        config=lane.config,
        dir=os.environ.get("WANDB_DIR", str(folder)),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(silent=True, console="off"),
    )
    for epoch, metrics in lane.history.items():
        run.log(metrics, step=epoch)
    run.finish(exit_code=int(lane.diverged))


def _log_mlflow(folder: Path, lane: LaneRun) -> None:
    """Shown by `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`."""
    # MLflow sends statistics of its use to its authors by default.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    here = f"sqlite:///{folder.resolve()}/mlflow.db"
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", here))
    experiment = client.get_experiment_by_name(lane.project)
    group = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(lane.project)
    )
    run = client.create_run(group, run_name=lane.name).info.run_id
    now = int(1000 * time.time())
    params = [Param(path, str(value)) for path, value in lane.config.items()]
    metrics = [
        Metric(name, value, now, epoch)
        for epoch, values in lane.history.items()
        for name, value in values.items()
    ]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run, params=params[start : start + MOST_PARAMS])
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run, metrics=metrics[start : start + MOST_METRICS])
    client.set_terminated(run, "FAILED" if lane.diverged else "FINISHED")


def _log_trackio(folder: Path, lane: LaneRun) -> None:
    """Shown by `TRACKIO_DIR=FOLDER/trackio trackio show`."""
    # Trackio reads the variable when it is imported.
    os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / "trackio"))
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):
        run = trackio.init(
            lane.project,
            name=lane.name,
            config=lane.config,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for epoch, metrics in lane.history.items():
            run.log(metrics, step=epoch)
        trackio.finish()


def _log_tensorboard(folder: Path, lane: LaneRun) -> None:
    """Shown by `tensorboard --logdir FOLDER/tensorboard`."""
    name = lane.name.replace("/", "_")
    tensorboard.write_events(folder / "tensorboard" / name, lane.config, lane.history)


TRACKERS: dict[str, Tracker] = {
    "tensorboard": Tracker(("tensorboardX",), "experiments", _log_tensorboard),
    "wandb": Tracker(("wandb",), "wandb", _log_wandb),
    "mlflow": Tracker(("mlflow", "sqlalchemy"), "mlflow", _log_mlflow),
    "trackio": Tracker(("trackio",), "trackio", _log_trackio),
}
"""Trackers by their names on the command line."""
