"""Commands about a run that was trained: evaluate, replay, report and export."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.classify.evaluate import compare_settings, evaluate_sequences
from experiments.commands import KINDS
from experiments.config import ConfigError
from experiments.language import evaluate as models
from experiments.language.run import LanguageModels
from experiments.progress import console
from experiments.runs.facts import read_facts

Line = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RESULTS.jsonl:LINE")]
Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
Folders = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")
]
DETERMINISTIC = models.Options()


def evaluate(
    run: Folder,
    /,
    options: Annotated[models.Options, tyro.conf.arg(name="")] = DETERMINISTIC,
    against: int | None = None,
) -> int:
    """Evaluates a trained lane of a run, without noise and by Monte Carlo dropout.

    `python -m experiments evaluate runs/ptb_gal_medium_tied --passes 10 --powers 1 0`.
    `python -m experiments evaluate runs/vowels_plane --passes 32 --ensemble seeds`.

    Args:
        run: the folder of a run that kept weights (--keep best or all).
        options: of the evaluation.
        against: a lane of another setting, which is compared with the setting of --lane
            over their seeds and the sequences of the split.
    """
    facts = read_facts(run)
    if not facts:
        raise ConfigError(f"{run}: is not the folder of a run: no run.json.")
    if facts["kind"] == LanguageModels.name:
        if against is not None:
            raise ConfigError("against: compares networks of sequences only.")
        models.show(models.evaluate(run, options))
        return 0
    kept = {n: getattr(options, n) for n in ("powers", "masks", "noise", "temperature")}
    if dataclasses.replace(DETERMINISTIC, **kept) != DETERMINISTIC or options.window:
        raise ConfigError(
            "evaluate: networks of sequences take --lane, --split, --passes, "
            "--ensemble, --seed, --chunk and --against only."
        )
    if against is not None:
        if options.passes or options.ensemble != "none":
            raise ConfigError("against: takes neither --passes nor --ensemble.")
        found = [compare_settings(run, options.lane, against, options.split)]
    else:
        found = evaluate_sequences(
            run,
            options.lane,
            options.split,
            options.passes,
            options.ensemble == "seeds",
            options.seed,
            options.chunk,
        )
    for row in found:
        texts = (
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
        )
        console.print("  ".join(texts), soft_wrap=True)
    return 0


def replay(line: Line, /, data_devices: int = 1) -> int:
    """Trains one lane of a run again and compares it bitwise.

    Args:
        line: a line of results, such as runs/vowels_plane/results.jsonl:17, from 1.
        data_devices: devices that share each batch, as in the run.
    """
    from experiments import replay as replaying

    return 0 if replaying.replay(line, KINDS, data_devices) else 1


def report(
    runs: Folders,
    /,
    figure: str | None = None,
    out: Path | None = None,
    margin: float = 0.0,
) -> int:
    """Writes the report of a run again, or one that compares several runs.

    Args:
        runs: folders of runs.
        figure: the name of one figure to draw alone.
        out: the file to write.
        margin: differences inside of it, in the unit of the test loss, are tested for
            equivalence; 0 for no such test.
    """
    # Plots and tables take a second to import.
    from experiments import report as reports

    if figure is None:
        path = reports.write_report(runs, out, margin)
        reports.print_summary(runs[0], margin) if len(runs) == 1 else None
    else:
        path = reports.write_figure(runs, figure, out)
    console.print(f"Written: {path}", style="bold", soft_wrap=True)
    return 0


def export(
    run: Folder,
    /,
    to: Literal["csv", "parquet", "json"] = "csv",
    out: Path | None = None,
) -> int:
    """Writes the results of a run as one table, with a row per lane and evaluation.

    Args:
        run: the folder of the run.
        to: the format.
        out: the file to write; by default table.csv, .parquet or .json in the run.
    """
    from experiments import runs

    path = runs.export(run, to, out)
    console.print(f"Written: {path}", style="bold", soft_wrap=True)
    return 0
