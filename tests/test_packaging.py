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
NAME = "rnn-dropout-jax"  # of the distribution: on the index `rdrop` is another program
CORE = {"jax", "flax", "numpy", "jaxtyping"}
# What tests import or read.
NEEDED = {
    "rdrop", "tests", "experiments", "benchmarks", "configs", "examples", "docs",
    "notebooks", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md",
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


def test_wheel_holds_every_file_of_the_library_and_no_other(built):
    library = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rdrop").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"{NAME.replace('-', '_')}-{rdrop.__version__}.dist-info"
    files = ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")
    assert built.files == library | {f"{about}/{name}" for name in files}
    assert {"rdrop/py.typed", "rdrop/interop/keras_arguments.md"} <= library


def tracked(*paths):
    """The files of the project under some paths, by git."""
    if not (ROOT / ".git").exists():
        pytest.skip("git lists the files of the project")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(
        [*command, "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def test_sdist_holds_what_the_tests_need(built):
    assert tracked(*NEEDED) - built.sdist == set()
    roots = {name.split("/")[0] for name in built.sdist}
    assert roots <= {*NEEDED, "PKG-INFO", ".gitignore"}


def test_only_the_core_is_required(built):
    required = [r for r in built.metadata["Requires-Dist"] if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r)[0] for r in required} == CORE
    assert all(">=" in requirement for requirement in required)


def test_metadata_say_what_it_is(built):
    assert built.metadata["Name"] == [NAME]
    assert built.metadata["Version"] == [rdrop.__version__]
    assert built.metadata["License-Expression"] == ["Apache-2.0"]
    assert built.metadata["Requires-Python"] == [">=3.11"]


def test_the_version_is_that_of_the_changelog():
    """A version is unreleased in the changelog as long as it is one of development."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, day = re.search(r"^## \[(.+)\] - (.+)$", changelog, re.MULTILINE).groups()
    assert rdrop.__version__.removesuffix(".dev0") == version
    assert rdrop.__version__.endswith(".dev0") == (day == "unreleased")
    assert day == "unreleased" or re.fullmatch(r"\d{4}-\d{2}-\d{2}", day)


INSTALL = re.compile(r"(?:pip|uv|pipx|poetry)3? (?:\w+ )?(?:install|add)\b([^\n`]*)")
EXTRAS = re.compile(r"(?:\brdrop|\brnn-dropout-jax|\.)\[([\w,]+)\]")
# Options of pip are not names; a name ends before its version or extra.
FETCHED = re.compile(r"(?<![\w./-])(rdrop|rnn[-_]dropout[-_]jax)(?![\w./-])")


@pytest.mark.parametrize(
    ("line", "fetches"),
    [
        ("pip install rdrop", True),
        ("python -m pip install -U 'rdrop[plot]'", True),
        ("pip install optax rdrop==0.1", True),
        ("uv pip install rnn-dropout-jax", True),
        ("pip install .", False),
        ("pip install -e '.[interop]'", False),
        ("pip install ./rdrop", False),
        ("pip install optax", False),
    ],
)
def test_a_line_that_fetches_rdrop_is_seen(line, fetches):
    found = INSTALL.findall(line)
    assert found
    assert any(map(FETCHED.search, found)) == fetches


def texts():
    """All texts of the project, except this file."""
    suffixes = (".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".cfg", "Makefile")
    for name in sorted(tracked()):
        if name.endswith(suffixes) and name != "tests/test_packaging.py":
            yield name, (ROOT / name).read_text(encoding="utf-8")


def test_no_text_fetches_rdrop_from_the_index():
    """Nor its extras by the name of the package: it is `pip install '.[interop]'`."""
    for name, text in texts():
        for rest in INSTALL.findall(text):
            assert not FETCHED.search(rest), f"{name}: {rest}"
        if name != "pyproject.toml":
            assert not re.search(r"\brdrop\[\w", text), name


def test_extras_that_texts_name_exist(built):
    found = [
        extra
        for name, text in texts()
        for rest in INSTALL.findall(text)
        for extras in EXTRAS.findall(rest)
        for extra in extras.split(",")
    ]
    assert {"interop", "plot"} <= set(found) <= set(built.metadata["Provides-Extra"])


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
