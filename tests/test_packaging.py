"""The wheel holds the library alone, the sdist what the tests need."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest

import rdrop

pytest.importorskip("hatchling")

ROOT = Path(__file__).parent.parent
CORE = {"jax", "flax", "numpy", "jaxtyping"}
# What tests import or read.
NEEDED = {
    "rdrop", "tests", "experiments", "benchmarks", "configs", "examples", "docs",
    "mkdocs.yml", "conftest.py", "pyproject.toml", "README.md", "CHANGELOG.md",
    "LICENSE",
}  # fmt: skip
OPTIONAL = {
    "experiments", "h5py", "keras", "matplotlib", "pydantic", "safetensors", "tomli_w",
    "torch",
}  # fmt: skip
BUILD = """
import sys
from hatchling import build
build.build_wheel(sys.argv[1])
build.build_sdist(sys.argv[1])
"""
IMPORT = """
import sys
import flax.linen
before = set(sys.modules)
import rdrop
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
EVERY_MODULE = """
import importlib
import pkgutil
import sys
import rdrop
for module in pkgutil.walk_packages(rdrop.__path__, "rdrop."):
    if module.name != "rdrop.plot":
        importlib.import_module(module.name)
print(rdrop.__file__, *sys.modules)
"""


class Built(NamedTuple):
    """A wheel and an sdist, and their contents."""

    wheel: Path
    files: set[str]  # of the wheel
    metadata: dict[str, list[str]]
    sdist: set[str]


def python(code, *arguments, **options):
    """What a fresh process prints, as words."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, **options
    )
    return done.stdout.split()


def fields(wheel):
    """Every field of the metadata, with all its values."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        message = Parser().parsestr(archive.read(name).decode())
    return {field: message.get_all(field) for field in message}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    python(BUILD, folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    files = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    return Built(wheel, files, fields(wheel), names)


def test_wheel_holds_every_file_of_the_library_and_none_besides(built):
    library = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rdrop").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"rdrop-{rdrop.__version__}.dist-info"
    files = ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")
    assert built.files == library | {f"{about}/{name}" for name in files}
    assert "rdrop/py.typed" in library


def test_sdist_holds_what_the_tests_need(built):
    if not (ROOT / ".git").exists():
        pytest.skip("tells what belongs to the project by git")
    command = ["git", "ls-files", "--", *NEEDED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    assert tracked - built.sdist == set()
    roots = {name.split("/")[0] for name in built.sdist}
    assert roots <= {*NEEDED, "PKG-INFO", ".gitignore"}


def test_only_the_core_is_required(built):
    required = [r for r in built.metadata["Requires-Dist"] if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r)[0] for r in required} == CORE
    assert all(">=" in requirement for requirement in required)


def test_metadata_say_what_it_is(built):
    assert built.metadata["Name"] == ["rdrop"]
    assert built.metadata["Version"] == [rdrop.__version__]
    assert built.metadata["License-Expression"] == ["Apache-2.0"]
    assert built.metadata["Requires-Python"] == [">=3.11"]


def test_extras_that_messages_name_exist(built):
    sources = "".join(path.read_text() for path in (ROOT / "rdrop").rglob("*.py"))
    named = set(re.findall(r"rdrop\[(\w+)\]", sources))
    assert named
    assert named <= set(built.metadata["Provides-Extra"])


def test_modules_of_the_wheel_need_no_extra(built, tmp_path):
    """`PYTHONPATH` comes before an editable install."""
    path = {"PYTHONPATH": str(built.wheel)}
    where, *modules = python(EVERY_MODULE, cwd=tmp_path, env=path)
    assert where == f"{built.wheel}/rdrop/__init__.py"
    assert "rdrop.cells.lstm" in modules
    assert OPTIONAL.isdisjoint(modules)


def test_import_adds_little_to_that_of_flax():
    added = set(python(IMPORT, cwd=ROOT)) - sys.stdlib_module_names
    assert added <= {"rdrop", "jaxtyping", "numpy"}
