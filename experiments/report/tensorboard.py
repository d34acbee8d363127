"""TensorBoard: the curves of a run as event files, one TensorBoard run per lane."""

import shutil
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from experiments.report.lanes import value_text
from experiments.runs.records import read_records


def write(folder: Path) -> Path:
    """Writes metrics, setting and seed of every lane, and returns the folder.

    Training losses have one value per epoch, and other metrics one per evaluation.
    Event files of an earlier call are replaced.

    Args:
        folder: a run; its folder `tensorboard` gets one folder per lane.

    Returns:
        The folder to show: `tensorboard --logdir FOLDER/tensorboard`.

    Raises:
        StorageError: the results cannot be read.
    """
    root = folder / "tensorboard"
    shutil.rmtree(root, ignore_errors=True)
    for number, record in enumerate(read_records(folder)):
        with SummaryWriter(str(root / _name(number, record))) as writer:
            _write_record(writer, record)
    return root


def _name(number: int, record: dict) -> str:
    """A name that sorts as the sweep: "003 dropout.rate=0.3 seed=1"."""
    values = record["setting"] | {"seed": record["seed"]}
    parts = [f"{path}={value_text(value)}" for path, value in values.items()]
    return " ".join([f"{number:03d}", *parts]).replace("/", "_")


def _write_record(writer: SummaryWriter, record: dict) -> None:
    values = record["setting"] | {"seed": record["seed"]}
    for summary in hparams(values, record["metrics"]):
        writer.file_writer.add_summary(summary)
    for name, metric in record["metrics"].items():
        every_epoch = range(1, len(metric) + 1)
        epochs = every_epoch if name.startswith("train_") else record["evaluated_at"]
        for epoch, value in zip(epochs, metric, strict=True):
            if value is not None:
                writer.add_scalar(name, value, epoch)
