"""Docstrings: how those of rdrop become Markdown, an extension of griffe.

What reads well in a terminal would run together on a page: the numbered references of a
module, equations that begin a line, sections without a meaning in Google's style, such
as "Symbols:", which griffe would put into a box, and "Example:", which it would not
take for doctests.
"""

import re
from typing import Any

import griffe

TITLES = ("References", "Symbols", "Shapes", "Parameters", "Axes of a mask")
SECTION = re.compile(rf"^({'|'.join(TITLES)}):\n((?: .*\n?|\n)+)", re.M)
TERM = (
    r"(?:(?:tanh|sigmoid|LN)\b"
    r"|[A-Za-z]'?(?:_(?:\{[^}]*\}|\w))?(?:\[\w\])?(?![\w'])"
    r"|\d+|[-+*/=();])"
)
EQUATION = re.compile(rf"^({TERM}(?: *{TERM})+)(.*)$", re.M)
# Code; or two pairs of brackets in a row, which would be a link.
LINK = re.compile(r"(`[^`]*`|^ *(?:>>>|\.\.\.) .*$)|\] ?\[(?=[\w\"])", re.M)


class Readable(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """Returns a docstring as Markdown that looks as the docstring does.

    Args:
        text: of the docstring, without its indentation.
    """
    text = SECTION.sub(_section, EQUATION.sub(_equation, text))
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
    return LINK.sub(lambda found: found[1] or r"] \[", text)


def _section(found: re.Match) -> str:
    """A bold title with a list of references, or with text."""
    title, body = found[1], re.sub(r"^    ", "", found[2], flags=re.M)
    if title == "References":
        body = re.sub(r"^\[(\d+)\] ", r"- \\[\1\\] ", body, flags=re.M)
        body = re.sub(r"^    ", "  ", body, flags=re.M)
    return f"**{title}**\n\n{body}"


def _equation(found: re.Match) -> str:
    """An equation as code, and a line of its own if it has one."""
    equation = found[1].rstrip(" (;")
    if " = " not in equation:
        return found[0]
    rest = found[0].removeprefix(equation)
    return f"`{equation}`{rest or '  '}"
