"""The command line: `python -m benchmarks` measures, and writes results and tables."""

import dataclasses
import importlib.util
import json
import os
import platform
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import track

import rdrop
from benchmarks import report, sweep
from benchmarks.cases import BASE, NEEDS, PEERS, Table, plan
from benchmarks.rounds import Entry, Workers, measure

PACKAGES = ("jax", "jaxlib", "flax", "keras", "torch", "numpy")
INSTALL = {
    "keras": "pip install '.[bench]'",
    "torch": "pip install '.[bench]'",
    "rdrop_cpu": "make native",
}
# What the speed of products depends on most, the widest first.
VECTORS = ("avx512f", "avx2")
# Makes large buffers of large pages, of which the kernel has fewer to map and clear.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main(
    only: Annotated[Table | None, tyro.conf.arg(metavar="TABLE")] = None,
) -> None:
    """Measures everything side by side, which takes about seven minutes.

    Args:
        only: one table: train, price, episodes, gru, forward, growth, native,
            linear, pages or sweep. The rest is kept from the last time.

    Raises:
        SystemExit: a contender is not installed.
    """
    path = report.RESULTS
    kept = only is not None and path.exists()
    before = json.loads(path.read_text()) if kept else {"measured": []}
    measured = [m for m in before["measured"] if only and m["table"] != only]
    entries = [entry for entry in plan() if only in (None, entry[0])]
    pages = _tuned() if only in (None, "pages") else []
    sweeps = before.get("sweep", {})
    peers = sweep.PEERS if only in (None, "sweep") else ()
    versions = _versions({who for _, who, _ in [*entries, *pages]} | {*peers})
    peak = before.get("peak_gflops")
    with Workers() as workers:
        if only in (None, "train"):  # the table that is compared with the peak
            peak = round(2 * 2048**3 / _peak_seconds(workers) / 1e9, 1)
        measured += _track(entries, workers, "plain pages")
    if pages:
        with Workers(HUGE_PAGES) as workers:
            measured += _track(pages, workers, "huge pages")
    if peers:
        sweeps = {"rdrop": sweep.rdrop()}
        for name in peers:
            sweeps[name] = sweep.peer(name, sweeps["rdrop"]["lanes"])
    earlier = before.get("environment", {}).get("versions", {})
    results = {
        "environment": _machine() | {"versions": earlier | versions},
        "peak_gflops": peak,
        "measured": measured,
        "sweep": sweeps,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    report.write(report.read())
    Console().print(f"Results: {path}; the tables are in NOTES.md.")


def _tuned() -> list[Entry]:
    """Returns the trainings that are timed with huge pages, too."""
    return [
        ("pages", who, case)
        for table, who, case in plan()
        if table == "train" and who in PEERS and case.gates == "shared"
    ]


def _versions(contenders: Collection[str]) -> dict[str, str]:
    """Returns the versions of the packages that are timed.

    Raises:
        SystemExit: one is not installed.
    """
    peers = {package for who in contenders for package in NEEDS.get(who, ())}
    missing = sorted(p for p in peers if importlib.util.find_spec(p) is None)
    if missing:
        how = " and ".join(dict.fromkeys(f"`{INSTALL[name]}`" for name in missing))
        raise SystemExit(
            f"error: {', '.join(missing)}: must be installed to be timed; run {how}, "
            "or choose a table without it by --only, such as linear."
        )
    shown = [name for name in PACKAGES if name in peers or name not in INSTALL]
    return {"python": platform.python_version(), "rdrop": rdrop.__version__} | {
        name: version(name) for name in shown
    }


def _track(entries: Sequence[Entry], workers: Workers, what: str) -> list[dict]:
    measuring = measure(entries, workers)
    return [
        measured.record()
        for measured in track(measuring, f"Timing, {what}", total=len(entries))
    ]


def _peak_seconds(workers: Workers) -> float:
    case = dataclasses.asdict(BASE)
    workers["peak"].ask({"build": case})
    return min(workers["peak"].ask({"run": 3.0, "case": case})["seconds"])


def _machine() -> dict[str, Any]:
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
    }


if __name__ == "__main__":
    tyro.cli(main)
