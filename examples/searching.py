"""How good is the setting that a search finds, beside a grid and chance?

Two rates and the learning rate of an LSTM are searched by a grid, by chance, by the
tree-structured Parzen estimator, and by the last with successive halving, at the cost
of equally many lanes. The setting that each chooses by its validation loss is trained
again with seeds that none has seen.

    python -m examples.searching runs/searching
    python -m examples.searching runs/searching_jsb JSB_Chorales.mat

It takes about half an hour on two cores, and resumes.
"""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.axes import Sweep, make_sweep
from experiments.classify.run import Sequences
from experiments.devices import one_device_per_core
from experiments.engine import run
from experiments.runs.records import read_records
from experiments.search.study import best_first, read_study
from experiments.search.tune import Search, tune
from experiments.wording import mean_sd

REPETITIONS, NEW_SEEDS, NEW = 5, 8, 1000
WAYS = {"random": ("random", 0), "TPE": ("tpe", 0), "TPE, halving": ("tpe", 3)}
Setting = dict[str, Any]


def space(data: str, repetition: int) -> Sweep:
    """Returns what is searched, on Japanese Vowels or on JSB Chorales."""
    raw: dict[str, Any] = {
        "seeds": 1,
        "seed": repetition,
        "model": {"units": 32},
        "dropout": {
            "inputs": {"rate": [0.0, 0.2, 0.4, 0.6]},
            "recurrent": {"rate": [0.0, 0.2, 0.4, 0.6]},
        },
        "train": {"epochs": 32, "learning_rate": [1e-3, 2e-3, 5e-3, 1e-2]},
    }
    if data:
        raw["task"] = {"name": "piano_roll", "data": data}
        raw["train"] |= {"batch": 16, "epochs": 18, "evaluate_every": 2}
        raw["dropout"]["inputs"]["rate"] = [0.0, 0.3, 0.6]
        raw["dropout"]["recurrent"]["rate"] = [0.0, 0.3, 0.6]
        raw["train"]["learning_rate"] = [1e-3, 3e-3, 1e-2]
    return make_sweep(raw, "examples/searching.py")


def main(folder: Path, data: str = "") -> None:
    """Prints the test loss of the settings that each way chooses."""
    found: dict[str, list[float]] = {name: [] for name in ("grid", *WAYS)}
    for repetition in range(REPETITIONS):
        sweep, out = space(data, repetition), folder / f"{repetition}"
        lanes = len(sweep.lanes())
        chosen = {"grid": best_of_grid(sweep, out / "grid")}
        for name, (sampler, halving) in WAYS.items():
            study = out / name
            tune(sweep, study, Search(sampler, lanes, 8, halving))
            chosen[name] = best_first(read_study(study)[1])[0]["setting"]
        for name, setting in chosen.items():
            found[name].append(measured(sweep, setting, out / f"{name}, new seeds"))
    print(f"{lanes} lanes each; test loss of {NEW_SEEDS} new seeds; each repetition")
    for name, losses in found.items():
        each = "".join(f"{loss:8.4f}" for loss in losses)
        print(f"{name:14} {mean_sd(np.array(losses)):14} {each}")


def best_of_grid(sweep: Sweep, folder: Path) -> Setting:
    """Trains a grid and returns the setting with the lowest validation loss."""
    run(Sequences(), sweep, folder)
    records = read_records(folder)
    losses = [record["metrics"]["valid_nll"][-1] for record in records]
    return records[int(np.nanargmin(np.array(losses, float)))]["setting"]


def measured(sweep: Sweep, setting: Setting, folder: Path) -> float:
    """Returns the mean test loss of a setting with new seeds."""
    config = dataclasses.replace(sweep.lanes_of(setting)[0].config, seed=NEW)
    run(Sequences(), Sweep(config, {}, tuple(range(NEW_SEEDS)), "new"), folder)
    found = read_records(folder)
    return float(np.mean([record["metrics"]["test_nll"][-1] for record in found]))


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    one_device_per_core()
    main(Path(sys.argv[1]), *sys.argv[2:])
