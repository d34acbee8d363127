"""The pages of docs/: examples run, commands and links are valid, the site builds."""

import functools
import re
import shlex
import textwrap
from pathlib import Path

import jax
import pytest

from experiments import __main__ as commands
from experiments.commands import configs
from experiments.commands import runs as run_commands

pytestmark = pytest.mark.usefixtures("as_users_run_it")

ROOT = Path(__file__).parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in sorted((ROOT / "docs").rglob("*.md"))
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
OPTIONAL = [
    "chex",
    "h5py",
    "keras",
    "matplotlib",
    "optax",
    "orbax",
    "safetensors",
    "torch",
]
QUICK = ("docs/question.md",)
SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.MULTILINE)


def blocks(text, language):
    """The blocks of a page in a language, with the files that they include."""
    fences = FENCE.findall(text)
    found = (textwrap.dedent(body) for _, spoken, body in fences if spoken == language)
    return [SNIPPET.sub(lambda f: (ROOT / f[1]).read_text(), body) for body in found]


def runs(text):
    """The command lines of a page that run the experiments."""
    lines = "\n".join(blocks(text, "console")).replace("\\\n", "").splitlines()
    return [line for line in lines if "python -m experiments" in line]


EXECUTED = [
    pytest.param(page, marks=[] if page in QUICK else [pytest.mark.slow], id=page)
    for page, text in PAGES.items()
    if blocks(text, "python")
]
COMMANDS = [line for text in PAGES.values() for line in runs(text)]


@pytest.fixture
def as_a_script(unchecked, monkeypatch, tmp_path):
    """In an empty folder, as users run it, without the strictness of these tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):
        yield


def train_a_small_plane():
    """The run that the page on experiments reads, in the current folder."""
    line = f"""ablate {ROOT}/configs/vowels_plane.toml --out runs/vowels_plane
        --keep all --seeds 2 --dropout.inputs.rate 0 --dropout.recurrent.rate 0 0.3
        --train.epochs 2 --train.evaluate-every 1"""
    assert commands.main(shlex.split(line)) == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras
@pytest.mark.parametrize("page", EXECUTED)
def test_its_examples_run(page, as_a_script):
    sources = blocks(PAGES[page], "python")
    for name in OPTIONAL:
        if re.search(rf"^(?:import|from) {name}\b", "\n".join(sources), re.MULTILINE):
            pytest.importorskip(name)
    if page == "docs/experiments.md":
        train_a_small_plane()
    names: dict = {"__name__": "__main__"}
    for source in sources:
        exec(compile(source, page, "exec"), names)


def recording(function, called):
    """A command with the same options that only records its call."""

    @functools.wraps(function)
    def command(*arguments, **options):
        called.append((arguments, options))
        return 0

    return command


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_understood(line, monkeypatch):
    called = []
    for module, name in (
        (commands, "_configs"),
        (configs, "reproduce"),
        *((run_commands, name) for name in ("evaluate", "replay", "report", "export")),
    ):
        command = recording(getattr(module, name), called)
        monkeypatch.setattr(module, name, command)
    # `ablate` and `train` check the config and the fields before they run it.
    for module, name in (
        *((configs, name) for name in ("run", "estimate", "_join")),
        (configs.searching, "tune"),
    ):
        monkeypatch.setattr(module, name, lambda *_: called.append(_) or True)
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line.split("python -m experiments")[1])
    assert commands.main(arguments) == 0
    assert called


def test_there_are_commands_of_each_kind():
    kinds = {line.split("experiments ")[1].split()[0] for line in COMMANDS}
    assert kinds == {
        "ablate",
        "configs",
        "tune",
        "train",
        "reproduce",
        "evaluate",
        "replay",
        "report",
        "export",
    }


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_to_files(page):
    folder = (ROOT / page).parent
    targets = [t for t in LINK.findall(PAGES[page]) if "://" not in t]
    assert [t for t in targets if not (folder / t).exists()] == []


def test_the_tests_that_the_comparison_names_are_there():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGES["docs/comparison.md"])
    assert len(named) > 10
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), test


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    assert listed == {page.removeprefix("docs/") for page in PAGES}


def test_its_tables_are_the_generated_ones(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_tables

    for name, (page, table) in make_tables.TABLES.items():
        text = (ROOT / "docs" / page).read_text()
        assert make_tables.write_table(text, name, table()) == text


@pytest.mark.slow
def test_the_site_builds_without_a_warning_or_a_foreign_asset(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    site = config.load_config(
        str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)
    )
    site.plugins.on_startup(command="build", dirty=False)
    build.build(site)
    assert "semeniuta" in (tmp_path / "question/index.html").read_text()
    assert "h into U" in (tmp_path / "reference/dropout/index.html").read_text()
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert "{sites}" not in text, page
        assets = re.findall(r"""<(?:img|script|source)\b[^>]*\bsrc="([^"]*)""", text)
        assets += re.findall(r"""<link\b[^>]*\bhref="([^"]*)""", text)
        assert [asset for asset in assets if "//" in asset] == [], page
