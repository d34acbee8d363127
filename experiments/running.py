"""Running: long work with a person watching.

After each chunk of epochs the results on disk are replaced by newer ones, so whatever
ends a run, what was finished stays.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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

from experiments import sweep
from experiments.config import ConfigError, Train
from experiments.train import Metrics

console = Console(highlight=False)


class Watch:
    """A progress bar over epochs, and whether somebody asked to stop.

    The first SIGINT or SIGTERM asks to stop after the current chunk of epochs; the next
    one acts as ever.
    """

    def __init__(self, bar: Progress, epochs: int):
        self.stopped = False
        self.epochs = epochs
        self._bar = bar
        self._task = bar.add_task("", total=epochs, note="compiling ...")
        self._done = 0

    def train(
        self,
        name: str,
        program: sweep.Program,
        config: Train,
        keep: Callable[[list[Metrics]], None],
    ) -> list[Metrics]:
        """Trains all lanes of a program, or until somebody asks to stop.

        Args:
            name: what is trained.
            program: the compiled lanes.
            config: how they are trained.
            keep: called after every chunk with all chunks so far; it stores them.
        """
        chunks: list[Metrics] = []
        for metrics in sweep.run(program, config.epochs // config.evaluate_every):
            chunks.append(metrics)
            keep(chunks)
            train_nll = metrics.train_nll[:, -1].mean()
            note = f"NLL train {train_nll:.3f} valid {metrics.valid_nll.mean():.3f}"
            self._advance(name, config.evaluate_every, note)
            if self.stopped:
                break
        return chunks

    def announce(self, name: str, note: str) -> None:
        """Shows what is being done now."""
        self._bar.update(self._task, description=name, note=note)

    def _advance(self, name, epochs, note):
        self._done += epochs
        self._bar.update(self._task, advance=epochs, description=name, note=note)
        if not console.is_terminal:
            console.print(f"{name}: epoch {self._done}/{self.epochs}  {note}")


@contextmanager
def watch(epochs: int) -> Iterator[Watch]:
    """Shows a progress bar over `epochs`, and listens for signals."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.getsignal(number) for number in numbers}

    def restore():
        for number, handler in old.items():
            signal.signal(number, handler)

    def receive(number, frame):
        watcher.stopped = True
        restore()
        console.print("Stopping after this chunk of epochs; once more to stop at once.")

    with _bar() as bar:
        watcher = Watch(bar, epochs)
        for number in numbers:
            signal.signal(number, receive)
        try:
            yield watcher
        finally:
            restore()


def free_folder(name: str, root: Path = Path("runs")) -> Path:
    """Returns the first of runs/name, runs/name-2, ... that holds no run yet."""
    number, folder = 1, root / name
    while folder.exists():
        number += 1
        folder = root / f"{name}-{number}"
    return folder


def make_folder(folder: Path, toml: str) -> None:
    """Makes a new folder for a run, and writes its config there.

    Raises:
        ConfigError: it is in use, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: not empty; name another folder.")
        (folder / "config.toml").write_text(toml, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None


def _bar() -> Progress:
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
