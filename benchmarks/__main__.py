"""The command line: `python -m benchmarks` measures, and writes results and tables."""

import dataclasses
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

import rdrop
from benchmarks import report, sweep
from benchmarks.cases import BASE, PEERS, plan
from benchmarks.rounds import Workers, measure

PACKAGES = ("jax", "jaxlib", "flax", "keras", "torch", "numpy")
# What the speed of products depends on most, the widest first.
VECTORS = ("avx512f", "avx2")
# Makes large buffers of large pages, of which the kernel has fewer to map and clear.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main(
    only: Annotated[str | None, tyro.conf.arg(metavar="TABLE")] = None,
) -> None:
    """Measures everything side by side, which takes about seven minutes.

    Args:
        only: one table: train, price, episodes, gru, forward, growth, native,
            linear, pages or sweep. The rest is kept from the last time.
    """
    path = report.RESULTS
    kept = only is not None and path.exists()
    before = json.loads(path.read_text()) if kept else {"measured": []}
    measured = [m for m in before["measured"] if only and m["table"] != only]
    entries = [entry for entry in plan() if only in (None, entry[0])]
    pages = [("pages", who, c) for table, who, c in plan() if _is_tuned(table, who, c)]
    peak, sweeps = before.get("peak_gflops"), before.get("sweep", {})
    with Workers() as workers:
        if only in (None, "train"):  # the table that is compared with the peak
            peak = round(2 * 2048**3 / _peak_seconds(workers) / 1e9, 1)
        measured += _track(entries, workers, "plain pages")
    if only in (None, "pages"):
        with Workers(HUGE_PAGES) as workers:
            measured += _track(pages, workers, "huge pages")
    if only in (None, "sweep"):
        sweeps = {"rdrop": sweep.rdrop()}
        for name in ("keras-jax", "torch"):
            sweeps[name] = sweep.peer(name, sweeps["rdrop"]["lanes"])
    results = {
        "environment": _environment(),
        "peak_gflops": peak,
        "measured": measured,
        "sweep": sweeps,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    report.write(report.read())
    Console().print(f"Results: {path}; the tables are in NOTES.md.")


def _is_tuned(table, who, case):
    return table == "train" and who in PEERS and case.gates == "shared"


def _track(entries, workers, what):
    measuring = measure(entries, workers)
    return [
        measured.record()
        for measured in track(measuring, f"Timing, {what}", total=len(entries))
    ]


def _peak_seconds(workers):
    case = dataclasses.asdict(BASE)
    workers["peak"].ask({"build": case})
    return min(workers["peak"].ask({"run": 3.0, "case": case})["seconds"])


def _environment():
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    pairs = [line.split(":") for line in lines if line.count(":") == 1]
    facts = {name.strip(): value.strip() for name, value in pairs}
    flags = facts.get("flags", "").split()
    machine = [f"{platform.system()} {platform.machine()}", facts.get("model name")]
    machine += [vectors for vectors in VECTORS if vectors in flags][:1]
    return {
        "machine": ", ".join(filter(None, machine)),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version(), "rdrop": rdrop.__version__}
        | {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    tyro.cli(main)
