"""Pictures: every text is in its place, and colours stay apart on both themes."""

import itertools
import xml.etree.ElementTree

import numpy as np
import pytest
from folders import make_folder
from matplotlib.colors import to_rgb

from experiments import runs
from experiments.report import palette, rendering, scales
from experiments.report.figures import drawings
from experiments.report.lanes import METHOD, PLANE
from experiments.report.scene import (
    Box,
    Dot,
    Label,
    Mark,
    Scene,
    flat_shapes,
    side_by_side,
    text_box,
)

RATES = {PLANE[0]: [0.0, 0.15, 0.3, 0.5], PLANE[1]: [0.0, 0.3, 0.5]}
METHODS = {
    METHOD: ["gal_untied", "tf1_variational", "moon"],
    "dropout.rate": [0.0, 0.1, 0.5],
}
NOISE = np.random.default_rng(0).normal(size=(99, 9))
# Machado, Oliveira and Fernandes 2009, severity 1.
BLINDNESS = {
    "normal": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def by_rate(setting, seed):
    rates = [value for value in setting.values() if not isinstance(value, str)]
    spread = len(str(setting)) % 7
    return 0.1 + sum((r - 0.3) ** 2 for r in rates) + 0.01 * NOISE[spread, seed]


def learn(setting, seed):
    return {"rate_inputs": [0.1, 0.2, 0.3], "rate_recurrent": [0.6, 0.5, 0.45]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """All pictures of seven kinds of runs, of two together, and over data sets."""
    tmp_path = tmp_path_factory.mktemp("runs")
    starts = {PLANE[0]: [0.1, 0.5], PLANE[1]: [0.1, 0.5]}
    folders = {
        "plane": make_folder(tmp_path / "plane", RATES, 3, by_rate),
        "methods": make_folder(tmp_path / "methods", METHODS, 3, by_rate),
        "cells": make_folder(
            tmp_path / "cells", {"model.cell": ["lstm", "gru"], **RATES}, 3, by_rate
        ),
        "learned": make_folder(tmp_path / "learned", starts, 2, by_rate, learned=learn),
        "units": make_folder(
            tmp_path / "units", {"model.units": [32, 64, 1024]}, 3, by_rate
        ),
        "layers": make_folder(
            tmp_path / "layers", {"model.layers": [1, 2]}, 3, by_rate
        ),
        "race": make_folder(
            tmp_path / "race", {"dropout.rate": [0.0, 0.5]}, 6, by_rate
        ),
    }
    found = {kind: runs.load(folder) for kind, folder in folders.items()}
    found["race"] = found["race"].assign_attrs(race="settled")
    found["learned"] = found["learned"].isel(evaluation=slice(2))
    others = [found["plane"].assign_attrs(name=n, data=n) for n in ("other", "third")]
    groups = {kind: [run] for kind, run in found.items()}
    groups["several"] = [found["plane"], found["learned"]]
    groups["data sets"] = [found["plane"], *others]
    return [
        ((kind, name), scene)
        for kind, group in groups.items()
        for name, drawing in drawings(group).items()
        for scene in drawing.draw()
    ]


def overlap(one, other, slack=1.0):
    """Whether two boxes (left, top, right, bottom) share more than a pixel."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide > slack and high > slack


def test_texts_overlap_no_other_text_and_stay_inside(pictures):
    kinds = set()
    for name, scene in pictures:
        kinds.add(name[1])
        labels = [shape for shape in flat_shapes(scene) if isinstance(shape, Label)]
        boxes = [text_box(label) for label in labels]
        for label, box in zip(labels, boxes, strict=True):
            inside = box[0] >= -1 and box[1] >= -1
            inside &= box[2] <= scene.width + 1 and box[3] <= scene.height + 1
            assert inside, (name, label.text, box, scene.width, scene.height)
        for (one, a), (other, b) in itertools.combinations(
            zip(labels, boxes, strict=True), 2
        ):
            assert not overlap(a, b), (name, one.text, other.text)
    assert kinds == {
        *("plane", "comparisons", "methods", "rate_curves", "learning_curves"),
        *("learned_rates", "learned_on_plane", "changes", "ranks", "race"),
    }


def test_numbers_that_are_counts_have_whole_ticks(pictures):
    counts = {"epoch", "seeds", "model.layers", "model.units"}
    seen = set()
    for name, scene in pictures:
        labels = [shape for shape in flat_shapes(scene) if isinstance(shape, Label)]
        axes = [label for label in labels if label.text in counts]
        ticks = [label for a in axes for label in labels if label.y == a.y - 18]
        if name[1] == "ranks":
            ticks = [label for label in labels if label.y == 53]
        for tick in ticks:
            assert float(tick.text).is_integer(), (name, tick.text)
        if ticks:
            seen |= {name[1], *(label.text for label in axes)}
    assert seen >= counts | {"ranks", "race", "learned_rates", "learning_curves"}


def test_names_of_axes_overlap_no_cell(pictures):
    for name, scene in pictures:
        cells = [
            (box.x, box.y, box.x + box.width, box.y + box.height)
            for box in flat_shapes(scene)
            if isinstance(box, Box) and box.fill
        ]
        outside = [shape for shape in scene.shapes if isinstance(shape, Label)]
        for label in outside:
            assert not any(overlap(text_box(label), cell) for cell in cells), (
                name,
                label,
            )


def test_pictures_state_their_results(pictures):
    for name, scene in pictures:
        assert any(character.isdigit() for character in scene.alt), name
        marks = [shape for shape in scene.shapes if isinstance(shape, Mark)]
        assert marks, name
        assert all("nan" not in mark.tip for mark in marks), name


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_colours_have_contrast_on_both_themes(theme):
    roles = set(theme) - {"paper", "grid"}
    assert palette.LIGHT.keys() == palette.DARK.keys()
    for role in roles:
        assert palette.contrast(theme[role], theme["paper"]) >= 4.5, role


def test_numbers_have_contrast_on_every_cell():
    for share in np.linspace(0, 1, 101):
        fill = palette.scale_colour(share)
        assert palette.contrast(palette.text_on(fill), fill) >= 4.5, share


def test_contrast_is_the_published_one():
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def lab(colour, blindness):
    """CIELAB of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = np.array(to_xyz) @ seen / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_kinds_differ_in_colour_dash_and_marker(theme, blindness):
    styles = palette.STYLES.values()
    for one, other in itertools.combinations(styles, 2):
        colours = [lab(theme[style.colour], blindness) for style in (one, other)]
        assert np.linalg.norm(colours[0] - colours[1]) >= 25, (one, other)
        assert one.dash != other.dash
        assert one.marker != other.marker


def test_series_differ():
    styles = palette.series_styles(12)
    assert len({(style.colour, style.dash) for style in styles}) == 12


def test_scales_place_and_tick():
    linear = scales.fit_scale([0.0, 10.0], 0, 100)
    assert linear.place(5) == pytest.approx(50)
    assert linear.ticks() == [0, 2, 4, 6, 8, 10]
    log = scales.fit_scale([0.01, 1.0], 100, 0, log=True)
    assert log.log
    assert log.place(0.1) == pytest.approx(50)
    assert {0.01, 0.1, 1.0} <= set(log.ticks())
    assert not scales.fit_scale([0.0, 1.0], 0, 1, log=True).log
    for values in ([1.0, 3.0], [2.0, 2.0], [1.0, 1e9]):
        whole = scales.fit_scale(values, 0, 1, values[1] > 9, whole=True).ticks()
        assert whole
        assert all(value.is_integer() for value in whole)
    same = scales.fit_scale([3.0, 3.0], 0, 1)
    assert same.place(3) == pytest.approx(0.5)
    assert scales.fit_scale([np.nan], 0, 1).high > scales.fit_scale([np.nan], 0, 1).low


def test_scenes_stand_side_by_side():
    one = Scene(10, 20, (Box(1, 2, 3, 4), Mark((Dot(5, 6),), "tip")), "One.")
    whole = side_by_side([one] * 3, columns=2, gap=4)
    assert (whole.width, whole.height) == (24, 44)
    assert whole.shapes[2] == Box(15, 2, 3, 4)
    assert whole.shapes[5].shapes == (Dot(5, 30),)
    assert whole.alt == "One. One. One."


def test_text_of_a_picture_is_escaped():
    scene = Scene(9, 9, (Label(0, 5, "<&>"), Mark((Dot(1, 1),), '"<tip>')), 'a "<alt>')
    xml.etree.ElementTree.fromstring(rendering.inline_svg(scene))
    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert rendering.encode_scene(scene, kind).startswith(start)
