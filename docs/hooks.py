"""Hooks: tables of pages that are generated, or copied from the README.

A page marks the place of a table by a comment on a separate line:

    <!-- presets -->                the table of `rdrop.presets`
    <!-- sites -->                  the table of `rdrop.sites`
    <!-- README | config | -->      the table of the README whose header begins so
"""

import re
from pathlib import Path

from rdrop import presets
from rdrop.dropout import KINDS
from rdrop.sites import SITES

README = Path(__file__).parents[1] / "README.md"


def on_page_markdown(markdown: str, **_) -> str:
    """Inserts the tables; called by MkDocs for each page.

    Args:
        markdown: the source of the page.

    Raises:
        ValueError: the README does not have the table.
    """
    markdown = markdown.replace("<!-- presets -->", presets.table())
    markdown = markdown.replace("<!-- sites -->", sites_table())
    return re.sub(
        r"^<!-- README (\|.*\|) -->$",
        lambda found: readme_table(found[1]),
        markdown,
        flags=re.MULTILINE,
    )


def sites_table() -> str:
    """Returns the noise sites as a Markdown table."""
    lines = ["| site | arrow | kinds | effect |", "|---|---|---|---|"]
    for name, site in SITES.items():
        kinds = ", ".join(f"`{kind.__name__}`" for kind in KINDS[name])
        lines.append(f"| `{name}` | {site.arrow} | {kinds} | {site.text} |")
    return "\n".join(lines)


def readme_table(header: str) -> str:
    """Returns the table of the README whose first line begins with `header`.

    Raises:
        ValueError: the README does not have the table.
    """
    lines = README.read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith(header)]
    if not starts:
        raise ValueError(f"`header` must begin a table of the README, got {header!r}.")
    rows = lines[starts[0] :]
    length = next((n for n, row in enumerate(rows) if row[:1] != "|"), len(rows))
    # A backslash escapes in MkDocs, but not in the README.
    return "\n".join(rows[:length]).replace(" \\ ", " \\\\ ")
