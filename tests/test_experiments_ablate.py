"""The main job end to end, as a user runs it."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

SMALL = [
    "--seeds",
    "1",
    "--model.units",
    "4",
    "--train.epochs",
    "4",
    "--train.evaluate-every",
    "2",
    "--dropout.inputs.rate",
    "0",
    "0.3",
    "--dropout.recurrent.rate",
    "0",
    "0.3",
]


def command(root, *arguments):
    config = root / "configs" / "vowels_plane.toml"
    return [sys.executable, "-m", "experiments", "ablate", str(config), *arguments]


@pytest.fixture(scope="module")
def finished(pytestconfig, tmp_path_factory):
    root = pytestconfig.rootpath
    out = tmp_path_factory.mktemp("run") / "plane"
    done = subprocess.run(
        command(root, *SMALL, "--out", str(out)),
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_ends_in_the_report(finished):
    out, stdout = finished
    assert {path.name for path in out.iterdir()} == {
        "config.toml",
        "results.jsonl",
        "plane.png",
        "plane.svg",
        "learning_curves.png",
        "learning_curves.svg",
        "report.html",
    }
    assert f"{out}/report.html" in stdout.replace("\n", "")
    assert "dropout or recurrent_dropout?" in stdout
    assert "Best on validation" in stdout


def test_the_report_needs_no_network(finished):
    html = (finished[0] / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "url(http" not in html
    assert html.count("data:image/png;base64,") == 2
    assert "recurrent_dropout" in html


def test_the_written_config_runs_again_to_the_same_bits(
    finished, pytestconfig, tmp_path
):
    out, _ = finished
    again = tmp_path / "again"
    arguments = [str(out / "config.toml"), "--out", str(again)]
    subprocess.run(
        [sys.executable, "-m", "experiments", "ablate", *arguments],
        cwd=pytestconfig.rootpath,
        check=True,
        capture_output=True,
    )
    first, second = (metrics(folder) for folder in (out, again))
    assert first == second
    assert len(first) == 4


def metrics(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["metrics"] for line in lines]


def test_a_folder_in_use_is_refused(finished, pytestconfig):
    out, _ = finished
    before = (out / "results.jsonl").read_bytes()
    done = subprocess.run(
        command(pytestconfig.rootpath, *SMALL, "--out", str(out)),
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {out}: not empty; name another folder.\n"
    assert (out / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_finished(pytestconfig, tmp_path, number):
    out = tmp_path / "stopped"
    arguments = [*SMALL, "--out", str(out), "--train.epochs", "20000"]
    process = subprocess.Popen(
        command(pytestconfig.rootpath, *arguments),
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(out / "results.jsonl")
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.stdout.close()
    assert process.returncode == 130
    assert "Stopped after" in stdout
    lines = [json.loads(li) for li in (out / "results.jsonl").read_text().splitlines()]
    assert {line["status"] for line in lines} == {"interrupted"}
    assert np.isfinite(lines[0]["metrics"]["test_nll"]).all()
    assert (
        f"Stopped after {lines[0]['epochs']} of 20000"
        in (out / "report.html").read_text()
    )


def wait_for(path, seconds=90):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)
