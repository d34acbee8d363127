"""TensorBoard: the curves of a finished run as event files, a run for each lane."""

import shutil
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from experiments.report.answers import text
from experiments.report.outcomes import read_lines


def write(folder: Path) -> Path:
    """Writes the metrics of every lane, at their epochs, and its setting and seed.

    What an earlier call wrote is replaced.

    Args:
        folder: of a run; it gets a folder `tensorboard` with one folder a lane.

    Returns:
        The folder to show: `tensorboard --logdir FOLDER/tensorboard`.

    Raises:
        ConfigError: the folder cannot be read.
    """
    lanes = read_lines(folder)
    root = folder / "tensorboard"
    shutil.rmtree(root, ignore_errors=True)
    for number, lane in enumerate(lanes):
        with SummaryWriter(str(root / _name(number, lane))) as writer:
            _write_lane(writer, lane)
    return root


def _name(number: int, lane: dict) -> str:
    """Sorts as the sweep and tells the lane: "003 dropout.rate=0.3 seed=1"."""
    values = lane["setting"] | {"seed": lane["seed"]}
    parts = [f"{path}={text(value)}" for path, value in values.items()]
    return " ".join([f"{number:03d}", *parts]).replace("/", "_")


def _write_lane(writer: SummaryWriter, lane: dict) -> None:
    for summary in hparams(lane["setting"] | {"seed": lane["seed"]}, lane["metrics"]):
        writer.file_writer.add_summary(summary)
    for name, values in lane["metrics"].items():
        every_epoch = range(1, len(values) + 1)
        epochs = every_epoch if name.startswith("train_") else lane["evaluated_at"]
        for epoch, value in zip(epochs, values, strict=True):
            if value is not None:
                writer.add_scalar(name, value, epoch)
