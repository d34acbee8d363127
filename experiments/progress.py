"""Progress: a bar for long work, and requests to stop it."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

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

console = Console(highlight=False, markup=False)


class Watch:
    """A progress bar over lanes x epochs, and whether a stop was requested.

    The first SIGINT or SIGTERM requests a stop after the work at hand; a second one
    stops at once.
    """

    def __init__(self, bar: Progress, lanes: int, epochs: int):
        self.epochs = epochs
        self._requested = False
        self._bar, self._total = bar, 0
        self._task = bar.add_task("", total=0, note="")
        self.expect(lanes)

    def request_stop(self) -> None:
        """Requests a stop."""
        self._requested = True

    def signal(self, number: int) -> None:
        """Acknowledges a signal: the first one requests a stop, the second one ends.

        Files of a run are written as a whole, so that nothing is lost.
        """
        if not self._requested:
            self.request_stop()
            console.print("Stopping soon; again: stop at once.")
            return
        console.print("Stopped at once. The same command resumes.")
        os._exit(130)

    def stopped(self) -> bool:
        """Whether to stop now; all processes call this together and agree."""
        if jax.process_count() == 1:
            return self._requested
        return bool(multihost_utils.process_allgather(np.array(self._requested)).any())

    def announce(self, name: str, note: str) -> None:
        """Shows the name of the work at hand, and a note."""
        self._bar.update(self._task, description=name, note=note)

    def expect(self, lanes: int) -> None:
        """Adds lanes to the length of the bar."""
        self._total += lanes * self.epochs
        self._bar.update(self._task, total=self._total)

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
    with _make_bar() as bar:
        watcher = Watch(bar, lanes, epochs)
        with _signals(watcher.signal):
            yield watcher


@contextmanager
def _signals(receive: Callable[[int], None]) -> Iterator[None]:
    """Calls a function in a thread at each SIGINT and SIGTERM.

    Python's own handlers wait until compiled code returns, which may take minutes.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen():
        while received := reader.recv(1):
            if received[0] in numbers:
                receive(received[0])

    old = {number: signal.signal(number, lambda *_: None) for number in numbers}
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


class _Bar(Progress):
    """A bar with the note on a line below, so that both fit into 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text("  " + " ".join(task.fields["note"] for task in self.tasks), "dim")


def _make_bar() -> Progress:
    return _Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
