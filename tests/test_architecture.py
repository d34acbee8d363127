"""Modules import what DESIGN.md lists for them, and nothing else."""

import ast
import sys
from pathlib import Path

import pytest

import rdrop

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "keys": set(),
    "noise": set(),
    "dropout": {"keys", "noise"},
    "cells": {"keys", "dropout"},
    "scan": {"keys", "dropout", "cells"},
    "layers": {"keys", "noise", "dropout", "cells", "scan"},
    "__init__": {"keys", "noise", "dropout", "cells", "scan", "layers"},
}
CORE = {"jax", "flax", "numpy", "jaxtyping", "rdrop"} | sys.stdlib_module_names
LIBRARY = sorted((ROOT / "rdrop").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def imports(tree):
    """Every (module, name) that a module imports; the name is None for a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def imported_from_rdrop(tree):
    """Names of the modules of rdrop that a module of rdrop imports."""
    for module, name in imports(tree):
        if module == "rdrop":
            yield name
        elif module.startswith((".", "rdrop.")):
            yield module.removeprefix("rdrop.")


def private_uses(tree):
    """What a module takes from rdrop other than its public names."""
    for module, name in imports(tree):
        root = module.split(".")[0]
        if root == "rdrop" and (
            module != "rdrop" or name not in {None, *rdrop.__all__}
        ):
            yield f"{module}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            public = {*rdrop.__all__, "__version__"}
            if node.value.id == "rdrop" and node.attr not in public:
                yield f"rdrop.{node.attr}"


def parse(path):
    return ast.parse(path.read_text())


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_module_imports_what_is_listed(path):
    assert path.stem in MAY_IMPORT, f"{name_of(path)} is not in the layout"
    assert set(imported_from_rdrop(parse(path))) <= MAY_IMPORT[path.stem]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_needs_only_its_core_dependencies(path):
    assert {module.split(".")[0] for module, _ in imports(parse(path))} <= CORE


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_use_only_public_names(path):
    assert list(private_uses(parse(path))) == []


def test_every_listed_module_exists():
    assert {path.stem for path in LIBRARY} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "source",
    [
        "import rdrop.cells",
        "from rdrop.cells import LSTMCell",
        "from rdrop import cells",
        "import rdrop\nrdrop.cells.lstm_step",
    ],
)
def test_private_use_is_seen(source):
    assert list(private_uses(ast.parse(source)))


def test_public_names_exist():
    assert all(hasattr(rdrop, name) for name in rdrop.__all__)
