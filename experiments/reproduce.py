"""Reproduce: trains the row of a paper, evaluates it, and compares it with the paper.

Language models are evaluated from their weights, as the table `[evaluation]` says.
Networks of sequences have the figures of the evaluation with the lowest validation
loss, the test figure too.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.table

from experiments.axes import Sweep, make_sweep, read_toml
from experiments.config import ConfigError
from experiments.engine import Options, run
from experiments.kinds import Kind
from experiments.language.evaluate import Options as Evaluate
from experiments.language.evaluate import evaluate
from experiments.papers import (
    Comparison,
    Paper,
    compare,
    read_paper,
    verdict,
    write_result,
)
from experiments.progress import console
from experiments.runs.evaluations import read_evaluations
from experiments.runs.facts import read_facts
from experiments.runs.records import environment, read_records

QUOTED = ("perplexity", "bits", "nll")  # the first that a run has is what papers quote


def read_recipe(
    path: Path, kinds: dict[str, Kind], data: str, seeds: int | None
) -> tuple[Paper, Sweep]:
    """Reads a config with the table `[paper]`.

    Args:
        path: the config.
        kinds: kinds of program by their names.
        data: replaces `task.data`, if not empty.
        seeds: replaces `seeds`, if not None.

    Raises:
        ConfigError: it lacks this table, the config is not valid, or it has several
            settings.
    """
    paper = read_paper(path)
    if paper is None:
        raise ConfigError(f"{path}: has no table [paper], so nothing to compare with.")
    raw = read_toml(path)
    if data:
        raw["task"] = raw.get("task", {}) | {"data": data}
    if seeds is not None:
        raw["seeds"] = seeds
    sweep = make_sweep(raw, str(path), kinds[paper.kind].config)
    if sweep.axes:
        raise ConfigError(
            f"{path}: {next(iter(sweep.axes))}: must have one value, which is a row of "
            "a paper."
        )
    return paper, sweep


def reproduce(
    path: Path, paper: Paper, sweep: Sweep, kind: Kind, folder: Path, options: Options
) -> dict | None:
    """Trains a row, evaluates it and prints it with the published figures.

    Finished trainings and evaluations in the folder are used again.

    Args:
        path: the config.
        paper: its table `[paper]`.
        sweep: its fields.
        kind: the kind of program.
        folder: of the run.
        options: of the run.

    Returns:
        The result, see `experiments.papers.Result`; None if the training was stopped.

    Raises:
        ConfigError: the config does not suit the data, or a lane diverged.
        StorageError: a file of the run is damaged or cannot be written.
    """
    if not run(kind, sweep, folder, options):
        return None
    records = read_records(folder)
    diverged = [r["seed"] for r in records if r["diverged_at"] is not None]
    if diverged:
        raise ConfigError(f"{folder}: seed {diverged[0]} diverged.")
    unit = next(u for u in QUOTED if f"valid_{u}" in records[0]["metrics"])
    passes = sweep.base.evaluation.passes if paper.kind == "language" else 0
    figures: dict[str, list[float]] = {"valid": [], "test": [], "montecarlo": []}
    for line, record in enumerate(records, 1):
        found = (
            _of_model(folder, line, unit, passes)
            if paper.kind == "language"
            else _of_best(record["metrics"], unit)
        )
        for name, figure in found.items():
            figures[name].append(figure)
    versions = environment()["versions"]
    result = figures | {
        "command": f"python -m experiments reproduce {path} --data DATA",
        "unit": unit,
        "seeds": [record["seed"] for record in records],
        "curves": [_curve(record["metrics"], unit) for record in records],
        "seconds": round(_seconds(folder) / len(records), 1),
        "device": _device(),
        "versions": versions,
    }
    _show(path, paper, result)
    return result


def keep_result(path: Path, result: dict) -> None:
    """Keeps a result next to its config, for the table of all results."""
    kept = write_result(path, result)
    console.print(f"Written: {kept}", style="bold", soft_wrap=True)


def _of_model(folder: Path, line: int, unit: str, passes: int) -> dict[str, float]:
    """Returns the figures of a language model, evaluated from its weights."""

    def figure(split: Any, count: int) -> float:
        options = Evaluate(
            lane=line, split=split, passes=(count,) if count else (), chunk=8
        )
        wanted = dataclasses.asdict(options) | {"passes": count}
        wanted["powers"] = 1.0 if count else None
        same = [
            each
            for each in read_evaluations(folder)
            if all(each.get(name) == value for name, value in wanted.items())
        ]
        return float((same or evaluate(folder, options))[-1][unit])

    found = {split: figure(split, 0) for split in ("valid", "test")}
    return found | ({"montecarlo": figure("test", passes)} if passes else {})


def _of_best(metrics: dict[str, list], unit: str) -> dict[str, float]:
    """Returns the figures at the lowest validation loss."""
    losses = np.array(metrics[f"valid_{unit}"], float)
    best = int(np.nanargmin(losses))
    return {split: metrics[f"{split}_{unit}"][best] for split in ("valid", "test")}


def _curve(metrics: dict[str, list], unit: str) -> list[float | None]:
    """Returns the validation figure of each epoch's own parameters."""
    if "epoch_nll" not in metrics:
        return metrics[f"valid_{unit}"]
    nll = np.array(metrics["epoch_nll"], float)
    scaled = {"perplexity": np.exp(nll), "bits": nll / np.log(2), "nll": nll}[unit]
    return [float(value) if np.isfinite(value) else None for value in scaled]


def _seconds(folder: Path) -> float:
    """Returns the time of training, over all interruptions."""
    programs: Sequence[dict] = read_facts(folder)["programs"]
    return sum(program["train_seconds"] for program in programs)


def _device() -> str:
    """Returns the device of the run, in a few words."""
    if jax.default_backend() == "cpu":
        cores = len(os.sched_getaffinity(0))
        return f"{cores} CPU core{'s' * (cores > 1)}"
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _show(path: Path, paper: Paper, result: dict) -> None:
    """Prints the comparison and its verdict."""
    count = len(result["seeds"])
    seeds = f"{count} seed{'s' * (count > 1)}"
    title = f"{paper.title}: {paper.row}"
    table = rich.table.Table(
        "", "published", f"ours, {seeds}", "difference", title=title
    )
    compared = compare(paper, result)
    for each in compared:
        shown = published(each.published)
        table.add_row(each.name, shown, spread(each), difference(each))
    console.print(table)
    console.print(f"{path.stem}: {verdict(compared)}", style="bold")


def published(figure: float) -> str:
    """Returns a published figure, or a dash for 0: none."""
    return f"{figure:g}" if figure else "-"


def spread(figure: Comparison) -> str:
    """Returns our figure as mean and standard deviation."""
    digits = 2 if figure.mean >= 10 else 3
    text = f"{figure.mean:.{digits}f}"
    return text if np.isnan(figure.sd) else f"{text} (sd {figure.sd:.{digits}f})"


def difference(figure: Comparison) -> str:
    """Returns how much our figure is higher, in percent, or a dash."""
    return f"{figure.percent:+.1f} %" if figure.published else "-"
