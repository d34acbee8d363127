"""The comparison of methods end to end, as a user runs it."""

import json
import subprocess
import sys

import pytest

from experiments import comparison
from experiments.config import MethodsConfig

ARGUMENTS = (
    "--seeds 2 --model.units 4 --train.epochs 2 --train.evaluate-every 2 "
    "--rate 0 0.4 --methods keras keras2 zoneout"
)


@pytest.fixture(scope="module")
def finished(pytestconfig, tmp_path_factory):
    root = pytestconfig.rootpath
    out = tmp_path_factory.mktemp("run") / "methods"
    config = root / "configs" / "vowels_methods.toml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments", "compare", str(config)),
            *ARGUMENTS.split(),
            *("--out", str(out)),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_ends_in_the_report(finished):
    out, stdout = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.toml",
        "results.jsonl",
        "methods.png",
        "methods.svg",
        "report.html",
    }
    assert "2 programs" in stdout
    html = (out / "report.html").read_text()
    assert "keras2 (= keras)" in html
    assert "hidden_state" in html


def test_methods_of_one_value_are_trained_once(finished):
    lines = (finished[0] / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    settings = [(r["method"], r["rate"], r["seed"]) for r in records]
    assert settings == [
        (method, rate, seed)
        for method in ("keras", "zoneout")
        for rate in (0.0, 0.4)
        for seed in range(2)
    ]


def test_rate_zero_is_the_same_for_every_method_of_a_cell(finished):
    """They share initialisation and data, and rate 0 is no noise at all."""
    lines = (finished[0] / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    none = {
        (r["method"], r["seed"]): r["metrics"]["test_nll"][-1]
        for r in records
        if r["rate"] == 0
    }
    for seed in range(2):
        assert none["keras", seed] == pytest.approx(none["zoneout", seed], rel=1e-4)


def test_equal_values_are_found_among_all_methods():
    firsts = comparison.first_of_its_value(MethodsConfig())
    same = {name: first for name, first in firsts.items() if name != first}
    assert same == {"keras2": "keras", "lamb": "melis"}
