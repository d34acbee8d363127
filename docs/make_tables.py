"""Tables of pages that are generated: `python docs/make_tables.py` writes them again.

A page has a table between two comments, such as `<!-- presets -->` and
`<!-- /presets -->`. A test fails if a table is not the generated one.
"""

from collections.abc import Callable
from pathlib import Path

from rdrop import presets
from rdrop.dropout import KINDS
from rdrop.sites import SITES

DOCS = Path(__file__).parent


def sites_table() -> str:
    """Returns the noise sites as a Markdown table."""
    lines = ["| site | arrow | kinds | effect |", "|---|---|---|---|"]
    for name, site in SITES.items():
        kinds = ", ".join(f"`{kind.__name__}`" for kind in KINDS[name])
        lines.append(f"| `{name}` | {site.arrow} | {kinds} | {site.text} |")
    return "".join(f"{line}\n" for line in lines)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "presets": ("question.md", presets.table),
    "sites": ("reference/dropout.md", sites_table),
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
