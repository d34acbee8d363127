"""Rendering: scenes as inline SVG, SVG files, PNG and PDF."""

import io
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle

from experiments.report.palette import DARK, LIGHT, theme_css
from experiments.report.scene import (
    Area,
    Box,
    Dot,
    Label,
    Mark,
    Number,
    Scene,
    Shape,
    Stroke,
    flat_shapes,
)

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# Without the time of writing, the same scene gives the same bytes.
UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {}}
KINDS = ("png", "svg", "pdf")
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}


def encode_scene(scene: Scene, kind: str) -> bytes:
    """Returns a scene as "png", "svg" or "pdf", the same bytes for the same scene.

    An SVG follows the reader's light or dark theme; the others are light.
    """
    if kind == "svg":
        return _svg_file(scene).encode()
    figure = Figure(figsize=(scene.width / 72, scene.height / 72))
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
        axes.set_axis_off()
        for order, shape in enumerate(flat_shapes(scene), 1):
            _draw(axes, shape, order)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=144, metadata=UNDATED[kind])
    return file.getvalue()


def inline_svg(scene: Scene) -> str:
    """Returns a scene as an SVG element that takes its colours from the page."""
    return _svg(scene, f'style="width: {scene.width:g}px"')


def _svg_file(scene: Scene) -> str:
    style = (
        f"<style>svg {{ {theme_css(LIGHT)} }} @media (prefers-color-scheme: dark) "
        f"{{ svg {{ {theme_css(DARK)} }} }} text {{ font-family: {FONT}; }}</style>"
    )
    paper = Box(0, 0, scene.width, scene.height, "paper")
    size = f'width="{scene.width:g}" height="{scene.height:g}"'
    return _svg(scene._replace(shapes=(paper, *scene.shapes)), size, style)


def _svg(scene: Scene, attributes: str, first: str = "") -> str:
    parts, marks = [], 0
    for shape in scene.shapes:
        if isinstance(shape, Mark):
            parts.append(_mark(shape, first=marks == 0))
            marks += 1
        else:
            parts.append(_element(shape))
    # A picture without marks is an image; one with marks can be explored.
    role = (
        'role="graphics-document" aria-roledescription="chart"'
        if marks
        else 'role="img"'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {scene.width:g} '
        f'{scene.height:g}" {attributes} {role} aria-label="{escape(scene.alt)}">'
        f"{first}{''.join(parts)}</svg>"
    )


def _mark(mark: Mark, first: bool) -> str:
    """A group with its numbers; the first one can be reached with the Tab key."""
    tip, stop = escape(mark.tip), 0 if first else -1
    inside = "".join(_element(shape) for shape in mark.shapes)
    return (
        f'<g class="mark" tabindex="{stop}" role="img" aria-label="{tip}">'
        f"<title>{tip}</title>{inside}</g>"
    )


def _element(shape: Shape) -> str:
    match shape:
        case Box():
            style = _style(fill=shape.fill or "none", stroke=shape.stroke)
            width = f' stroke-width="{shape.thickness:g}"' * (shape.stroke is not None)
            size = f'width="{shape.width:.6g}" height="{shape.height:.6g}"'
            return f'<rect x="{shape.x:.6g}" y="{shape.y:.6g}" {size}{width} {style}/>'
        case Stroke():
            dash = f' stroke-dasharray="{_list(shape.dash)}"' if shape.dash else ""
            style = _style(fill="none", stroke=shape.colour)
            width = f'stroke-width="{shape.thickness:g}"'
            return f'<polyline points="{_points(shape.points)}" {width}{dash} {style}/>'
        case Area():
            style = _style(fill=shape.fill)
            opacity = f'fill-opacity="{shape.opacity:g}"'
            return f'<polygon points="{_points(shape.points)}" {opacity} {style}/>'
        case Dot():
            fill = "paper" if shape.hollow else shape.colour
            style = f'stroke-width="1.6" {_style(fill=fill, stroke=shape.colour)}'
            if shape.marker == "circle":
                centre = f'cx="{shape.x:.6g}" cy="{shape.y:.6g}" r="{shape.radius:g}"'
                return f"<circle {centre} {style}/>"
            return f'<polygon points="{_points(_outline(shape))}" {style}/>'
        case Label():
            return _text(shape)


def _text(label: Label) -> str:
    turn = f' transform="rotate(-90 {label.x:.6g} {label.y:.6g})"' * label.upright
    bold = ' font-weight="bold"' * label.bold
    anchor = f' text-anchor="{label.anchor}"' * (label.anchor != "start")
    return (
        f'<text x="{label.x:.6g}" y="{label.y:.6g}" font-size="{label.size:g}"{anchor}'
        f"{bold}{turn} {_style(fill=label.colour)}>{escape(label.text)}</text>"
    )


def _style(**colours: str | None) -> str:
    """A role becomes a CSS variable, which the theme of the page sets."""
    rules = (
        f"{name}:{f'var(--{value})' if value in LIGHT else value}"
        for name, value in colours.items()
        if value is not None
    )
    return f'style="{";".join(rules)}"'


def _list(values: tuple[Number, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _points(points) -> str:
    return " ".join(f"{x:.6g},{y:.6g}" for x, y in points)


def _outline(dot: Dot) -> tuple[tuple[Number, Number], ...]:
    """The corners of a marker that is not a circle."""
    x, y, r = dot.x, dot.y, dot.radius
    if dot.marker == "square":
        side = 0.9 * r
        corners = ((-side, -side), (side, -side), (side, side), (-side, side))
    elif dot.marker == "diamond":
        corners = ((0, -1.25 * r), (1.25 * r, 0), (0, 1.25 * r), (-1.25 * r, 0))
    else:
        corners = (
            (0, -1.2 * r),
            (1.1 * r, 0.8 * r),
            (-1.1 * r, 0.8 * r),
            (0, -1.2 * r),
        )
    return tuple((x + dx, y + dy) for dx, dy in corners)


def _draw(axes: Axes, shape: Shape, order: int) -> None:
    """Draws a shape with matplotlib, in the light theme."""
    match shape:
        case Box():
            axes.add_patch(_rectangle(shape, order))
        case Stroke():
            axes.add_line(_line(shape, order))
        case Area():
            fill, alpha = _light(shape.fill), shape.opacity
            area = Polygon(shape.points, fc=fill, ec="none", alpha=alpha, zorder=order)
            axes.add_patch(area)
        case Dot():
            _draw_dot(axes, shape, order)
        case Label():
            _draw_text(axes, shape, order)


def _draw_dot(axes: Axes, dot: Dot, order: int) -> None:
    colour = _light(dot.colour)
    axes.plot(
        dot.x,
        dot.y,
        MARKERS[dot.marker],
        ms=1.8 * dot.radius,
        mec=colour,
        mfc="white" if dot.hollow else colour,
        zorder=order,
    )


def _draw_text(axes: Axes, label: Label, order: int) -> None:
    axes.text(
        label.x,
        label.y,
        label.text.replace("$", r"\$"),
        size=label.size,
        ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
        va="baseline",
        weight="bold" if label.bold else "normal",
        color=_light(label.colour),
        rotation=90 if label.upright else 0,
        rotation_mode="anchor",
        zorder=order,
    )


def _rectangle(box: Box, order: int) -> Rectangle:
    return Rectangle(
        (box.x, box.y),
        box.width,
        box.height,
        fc=_light(box.fill),
        ec=_light(box.stroke),
        lw=box.thickness,
        zorder=order,
    )


def _line(shape: Stroke, order: int) -> Line2D:
    xs, ys = zip(*shape.points, strict=True)
    dashes = tuple(d / shape.thickness for d in shape.dash)
    style: Any = (0, dashes) if dashes else "-"
    colour = _light(shape.colour)
    return Line2D(xs, ys, color=colour, lw=shape.thickness, ls=style, zorder=order)


def _light(colour: str | None) -> str:
    return "none" if colour is None else LIGHT.get(colour, colour)
