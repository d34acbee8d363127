"""Palette: colours by role for a light and a dark theme, and line styles.

The four kinds of noise differ in hue and lightness, so that they stay apart for readers
with deuteranopia or protanopia, and also in line style and marker. They are variants of
Okabe and Ito's colours. Text has a contrast of at least 4.5 with the background.
"""

from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb

LIGHT = {
    "ink": "#1c1c1c",
    "paper": "#ffffff",
    "faint": "#6b6b6b",
    "grid": "#dedede",
    "plain": "#737373",
    "inputs": "#0072b2",
    "recurrent": "#b34700",
    "both": "#111111",
}
DARK = {
    "ink": "#e8e8e8",
    "paper": "#17181a",
    "faint": "#a0a4aa",
    "grid": "#3a3c40",
    "plain": "#8f9399",
    "inputs": "#56b4e9",
    "recurrent": "#e69f00",
    "both": "#ffffff",
}
# Brighter is lower. The darkest quarter is left out: it would vanish on a dark page.
SCALE = matplotlib.colormaps["viridis_r"]
SCALE_END = 0.78


class Style(NamedTuple):
    """How a series is drawn: a role of the palette, dashes and a marker."""

    colour: str
    dash: tuple[float, ...]
    marker: str


STYLES = {
    "none": Style("plain", (2, 3), "triangle"),
    "inputs": Style("inputs", (9, 4), "circle"),
    "recurrent": Style("recurrent", (9, 3, 2, 3), "square"),
    "both": Style("both", (), "diamond"),
}


def series_styles(count: int) -> list[Style]:
    """Returns a different style for each of up to 16 series."""
    kinds = [STYLES[kind] for kind in ("both", "inputs", "recurrent", "none")]
    size = len(kinds)
    return [
        kinds[n % size]._replace(dash=kinds[(n + n // size) % size].dash)
        for n in range(count)
    ]


def theme_css(theme: dict[str, str]) -> str:
    """Returns a palette as CSS variables."""
    return " ".join(f"--{role}: {colour};" for role, colour in theme.items())


def scale_colour(share: float) -> str:
    """Returns the colour of a value, 0 for the lowest and 1 for the highest."""
    return to_hex(SCALE(share * SCALE_END))


def text_on(fill: str) -> str:
    """Returns black or white, the one with more contrast on a colour."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, fill))


def contrast(one: str, other: str) -> float:
    """Returns the contrast ratio of two colours, as WCAG 2 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
