"""Hooks: what pages show that is generated, or stands in the README already.

A page says where, by a comment on a line of its own:

    <!-- presets -->                the table of `rdrop.presets`
    <!-- README | config | -->      the table of the README whose header begins so
"""

import re
from pathlib import Path

from rdrop import presets

README = Path(__file__).parents[1] / "README.md"


def on_page_markdown(markdown: str, **_) -> str:
    """Puts the tables in their places; called by MkDocs for each page.

    Args:
        markdown: the source of the page.

    Raises:
        ValueError: the README has no such table.
    """
    markdown = markdown.replace("<!-- presets -->", presets.table())
    return re.sub(
        r"^<!-- README (\|.*\|) -->$",
        lambda found: readme_table(found[1]),
        markdown,
        flags=re.MULTILINE,
    )


def readme_table(header: str) -> str:
    """Returns the table of the README whose first line begins with `header`.

    Raises:
        ValueError: there is none.
    """
    lines = README.read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith(header)]
    if not starts:
        raise ValueError(f"`header` must begin a table of the README, got {header!r}.")
    rows = lines[starts[0] :]
    length = next((n for n, row in enumerate(rows) if row[:1] != "|"), len(rows))
    return "\n".join(rows[:length]).replace(
        " \\ ", " \\\\ "
    )  # a backslash escapes here
