"""Results: the figures of finished lanes, and the lines that are written of them."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

import rdrop
from experiments.config import Train
from experiments.train import Metrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def stack(chunks: Sequence[Metrics]) -> Metrics:
    """Joins the metrics of consecutive chunks to [lanes, epochs or evaluations]."""
    train = np.concatenate([chunk.train_nll for chunk in chunks], axis=1)
    rest = (np.stack(leaves, axis=1) for leaves in list(zip(*chunks, strict=True))[1:])
    return Metrics(train, *rest)


def environment() -> dict:
    """What the numbers may depend on besides the config: versions and platform."""
    return {
        "versions": {"python": platform.python_version(), "rdrop": rdrop.__version__}
        | {name: version(name) for name in PACKAGES},
        "platform": {
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "machine": f"{platform.system()} {platform.machine()}",
            "prng": str(jax.random.key_impl(jax.random.key(0))),
        },
    }


def records(
    settings: Sequence[dict], history: Metrics, config: Train, wall_seconds: float
) -> list[dict]:
    """Returns one plain record a lane.

    Args:
        settings: what tells each lane from the others.
        history: metrics [lanes, ...] in the same order.
        config: how the lanes were trained.
        wall_seconds: that all of them took together.
    """
    shared = {"wall_seconds": round(wall_seconds, 3)} | environment()
    epochs = history.train_nll.shape[1]
    evaluations = range(1, history.valid_nll.shape[1] + 1)
    progress = {
        "status": "finished" if epochs == config.epochs else "interrupted",
        "epochs": epochs,
        "evaluated_at": [n * config.evaluate_every for n in evaluations],
    }
    return [
        setting
        | progress
        | {"metrics": {k: _plain(v[lane]) for k, v in history._asdict().items()}}
        | shared
        for lane, setting in enumerate(settings)
    ]


def mean_sd(values: np.ndarray) -> str:
    """Formats mean and standard deviation over seeds."""
    sd = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.3f} ±{sd:.3f}"


def write(path: Path, lines: Sequence[dict]) -> None:
    """Writes JSON lines; the file is the old one or the new one, never half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(
        "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    )
    os.replace(partial, path)


def read(path: Path) -> list[dict]:
    """Reads JSON lines; none where there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _plain(values) -> list[float | None]:
    """The shortest decimals that read back as the same float32; None if not finite."""
    return [float(str(value)) if np.isfinite(value) else None for value in values]
