"""The README and its like: the example trains, the links work."""

import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_its_example_trains():
    example, in_nnx = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        exec(example, names)
        exec(in_nnx, {} | names)
        before = names["rnn"].init(jax.random.key(0), names["xs"])
        loss = [
            (names["rnn"].apply(params, names["xs"])[1] ** 2).mean()
            for params in (before, names["params"])
        ]
        steps = jax.vmap(names["train_step"], (None, 0, None))
        swept = steps(before, jnp.linspace(0, 0.9, 10), jax.random.key(1))
    assert names["ys"].shape == (32, 20, 64)
    assert loss[1] < loss[0]
    assert all(len(leaf) == 10 for leaf in jax.tree.leaves(swept))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_its_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_nobody_is_told_to_install_another_program():
    pages = [README, *(page.read_text() for page in (ROOT / "docs").rglob("*.md"))]
    assert not any(re.search(r"pip install[^\n]*\brdrop\b", page) for page in pages)


def test_the_citation_is_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nabstract: {project['description']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert f"\nkeywords: [{', '.join(project['keywords'])}]\n" in citation
    assert re.search("- name: (.*)", citation)[1] in (ROOT / "LICENSE").read_text()
