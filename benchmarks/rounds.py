"""Rounds: all contenders of a case timed in turn, so that none has the quiet minute."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.cases import Case

CORES = 2
ROUNDS = 5
BUDGET = 0.2  # seconds of a contender in a round

Entry = tuple[str, str, Case]


class Worker:
    """The process of one contender.

    Args:
        contender: its name.
        environment: variables set for it besides those of this process.
    """

    def __init__(self, contender: str, environment: dict[str, str]):
        self.contender = contender
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(CORES)} | environment,
            text=True,
        )

    def ask(self, command: dict) -> dict:
        """Sends a command and waits for the answer.

        Raises:
            RuntimeError: the process has ended.
        """
        into, out = self.process.stdin, self.process.stdout
        assert into  # as both are pipes
        assert out
        try:
            print(json.dumps(command), file=into, flush=True)
            answer = out.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(
                f"{self.contender} failed; run `python -m benchmarks.worker "
                f"{self.contender}` and paste {json.dumps(command)} to see why."
            )
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


class Workers:
    """The processes of all contenders, each started when it is first needed."""

    def __init__(self, environment: dict[str, str] | None = None):
        self.environment = environment or {}
        self.workers: dict[str, Worker] = {}

    def __enter__(self):
        """Pins this process, and so its children, to two cores."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        return self

    def __exit__(self, *error):
        """Ends all of them."""
        for worker in self.workers.values():
            worker.close()

    def __getitem__(self, contender: str) -> Worker:
        """The process of a contender."""
        if contender not in self.workers:
            self.workers[contender] = Worker(contender, self.environment)
        return self.workers[contender]


class Measured(NamedTuple):
    """What was measured of one entry."""

    table: str
    contender: str
    case: Case
    milliseconds: float
    lowest: float
    first_seconds: float
    peak_mb: float | None

    def record(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return self._asdict() | {"case": dataclasses.asdict(self.case)}


def measure(entries: Sequence[Entry], workers: Workers) -> Iterator[Measured]:
    """Measures all contenders of a table's case side by side, case by case."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        table, _, case = entry
        same = dataclasses.replace(case, noise="none", gates="shared")
        groups.setdefault((table, same), []).append(entry)
    for group in groups.values():
        yield from _measure_group(group, workers)


def _measure_group(group: Sequence[Entry], workers: Workers) -> Iterator[Measured]:
    built = [
        workers[who].ask({"build": dataclasses.asdict(case)}) for _, who, case in group
    ]
    times: list[list[float]] = [[] for _ in group]
    for _ in range(ROUNDS):
        for (_, who, case), seconds in zip(group, times, strict=True):
            command = {"run": BUDGET, "case": dataclasses.asdict(case)}
            seconds += workers[who].ask(command)["seconds"]
    for (table, who, case), first, seconds in zip(group, built, times, strict=True):
        peak = first["peak_bytes"]
        yield Measured(
            table,
            who,
            case,
            round(1e3 * statistics.median(seconds), 3),
            round(1e3 * min(seconds), 3),
            round(first["first"], 3),
            None if peak is None else round(peak / 1e6, 1),
        )
