"""Worker: the process of one contender, which does what it is told on standard input.

{"build": case}  builds the case, runs it three times, and answers with the seconds
                 of the first and the peak of memory in bytes of the last
{"run": seconds} runs it for about that long, and answers with the seconds of each
"""

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.contenders import build

MOST = 200


def main(contender: str) -> None:
    """Serves until standard input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runs: dict[Case, Callable[[], object]] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "build" in command:
            case = Case(**command["build"])
            runs[case] = run = build(contender, case)
            first = seconds(run)
            run()
            answer: dict = {"first": first, "peak_bytes": peak_bytes(run)}
        else:
            run = runs[Case(**command["case"])]
            answer = {"seconds": repeat(run, command["run"])}
        print(json.dumps(answer), file=answers, flush=True)


def seconds(run) -> float:
    """Returns how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def repeat(run, budget: float) -> list[float]:
    """Returns the seconds of each call, of as many as go into the budget."""
    times = [seconds(run)]
    while sum(times) < budget and len(times) < MOST:
        times.append(seconds(run))
    return times


def peak_bytes(run) -> int | None:
    """Returns how far memory rises in one call, where Linux tells."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what was freed is not new
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    run()
    status = Path("/proc/self/status").read_text()
    high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return max(0, int(high.split()[1]) * 1024 - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
