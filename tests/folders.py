"""Folders of runs as the sweep leaves them, with results that a test chooses."""

import contextlib
import itertools
import json

import numpy as np
import pytest

from experiments.commands import configs

PLATFORM = {
    "backend": "cpu",
    "device": "cpu",
    "devices": 2,
    "machine": "Linux x86_64",
    "prng": "threefry2x32",
}
TASK = {
    "name": "japanese_vowels",
    "loss": "nll",
    "units": {"nll": "nats per utterance", "accuracy": ""},
    "source": "Data: spoken vowels.",
    "data": "0123456789abcdef",
}
PAPER = """
[paper]
title = "Nobody 2020"
row = "small"
source = "table 1"
test = 10.0
"""
MODEL = """
[task]
name = "words"

[model]
cell = "simple"
embedding = 6
units = 6
layers = 1
"""
EPOCHS = 6
EVALUATED_AT = [2, 4, 6]


@contextlib.contextmanager
def no_reports():
    """Runs end without their report, which takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "_concluding", lambda log: lambda folder: None)
        yield


def recipe(folder, text=PAPER, fields="seeds = 1\n"):
    """Writes a config with the table [paper]."""
    path = folder / "row.toml"
    path.write_text(fields + text)
    return path


def curve(final, length):
    """Falls towards its final figure; None if that is not finite."""
    if not np.isfinite(final):
        return [None] * length
    return [round(float(final * (1 + 0.5 * n)), 8) for n in reversed(range(length))]


def make_line(setting, seed, valid, test, learned=None):
    return {
        "setting": setting,
        "seed": seed,
        "status": "finished",
        "diverged_at": None,
        "epochs": EPOCHS,
        "evaluated_at": EVALUATED_AT,
        "metrics": {
            "train_nll": curve(valid / 2, EPOCHS),
            "valid_nll": curve(valid, 3),
            "valid_accuracy": [0.5, 0.75, 0.9],
            "test_nll": curve(test, 3),
            "test_accuracy": [0.5, 0.75, 0.8],
            **(learned or {}),
        },
        "parameters": "abc123",
        "versions": {"python": "3.12", "jax": "0.10.2"},
        "platform": PLATFORM,
    }


def make_lines(axes, seeds, test, valid=None, learned=None):
    """One line per lane, the seed fastest; `test` and `valid` map (setting, seed)."""
    settings = [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
    return [
        make_line(
            setting,
            seed,
            (valid or test)(setting, seed),
            test(setting, seed),
            learned and learned(setting, seed),
        )
        for setting in settings
        for seed in range(seeds)
    ]


def write_lines(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text)


def write_folder(folder, axes, lines):
    """Writes all three files of a run."""
    write_lines(folder, lines)
    seeds = sorted({line["seed"] for line in lines})
    run = {
        "kind": "sequences",
        "command": "python -m experiments ablate configs/x.toml",
        "task": TASK,
        "axes": axes,
        "seeds": seeds,
        "lanes": len(lines),
        "epochs": EPOCHS,
        "programs": [
            {
                "setting": {},
                "lanes": len(lines),
                "resident": len(lines),
                "compiles": 1,
                "compile_seconds": 3.9,
                "train_seconds": 40.5,
                "megabytes": 120.0,
            }
        ],
        "resident": {"0": len(lines)},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.toml").write_text(f"seeds = {len(seeds)}\nseed = 0\n")
    return folder


def make_folder(folder, axes, seeds, test, valid=None, learned=None):
    return write_folder(folder, axes, make_lines(axes, seeds, test, valid, learned))
