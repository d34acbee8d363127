"""Docstrings as Markdown: an extension of griffe.

Some parts read well in a terminal, but would run together on a page: the numbered
references of a module, equations that begin a line, and sections without a meaning in
Google's style, such as "Symbols:", which griffe would put into a box. Griffe would not
recognise the doctests of "Example:".
"""

import re
from typing import Any

import griffe

# rdrop inserts one attribute per site at import, which griffe does not see.
SITES = "Attributes:\n{sites}"
TABLE = "Attributes: one per site, as in the table below."
TITLES = ("References", "Symbols", "Parameters")
SECTION = re.compile(
    rf"^((?:{'|'.join(TITLES)})(?: \([^)]*\))?):\n((?: .*\n?|\n)+)", re.M
)
TERM = (
    r"(?:(?:tanh|sigmoid|LN)\b"
    r"|[A-Za-z]'?(?:_(?:\{[^}]*\}|\w))?(?:\[\w\])?(?![\w'])"
    r"|\d+|[-+*/=();])"
)
EQUATION = re.compile(rf"^({TERM}(?: *{TERM})+)(.*)$", re.M)
# Several arguments with one description.
TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.M)
# Code; or two pairs of brackets in a row, which would be a link.
LINK = re.compile(r"(`[^`]*`|^ *(?:>>>|\.\.\.) .*$)|\] ?\[(?=[\w\"])", re.M)


class Readable(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """Returns a docstring as Markdown that looks like the docstring.

    Args:
        text: the docstring without its indentation.
    """
    text = text.replace(SITES, TABLE)
    text = SECTION.sub(_section, EQUATION.sub(_equation, text))
    text = TOGETHER.sub(_one_by_one, text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
    return LINK.sub(lambda found: found[1] or r"] \[", text)


def _one_by_one(found: re.Match) -> str:
    """One line per argument."""
    indent, names, description = found.groups()
    return "\n".join(f"{indent}{name}: {description}" for name in names.split(", "))


def _section(found: re.Match) -> str:
    """A bold title with a list of references, or with text."""
    title, body = found[1], re.sub(r"^    ", "", found[2], flags=re.M)
    if title == "References":
        body = re.sub(r"^\[(\d+)\] ", r"- \\[\1\\] ", body, flags=re.M)
        body = re.sub(r"\n {4}", " ", body)
    return f"**{title}**\n\n{body}"


def _equation(found: re.Match) -> str:
    """An equation as code, on a separate line if it fills a line."""
    equation = found[1].rstrip(" (;")
    if " = " not in equation:
        return found[0]
    rest = found[0].removeprefix(equation)
    return f"`{equation}`{rest or '  '}"
