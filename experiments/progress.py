"""Progress: a bar for long work, and requests to stop it."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(highlight=False)


class Watch:
    """A progress bar over lanes x epochs, and whether a stop was requested.

    The first SIGINT or SIGTERM requests a stop after the work at hand; a second one
    stops at once.
    """

    def __init__(self, bar: Progress, lanes: int, epochs: int):
        self.lanes, self.epochs = lanes, epochs
        self._requested = False
        self._bar = bar
        self._task = bar.add_task("", total=lanes * epochs, note="")

    def request_stop(self) -> None:
        """Requests a stop."""
        self._requested = True

    def stopped(self) -> bool:
        """Whether to stop now; all processes call this together and agree."""
        if jax.process_count() == 1:
            return self._requested
        return bool(multihost_utils.process_allgather(np.array(self._requested)).any())

    def announce(self, name: str, note: str) -> None:
        """Shows the name of the work at hand, and a note."""
        self._bar.update(self._task, description=name, note=note)

    def advance(self, epochs: int | float) -> None:
        """Counts epochs, summed over lanes."""
        self._bar.update(self._task, advance=epochs)

    def report(self, name: str, epoch: int, note: str) -> None:
        """Shows the metrics of an evaluation; without a terminal, as a line."""
        self.announce(name, note)
        if not console.is_terminal:
            console.print(f"{name}: epoch {epoch}/{self.epochs}  {note}")


@contextmanager
def watch(lanes: int, epochs: int) -> Iterator[Watch]:
    """Shows a progress bar, and listens for signals."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    old: dict[Any, Any] = {number: signal.getsignal(number) for number in numbers}

    def restore():
        for number, handler in old.items():
            signal.signal(number, handler)

    def receive(number, frame):
        watcher.request_stop()
        restore()
        console.print("Stopping at the next evaluation; again: stop at once.")

    with _make_bar() as bar:
        watcher = Watch(bar, lanes, epochs)
        for number in numbers:
            signal.signal(number, receive)
        try:
            yield watcher
        finally:
            restore()


class _Bar(Progress):
    """A bar with the note on a line below, so that both fit into 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text("  " + " ".join(task.fields["note"] for task in self.tasks), "dim")


def _make_bar() -> Progress:
    return _Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
