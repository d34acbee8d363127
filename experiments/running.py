"""Running: long work with a person watching, who may want it to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(highlight=False)


class Watch:
    """A progress bar over lanes x epochs, and whether somebody asked to stop.

    The first SIGINT or SIGTERM asks to stop after the current evaluation; the next one
    acts as ever.
    """

    def __init__(self, bar: Progress, lanes: int, epochs: int):
        self.lanes, self.epochs = lanes, epochs
        self._asked = False
        self._bar = bar
        self._task = bar.add_task("", total=lanes * epochs, note="")

    def ask_to_stop(self) -> None:
        """Notes that somebody wants it to end."""
        self._asked = True

    def stopped(self) -> bool:
        """Whether it is to end now; all processes ask at once and agree."""
        if jax.process_count() == 1:
            return self._asked
        return bool(multihost_utils.process_allgather(np.array(self._asked)).any())

    def announce(self, name: str, note: str) -> None:
        """Shows what is being done now."""
        self._bar.update(self._task, description=name, note=note)

    def skip(self, lanes: int, epochs: int | float) -> None:
        """Counts what needs no line: what an earlier run has done, say."""
        self._bar.update(self._task, advance=lanes * epochs)

    def advance(self, name: str, lanes: int, epochs: int, at: int, note: str) -> None:
        """Counts so many epochs of so many lanes, which are at epoch `at` now."""
        advance = lanes * epochs
        self._bar.update(self._task, advance=advance, description=name, note=note)
        if not console.is_terminal:
            console.print(f"{name}: epoch {at}/{self.epochs}  {note}")


@contextmanager
def watch(lanes: int, epochs: int) -> Iterator[Watch]:
    """Shows a progress bar, and listens for signals."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    old: dict[Any, Any] = {number: signal.getsignal(number) for number in numbers}

    def restore():
        for number, handler in old.items():
            signal.signal(number, handler)

    def receive(number, frame):
        watcher.ask_to_stop()
        restore()
        console.print("Stopping after this evaluation; once more to stop at once.")

    with _bar() as bar:
        watcher = Watch(bar, lanes, epochs)
        for number in numbers:
            signal.signal(number, receive)
        try:
            yield watcher
        finally:
            restore()


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
