"""Figures in the README and the docs are those of the configs, which are the record."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
README = (ROOT / "README.md").read_text()


def rows(text, first):
    """The cells of the rows of a Markdown table, from the row that starts so."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def record(config):
    """The comment at the top of a config, in one line."""
    header = (ROOT / f"configs/{config}.toml").read_text().split("\n\n")[0]
    return " ".join(line.lstrip("# ") for line in header.splitlines())


def test_the_answer_is_the_record_of_the_plane():
    found = record("vowels_plane").replace("+-", "±")
    for noise, *rates, figure in rows(README, "none"):
        chosen = " and ".join(rate for rate in rates if rate != "0")
        assert re.search(rf"{figure} [^±]*\({chosen}", found) or noise == "none"
        assert figure in found
    assert re.search(r"p = [\d.]+\d", README)[0] in found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_of_a_config_is_a_sentence_for_the_list(path):
    first = path.read_text().partition("\n")[0]
    assert first.startswith("# ")
    assert first[-1] in ".?"
