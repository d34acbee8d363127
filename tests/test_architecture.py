"""Modules import from the floors below their own, and from nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rdrop

ROOT = Path(__file__).parent.parent
# Bottom up: a module imports from the floors below its own, and from its own package.
FLOORS = (
    {"sites", "lengths", "advice", "arguments"},
    {"noise"},
    {"keys", "schedules"},
    {"dropout", "montecarlo", "penalties", "functional"},
    {"cells", "presets", "serialisation", "calibration", "regression"},
    {"loops", "plot"},
    {"linen"},
    {"libraries"},
    {"nnx", "wrapping"},
    {"interop"},
)
WITHOUT_FLAX = ("cells", "loops", "sites", "lengths")
CORE = {"jax", "flax", "numpy", "jaxtyping", "rdrop"} | sys.stdlib_module_names
# Optional: no other module may need them.
EXTRAS = {
    "plot": {"matplotlib"},
    "interop.files": {"h5py", "safetensors"},
    "interop.keras_masks": {"keras"},
    "interop.torch": {"torch"},
    "loops.native": {"rdrop_cpu"},
    "serialisation.tensors": {"safetensors"},
    "serialisation.text": {"tomli_w"},
}
# Public modules with extras are imported by name.
PUBLIC = {*rdrop.__all__, "__version__", "interop", "nnx", "plot", "serialisation"}
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
        if root == "rdrop" and (module != "rdrop" or name not in {None, *PUBLIC}):
            yield f"{module}.{name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id == "rdrop" and node.attr not in PUBLIC:
            yield f"rdrop.{node.attr}"


def parse(path):
    return ast.parse(path.read_text())


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    """The name of a module within rdrop; that of a package is its folder's."""
    parts = path.relative_to(ROOT / "rdrop").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def package_of(module):
    return module.split(".")[0]


def floor_of(package):
    return next(n for n, floor in enumerate(FLOORS) if package in floor)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_modules_import_from_the_floors_below(path):
    package = package_of(module_of(path))
    if not package:
        return
    imported = {package_of(module) for module in imported_from_rdrop(parse(path))}
    above = [m for m in imported - {package} if floor_of(m) >= floor_of(package)]
    assert not above, f"{name_of(path)} imports {above}"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_equations_and_loops_import_no_flax(path):
    if package_of(module_of(path)) in WITHOUT_FLAX:
        assert "flax" not in {
            module.split(".")[0] for module, _ in imports(parse(path))
        }


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


def test_every_package_has_one_floor():
    packages = {package_of(module_of(path)) for path in LIBRARY} - {""}
    listed = [package for floor in FLOORS for package in floor]
    assert sorted(listed) == sorted(packages)


@pytest.mark.parametrize(
    "source",
    [
        "import rdrop.cells",
        "from rdrop.cells import LSTMCell",
        "from rdrop import loops",
        "import rdrop\nrdrop.loops.run",
        "import rdrop\nrdrop.dropout.resolve",
    ],
)
def test_private_use_is_seen(source):
    assert list(private_uses(ast.parse(source)))


def test_public_names_exist():
    assert all(hasattr(rdrop, name) for name in rdrop.__all__)
