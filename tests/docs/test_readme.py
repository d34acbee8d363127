"""What the README says is true."""

import re

import jax

import rdrop


def test_its_examples_run(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text()
    names: dict = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
            exec(block, names)
    assert names["ys"].shape == (32, 20, 64)
    assert names["masks"].recurrent.shape == (20, 32, 1, 64)


def test_its_table_of_presets_is_the_generated_one(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text()
    shown = readme.split("<!-- presets -->\n")[1].split("<!-- /presets -->")[0]
    assert shown == rdrop.presets.table()
