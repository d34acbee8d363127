"""Trackers: each lane that has ended is logged once, with its config and metrics."""

import importlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
from typing import get_args

import pytest
from folders import make_lines, write_folder

from experiments import __main__ as command
from experiments import report
from experiments.commands import configs
from experiments.config import ConfigError
from experiments.report import trackers
from experiments.runs.files import StorageError

AXES = {"model.cell": ["lstm", "gru"], "dropout.rate": [0.0, 0.5]}
CONFIG = """
seeds = 2
seed = 0

[model]
cell = ["lstm", "gru"]
units = 7

[dropout]
rate = [0.0, 0.5]
"""
NAME = "003 model.cell=lstm dropout.rate=0.5 seed=1"
SETTING = {"seeds": 1, "seed": 0, "model.cell": "lstm", "model.units": 7}
SETTING["dropout.rate"] = 0.5


def make_run(folder):
    """8 lanes: one diverged, one is interrupted, one has a value that is not finite."""
    lines = make_lines(AXES, 2, lambda s, seed: 0.25 + s["dropout.rate"] + seed)
    lines[0] |= {"status": "diverged", "diverged_at": 3}
    lines[1] |= {"status": "interrupted", "parameters": None}
    lines[3]["metrics"]["test_nll"][1] = None
    write_folder(folder, AXES, lines)
    (folder / "config.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "cells")


@pytest.fixture
def logged(monkeypatch):
    """The lanes that a tracker in memory gets."""
    found = []
    tracker = trackers.Tracker((), "none", lambda folder, lane: found.append(lane))
    monkeypatch.setitem(trackers.TRACKERS, "memory", tracker)
    return found


def expected_history():
    test = {2: 2 * 1.75, 6: 1.75}  # falls to its last value, see `folders.curve`
    valid = test | {4: 1.5 * 1.75}
    train = {n: 1.75 / 2 * (1 + 0.5 * (6 - n)) for n in range(1, 7)}
    return {"test_nll": test, "valid_nll": valid, "train_nll": train}


def test_lanes_that_have_ended_are_logged_once(run, logged):
    assert trackers.log_lanes(run, "memory") == 7
    lane = logged[2]
    assert (lane.project, lane.name, lane.config) == ("cells", NAME, SETTING)
    for metric, values in expected_history().items():
        found = {n: v[metric] for n, v in lane.history.items() if metric in v}
        assert found == pytest.approx(values)
    assert [lane.diverged for lane in logged] == [True, *[False] * 6]
    assert trackers.log_lanes(run, "memory") == 0
    lines = (run / "results.jsonl").read_text().splitlines()
    ended = json.loads(lines[1]) | {"status": "finished", "parameters": "cba"}
    lines[1] = json.dumps(ended)
    (run / "results.jsonl").write_text("\n".join(lines))
    assert trackers.log_lanes(run, "memory") == 1
    assert logged[-1].name == "001 model.cell=lstm dropout.rate=0 seed=1"


def test_a_tracker_that_fails_loses_no_lane(run, logged, monkeypatch):
    def fail(folder, lane):
        if len(logged) == 2:
            raise RuntimeError("no\nnetwork")
        logged.append(lane)

    working = trackers.TRACKERS["memory"]
    monkeypatch.setitem(trackers.TRACKERS, "memory", working._replace(log=fail))
    with pytest.raises(StorageError, match=r"memory cannot write '003 .*: no network"):
        trackers.log_lanes(run, "memory")
    monkeypatch.setitem(trackers.TRACKERS, "memory", working)
    assert trackers.log_lanes(run, "memory") == 5
    assert len({lane.name for lane in logged}) == 7


def test_a_missing_package_is_named_before_the_training(
    pytestconfig, tmp_path, monkeypatch, capsys
):
    """A folder of the name of a package is not the package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=r"needs wandb; install the extra 'wandb'"):
        trackers.check_tracker("wandb")
    config = str(pytestconfig.rootpath / "configs/vowels_plane.toml")
    out = tmp_path / "run"
    assert command.main(["ablate", config, "--log", "wandb", "--out", str(out)]) == 2
    assert "python -m pip install -e '.[wandb]'" in capsys.readouterr().err
    assert not out.exists()


def test_a_command_logs_at_its_end(run, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda folders: folders[0] / "report")
    configs._concluding("tensorboard")(run)
    assert "Logged to tensorboard: 7 lanes." in capsys.readouterr().out
    assert (run / "tensorboard" / NAME).is_dir()


def test_the_command_line_has_all_trackers():
    assert get_args(configs.Tracker) == tuple(trackers.TRACKERS)


def log_apart(run, tracker, monkeypatch):
    """Logs in another process: packages keep threads, settings and folders."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    code = "import sys, pathlib; from experiments.report import trackers\n"
    code += "print(trackers.log_lanes(pathlib.Path(sys.argv[1]), sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), tracker],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "7\n"


def test_mlflow_has_the_lanes(run, monkeypatch):
    pytest.importorskip("mlflow")
    log_apart(run, "mlflow", monkeypatch)
    with sqlite3.connect(run / "mlflow.db") as data:
        rows = data.execute("select name, status, run_uuid from runs").fetchall()
        found = {name: (status, run_id) for name, status, run_id in rows}
        assert len(found) == 7
        assert [status for status, _ in found.values()].count("FAILED") == 1
        status, run_id = found[NAME]
        assert status == "FINISHED"
        params = data.execute(
            "select key, value from params where run_uuid = ?", [run_id]
        )
        assert dict(params) == {name: str(value) for name, value in SETTING.items()}
        for metric, values in expected_history().items():
            query = "select step, value from metrics where run_uuid = ? and key = ?"
            assert dict(data.execute(query, [run_id, metric])) == pytest.approx(values)
        assert data.execute(
            "select count(*) from experiments where name = 'cells'"
        ).fetchone() == (1,)


def test_trackio_has_the_lanes(run, monkeypatch):
    pytest.importorskip("trackio")
    log_apart(run, "trackio", monkeypatch)
    (path,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(path) as data:
        configs = dict(data.execute("select run_name, config from configs"))
        query = "select step, metrics from metrics where run_name = ?"
        history = {n: json.loads(text) for n, text in data.execute(query, [NAME])}
    assert len(configs) == 7
    assert json.loads(configs[NAME]).items() >= SETTING.items()
    for metric, values in expected_history().items():
        found = {n: v[metric] for n, v in history.items() if metric in v}
        assert found == pytest.approx(values)


def wandb_records(path):
    """The records of an offline run: blocks of 32 KiB as in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_has_the_lanes_offline(run, monkeypatch):
    pytest.importorskip("wandb.proto")
    log_apart(run, "wandb", monkeypatch)
    paths = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 7
    runs = [list(wandb_records(path)) for path in paths]
    (records,) = (r for r in runs if any(e.run.display_name == NAME for e in r))
    (started,) = (record.run for record in records if record.HasField("run"))
    assert started.project == "cells"
    config = {e.key: json.loads(e.value_json) for e in started.config.update}
    assert config.items() >= SETTING.items()
    history = {}
    for record in records:
        if record.HasField("history"):
            keys = [e.key or ".".join(e.nested_key) for e in record.history.item]
            values = [json.loads(e.value_json) for e in record.history.item]
            found = dict(zip(keys, values, strict=True))
            history[found["_step"]] = found
    for metric, values in expected_history().items():
        found = {n: v[metric] for n, v in history.items() if metric in v}
        assert found == pytest.approx(values)
    ends = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert ends == [0]
