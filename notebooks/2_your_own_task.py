# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data, and a plane of rates
#
# Which rates of `dropout` and `recurrent_dropout` should you use? This notebook writes
# a data set to a file, trains a network at every pair of rates, and reads the report.
# Put your own arrays in place of the ones made here. It takes about two minutes.

# %%
# On Colab and the like: the address of the repository that you use, such as
# "git+https://HOST/OWNER/rdrop". The experiments need a checkout.
REPOSITORY = ""
if REPOSITORY:
    import subprocess
    import sys

    address = REPOSITORY.removeprefix("git+")
    subprocess.run(["git", "clone", "-q", address, "rdrop-checkout"], check=True)
    wanted = "./rdrop-checkout[experiments]"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)

# %%
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Image, display

# The commands run in the checkout: here, one folder up, or where it was cloned to.
places = (Path(), Path(".."), Path("rdrop-checkout"))
os.chdir(next(place for place in places if (place / "experiments").is_dir()))
sys.path.insert(0, os.getcwd())
from experiments.__main__ import main

folder = Path("runs")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## The data
#
# A file with `x` [N, T, D], `y` [N] and, for sequences of different lengths, `lengths`
# [N] is enough. `experiments/tasks/README.md` has the other formats.

# %%
rng = np.random.default_rng(0)
count, time, classes = 400, 30, 3
targets = rng.integers(classes, size=count)
lengths = rng.integers(time // 2, time + 1, size=count)
pitch = 0.3 + 0.15 * targets + rng.normal(scale=0.1, size=count)
phase = rng.uniform(0, 6.28, size=count)
waves = np.sin(pitch[:, None] * np.arange(time) + phase[:, None])
inputs = np.stack([waves, np.roll(waves, 1, axis=1)], axis=-1)
inputs += rng.normal(scale=0.7, size=inputs.shape)
np.savez(
    folder / "waves.npz",
    x=inputs.astype(np.float32),
    lengths=lengths,
    y=targets,
)

# %% [markdown]
# ## The plane
#
# Each option with several values is an axis. Before any long work, `--dry-run` says
# how long it would take.

# %%
command = [
    *("ablate", "configs/classify.toml", "--task.data", str(folder / "waves.npz")),
    *("--out", str(folder / "waves"), "--seeds", "3", "--model.units", "24"),
    *("--dropout.inputs.rate", "0", "0.25", "0.5"),
    *("--dropout.recurrent.rate", "0", "0.25", "0.5"),
    *("--train.epochs", "24", "--train.evaluate-every", "4"),
]
assert main([*command, "--dry-run"]) == 0

# %%
assert main(command) == 0

# %% [markdown]
# ## The report
#
# `report.html` opens without a network. Its pictures are files too.

# %%
display(Image(filename=str(folder / "waves" / "plane.png")))

# %%
display(Image(filename=str(folder / "waves" / "learning_curves.png")))

# %% [markdown]
# ## The results as data
#
# One line of `results.jsonl` is a lane: a setting at a seed.

# %%
lines = (folder / "waves" / "results.jsonl").read_text().splitlines()
records = [json.loads(line) for line in lines]
table = pd.DataFrame(
    {
        **record["setting"],
        "seed": record["seed"],
        "test_nll": record["metrics"]["test_nll"][-1],
    }
    for record in records
)
table.pivot_table("test_nll", "dropout.inputs.rate", "dropout.recurrent.rate").round(3)

# %% [markdown]
# ## Is the difference real?
#
# If three seeds do not settle it, `--until settled` adds seeds until they do, and its
# verdicts hold whenever it stops. `tune` searches the ranges between the rates instead
# of a grid. Both take the same config:
#
# ```
# python -m experiments ablate CONFIG.toml --seeds 256 --until settled --margin 0.005
# python -m experiments tune CONFIG.toml --lanes 256
# ```
