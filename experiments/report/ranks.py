"""Critical-difference pictures: settings at their average ranks over data sets [1].

References:
    [1] Demsar. Statistical comparisons of classifiers over multiple data sets. Journal
        of Machine Learning Research 7, 2006: section 3.2.4, figure 1a.
"""

from typing import Any

import numpy as np

from experiments.aggregate import Ranks
from experiments.report.data_sets import OverDataSets, label
from experiments.report.scales import Scale
from experiments.report.scene import Box, Dot, Label, Mark, Scene, Stroke, text_width
from experiments.wording import p_text

MOST_RANKED = 40
AXIS, TOP, STEP, BAR = 320.0, 62.0, 20.0, 8.0


def critical_differences(over: OverDataSets) -> list[Scene]:
    """Draws the average ranks, the best at the left; bars join what does not differ."""
    ranks = over.ranks
    assert ranks is not None
    order = np.argsort(ranks.average, stable=True).tolist()
    shown = order[:MOST_RANKED]
    half = (len(shown) + 1) // 2
    sides = [shown[:half], shown[half:][::-1]]
    names = [label(setting) for setting in over.settings]
    widths = [max(text_width(names[n], 12) for n in side) for side in sides]
    left = widths[0] + 40
    scale = Scale(1, len(over.settings), left, left + AXIS, whole=True)
    width = left + AXIS + 40 + widths[1]
    groups = [group for group in ranks.groups if group[0] in shown]
    under = TOP + 12 + BAR * len(groups)
    shapes: list[Any] = _axis(ranks, scale)
    for n, group in enumerate(groups):
        shapes.append(_bar(ranks, group, scale, TOP + 10 + BAR * n))
    for side, places in enumerate(sides):
        for row, n in enumerate(places):
            y = under + STEP * (row + 1)
            shapes.append(_setting(names[n], ranks, n, scale, y, (width, side)))
    alt = (
        f"Critical-difference picture of {len(names)} settings. Average ranks: "
        f"{'; '.join(f'{names[n]} {ranks.average[n]:.2f}' for n in shown)}. Critical "
        f"difference {ranks.critical:.2f}; Friedman's test {p_text(ranks.p)}."
    )
    return [Scene(width, under + STEP * half + 16, tuple(shapes), alt)]


def _axis(ranks: Ranks, scale: Scale) -> list[Any]:
    """The axis of the ranks, with the critical difference above it."""
    long = min(ranks.critical, scale.high - scale.low)
    ends = scale.start, scale.place(scale.low + long)
    shapes: list[Any] = [
        Label(scale.start, 14, f"critical difference {ranks.critical:.2f}", 12),
        Stroke(((ends[0], 24), (ends[1], 24)), "inputs", 2.4),
        *(Stroke(((x, 20), (x, 28)), "inputs", 1.5) for x in ends),
        Stroke(((scale.start, TOP), (scale.end, TOP)), "faint", 1.5),
    ]
    for value in scale.ticks(8):
        at = scale.place(value)
        shapes.append(Stroke(((at, TOP - 5), (at, TOP)), "faint", 1))
        shapes.append(Label(at, TOP - 9, f"{value:g}", 11, "middle", colour="faint"))
    return shapes


def _bar(ranks: Ranks, group: list[int], scale: Scale, y: float) -> Stroke:
    """A bar over the settings of a group."""
    ends = [scale.place(float(ranks.average[n])) for n in (group[0], group[-1])]
    return Stroke(((ends[0] - 4, y), (ends[1] + 4, y)), "recurrent", 4)


def _setting(
    name: str, ranks: Ranks, n: int, scale: Scale, y: float, side: tuple[float, int]
) -> Mark:
    """A line from the axis to the name of a setting, at the left or right edge."""
    width, right = side
    at, rank = scale.place(float(ranks.average[n])), float(ranks.average[n])
    edge, end = (width - 4, "end") if right else (4.0, "start")
    length = text_width(name, 12)
    beside = edge - length - 6 if right else edge + length + 6
    box = Box(min(at, edge), y - STEP / 2, abs(edge - at), STEP)
    line = Stroke(((at, TOP), (at, y), (beside, y)), "ink", 1)
    shapes = (
        box,
        line,
        Dot(at, TOP, "ink", "circle", 3),
        Label(edge, y + 4, name, 12, end),
    )
    return Mark(shapes, f"{name}: average rank {rank:.2f}")
