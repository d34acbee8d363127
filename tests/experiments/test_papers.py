"""Published rows: what configs say of them, and their reproduction."""

from pathlib import Path

import jax
import numpy as np
import pytest
from folders import PAPER, recipe

from experiments.axes import make_sweep, read_toml
from experiments.commands import KINDS
from experiments.config import ConfigError
from experiments.language.config import Config, Evaluation, Model, SecondPass, Train
from experiments.language.model import init, make_model
from experiments.papers import (
    Paper,
    compare,
    flops,
    read_paper,
    read_result,
    result_path,
    verdict,
)
from experiments.reproduce import difference, published, spread
from experiments.runs.files import StorageError

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = [path for path in sorted(CONFIGS.glob("*.toml")) if read_paper(path)]

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
        trained = count + len(result.get("diverged", []))
        assert f" configs/{path.name} --seeds {trained} " in result["command"]
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
        (PAPER.replace("10.0", "-1.0"), "paper.test: must be greater .*, got -1.0"),
        (PAPER.replace("10.0", "inf"), "paper.test: must be a finite number"),
        (PAPER + "page = 3\n", "paper.page: unknown field"),
        ("[paper]\ntitle = 'a'\nsource = 'b'\n", "paper.row: is missing"),
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
    assert verdict(alone) == "no verdict without a published test or validation figure"
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
