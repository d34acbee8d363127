"""Reproduce: trains the row of a paper, evaluates it, and compares it with the paper.

Language models are evaluated from their weights, as the table `[evaluation]` says.
Networks of sequences have the figures of the evaluation with the lowest validation
loss, the test figure too.
"""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
from experiments.runs.evaluations import EVALUATIONS, Evaluation, read_evaluations
from experiments.runs.facts import read_facts
from experiments.runs.files import StorageError
from experiments.runs.records import RESULTS, read_records
from experiments.wording import count_text

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
        ConfigError: it lacks this table, the config is not valid, it has several
            settings, or it lacks the passes of a published Monte Carlo figure.
    """
    paper = read_paper(path)
    if paper is None:
        raise ConfigError(f"{path}: has no table [paper], so nothing to compare with.")
    raw, config = read_toml(path), kinds[paper.kind].config
    sweep = _read_sweep(raw, path, paper, kinds)
    options = {"task": raw.get("task", {}) | {"data": str(Path(data))}} if data else {}
    options |= {} if seeds is None else {"seeds": seeds}
    if options:
        sweep = make_sweep(raw | options, "command line", config)
    if sweep.axes:
        raise ConfigError(
            f"{path}: {next(iter(sweep.axes))}: must have one value, which is a row of "
            "a paper."
        )
    if paper.montecarlo and not _passes(paper, sweep):
        raise ConfigError(
            f"{path}: paper.montecarlo: needs evaluation.passes of a language model."
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
        ConfigError: the data are not the paper's, the config does not suit them, or all
            seeds diverged.
        StorageError: a file of the run is damaged or cannot be written.
        KeyboardInterrupt: the evaluation was stopped.
    """
    _check_data(path, paper, kind.load(sweep.base).fingerprint)
    if not run(kind, sweep, folder, options):
        return None
    records, facts = read_records(folder), read_facts(folder)
    well = {n: r for n, r in enumerate(records, 1) if r["status"] == "finished"}
    if not well:
        seeds = ", ".join(map(str, sweep.seeds))
        raise ConfigError(f"{folder}: diverged with every seed ({seeds}).")
    loss, kept = facts["task"]["loss"], list(well.values())
    unit = next((u for u in QUOTED if f"valid_{u}" in kept[0]["metrics"]), loss)
    figures: dict[str, list[float]] = {"valid": [], "test": [], "montecarlo": []}
    for line, record in well.items():
        found = (
            _of_model(folder, line, record["parameters"], unit, _passes(paper, sweep))
            if paper.kind == "language"
            else _of_best(record["metrics"], unit)
        )
        for name, figure in found.items():
            if figure is None:
                where = f"{folder}: line {line} of {RESULTS}"
                raise ConfigError(f"{where}: has no finite {name}_{unit} to compare.")
            figures[name].append(figure)
    programs = facts["programs"]
    seconds = sum(p["train_seconds"] for p in programs) / len(records)
    devices = dict.fromkeys(p["device"] for p in programs if "device" in p)
    result = figures | {
        "command": f"{command(path, sweep.seeds)} --data DATA",
        "unit": unit,
        "seeds": [record["seed"] for record in kept],
        "diverged": [r["seed"] for r in records if r["status"] == "diverged"],
        "curves": [_curve(record["metrics"], unit) for record in kept],
        "seconds": float(f"{seconds:.4g}"),
        "device": ", ".join(devices),
        "data": facts["task"]["data"],
        "versions": kept[-1]["versions"],
    }
    _show(path, paper, result)
    return result


def command(path: Path, seeds: Sequence[int]) -> str:
    """Returns the command line that trains these seeds of a row."""
    text = f"python -m experiments reproduce {shlex.quote(str(path))}"
    counted = list(seeds) == list(range(len(seeds)))
    return f"{text} --seeds {len(seeds)}" if counted else text


def keep_result(path: Path, result: dict) -> None:
    """Keeps a result next to its config, for the table of all results."""
    kept = write_result(path, result)
    console.print(f"Written: {kept}", style="bold", soft_wrap=True)


def _read_sweep(raw: dict, path: Path, paper: Paper, kinds: dict[str, Kind]) -> Sweep:
    """Returns the sweep of a file; a ConfigError says if it suits another kind."""
    try:
        return make_sweep(raw, str(path), kinds[paper.kind].config)
    except ConfigError:
        for name, kind in kinds.items():
            if _suits(raw, kind):
                raise ConfigError(
                    f'{path}: paper.kind: must be "{name}" for these fields, got '
                    f'"{paper.kind}".'
                ) from None
        raise


def _suits(raw: dict, kind: Kind) -> bool:
    try:
        make_sweep(raw, "", kind.config)
    except ConfigError:
        return False
    return True


def _passes(paper: Paper, sweep: Sweep) -> int:
    """Returns the number of Monte Carlo passes of a row; 0: none."""
    return sweep.base.evaluation.passes if paper.kind == "language" else 0


def _check_data(path: Path, paper: Paper, data: str) -> None:
    """Raises a ConfigError if the figures of a paper are of other data."""
    if paper.data not in ("", data):
        raise ConfigError(
            f"{path}: paper.data: the figures are of data with the hash {paper.data}, "
            f"got {data}; leave it out to train the recipe on other data."
        )


def _of_model(
    folder: Path, line: int, parameters: str, unit: str, passes: int
) -> dict[str, float]:
    """Returns the figures of a language model, evaluated from its weights."""

    def figures(split: Literal["valid", "test"], counts: Sequence[int]) -> list[float]:
        options = Evaluate(lane=line, split=split, passes=tuple(filter(None, counts)))
        known = dataclasses.asdict(options) | {"parameters": parameters}
        stored = [_stored(folder, known, count) for count in counts]
        if not all(stored):
            evaluate(folder, options)
            stored = [_stored(folder, known, count) for count in counts]
        return [_figure(folder, lines[-1], unit) for lines in stored]

    counts = {"test": 0, "montecarlo": passes} if passes else {"test": 0}
    found = dict(zip(counts, figures("test", list(counts.values())), strict=True))
    (found["valid"],) = figures("valid", [0])
    return found


def _figure(folder: Path, evaluation: Evaluation, unit: str) -> float:
    """Returns the figure of an evaluation; raises a StorageError if it has none."""
    figure = evaluation.get(unit)
    if not (isinstance(figure, float) and math.isfinite(figure)):
        raise StorageError(
            f"{folder / EVALUATIONS}: not an evaluation: {unit}: must be a finite "
            f"number, got {figure!r}."
        )
    return figure


def _stored(folder: Path, known: dict[str, Any], passes: int) -> list[Evaluation]:
    """Returns the evaluations of a run with these options and so many passes."""
    wanted = known | {"passes": passes, "powers": 1.0 if passes else None}
    return [
        each
        for each in read_evaluations(folder)
        if all(each.get(name) == value for name, value in wanted.items())
    ]


def _of_best(metrics: dict[str, list], unit: str) -> dict[str, float | None]:
    """Returns the figures at the lowest validation loss; None for one not finite."""
    losses = np.array(metrics[f"valid_{unit}"], float)
    best = int(np.nan_to_num(losses, nan=np.inf).argmin())
    return {split: metrics[f"{split}_{unit}"][best] for split in ("valid", "test")}


def _curve(metrics: dict[str, list], unit: str) -> list[float | None]:
    """Returns the validation figure of each epoch's own parameters."""
    if "epoch_nll" not in metrics:
        return metrics[f"valid_{unit}"]
    nll = np.array(metrics["epoch_nll"], float)
    scaled = {"perplexity": np.exp(nll), "bits": nll / np.log(2), "nll": nll}[unit]
    return [float(value) if np.isfinite(value) else None for value in scaled]


def _show(path: Path, paper: Paper, result: dict) -> None:
    """Prints the comparison and its verdict."""
    seeds = count_text(len(result["seeds"]), "seed")
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
    if result["diverged"]:
        seeds = ", ".join(map(str, result["diverged"]))
        console.print(f"Diverged, and not in these figures: seed {seeds}.")


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
