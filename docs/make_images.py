"""Pictures of the README and the docs: `python docs/make_images.py [RUNS]`.

`masks.png` is drawn from the library alone, and `papers.svg` and `linear.svg` from the
results in configs/results. The others are drawn from the runs of
configs/vowels_*.toml that are in the folder RUNS, by default `runs`.
"""

import sys
from pathlib import Path

import jax
import make_linear
import numpy as np
from make_tables import papers
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import rdrop
from experiments import report
from experiments.papers import read_result
from rdrop import plot, presets

IMAGES = Path(__file__).parent / "images"
UNITS, TIME = 6, 4
COLUMNS = 4  # panels side by side
METHODS = {
    "Keras: held over the sequence, one mask per gate": presets.keras(0.4, 0.4),
    "Gal (tied): held over the sequence, gates share": presets.gal(0.4, 0.4),
    "Zaremba: vertical arrows only, new at each step": presets.zaremba(0.4),
    "Semeniuta: only the update that is added to the memory": presets.semeniuta(0.4),
    "zoneout: grey units keep their old value": presets.zoneout(0.4, 0.4),
}
LEGEND = """Vertical arrows, blue: the input stream.
Keras' dropout masks x into the cell.

Horizontal arrows, orange: the recurrent stream.
Keras' recurrent_dropout masks h into the cell.

A strip is a mask, a square a unit. There is one row
per gate if each gate has its own mask.

filled: passes      crossed out: dropped"""
# The picture of a report, and its runs, by the name of the image.
REPORTS = {
    "plane": ("plane", ["vowels_plane"]),
    "methods": ("methods", ["vowels_methods"]),
    "concrete": ("learned_on_plane", ["vowels_plane", "vowels_concrete"]),
}


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


def draw_papers() -> Figure:
    """Draws the learning curves of the rows of papers that were run."""
    rows = [(p, paper, read_result(p)) for p, paper in papers().items()]
    rows = [row for row in rows if row[2] is not None]
    height = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.5 * height), layout="constrained")
    panels = figure.subplots(height, COLUMNS, squeeze=False).ravel()
    for axes, (path, paper, result) in zip(panels, rows, strict=False):
        kept = (result["curves"], result["valid"], result["test"])
        for curve, valid, test in zip(*kept, strict=True):
            axes.plot(range(1, len(curve) + 1), curve, color="tab:blue", lw=1)
            epoch = 1 + np.nanargmin(np.abs(np.array(curve, float) - valid))
            axes.plot(epoch, test, "o", ms=4, color="tab:red")
        if paper.test:
            axes.axhline(paper.test, color="tab:red", ls="--", lw=1)
        low = min(*result["test"], *result["valid"], paper.test or np.inf)
        axes.set_ylim(0.97 * low, 1.5 * low)
        axes.set_title(path.stem, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(result["unit"], fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    figure.suptitle(
        "validation, each epoch (blue), our test (dots), published test (dashed)",
        fontsize=9,
    )
    return figure


def draw_reports(root: Path) -> None:
    """Draws the pictures whose runs are in a folder."""
    for name, (picture, runs) in REPORTS.items():
        folders = [root / run for run in runs]
        if all((folder / "results.jsonl").exists() for folder in folders):
            report.write_figure(folders, picture, IMAGES / f"{name}.png")


if __name__ == "__main__":
    draw_masks().savefig(IMAGES / "masks.png", dpi=110)
    draw_papers().savefig(IMAGES / "papers.svg", metadata={"Date": None})
    make_linear.draw().savefig(IMAGES / "linear.svg", metadata={"Date": None})
    draw_reports(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
