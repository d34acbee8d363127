"""Pictures: dropped units in the unrolled network, reliability and coverage.

Needs matplotlib, from a checkout of rdrop: `pip install '.[plot]'`.
"""

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from rdrop.calibration import Coverage, Reliability
from rdrop.dropout import Masks
from rdrop.noise import Add, Mix
from rdrop.sites import SITES

__all__ = ["coverage", "masks", "reliability"]

COLOURS = {"inputs": "#1f6fb4", "recurrent": "#e07b1a"}
GREY = "#9a9a9a"
PITCH, SQUARE = 3.6, 0.2
ROWS = 4
LARGEST = 160  # area of the dot of the fullest bin, in square points


def masks(
    masks: Masks,
    time: int = 4,
    example: int = 0,
    units: int = 6,
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Draws the dropped units at each arrow and step of the unrolled network.

    A site is a strip of squares, one per unit, with one row per gate if gates have
    separate masks. A unit that passes is filled, a dropped one is white and crossed
    out, and a state that keeps its old value is grey. Added noise is the darker, the
    larger it is. Blue belongs to the vertical arrows, orange to the horizontal ones. A
    mask held over the sequence looks the same at all steps.

    Args:
        masks: as `rdrop.draw` returns them for a sequence.
        time: steps to draw; at most the steps T of the masks.
        example: index of the example in the batch.
        units: number of units of each strip to draw, at most.
        title: title of the picture.
        axes: axes to draw on; by default a new figure.

    Returns:
        The axes; `axes.figure.savefig(path)` stores the picture.

    Raises:
        ValueError: the masks have fewer steps or examples than asked for.
    """
    strips = {
        site: [_strip(site, mask, step, example)[:ROWS, :units] for step in range(time)]
        for site, mask in masks.sites()
    }
    if axes is None:
        size = (1.7 * time + 0.6, 3.2)
        axes = Figure(figsize=size, layout="constrained").subplots()
    for step in range(time):
        _draw_cell(axes, step)
    for site, steps in strips.items():
        form = type(getattr(masks, site))
        largest = np.abs(steps).max(initial=0) or 1
        for step, strip in enumerate(steps):
            opacity = np.abs(strip) / largest if form is Add else np.ones_like(strip)
            _draw_strip(axes, site, step, strip, form is Mix, opacity)
    axes.set(xlim=(-PITCH + 0.4, PITCH * time - 0.4), ylim=(-2.6, 2.6), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, weight="bold")
    return axes


def reliability(
    measured: Reliability,
    label: str = "",
    colour: str = "black",
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Draws a reliability diagram: accuracy against confidence, bin by bin.

    A dot is a bin, its area in proportion to the predictions in it; empty bins have
    none. Calibrated predictions lie on the dashed diagonal, overconfident ones below.

    Args:
        measured: as `rdrop.calibration.reliability` returns it.
        label: label of the dots, for a legend.
        colour: colour of the dots.
        title: title of the picture.
        axes: axes to add the dots to; by default a new figure.

    Returns:
        The axes.
    """
    axes = axes or _square_axes()
    counts, confidence, accuracy = (
        np.asarray(values)[np.asarray(measured.counts) > 0] for values in measured
    )
    areas = LARGEST * counts / counts.max(initial=1)
    axes.plot((0, 1), (0, 1), color=GREY, ls="--", lw=1, zorder=1)
    axes.plot(confidence, accuracy, color=colour, lw=1, zorder=2)
    axes.scatter(
        confidence, accuracy, areas, color=colour, alpha=0.6, label=label, zorder=3
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.03, 1.03))
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(title, fontsize=10, weight="bold")
    return axes


def coverage(
    measured: Coverage,
    label: str = "",
    colour: str = "black",
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Draws the accuracy of the most certain predictions against their share.

    Args:
        measured: as `rdrop.calibration.coverage` returns it.
        label: label of the curve, for a legend.
        colour: colour of the curve.
        title: title of the picture.
        axes: axes to add the curve to; by default a new figure.

    Returns:
        The axes.
    """
    axes = axes or _square_axes()
    axes.plot(*map(np.asarray, measured), color=colour, lw=1.5, label=label)
    axes.set(xlabel="share kept, most certain first", ylabel="accuracy", xlim=(0, 1.02))
    axes.set_title(title, fontsize=10, weight="bold")
    return axes


def _square_axes() -> Axes:
    return Figure(figsize=(4, 4), layout="constrained").subplots()


def _strip(site, mask, step, example) -> Float[np.ndarray, "rows units"]:
    """The values of one step and example; for a kernel, of its first gate."""
    values = np.asarray(jax.tree.leaves(mask)[0])
    if SITES[site].on_weights:
        return values[:, 0]
    if values.ndim == 4:
        if step >= len(values):
            raise ValueError(
                f"`time` must be at most the {len(values)} steps of `{site}`, got more."
            )
        values = values[step]
    if len(values) == 1:
        return values[0]
    if example >= len(values):
        raise ValueError(
            f"`example` must be below the batch of {len(values)}, got {example}."
        )
    return values[example]


def _draw_cell(axes, step) -> None:
    """A cell at its place, with the arrows into and out of it."""
    x = step * PITCH
    axes.add_patch(
        FancyBboxPatch(
            (x - 0.75, -0.75),
            1.5,
            1.5,
            boxstyle="round,pad=0.05",
            fc="none",
            ec="black",
        )
    )
    subscript = step % 10
    axes.text(x, -2.45, f"$x_{subscript}$", ha="center", va="center", fontsize=9)
    axes.text(x, 2.45, f"$y_{subscript}$", ha="center", va="center", fontsize=9)
    for start, end in (
        ((x, -2.25), (x, -0.8)),
        ((x, 0.8), (x, 2.25)),
        ((x - PITCH + 0.8, 0), (x - 0.8, 0)),
        ((x + 0.8, 0), (x + PITCH - 0.8, 0)),
    ):
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=GREY)
        )


def _draw_strip(axes, site, step, strip, mixed, opacity) -> None:
    """The squares of one site at one step, and their label."""
    right, y = SITES[site].place
    x = (step + right) * PITCH
    colour = COLOURS[SITES[site].stream]
    rows, columns = strip.shape
    left, top = x - columns * SQUARE / 2, y + rows * SQUARE / 2
    for row, column in np.ndindex(rows, columns):
        corner = (left + column * SQUARE, top - (row + 1) * SQUARE)
        style = {"colour": colour, "mixed": mixed, "alpha": opacity[row, column]}
        _draw_square(axes, corner, strip[row, column], **style)
    label = SITES[site].symbol
    axes.text(x, top + 0.03, label, ha="center", va="bottom", fontsize=7, color=colour)


def _draw_square(axes, corner, value, colour, mixed, alpha) -> None:
    passes = value < 1 if mixed else value != 0
    fill = colour if passes else GREY if mixed else "white"
    edge = colour if fill == "white" else "white"
    axes.add_patch(
        Rectangle(
            corner,
            SQUARE,
            SQUARE,
            fc=fill,
            ec=edge,
            lw=0.5,
            alpha=alpha,
            zorder=3 + (edge == colour),
        )
    )
    if not passes and not mixed:
        x, y = corner
        for ends in ((y, y + SQUARE), (y + SQUARE, y)):
            axes.plot((x, x + SQUARE), ends, color=colour, lw=0.6, zorder=5)
