"""Scenes: pictures as plain shapes, written as themed SVG or drawn by matplotlib.

Coordinates are pixels from the top left. Colours are roles of the palette, such as
"ink", or literal, such as "#440154".
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

Number: TypeAlias = float | int


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str | None = None
    stroke: str | None = None
    thickness: float = 1.0


class Stroke(NamedTuple):
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: str = "ink"
    thickness: float = 1.0
    dash: tuple[float, ...] = ()


class Area(NamedTuple):
    """A translucent polygon."""

    points: tuple[tuple[float, float], ...]
    fill: str
    opacity: float = 0.18


class Dot(NamedTuple):
    """A marker: "circle", "square", "diamond" or "triangle", filled or hollow."""

    x: float
    y: float
    colour: str = "ink"
    marker: str = "circle"
    radius: float = 4.0
    hollow: bool = False


class Label(NamedTuple):
    """A line of text whose baseline starts, is centred or ends at a point.

    Attributes:
        x, y: the point.
        text: the text.
        size: of the font.
        anchor: "start", "middle" or "end".
        bold: whether it is bold.
        colour: its colour.
        upright: whether it reads from bottom to top.
    """

    x: float
    y: float
    text: str
    size: float = 13.0
    anchor: str = "start"
    bold: bool = False
    colour: str = "ink"
    upright: bool = False


Shape: TypeAlias = Box | Stroke | Area | Dot | Label


class Mark(NamedTuple):
    """Shapes that stand for data, and the exact numbers to show on hover or tap."""

    shapes: tuple[Shape, ...]
    tip: str


class Scene(NamedTuple):
    """A picture.

    Attributes:
        width, height: its size.
        shapes: the shapes, those behind first.
        alt: a text alternative that states the result.
    """

    width: float
    height: float
    shapes: tuple[Shape | Mark, ...]
    alt: str


def flat_shapes(scene: Scene) -> Iterator[Shape]:
    """Yields all shapes of a scene, also the shapes of its marks."""
    for shape in scene.shapes:
        if isinstance(shape, Mark):
            yield from shape.shapes
        else:
            yield shape


def right_of_texts(shapes: Sequence[Shape | Mark]) -> Number:
    """Returns the right end of the texts outside marks."""
    return max(text_box(shape)[2] for shape in shapes if isinstance(shape, Label))


def moved(shape: Shape | Mark, x: Number, y: Number) -> Shape | Mark:
    """Returns a shape, or all shapes of a mark, at another place."""
    if isinstance(shape, Mark):
        return Mark(tuple(_moved(part, x, y) for part in shape.shapes), shape.tip)
    return _moved(shape, x, y)


def side_by_side(scenes: Sequence[Scene], columns: int = 3, gap: Number = 16) -> Scene:
    """Returns one scene that has several in rows."""
    columns = min(columns, len(scenes))
    width = max(scene.width for scene in scenes)
    height = max(scene.height for scene in scenes)
    rows = -(-len(scenes) // columns)
    shapes = tuple(
        moved(shape, n % columns * (width + gap), n // columns * (height + gap))
        for n, scene in enumerate(scenes)
        for shape in scene.shapes
    )
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    return Scene(*size, shapes, " ".join(scene.alt for scene in scenes))


@functools.cache
def text_width(text: str, size: Number = 13, bold: bool = False) -> float:
    """Returns the width of a text in DejaVu Sans, which is wider than most fonts."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]


def text_box(label: Label) -> tuple[Number, Number, Number, Number]:
    """Returns left, top, right and bottom of a text."""
    width = text_width(label.text, label.size, label.bold)
    before = {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    rise, fall = 0.76 * label.size, 0.24 * label.size
    if label.upright:
        bottom = label.y + before
        return label.x - rise, bottom - width, label.x + fall, bottom
    left = label.x - before
    return left, label.y - rise, left + width, label.y + fall


def _moved(shape: Shape, x: Number, y: Number) -> Shape:
    if isinstance(shape, Stroke | Area):
        points = tuple((px + x, py + y) for px, py in shape.points)
        return shape._replace(points=points)
    return shape._replace(x=shape.x + x, y=shape.y + y)
