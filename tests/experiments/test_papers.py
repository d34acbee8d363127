"""Published rows: what configs say of them, and their reproduction."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from folders import no_reports

from experiments.__main__ import main
from experiments.axes import make_sweep, read_toml
from experiments.commands import KINDS
from experiments.config import ConfigError
from experiments.language.config import Config, Evaluation, Model, SecondPass, Train
from experiments.language.model import init, make_model
from experiments.language.run import ModelTraining
from experiments.papers import (
    Paper,
    compare,
    flops,
    read_paper,
    read_result,
    result_path,
    verdict,
)
from experiments.progress import Watch
from experiments.reproduce import difference, published, spread
from experiments.runs.evaluations import read_evaluations
from experiments.runs.facts import read_facts, write_facts
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
    assert paper.data
    assert not paper.montecarlo or sweep.base.evaluation.passes
    if result is not None:
        count = len(result["seeds"])
        assert count == len(result["valid"]) == len(result["test"])
        assert f" configs/{path.name} --seeds {count} " in result["command"]
        assert len(result["curves"]) == count
        assert all(len(curve) <= sweep.base.train.epochs for curve in result["curves"])
    if paper.kind == "sequences":  # a curve has one value per epoch
        assert sweep.base.train.evaluate_every == 1


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
        Model(embedding=0, units=16, layers=1),
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
    assert flops(config, 1000, 100, 50) == 6 * kernels * 1000 * 3
    again = SecondPass(penalty="fraternal")
    config = Config(model=model, train=Train(epochs=3), second_pass=again)
    assert flops(config, 1000, 100, 50) == 2 * 6 * kernels * 1000 * 3
    passes = Evaluation(passes=7)
    config = Config(model=model, train=Train(epochs=3), evaluation=passes)
    expected = 6 * kernels * 1000 * 3 + 2 * kernels * 100 * 7
    assert flops(config, 1000, 100, 50) == expected


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


@pytest.fixture(autouse=True)
def no_report():
    with no_reports():
        yield


def run_row(path, data, folder, *options):
    arguments = ["reproduce", str(path), "--data", str(data), "--out", str(folder)]
    return main([*arguments, *options])


def test_a_row_is_trained_evaluated_and_compared(text, tmp_path, capsys):
    path = recipe(tmp_path, PAPER + TINY, "seeds = 2\n")
    arguments = path, text, tmp_path / "run", "--keep-result"
    assert run_row(*arguments) == 0
    output = capsys.readouterr().out
    assert "ours, 2 seeds" in output
    assert re.search(r"row: (better|worse) than published", output)
    result = read_result(path)
    assert result["unit"] == "perplexity"
    assert (result["seeds"], result["diverged"]) == ([0, 1], [])
    assert f"{path.name} --seeds 2 --data DATA" in result["command"]
    assert result["device"]
    assert all(len(curve) == 2 for curve in result["curves"])
    lines = read_records(tmp_path / "run")
    for ours, line in zip(result["valid"], lines, strict=True):
        assert ours == pytest.approx(line["metrics"]["valid_perplexity"][-1], rel=1e-5)
    assert len(set(result["montecarlo"] + result["test"])) == 4
    evaluations = read_evaluations(tmp_path / "run")
    assert len(evaluations) == 6
    assert run_row(*arguments) == 0
    assert read_evaluations(tmp_path / "run") == evaluations
    assert read_result(path) == result
    # Of a third seed, which is trained alone.
    assert run_row(*arguments, "--seeds", "3") == 0
    more = read_result(path)
    assert more["seeds"] == [0, 1, 2]
    assert more["test"][:2] == result["test"]
    assert read_records(tmp_path / "run")[:2] == lines
    assert run_row(*arguments, "--seeds", "1") == 2
    assert "seeds was [0, 1, 2], is [0]" in capsys.readouterr().err


def test_figures_are_of_the_final_parameters(text, tmp_path, capsys):
    """Not of those that somebody evaluated during the training."""
    path, folder = recipe(tmp_path, PAPER + TINY), tmp_path / "run"
    fields = tmp_path / "fields.toml"
    fields.write_text(TINY)
    command = ["train", str(fields), "--task.data", str(text), "--out", str(folder)]
    assert main([*command, "--seeds", "1", "--stop-after", "20"]) == 130
    assert main(["evaluate", str(folder)]) == 0
    (early,) = read_evaluations(folder)
    assert run_row(path, text, folder, "--keep-result") == 0
    (record,) = read_records(folder)
    assert early["parameters"] != record["parameters"]
    (test,) = read_result(path)["test"]
    assert early["perplexity"] != pytest.approx(test, rel=1e-4)
    final = [e for e in read_evaluations(folder) if e["perplexity"] == test]
    assert [each["parameters"] for each in final] == [record["parameters"]]


def test_a_stopped_row_has_no_result(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Watch, "stopped", lambda self: True)
    path = recipe(tmp_path, PAPER + TINY)
    assert run_row(path, text, tmp_path / "run", "--keep-result") == 130
    assert read_result(path) is None


def test_a_seed_that_diverges_is_named_and_the_others_compared(
    text, tmp_path, capsys, monkeypatch
):
    def diverge(*seeds):
        monkeypatch.setattr(
            ModelTraining,
            "_has_diverged",
            lambda self: self.number > 0 and self._setting.config.seeds in seeds,
        )

    diverge(1)
    path = recipe(tmp_path, PAPER + TINY, "seeds = 3\n")
    assert run_row(path, text, tmp_path / "run", "--keep-result") == 0
    assert "not in these figures: seed 1." in capsys.readouterr().out
    result = read_result(path)
    assert (result["seeds"], result["diverged"]) == ([0, 2], [1])
    assert len(result["valid"]) == len(result["curves"]) == 2
    diverge(0, 1)
    path = recipe(tmp_path, PAPER + TINY, "seeds = 2\n")
    assert run_row(path, text, tmp_path / "all") == 2
    assert "diverged with every seed (0, 1)" in capsys.readouterr().err


def test_other_data_than_the_papers_are_refused(text, tmp_path, capsys):
    path = recipe(tmp_path, PAPER + 'data = "0123"\n' + TINY)
    assert run_row(path, text, tmp_path / "run") == 2
    assert "figures are of data with the hash 0123, got" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_networks_of_sequences_are_rows_too(tmp_path, rng):
    """Also those whose loss is not the likelihood of a distribution."""
    x, y = rng.normal(size=(20, 5, 2)), rng.normal(size=(20, 1))
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32), y=y.astype(np.float32))
    fields = (
        'kind = "sequences"\n[task]\nname = "regress"\ntest = 0.2\n'
        '[model]\ncell = "simple"\nunits = 4\n'
        "[train]\nepochs = 2\nbatch = 4\nevaluate_every = 1\nvalidation = 0.2\n"
    )
    path, data = recipe(tmp_path, PAPER + fields), tmp_path / "data.npz"
    with jax.numpy_dtype_promotion("standard"):
        assert run_row(path, data, tmp_path / "run", "--keep-result") == 0
    result = read_result(path)
    assert result["unit"] == "mse"
    assert result["montecarlo"] == []
    assert len(result["curves"][0]) == 2
    # A training may be too short for the clock.
    facts = read_facts(tmp_path / "run")
    facts["programs"][0]["train_seconds"] = 0.0
    write_facts(tmp_path / "run", facts)
    assert run_row(path, data, tmp_path / "run", "--keep-result") == 0
    assert read_result(path)["seconds"] == 0.0


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
        (PAPER + "montecarlo = 9.0\n", "paper.montecarlo: needs evaluation.passes"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, capsys, text, message):
    path = recipe(tmp_path, text)
    assert main(["reproduce", str(path)]) == 2
    assert message in capsys.readouterr().err
