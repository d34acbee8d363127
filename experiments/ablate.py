"""Ablate: the main job, from a config to a report, with a person watching.

After each chunk of epochs the results on disk are replaced by newer ones, so whatever
ends a run, what was finished stays.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments import report, results, sweep, vowels
from experiments.config import Config, ConfigError, to_toml
from experiments.results import Choice, Plane

console = Console(highlight=False)


def ablate(config: Config, folder: Path) -> bool:
    """Trains the plane and writes config, results, figures and report into `folder`.

    Ctrl-C and SIGTERM end it after the current chunk of epochs; a second one at once.

    Returns:
        Whether it ran to the end.

    Raises:
        ConfigError: the config does not suit the data, or the folder cannot be used.
    """
    train, test = vowels.load()
    lanes = sweep.make_lanes(config, train.speakers)
    _make_folder(folder)
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    start = time.perf_counter()
    with console.status(f"Compiling one program for {len(lanes.key)} lanes ..."):
        program = sweep.compile_sweep(config, lanes, train, test)
    chunks = _train(config, program, folder, start)
    if not chunks:
        console.print(
            "Stopped before the first evaluation: there is nothing to report."
        )
        return False
    plane = results.plane(config, results.stack(chunks))
    choice = results.choose(plane)
    total = time.perf_counter() - start
    timing = {
        "compiling": program.compile_seconds,
        "training": total - program.compile_seconds,
    }
    path = report.write(folder, config, plane, choice, timing)
    _summarise(plane, choice, timing, path)
    return len(chunks) * config.train.evaluate_every == config.train.epochs


def free_folder(name: str, root: Path = Path("runs")) -> Path:
    """Returns the first of runs/name, runs/name-2, ... that holds no run yet."""
    number, folder = 1, root / name
    while folder.exists():
        number += 1
        folder = root / f"{name}-{number}"
    return folder


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
        (folder / "config.toml").touch()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None
    if taken:
        raise ConfigError(f"{folder}: not empty; name another folder.")


def _train(config, program, folder, start):
    """Runs all chunks, or those before a signal; returns their metrics."""
    chunks = []
    every = config.train.evaluate_every
    with _signals() as stopped, _progress() as progress:
        task = progress.add_task(
            f"{program.lane_count} lanes", total=config.train.epochs, note=""
        )
        for metrics in sweep.run(program, config.train.epochs // every):
            chunks.append(metrics)
            plane = results.plane(config, results.stack(chunks))
            results.write(
                folder / "results.jsonl",
                results.records(plane, config, time.perf_counter() - start),
            )
            note = (
                f"NLL train {metrics.train_nll[:, -1].mean():.3f} "
                f"valid {metrics.valid_nll.mean():.3f}"
            )
            progress.update(task, advance=every, note=note)
            if not console.is_terminal:
                console.print(
                    f"epoch {len(chunks) * every}/{config.train.epochs}  {note}"
                )
            if stopped:
                console.print(f"Stopped after {len(chunks) * every} epochs.")
                break
    return chunks


@contextmanager
def _signals() -> Iterator[list]:
    """Collects the first SIGINT or SIGTERM in a list; the next one acts as ever."""
    received: list[int] = []
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in old.items():
            signal.signal(number, handler)

    def receive(number, frame):
        received.append(number)
        restore()
        console.print("Stopping after this chunk of epochs; once more to stop at once.")

    for number in old:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _summarise(plane: Plane, choice: Choice, timing: dict[str, float], path: Path):
    console.print(_grid(plane, choice))
    dropout, recurrent_dropout = plane.rates(choice.best)
    accuracy = plane.final("test_accuracy")[choice.best].mean()
    console.print(
        f"Best on validation: dropout {dropout:g}, recurrent_dropout "
        f"{recurrent_dropout:g}; test accuracy {accuracy:.1%}."
    )
    console.print()
    console.print("dropout or recurrent_dropout?", style="bold")
    console.print(results.answer(plane, choice).replace("`", ""))
    console.print()
    spent = ", ".join(f"{seconds:.1f} s {what}" for what, seconds in timing.items())
    console.print(f"{plane.final('test_nll').size} lanes: {spent}.")
    console.print(f"Report: {path}", style="bold", soft_wrap=True)


def _grid(plane: Plane, choice: Choice) -> Table:
    """The plane as a table, its first row at the bottom as in the heat map."""
    table = Table(
        title="Test NLL (nats), mean ± sd over seeds",
        caption="columns: recurrent_dropout; bold: chosen on validation",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("dropout", justify="right")
    for rate in plane.recurrent:
        table.add_column(f"{rate:g}", justify="center", no_wrap=True)
    rows = report.rows(plane, choice)
    width = len(plane.recurrent)
    for i in reversed(range(len(plane.inputs))):
        cells = rows[i * width : (i + 1) * width]
        texts = (
            f"[bold green]{c['test_nll']}[/]" if c["chosen"] else c["test_nll"]
            for c in cells
        )
        table.add_row(f"{plane.inputs[i]:g}", *texts)
    return table
