"""The benchmarks run, and NOTES.md shows their results."""

import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks import report
from benchmarks.cases import CAN, Case, plan
from benchmarks.contenders import build

TINY = Case(2, 3, 4, 5)


def test_its_tables_are_those_of_the_results():
    text = report.NOTES.read_text()
    for name, table in report.tables(report.read()).items():
        shown = text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
        assert shown == table


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("contender", ["rdrop", "torch", "flax"])
def test_contenders_run(contender, train):
    if contender == "torch":
        pytest.importorskip("torch")
    noise = CAN[contender][-1]
    build(contender, dataclasses.replace(TINY, noise=noise, train=train))()


def test_worker_answers():
    case = dataclasses.asdict(TINY)
    commands = [{"build": case}, {"run": 0.0, "case": case}]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", "rdrop"],
        input="\n".join(map(json.dumps, commands)),
        capture_output=True,
        text=True,
        check=True,
        cwd=report.ROOT,
    )
    built, run = map(json.loads, done.stdout.splitlines())
    assert built["first"] > 0
    assert len(run["seconds"]) == 1


def test_nobody_is_asked_for_noise_it_has_not():
    for _, contender, case in plan():
        assert case.noise in CAN[contender]


def test_flops_are_those_of_the_products():
    forward = dataclasses.replace(TINY, train=False)
    assert forward.flops == 2 * (2 * 3) * (4 + 5) * (4 * 5)
    assert TINY.flops == 3 * forward.flops
