"""A sweep end to end, as a user runs it, through whatever may end it."""

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments import axes
from experiments.__main__ import main
from experiments.runs.files import StorageError, read_file, write_lines
from experiments.runs.records import Store, make_record, read_records

SMALL = [
    "--seeds",
    "1",
    "--model.units",
    "4",
    "--model.cell",
    "simple",
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


@pytest.fixture(scope="module")
def ablate(pytestconfig):
    """Runs the command in a process of its own."""

    def run(*arguments, config="configs/vowels_plane.toml", **options):
        return subprocess.run(
            command(config, *arguments),
            cwd=pytestconfig.rootpath,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    return run


@pytest.fixture
def ablate_here(pytestconfig, capsys):
    """Runs the command in this process; returns its exit status and its texts."""

    def run(*arguments, config="configs/vowels_plane.toml"):
        path = str(pytestconfig.rootpath / config)
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            status = main(["ablate", path, *arguments])
        return status, *capsys.readouterr()

    return run


def command(config, *arguments):
    return [sys.executable, "-m", "experiments", "ablate", str(config), *arguments]


@pytest.fixture(scope="module")
def finished(ablate, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "plane"
    done = ablate(*SMALL, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def lines(folder):
    return read_records(folder)


def figures(folder):
    """What must be bitwise equal."""
    kept = ("setting", "seed", "status", "diverged_at", "metrics", "parameters")
    return [{name: line[name] for name in kept} for line in lines(folder)]


def test_it_ends_in_the_report(finished):
    out, stdout = finished
    assert {path.name for path in out.iterdir()} >= {
        "config.toml",
        "results.jsonl",
        "run.json",
        "plane.png",
        "learning_curves.svg",
        "report.html",
    }
    assert not (out / "checkpoints").exists()
    assert f"{out}/report.html" in stdout.replace("\n", "")
    assert "Chosen on validation data" in stdout


def test_a_line_says_all_there_is_to_know(finished):
    line = lines(finished[0])[0]
    assert line["setting"] == {
        "dropout.inputs.rate": 0.0,
        "dropout.recurrent.rate": 0.0,
    }
    assert line["evaluated_at"] == [2, 4]
    assert {name: len(values) for name, values in line["metrics"].items()} == {
        "train_nll": 4,
        "valid_nll": 2,
        "valid_accuracy": 2,
        "test_nll": 2,
        "test_accuracy": 2,
    }
    assert re.fullmatch("[0-9a-f]{16}", line["parameters"])
    assert {"jax", "flax", "rdrop"} <= line["versions"].keys()
    assert line["platform"]["prng"] == "threefry2x32"


def test_run_json_says_what_it_took(finished):
    facts = json.loads((finished[0] / "run.json").read_text())
    assert facts["command"].startswith("python -m experiments ablate configs/")
    assert facts["lanes"] == 4
    (program,) = facts["programs"]
    assert program["compiles"] == 1
    assert program["megabytes"] > 0


def test_the_same_command_finds_it_finished(finished, ablate_here):
    out, _ = finished
    before = (out / "results.jsonl").read_bytes()
    status, stdout, _ = ablate_here(*SMALL, "--out", str(out))
    assert status == 0
    assert "Chosen on validation data" in stdout
    assert "epoch" not in stdout
    assert (out / "results.jsonl").read_bytes() == before


@pytest.mark.slow
def test_its_own_config_runs_again_to_the_same_bits(finished, ablate, tmp_path):
    out, _ = finished
    config = tmp_path / "again.toml"
    shutil.copy(out / "config.toml", config)
    done = ablate("--out", str(tmp_path / "again"), config=config)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "results.jsonl").read_bytes() == (
        out / "results.jsonl"
    ).read_bytes()


def test_another_config_is_refused_with_the_difference(finished, ablate_here):
    out, _ = finished
    status, _, stderr = ablate_here(*SMALL, "--train.epochs", "6", "--out", str(out))
    assert status == 2
    assert stderr == (
        f"error: {out}: is a run of another config (train.epochs was 4, is 6); use "
        "another folder with --out.\n"
    )


@pytest.mark.slow
def test_other_data_is_refused(ablate, tmp_path):
    out, text = tmp_path / "run", tmp_path / "text.txt"
    few = [
        "--seeds",
        "1",
        "--model.units",
        "4",
        "--train.epochs",
        "2",
        "--task.window",
        "8",
    ]
    arguments = [*few, "--task.data", str(text), "--out", str(out)]
    text.write_text("abcdefgh" * 400)
    config = "configs/characters.toml"
    assert ablate(*arguments, config=config).returncode == 0
    text.write_text("abcdefgh" * 399 + "badcfehg")
    done = ablate(*arguments, config=config)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {out}: was trained on other data (hash ")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_something_else_is_refused(ablate_here, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    status, _, stderr = ablate_here(*SMALL, "--out", str(tmp_path))
    assert status == 2
    assert "has thesis.txt but is not a run; use another folder with --out." in stderr


@pytest.mark.slow
def test_replay_is_bitwise_equal_and_sees_a_difference(
    finished, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    replayed = replay(out, 3)
    assert replayed.returncode == 0, replayed.stderr
    assert replayed.stdout.endswith("results.jsonl:3: bitwise identical.\n")
    spoilt = lines(out)
    figure = spoilt[1]["metrics"]["test_nll"]
    was = figure[0]
    figure[0] += 1e-7
    spoilt[1]["versions"]["jax"] = "0.9"
    write_lines(out / "results.jsonl", spoilt)
    replayed = replay(out, 2)
    assert replayed.returncode == 1
    text = " ".join(replayed.stdout.split())
    assert f"differs: test_nll[0] was {figure[0]!r}, is {was!r}" in text
    assert "Changed since the run: jax was 0.9, is " in text


def replay(folder, number):
    line = f"{folder}/results.jsonl:{number}"
    return subprocess.run(
        [sys.executable, "-m", "experiments", "replay", line],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_reader_of_the_output_may_leave(pytestconfig):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "--help"],
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # as `head` does
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_signal_keeps_what_was_done_and_the_command_goes_on(
    pytestconfig, ablate, tmp_path, number
):
    out = tmp_path / "stopped"
    arguments = [*SMALL, "--out", str(out), "--train.epochs", "100"]
    process = subprocess.Popen(
        command("configs/vowels_plane.toml", *arguments),
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
    stopped = lines(out)
    assert {line["status"] for line in stopped} == {"interrupted"}
    reached = stopped[0]["epochs"]
    assert f"Stopped after {reached} of 100 epochs" in stdout
    done = ablate(*arguments)
    assert done.returncode == 0, done.stderr
    epochs = [int(n) for n in re.findall(r"epoch (\d+)/100", done.stdout)]
    assert epochs[0] == reached + 2
    assert {line["status"] for line in lines(out)} == {"finished"}


def wait_for(path, seconds=90):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


LONGER = [
    *SMALL,
    *[
        "--model.cell",
        "lstm",
        "gru",
        "--train.epochs",
        "80",
        "--train.checkpoint-every",
        "6",
    ],
]


@pytest.fixture(scope="module")
def uninterrupted(ablate, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    begun = time.monotonic()
    done = ablate(*LONGER, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, time.monotonic() - begun


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(
    pytestconfig, uninterrupted, ablate, tmp_path
):
    reference, seconds = uninterrupted
    out = tmp_path / "killed"
    moments = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(
            command("configs/vowels_plane.toml", *LONGER, "--out", str(out)),
            cwd=pytestconfig.rootpath,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0.3, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = ablate(*LONGER, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert figures(out) == figures(reference)


@pytest.mark.slow
def test_lanes_that_diverge_are_marked_and_disturb_no_others(ablate, tmp_path):
    wild = [*SMALL, "--train.learning-rate", "3e-3", "1e30"]
    done = ablate(*wild, "--out", str(tmp_path / "wild"))
    assert done.returncode == 0, done.stderr
    found = figures(tmp_path / "wild")
    lost = [f for f in found if f["setting"]["train.learning_rate"] > 1]
    assert [line["status"] for line in lost] == ["diverged"] * 4
    assert [line["diverged_at"] for line in lost] == [0] * 4
    done = ablate(*SMALL, "--out", str(tmp_path / "tame"))
    assert done.returncode == 0, done.stderr
    tame = [f for f in found if f not in lost]
    assert [f["metrics"] for f in tame] == [
        f["metrics"] for f in figures(tmp_path / "tame")
    ]
    assert "4 of 8 lanes diverged" in (tmp_path / "wild" / "report.html").read_text()


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    write_lines(path, [{"n": 1}])

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = r"results.jsonl: cannot be written: No space left on device\. Nothing"
    with pytest.raises(StorageError, match=message):
        write_lines(path, [{"n": 1}, {"n": 2}])
    assert read_file(path) == '{"n": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("file", ["results.jsonl", "results.1.jsonl"])
def test_lines_of_an_earlier_command_stay_beside_new_ones(tmp_path, file):
    """Also those of a process that takes no part any more."""
    lanes = axes.make_sweep({"seeds": 3}, "test").lanes()

    def line(seed, status):
        record = make_record(lanes[seed], [], {}, None, None)
        return record | {"status": status}

    old = [line(0, "finished"), line(1, "diverged"), line(2, "interrupted")]
    write_lines(tmp_path / file, old)
    store = Store(tmp_path, lanes)
    assert store.ended.keys() == {0, 1}
    store.keep({2: line(2, "finished")})
    expected = [*old[:2], line(2, "finished")]
    assert read_records(tmp_path) == expected
    assert store.ended.keys() == {0, 1, 2}


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_not_begun(
    ablate_here, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    out = tmp_path / "run"
    arguments = [*SMALL, "--train.checkpoint-every", "2", "--out", str(out)]
    status, _, error = ablate_here(*arguments)
    assert status == 1
    assert re.fullmatch(
        r"error: .*/checkpoints/0: a checkpoint cannot be written or read: no space "
        r"left on device; needs 1\.\d MB, 0\.0 MB are free\. Nothing stored before is "
        r"lost; the same command resumes\. To start these lanes again, remove the "
        r"folder\.\n",
        error,
    )
    assert [line["epochs"] for line in lines(out)] == [2] * 4


def test_a_folder_that_cannot_be_made_is_named(ablate_here, tmp_path):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "run")
    status, _, error = ablate_here(*SMALL, "--out", out)
    assert status == 2
    assert error == f"error: {out}: cannot be written: Not a directory.\n"


@pytest.mark.slow
def test_methods_are_one_program_each(ablate, tmp_path):
    out = tmp_path / "methods"
    methods = ["gal_tied", "keras", "zoneout", "tf1_layernorm"]
    done = ablate(
        *[
            "--seeds",
            "2",
            "--model.units",
            "4",
            "--train.epochs",
            "2",
            "--train.evaluate-every",
            "2",
        ],
        *["--dropout.rate", "0", "0.3", "--dropout.method", *methods],
        *["--out", str(out)],
        config="configs/vowels_methods.toml",
    )
    assert done.returncode == 0, done.stderr
    programs = json.loads((out / "run.json").read_text())["programs"]
    assert [p["setting"] for p in programs] == [{"dropout.method": m} for m in methods]
    assert [p["compiles"] for p in programs] == [1] * 4
    assert len(lines(out)) == 16


@pytest.mark.slow
def test_two_processes_give_the_lanes_of_one(
    pytestconfig, finished, tmp_path_factory, tmp_path
):
    out = tmp_path / "both"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            command(
                "configs/vowels_plane.toml",
                *SMALL,
                *f"--out {out} --distributed --coordinator 127.0.0.1:{port}".split(),
                *f"--processes 2 --process {number}".split(),
            ),
            cwd=pytestconfig.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], ended
    assert "Chosen on validation data" in ended[0][0]
    assert "epoch" not in ended[1][0]
    assert not list(out.glob("results.*.jsonl"))
    assert figures(out) == figures(finished[0])
