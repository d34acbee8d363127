"""Sweep: the vowels plane of 75 lanes as one program, and as 150 trainings elsewhere.

A lane trains two models, one of them without the validation utterances. The peers train
the first alone, a few times, and the time of all is extrapolated from that. A process
holds one library, so each is imported where it is used.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import axes
from experiments.classify.splits import split
from experiments.config import Config
from experiments.task import Batch, Data
from experiments.tasks import load_task

CONFIG = Path("configs/vowels_plane.toml")
PEERS = ("keras-jax", "torch")
SEEDS = 3
TRAININGS = 2  # of a peer, besides the first


def rdrop() -> dict:
    """Runs the whole command, report and all."""
    lanes = len(_sweep().lanes()) // len(_sweep().seeds) * SEEDS
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments", "ablate", str(CONFIG)]
        command += ["--seeds", str(SEEDS), "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    return {"lanes": lanes, "seconds": round(seconds, 1)}


def peer(name: str, lanes: int) -> dict:
    """Trains a few lanes in one process of a peer, and extrapolates to all of them."""
    command = [sys.executable, "-m", "benchmarks.sweep", name]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - start
    first, *others = json.loads(done.stdout.splitlines()[-1])
    config, data = _problem()
    fit, valid = split(data, config.train.validation, (0, 0))
    held_out = (len(fit) // config.train.batch) / (
        (len(fit) + len(valid)) // config.train.batch
    )
    one = sum(others) / len(others)
    startup = whole - first - sum(others)
    total = startup + first + one * (lanes * (1 + held_out) - 1)
    return {"one_training": round(one, 2), "extrapolated_seconds": round(total, 1)}


def main(name: str) -> None:
    """Prints the seconds of each training, of one process."""
    train = {"keras-jax": _keras, "torch": _torch}[name]
    config, data = _problem()
    seconds = []
    for number in range(1 + TRAININGS):
        start = time.perf_counter()
        train(config, data.train, data.outputs, rate=0.1 + 0.1 * number)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


def _sweep() -> axes.Sweep:
    return axes.make_sweep(axes.read_toml(CONFIG), str(CONFIG))


def _problem() -> tuple[Config, Data]:
    config = _sweep().base
    return config, load_task(config.task)[1]


def _keras(config, data: Batch, outputs, rate):
    """`fit`, as its users do; a rate is a constant, so each training compiles."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    model = keras.Sequential(
        [
            keras.layers.Masking(),
            keras.layers.LSTM(config.model.units, dropout=rate, recurrent_dropout=rate),
            keras.layers.Dense(outputs),
        ]
    )
    model.compile(
        keras.optimizers.Adam(config.train.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    epochs, batch = config.train.epochs, config.train.batch
    model.fit(data.inputs, data.targets, batch, epochs, verbose=0)


def _torch(config, data: Batch, outputs, rate):
    """A loop over time with masks on x_t and h_{t-1}, which torch.nn.LSTM cannot do."""
    import torch
    from torch.nn.functional import cross_entropy, dropout

    xs, lengths, classes = (torch.tensor(array) for array in data)
    cell = torch.nn.LSTMCell(xs.shape[2], config.model.units)
    readout = torch.nn.Linear(config.model.units, outputs)
    params = [*cell.parameters(), *readout.parameters()]
    optimiser = torch.optim.Adam(params, config.train.learning_rate)

    def last_output(xs, lengths):
        ones = torch.ones(len(xs), config.model.units)
        x_mask, h_mask = dropout(torch.ones_like(xs[:, 0]), rate), dropout(ones, rate)
        h = c = torch.zeros_like(ones)
        hs = []
        for t in range(int(lengths.max())):
            h, c = cell(xs[:, t] * x_mask, (h * h_mask, c))
            hs.append(h)
        return torch.stack(hs, 1)[torch.arange(len(xs)), lengths.long() - 1]

    for _ in range(config.train.epochs):
        for index in torch.randperm(len(xs)).split(config.train.batch):
            logits = readout(last_output(xs[index], lengths[index]))
            loss = cross_entropy(logits, classes[index].long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
