"""What the README says is true."""

import re

import jax
import pytest

import rdrop


def run(blocks):
    """The names that blocks of Python define, run as users run them."""
    names: dict = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(block, names)
    return names


@pytest.fixture
def examples(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def test_its_first_example_runs(examples):
    assert run(examples[:1])["ys"].shape == (10, 32, 20, 64)


@pytest.mark.slow
def test_its_examples_run_one_after_the_other(examples):
    names = run(examples)
    assert names["ys"].shape == (32, 20, 64)
    assert names["masks"].recurrent.shape == (20, 32, 1, 64)


def test_its_table_of_presets_is_the_generated_one(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text()
    shown = readme.split("<!-- presets -->\n")[1].split("<!-- /presets -->")[0]
    assert shown == rdrop.presets.table()
