"""Ablate: the plane of dropout x recurrent_dropout, from a config to a report."""

import time
from pathlib import Path

from rich import box
from rich.table import Table

from experiments import plane, report, results, sweep, vowels
from experiments.config import PlaneConfig, to_toml
from experiments.plane import Choice, Plane
from experiments.running import console, make_folder, watch


def ablate(config: PlaneConfig, folder: Path) -> bool:
    """Trains the plane and writes config, results, figures and report into `folder`.

    Ctrl-C and SIGTERM end it after the current chunk of epochs; a second one at once.

    Returns:
        Whether it ran to the end.

    Raises:
        ConfigError: the config does not suit the data, or the folder cannot be used.
    """
    train, test = vowels.load()
    lanes = plane.lanes(config, train)
    make_folder(folder, to_toml(config))
    start = time.perf_counter()

    def keep(chunks):
        lines = results.records(
            plane.settings(config),
            results.stack(chunks),
            config.train,
            time.perf_counter() - start,
        )
        results.write(folder / "results.jsonl", lines)

    with watch(config.train.epochs) as watcher:
        name = f"{len(lanes.key)} lanes"
        watcher.announce(name, "compiling one program ...")
        program = sweep.compile_sweep(lanes, config.model, config.train, train, test)
        chunks = watcher.train(name, program, config.train, keep)
    figures = plane.lay_out(config, results.stack(chunks))
    choice = plane.choose(figures)
    timing = {
        "compiling": program.compile_seconds,
        "training": time.perf_counter() - start - program.compile_seconds,
    }
    path = report.write_plane(folder, config, figures, choice, timing)
    _summarise(figures, choice, timing, path)
    if watcher.stopped:
        console.print(
            f"Stopped after {len(chunks) * config.train.evaluate_every} epochs."
        )
    return not watcher.stopped


def _summarise(figures: Plane, choice: Choice, timing: dict[str, float], path: Path):
    console.print(_grid(figures, choice))
    dropout, recurrent_dropout = figures.rates(choice.best)
    accuracy = figures.final("test_accuracy")[choice.best].mean()
    console.print(
        f"Best on validation: dropout {dropout:g}, recurrent_dropout "
        f"{recurrent_dropout:g}; test accuracy {accuracy:.1%}."
    )
    console.print()
    console.print("dropout or recurrent_dropout?", style="bold")
    console.print(plane.answer(figures, choice).replace("`", ""))
    console.print()
    spent = ", ".join(f"{seconds:.1f} s {what}" for what, seconds in timing.items())
    console.print(f"{figures.final('test_nll').size} lanes: {spent}.")
    console.print(f"Report: {path}", style="bold", soft_wrap=True)


def _grid(figures: Plane, choice: Choice) -> Table:
    """The plane as a table, its first row at the bottom as in the heat map."""
    table = Table(
        title="Test NLL (nats), mean ± sd over seeds",
        caption="columns: recurrent_dropout; bold: chosen on validation",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("dropout", justify="right")
    for rate in figures.recurrent:
        table.add_column(f"{rate:g}", justify="center", no_wrap=True)
    nll = figures.final("test_nll")
    for i in reversed(range(len(figures.inputs))):
        texts = [results.mean_sd(cell) for cell in nll[i]]
        if i == choice.best.inputs:
            chosen = choice.best.recurrent
            texts[chosen] = f"[bold green]{texts[chosen]}[/]"
        table.add_row(f"{figures.inputs[i]:g}", *texts)
    return table
