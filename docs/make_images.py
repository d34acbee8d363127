"""Pictures of the README: `python docs/make_images.py`."""

from pathlib import Path

import jax
from matplotlib.figure import Figure

import rdrop
from rdrop import plot, presets

IMAGES = Path(__file__).parent / "images"
UNITS, TIME = 6, 4
METHODS = {
    "Keras: held over the sequence, one mask per gate": presets.keras(0.4, 0.4),
    "Gal (tied): held over the sequence, gates share": presets.gal(0.4, 0.4),
    "Zaremba: vertical arrows only, new at each step": presets.zaremba(0.4),
    "Semeniuta: only what is added to the memory": presets.semeniuta(0.4),
    "zoneout: grey units keep their old value": presets.zoneout(0.4, 0.4),
}
LEGEND = """Vertical arrows, blue: the input stream.
Keras' dropout masks x into the cell.

Horizontal arrows, orange: the recurrent stream.
Keras' recurrent_dropout masks h into the cell.

A strip is a mask, a square a unit. There is one row
per gate if each gate has its own mask.

filled: passes      crossed out: dropped"""


def draw_masks() -> Figure:
    """Draws five methods side by side, from the same keys."""
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    panels = figure.subplots(3, 2).ravel()
    cell = rdrop.LSTMCell(UNITS)
    keys = rdrop.stream_keys(jax.random.key(3))
    for axes, (title, dropout) in zip(panels, METHODS.items(), strict=False):
        drawn = rdrop.draw(dropout, keys, cell.sites(UNITS), batch=1, time=TIME)
        plot.masks(drawn, time=TIME, title=title, axes=axes)
    panels[-1].text(0.08, 0.5, LEGEND, fontsize=12, va="center", linespacing=1.4)
    panels[-1].set_axis_off()
    return figure


if __name__ == "__main__":
    draw_masks().savefig(IMAGES / "masks.png", dpi=110)
