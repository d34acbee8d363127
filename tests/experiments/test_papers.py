"""Published rows: what configs say of them, and their reproduction."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.axes import make_sweep, read_toml
from experiments.commands import KINDS
from experiments.config import ConfigError
from experiments.language.config import Config, Model, Train
from experiments.language.model import init, make_model
from experiments.papers import (
    Paper,
    compare,
    read_paper,
    read_result,
    result_path,
    training_flops,
    verdict,
)
from experiments.reproduce import difference, published, spread
from experiments.runs.files import StorageError
from experiments.runs.records import read_records

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = [path for path in sorted(CONFIGS.glob("*.toml")) if read_paper(path)]
PAPER = """
[paper]
title = "Nobody 2020"
row = "small"
source = "table 1"
test = 10.0
"""


def recipe(tmp_path, text=PAPER, fields="seeds = 1\n"):
    path = tmp_path / "row.toml"
    path.write_text(fields + text)
    return path


# The table [paper].


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_rows_are_valid_configs_of_one_setting(path):
    paper = read_paper(path)
    sweep = make_sweep(read_toml(path), path.name, KINDS[paper.kind].config)
    assert not sweep.axes
    assert path.read_text().startswith(f"# {paper.title.split(':')[0].split(' (')[0]}")
    assert all(text.endswith(".") for text in paper.differences)
    result = read_result(path)
    if result is not None:
        assert len(result["seeds"]) == len(result["valid"]) == len(result["test"])
        assert len(result["curves"]) == len(result["seeds"])
        assert all(len(curve) <= sweep.base.train.epochs for curve in result["curves"])


def test_a_config_without_a_paper_has_none(tmp_path):
    assert read_paper(recipe(tmp_path, "")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[paper]\ntitle = 3\n", "paper.title: must be a valid string"),
        (PAPER.replace("10.0", '"10"'), "paper.test: must be a valid number"),
        (PAPER.replace("10.0", "-1.0"), "paper.test: must be greater than or equal"),
        (PAPER + "page = 3\n", "paper.page: Unexpected keyword argument"),
        ("[paper]\ntitle = 'a'\nsource = 'b'\n", "paper.row: Field required"),
        (PAPER + "differences = 'none'\n", "paper.differences: must be a valid"),
        ("paper = 3\n", "paper: must be"),
        ("[paper\n", "not a TOML file"),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_paper(recipe(tmp_path, text, ""))
    assert "\n" not in str(error.value)


def test_a_damaged_result_is_named(tmp_path):
    path = recipe(tmp_path)
    assert read_result(path) is None
    result_path(path).parent.mkdir()
    result_path(path).write_text('{"seeds": [0]}')
    with pytest.raises(StorageError, match=r"row\.json: not a result: "):
        read_result(path)


# Comparison.


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([10.0], "reproduced"),
        ([10.1, 10.2], "reproduced"),
        ([10.2], "worse than published"),
        ([9.8], "better than published"),
    ],
)
def test_the_verdict_is_of_the_test_figure(ours, expected):
    paper = Paper("a", "b", "c", valid=1.0, test=10.0)
    compared = compare(paper, {"valid": [5.0], "test": ours, "montecarlo": []})
    assert [each.name for each in compared] == ["valid", "test"]
    assert compared[0].percent == pytest.approx(400)
    assert compared[1].mean == pytest.approx(np.mean(ours))
    assert np.isnan(compared[1].sd) == (len(ours) == 1)
    assert verdict(compared) == expected


def test_without_a_published_figure_there_is_no_verdict():
    """Ours is shown alone."""
    result = {"valid": [101.0, 103.0], "test": [0.5, 0.5], "montecarlo": []}
    alone = compare(Paper("a", "b", "c"), result)
    assert verdict(alone) == "nothing to compare"
    assert [published(each.published) for each in alone] == ["-", "-"]
    assert [spread(each) for each in alone] == [
        "102.00 (sd 1.41)",
        "0.500 (sd 0.000)",
    ]
    assert [difference(each) for each in alone] == ["-", "-"]
    (compared,) = compare(Paper("a", "b", "c", test=0.5), result)
    assert (published(compared.published), difference(compared)) == ("0.5", "+0.0 %")


@pytest.mark.parametrize(
    "model",
    [
        Model(embedding=16, units=16, layers=2),
        Model(cell="gru", embedding=24, units=16, layers=1),
        Model(embedding=16, units=40, layers=2, top_units=24, tied=True),
    ],
)
def test_operations_are_those_of_the_parameters_in_products(model):
    """Every kernel is used once per token; each use costs 2 + 4 operations."""
    config = Config(model=model, train=Train(epochs=3))
    made = make_model(config, 50)
    params = jax.eval_shape(lambda: init(made, jax.random.key(0)))["params"]
    kernels = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim == 2 and (model.tied or path[-1].key != "embedding")
    )
    assert training_flops(config, 1000, 50) == 6 * kernels * 1000 * 3


# The command.

TINY = """
[task]
name = "words"

[model]
cell = "simple"
embedding = 6
units = 6
layers = 1

[dropout.words]
rate = 0.3

[train]
epochs = 2
batch = 2
window = 5

[evaluation]
batch = 2
test_batch = 1
passes = 3
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for split, lines in (("train", 30), ("valid", 8), ("test", 8)):
        (folder / f"{split}.txt").write_text("a cat sat on the mat\n" * lines)
    return folder


def test_a_row_is_trained_evaluated_and_compared(text, tmp_path, capsys, monkeypatch):
    from experiments import report

    monkeypatch.setattr(report, "write_report", lambda folders: folders[0])
    monkeypatch.setattr(report, "print_summary", lambda folder: None)
    path = recipe(tmp_path, PAPER + TINY, "seeds = 2\n")
    arguments = ["reproduce", str(path), "--data", str(text)]
    arguments += ["--out", str(tmp_path / "run"), "--keep-result"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "ours, 2 seeds" in output
    assert re.search(r"row: (better|worse) than published", output)
    result = read_result(path)
    assert result["unit"] == "perplexity"
    assert result["seeds"] == [0, 1]
    assert all(len(curve) == 2 for curve in result["curves"])
    lines = read_records(tmp_path / "run")
    for ours, line in zip(result["valid"], lines, strict=True):
        assert ours == pytest.approx(line["metrics"]["valid_perplexity"][-1], rel=1e-5)
    assert len(set(result["montecarlo"] + result["test"])) == 4
    evaluations = (tmp_path / "run/evaluations.jsonl").read_text()
    assert main(arguments) == 0
    assert (tmp_path / "run/evaluations.jsonl").read_text() == evaluations
    assert read_result(path) == result


def test_networks_of_sequences_have_the_figures_of_their_best_epoch(tmp_path):
    from experiments.reproduce import _of_best

    metrics = {"valid_nll": [3.0, None, 1.0, 2.0], "test_nll": [4.0, 5.0, 6.0, 1.0]}
    assert _of_best(metrics, "nll") == {"valid": 1.0, "test": 6.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no table"),
        (PAPER + "\n[train]\nepochs = [1, 2]\n", "train.epochs: must have one value"),
        (PAPER + "\n[train]\nepoch = 1\n", "train.epoch: unknown field"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, capsys, text, message):
    path = recipe(tmp_path, text)
    assert main(["reproduce", str(path)]) == 2
    assert message in capsys.readouterr().err
