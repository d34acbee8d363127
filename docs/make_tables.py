"""Tables of pages that are generated: `python docs/make_tables.py` writes them again.

A page has a table between two comments, such as `<!-- presets -->` and
`<!-- /presets -->`. A test fails if a table is not the generated one.
"""

from collections.abc import Callable
from pathlib import Path

import make_linear

from experiments.axes import make_sweep, read_toml
from experiments.language.config import Config
from experiments.papers import (
    Comparison,
    Paper,
    compare,
    flops,
    read_paper,
    read_result,
    verdict,
)
from experiments.reproduce import difference, published, spread
from rdrop import presets
from rdrop.dropout import KINDS
from rdrop.sites import SITES

DOCS = Path(__file__).parent
CONFIGS = DOCS.parent / "configs"
PENN_TREEBANK = {
    "words": (929_589, 82_430, 10_000),
    "characters": (5_017_482, 442_423, 50),
}
"""Tokens of the training and test texts, and token types."""
FLOPS_PER_HOUR = 100e9 * 3600  # of two CPU cores in such trainings


def sites_table() -> str:
    """Returns the noise sites as a Markdown table."""
    lines = ["| site | arrow | kinds | effect |", "|---|---|---|---|"]
    for name, site in SITES.items():
        kinds = ", ".join(f"`{kind.__name__}`" for kind in KINDS[name])
        lines.append(f"| `{name}` | {site.arrow} | {kinds} | {site.text} |")
    return "".join(f"{line}\n" for line in lines)


def papers() -> dict[Path, Paper]:
    """Returns the rows of papers by their configs, in the order of the titles."""
    found = {path: read_paper(path) for path in sorted(CONFIGS.glob("*.toml"))}
    rows = {path: paper for path, paper in found.items() if paper is not None}
    return dict(sorted(rows.items(), key=lambda row: (row[1].title, row[0].name)))


def results_table() -> str:
    """Returns the rows that were run, as a Markdown table."""
    lines = [
        "| paper, row | figure | published | ours | difference | seeds, time, device |",
        "|---|---|---|---|---|---|",
    ]
    for path, paper in papers().items():
        result = read_result(path)
        if result is None:
            continue
        compared = compare(paper, result)
        seeds, minutes = len(result["seeds"]), round(result["seconds"] / 60)
        head = f"{paper.title}: {paper.row} (`{path.stem}`)"
        where = f"{seeds}, {minutes} min, {result['device']}"
        for each in compared:
            lines.append(f"| {head} | {_cells(each)} | {where} |")
            head = where = ""
    return "".join(f"{line}\n" for line in lines)


def short_results_table() -> str:
    """Returns the test figures of the rows that were run, for the README."""
    lines = ["| paper, row | published | rdrop | result |", "|---|---|---|---|"]
    for path, paper in papers().items():
        result = read_result(path)
        compared = compare(paper, result) if result else []
        for each in compared:
            if each.name == "valid":
                continue
            row = f"{paper.title.partition(' (')[0]}: {paper.row}"
            row += ", Monte Carlo" if each.name == "montecarlo" else ""
            shown = difference(each)
            if each.name == "test":
                shown = verdict([each]) if each.published else "not published"
            figure = published(each.published)
            lines.append(f"| {row} | {figure} | {spread(each)} | {shown} |")
    return "".join(f"{line}\n" for line in lines)


def costs_table() -> str:
    """Returns the rows that were not run, with their cost, as a Markdown table."""
    lines = [
        "| paper, row | published valid / test | 1e15 operations | hours |",
        "|---|---|---|---|",
    ]
    for path, paper in papers().items():
        if read_result(path) or paper.kind != "language":
            continue
        config = make_sweep(read_toml(path), path.name, Config).base
        cost = flops(config, *PENN_TREEBANK[config.task.name])
        lines.append(
            f"| {paper.title}: {paper.row} (`{path.stem}`) | {_published(paper)} | "
            f"{cost / 1e15:.1f} | {cost / FLOPS_PER_HOUR:,.1f} |"
        )
    return "".join(f"{line}\n" for line in lines)


def differences_list() -> str:
    """Returns the sources and known differences of all rows, as a Markdown list."""
    lines = []
    for path, paper in papers().items():
        lines.append(f"- `{path.stem}`, from {paper.source}.")
        lines += [f"    - {text}" for text in paper.differences]
    return "".join(f"{line}\n" for line in lines)


def _cells(figure: Comparison) -> str:
    """Returns a comparison as cells of a table."""
    name = {"montecarlo": "test, Monte Carlo"}.get(figure.name, figure.name)
    shown = published(figure.published)
    return f"{name} | {shown} | {spread(figure)} | {difference(figure)}"


def _published(paper: Paper) -> str:
    """Returns the published figures of a row."""
    figures = " / ".join(map(published, (paper.valid, paper.test)))
    return figures + (f", Monte Carlo {paper.montecarlo:g}" if paper.montecarlo else "")


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "presets": ("question.md", presets.table),
    "sites": ("reference/dropout.md", sites_table),
    "results": ("papers.md", results_table),
    "costs": ("papers.md", costs_table),
    "differences": ("papers.md", differences_list),
    "papers": ("../README.md", short_results_table),
    "linear effects": ("linear.md", make_linear.table),
    "linear lifetimes": ("linear.md", make_linear.lifetimes_table),
    "linear costs": ("linear.md", make_linear.cost_table),
}
"""The page and the generator of each table, by the name between its comments."""


def write_table(text: str, name: str, table: str) -> str:
    """Returns the text of a page with a table in its place."""
    head, rest = text.split(f"<!-- {name} -->\n")
    _, tail = rest.split(f"<!-- /{name} -->")
    return f"{head}<!-- {name} -->\n{table}<!-- /{name} -->{tail}"


if __name__ == "__main__":
    for name, (page, table) in TABLES.items():
        path = DOCS / page
        path.write_text(write_table(path.read_text(), name, table()))
