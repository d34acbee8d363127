"""The picture shows the dropped and the kept units of each arrow and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop import Add, Masks, Mix
from rdrop.sites import SITES

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rdrop import plot

WHITE, GREY = "#ffffff", plot.GREY
BLUE, ORANGE = plot.COLOURS["inputs"], plot.COLOURS["recurrent"]


def drawn(masks, **options):
    """The colour of each square from left to right, and how many are crossed out."""
    axes = Figure().subplots()
    plot.masks(masks, axes=axes, **options)
    squares = [p for p in axes.patches if type(p) is Rectangle]
    squares.sort(key=lambda square: square.get_x())
    return [to_hex(square.get_facecolor()) for square in squares], len(axes.lines) // 2


def as_mask(*values):
    return jnp.asarray(values, jnp.float32)[None, None]


def test_dropped_unit_is_white_and_crossed_out():
    colours, crosses = drawn(Masks(inputs=as_mask(0, 2, 0, 2)), time=1)
    assert colours == [WHITE, BLUE, WHITE, BLUE]
    assert crosses == 2


def test_horizontal_arrows_have_the_other_colour():
    colours, crosses = drawn(Masks(recurrent=as_mask(1, 0)), time=1)
    assert colours == [ORANGE, WHITE]
    assert crosses == 1


def test_zoned_unit_is_grey_and_not_crossed_out():
    colours, crosses = drawn(Masks(hidden_state=Mix(as_mask(1, 0, 1))), time=1)
    assert colours == [GREY, ORANGE, GREY]
    assert crosses == 0


def test_larger_noise_is_darker():
    axes = Figure().subplots()
    plot.masks(Masks(hidden_state=Add(as_mask(0.1, -0.2))), time=1, axes=axes)
    squares = [p for p in axes.patches if type(p) is Rectangle]
    assert [square.get_alpha() for square in squares] == [0.5, 1.0]
    assert not axes.lines


def test_held_mask_looks_the_same_at_each_step_and_others_do_not():
    held = as_mask(0, 1)
    assert drawn(Masks(inputs=held), time=3)[0] == [WHITE, BLUE] * 3
    steps = jnp.stack([as_mask(0, 1), as_mask(1, 0)])
    assert drawn(Masks(inputs=steps), time=2)[0] == [WHITE, BLUE, BLUE, WHITE]


def test_each_example_has_its_own_picture():
    masks = Masks(inputs=jnp.concatenate([as_mask(0, 1), as_mask(1, 0)]))
    assert drawn(masks, time=1, example=0)[0] == [WHITE, BLUE]
    assert drawn(masks, time=1, example=1)[0] == [BLUE, WHITE]


def test_only_so_many_units_are_shown():
    assert len(drawn(Masks(inputs=as_mask(*[1] * 9)), time=1, units=4)[0]) == 4


def test_masks_of_every_site_are_drawn(rng):
    """Gates, and rows of kernels, are rows of squares."""

    def mask(site):
        shape = (2, 3, 4) if site.on_weights else (2, 3, 1 + site.per_gate, 4)
        values = rng.integers(2, size=shape).astype(np.float32)
        return Mix(values) if "zoneout" in site.kinds else values

    masks = Masks(**{name: mask(site) for name, site in SITES.items()})
    axes = plot.masks(masks, time=2, title="every site")
    assert axes.get_title() == "every site"
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    assert canvas.buffer_rgba().nbytes
    squares = [p for p in axes.patches if type(p) is Rectangle]
    rows = [2 if site.on_weights else 1 + site.per_gate for site in SITES.values()]
    assert len(squares) == 2 * 4 * sum(rows)
    texts = [text.get_text() for text in axes.texts]
    assert all(texts.count(site.symbol) >= 2 for site in SITES.values())


def test_states_lie_after_their_cell_and_inputs_below_it():
    """Of each site, the centre of its strip at the first step."""
    for name, (x, y) in {
        "inputs": (0, -1.75),
        "outputs": (0, 1.75),
        "recurrent": (-plot.PITCH / 2, 0),
        "hidden_state": (plot.PITCH / 2, 0),
        "cell_state": (0, -0.55),
    }.items():
        axes = plot.masks(Masks(**{name: as_mask(1)}), time=1, axes=Figure().subplots())
        (square,) = [p for p in axes.patches if type(p) is Rectangle]
        np.testing.assert_allclose(square.get_center(), (x, y), atol=1e-9)


def test_masks_of_nothing_are_the_bare_network():
    assert drawn(Masks(), time=2) == ([], 0)


def test_more_steps_than_the_masks_have_are_rejected():
    masks = Masks(inputs=jnp.ones((2, 1, 1, 3)))
    message = "`time` must be at most the 2 steps of `inputs`, got"
    with pytest.raises(ValueError, match=message):
        drawn(masks, time=3)


@pytest.mark.parametrize("example", [2, 5])
def test_example_beyond_the_batch_is_rejected(example):
    masks = Masks(update=jnp.ones((2, 1, 3)))
    message = f"`example` must be below the batch of 2, got {example}"
    with pytest.raises(ValueError, match=message):
        drawn(masks, time=1, example=example)


def test_a_mask_shared_by_the_batch_is_drawn_for_every_example():
    assert drawn(Masks(update=as_mask(0, 1)), time=1, example=3)[0] == [WHITE, ORANGE]


def test_arrays_of_jax_are_drawn_too():
    masks = jax.jit(lambda: Masks(inputs=as_mask(0, 1)))()
    assert drawn(masks, time=1)[0] == [WHITE, BLUE]
