"""TensorBoard: a lane as a folder with one event file."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams


def write_events(
    folder: Path, config: Mapping[str, Any], history: Mapping[int, Mapping[str, float]]
) -> None:
    """Writes the hyperparameters and the metrics of a lane.

    Args:
        folder: of the lane; an earlier one is replaced.
        config: hyperparameters by name.
        history: metrics by name, of each epoch.
    """
    shutil.rmtree(folder, ignore_errors=True)
    names = {name: 0.0 for metrics in history.values() for name in metrics}
    with SummaryWriter(str(folder)) as writer:
        for summary in hparams(dict(config), names):
            writer.file_writer.add_summary(summary)
        for epoch, metrics in history.items():
            for name, value in metrics.items():
                writer.add_scalar(name, value, epoch)
