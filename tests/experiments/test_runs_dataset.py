"""A run opens as a labelled data set, and is exported as a tidy table."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
from folders import EVALUATED_AT, make_folder, make_lines, write_folder, write_lines

from experiments import runs
from experiments.config import ConfigError
from experiments.runs.files import StorageError

AXES = {"model.cell": ["lstm", "gru"], "dropout.rate": [0.0, 0.3, 0.5]}
RATE = {"dropout.rate": [0.0, 0.5]}


def by_lane(setting, seed):
    """A different value for each lane of AXES."""
    return 1 + 10 * setting["dropout.rate"] + seed + 100 * len(setting["model.cell"])


@pytest.fixture
def run(tmp_path):
    return make_folder(tmp_path / "vowels", AXES, 2, by_lane)


def cut(line, evaluations):
    """Leaves the first evaluations of a line, of two epochs each."""
    at = EVALUATED_AT[:evaluations]
    line |= {"status": "interrupted", "epochs": at[-1], "evaluated_at": at}
    line["metrics"] = {
        name: values[: 2 * evaluations if name == "train_nll" else evaluations]
        for name, values in line["metrics"].items()
    }


def test_a_lane_that_ended_early_keeps_its_last_values(tmp_path):
    lines = make_lines(RATE, 1, lambda setting, seed: 1.0)
    cut(lines[0], 1)
    lines[0]["status"] = "finished"
    data = runs.load(write_folder(tmp_path / "run", RATE, lines))
    for name in ("train_nll", "valid_nll", "test_nll"):
        first, *others = data[name].isel(seed=0).sel({"dropout.rate": 0.0}).values
        assert np.isfinite(first)
        assert others == [first] * (len(EVALUATED_AT) - 1)


def test_lanes_are_laid_out_by_axis_seed_and_evaluation(run):
    data = runs.load(run)
    dims = ("model.cell", "dropout.rate", "seed", "evaluation")
    for name in ("train_nll", "valid_nll", "test_nll", "test_accuracy"):
        assert data[name].dims == dims
        assert data[name].dtype == float
    assert data["status"].dims == data["parameters"].dims == dims[:-1]
    assert data["model.cell"].values.tolist() == ["lstm", "gru"]
    assert data["dropout.rate"].values.tolist() == [0.0, 0.3, 0.5]
    assert data["seed"].values.tolist() == [0, 1]
    assert data["epoch"].dims == ("evaluation",)
    assert data["epoch"].values.tolist() == EVALUATED_AT
    for cell in AXES["model.cell"]:
        for rate in AXES["dropout.rate"]:
            lane = data.sel({"model.cell": cell, "dropout.rate": rate})
            expected = [
                by_lane({"model.cell": cell, "dropout.rate": rate}, s) for s in (0, 1)
            ]
            found = lane["test_nll"].isel(evaluation=-1)
            np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_training_losses_are_those_of_the_evaluated_epochs(run):
    lines = [
        json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()
    ]
    first = lines[0]["metrics"]["train_nll"]
    found = runs.load(run)["train_nll"].values[0, 0, 0]
    assert found.tolist() == [first[epoch - 1] for epoch in EVALUATED_AT]


def test_units_and_config_are_attributes(run):
    data = runs.load(str(run))
    assert data["test_nll"].attrs["units"] == "nats per utterance"
    assert data["train_nll"].attrs["units"] == "nats per utterance"
    assert data["test_accuracy"].attrs["units"] == ""
    attributes = data.attrs
    assert attributes["name"] == "vowels"
    assert (attributes["task"], attributes["loss"]) == ("japanese_vowels", "nll")
    assert attributes["source"] == "spoken vowels."
    assert attributes["config"] == "seeds = 2\nseed = 0\n"
    assert attributes["command"].startswith("python -m experiments")
    assert attributes["versions"] == "python 3.12, jax 0.10.2"
    assert "devices 2" in attributes["platform"]
    values = [
        *attributes.values(),
        *(v for d in data.data_vars.values() for v in d.attrs.values()),
    ]
    assert {type(value) for value in values} <= {str, int, float}


def test_results_alone_are_enough(tmp_path):
    write_lines(tmp_path, make_lines(AXES, 2, by_lane))
    data = runs.load(tmp_path)
    assert data.sizes == {
        "model.cell": 2,
        "dropout.rate": 3,
        "seed": 2,
        "evaluation": 3,
    }
    assert (data.attrs["loss"], data.attrs["config"], data.attrs["task"]) == (
        "nll",
        "",
        "",
    )


def test_lanes_without_a_final_value_are_nan_and_have_a_status(tmp_path):
    lines = make_lines(RATE, 3, lambda setting, seed: 0.1)
    lines[1] |= {"status": "diverged", "diverged_at": 120}
    cut(lines[3], 2)
    lines[5]["metrics"]["test_nll"][-1] = None
    del lines[4]
    folder = write_folder(tmp_path, RATE, lines)
    data = runs.load(folder)
    assert data["status"].values.tolist() == [
        ["finished", "diverged", "finished"],
        ["interrupted", "missing", "finished"],
    ]
    assert data["diverged_at"].values.tolist() == [[-1, 120, -1], [-1, -1, -1]]
    finite = np.isfinite(data["test_nll"].values)
    assert finite[0].all()
    assert finite[1].tolist() == [[True, True, False], [False] * 3, [True, True, False]]
    assert data["parameters"].values[1].tolist() == ["abc123", "", "abc123"]


def test_lanes_that_have_not_started_are_missing(tmp_path):
    folder = write_folder(tmp_path, RATE, make_lines(RATE, 2, lambda s, seed: 0.1)[:2])
    data = runs.load(folder)
    assert data["status"].values.tolist() == [["finished"] * 2, ["missing"] * 2]


def test_values_keep_their_types(tmp_path):
    axes = {"dropout.inputs.learn": [False, True], "model.units": [32, 64]}
    data = runs.load(make_folder(tmp_path, axes, 1, lambda setting, seed: 0.1))
    assert data["dropout.inputs.learn"].dtype == bool
    assert data["model.units"].dtype == int


def test_one_setting_has_no_axes(tmp_path):
    data = runs.load(make_folder(tmp_path, {}, 2, lambda setting, seed: 0.1))
    assert data["test_nll"].dims == ("seed", "evaluation")


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("csv", pd.read_csv),
        ("json", lambda path: pd.DataFrame(json.loads(path.read_text()))),
        ("parquet", pd.read_parquet),
    ],
)
def test_a_table_has_one_row_per_lane_and_evaluation(run, kind, read, tmp_path):
    path = runs.export(run, kind)
    assert path == run / f"table.{kind}"
    table = read(path)
    assert list(table) == [
        *("model.cell", "dropout.rate", "seed", "epoch"),
        *("train_nll", "valid_nll", "valid_accuracy", "test_nll", "test_accuracy"),
        "status",
    ]
    assert len(table) == 2 * 3 * 2 * 3
    data = runs.load(run)
    row = table.iloc[-1]
    assert (row["model.cell"], row["dropout.rate"], row["seed"]) == ("gru", 0.5, 1)
    assert (row["epoch"], row["status"]) == (6, "finished")
    np.testing.assert_array_equal(
        table["test_nll"], data["test_nll"].values.reshape(-1)
    )
    assert runs.export(run, kind, tmp_path / "x") == tmp_path / "x"
    assert (tmp_path / "x").read_bytes() == path.read_bytes()


def test_a_missing_lane_is_an_empty_cell(tmp_path):
    lines = make_lines(RATE, 1, lambda setting, seed: 0.1)[:1]
    folder = write_folder(tmp_path, RATE, lines)
    csv = runs.export(folder, "csv").read_text().splitlines()
    assert csv[-1] == "0.5,0,6,,,,,,missing"
    rows = json.loads(runs.export(folder, "json").read_text())
    assert rows[-1]["test_nll"] is None


def test_the_data_set_is_a_data_frame(run):
    frame = runs.load(run).to_dataframe().reset_index()
    assert len(frame) == 36
    assert {"model.cell", "dropout.rate", "seed", "epoch", "test_nll", "status"} <= set(
        frame
    )


def test_errors_are_one_line(tmp_path, unchecked, monkeypatch):
    def refuses(match, kind=ConfigError, call=runs.load):
        with pytest.raises(kind, match=match) as caught:
            call(tmp_path / "run")
        assert "\n" not in str(caught.value)

    refuses("no such folder")
    folder = tmp_path / "run"
    folder.mkdir()
    refuses("holds no results yet")
    lines = make_lines({}, 2, lambda setting, seed: 0.1)
    empty = {"evaluated_at": [], "metrics": {"train_nll": []}, "status": "interrupted"}
    write_lines(folder, [line | empty for line in lines])
    refuses("holds no finished evaluation")
    write_lines(folder, lines)
    path = folder / "results.jsonl"
    path.write_text(path.read_text()[:-20])
    refuses(r"results\.jsonl:2: not a record", StorageError)
    write_lines(folder, lines)
    refuses(
        r"kind: must be one of csv, .*, got 'xls'", call=lambda f: runs.export(f, "xls")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuses("needs pyarrow", call=lambda f: runs.export(f, "parquet"))
