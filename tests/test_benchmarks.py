"""The benchmarks run, and NOTES.md shows their results."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from benchmarks import __main__ as command
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


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The tables that were measured, without any work, in an environment without Keras.

    The results are written to a file of the test.
    """
    tables = []

    def measure(entries, workers):
        tables.extend(table for table, _, _ in entries)
        return iter(())

    def find_spec(name, find_spec=importlib.util.find_spec):
        return None if name in ("keras", "torch", "rdrop_cpu") else find_spec(name)

    def version(name, version=command.version):
        if name in ("keras", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(command, "version", version)
    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "Workers", lambda *pages: contextlib.nullcontext())
    monkeypatch.setattr(report, "RESULTS", tmp_path / "cpu.json")
    monkeypatch.setattr(report, "read", dict)
    monkeypatch.setattr(report, "write", lambda results: None)
    return tables


def test_versions_are_those_of_what_was_measured(measured):
    before = {"measured": [], "environment": {"versions": {"keras": "3.0", "jax": "0"}}}
    for kept in (None, before):
        if kept:
            report.RESULTS.write_text(json.dumps(kept))
        command.main("linear")
        found = json.loads(report.RESULTS.read_text())["environment"]["versions"]
        assert found["jax"] == jax.__version__
        assert found.get("keras") == (kept and "3.0")
        assert "torch" not in found
    assert set(measured) == {"linear"}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("train", "keras, torch: must be installed to be timed; run `pip install '.[b"),
        ("pages", "keras, torch: must be installed"),
        ("sweep", "keras, torch: must be installed"),
        ("growth", "error: rdrop_cpu, torch: must be installed"),
        ("native", "`pip install '.[bench]'` and `make native`, or choose a table"),
        (None, "keras, rdrop_cpu, torch: must be installed"),
    ],
)
def test_a_contender_that_is_not_installed_is_refused_before_the_work(
    measured, only, message
):
    with pytest.raises(SystemExit) as error:
        command.main(only)
    assert message in str(error.value)
    assert measured == []


def test_nobody_is_asked_for_noise_it_has_not():
    for _, contender, case in plan():
        assert case.noise in CAN[contender]


def test_flops_are_those_of_the_products():
    forward = dataclasses.replace(TINY, train=False)
    assert forward.flops == 2 * (2 * 3) * (4 + 5) * (4 * 5)
    assert TINY.flops == 3 * forward.flops
