"""Modules import what DESIGN.md lists for them, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rdrop

ROOT = Path(__file__).parent.parent
CELL = {"cells.base", "cells.masking", "dropout", "noise"}
MAY_IMPORT = {
    "blocks": set(),
    "buffer": set(),
    "threefry": set(),
    "keys": {"threefry"},
    "noise": {"threefry"},
    "schedules": set(),
    "lifetime": {"noise", "threefry"},
    "dropout": {"keys", "lifetime", "noise"},
    "functional": {"noise", "threefry"},
    "consistency": set(),
    "cells.masking": {"dropout", "noise"},
    "cells.rngs": {"dropout", "keys"},
    "cells.base": {"cells.masking", "cells.rngs", "dropout", "keys", "noise"},
    "cells.lstm": CELL,
    "cells.gru": CELL,
    "cells.simple": CELL,
    "cells.min_gru": CELL,
    "cells": {
        "cells.base",
        "cells.masking",
        "cells.lstm",
        "cells.gru",
        "cells.simple",
        "cells.min_gru",
    },
    "scan": {"cells", "cells.base", "dropout"},
    "fused": {
        "blocks",
        "buffer",
        "cells",
        "cells.base",
        "cells.masking",
        "dropout",
        "noise",
        "scan",
    },
    "unroll": {
        "cells",
        "cells.base",
        "cells.masking",
        "dropout",
        "fused",
        "keys",
        "scan",
    },
    "layers": {"cells", "cells.base", "keys", "unroll"},
    "nnx": {"nnx.bridge", "nnx.cells", "nnx.layers"},
    "nnx.cells": {"cells", "cells.base", "dropout", "keys"},
    "nnx.layers": {"cells.base", "keys", "nnx.cells", "unroll"},
    "nnx.bridge": {"cells", "layers", "nnx.cells", "nnx.layers"},
    "serialisation": {"serialisation.tensors", "serialisation.text"},
    "serialisation.tensors": set(),
    "serialisation.text": {"dropout", "noise"},
    "interop": {
        "interop.files",
        "interop.flax",
        "interop.keras",
        "interop.keras_arguments",
        "interop.keras_masks",
        "interop.ported",
        "interop.torch",
    },
    "interop.layouts": set(),
    "interop.ported": {"cells", "interop.layouts", "layers"},
    "interop.keras": {"interop.layouts", "interop.ported"},
    "interop.keras_arguments": {
        "cells",
        "dropout",
        "interop.keras_notes",
        "layers",
        "presets",
    },
    "interop.keras_masks": {"dropout", "keys"},
    "interop.keras_notes": set(),
    "interop.torch": {"interop.layouts", "interop.ported"},
    "interop.flax": {"interop.layouts", "interop.ported"},
    "interop.files": {
        "interop.keras",
        "interop.layouts",
        "interop.ported",
        "interop.torch",
    },
    "presets": {"dropout", "noise"},
    "montecarlo": {"keys", "threefry"},
    "calibration": {"montecarlo"},
    "plot": {"calibration", "dropout", "noise"},
    "": {
        "cells",
        "consistency",
        "dropout",
        "functional",
        "keys",
        "layers",
        "calibration",
        "montecarlo",
        "noise",
        "presets",
        "schedules",
    },
}
CORE = {"jax", "flax", "numpy", "jaxtyping", "rdrop"} | sys.stdlib_module_names
# Optional: no other module may need them.
EXTRAS = {
    "plot": {"matplotlib"},
    "interop.files": {"h5py", "safetensors"},
    "interop.keras_masks": {"keras"},
    "interop.torch": {"torch"},
    "serialisation.tensors": {"safetensors"},
    "serialisation.text": {"tomli_w"},
}
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


def module_of(path):
    """The name of a module within rdrop; that of a package is its folder's."""
    parts = path.relative_to(ROOT / "rdrop").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_module_imports_what_is_listed(path):
    module = module_of(path)
    assert module in MAY_IMPORT, f"{name_of(path)} is not in the layout"
    assert set(imported_from_rdrop(parse(path))) <= MAY_IMPORT[module]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_needs_only_its_core_dependencies(path):
    allowed = CORE | EXTRAS.get(module_of(path), set())
    assert {module.split(".")[0] for module, _ in imports(parse(path))} <= allowed


def test_importing_the_library_imports_no_extra():
    code = "import sys, rdrop; print('rdrop.plot' in sys.modules, *sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plot, *modules = output.split()
    assert plot == "False"
    assert not {"matplotlib", "experiments", "flax.nnx"} & set(modules)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_use_only_public_names(path):
    assert list(private_uses(parse(path))) == []


def test_every_listed_module_exists():
    assert {module_of(path) for path in LIBRARY} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "source",
    [
        "import rdrop.cells",
        "from rdrop.cells import LSTMCell",
        "from rdrop import cells",
        "import rdrop\nrdrop.cells.lstm",
        "import rdrop\nrdrop.dropout.resolve",
    ],
)
def test_private_use_is_seen(source):
    assert list(private_uses(ast.parse(source)))


def test_public_names_exist():
    assert all(hasattr(rdrop, name) for name in rdrop.__all__)
