"""Report: one HTML file about one run or several; it opens without a network."""

from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from rich.console import Console

from experiments.config import ConfigError
from experiments.report import data_sets, lanes, searched, sentences, tables
from experiments.report.figures import Drawing, drawings
from experiments.report.findings import by_method, diverged_lanes, warnings
from experiments.report.page import render_page, render_study, time_spent
from experiments.report.rendering import KINDS, encode_scene
from experiments.report.scene import Scene, side_by_side
from experiments.report.terminal import numbers_table, plane_grid, tested_table
from experiments.runs.dataset import load_dataset
from experiments.runs.files import write_bytes
from experiments.search.study import STUDY

MOST_ROWS = 20
MOST_BEST = 5
BASELINE = "the\nbaseline"


def write_report(
    folders: Sequence[Path], out: Path | None = None, margin: float = 0.0
) -> Path:
    """Writes the report of one run, or one that compares several, and returns its path.

    The pictures of one run are also saved in its folder, as NAME.png and NAME.svg.

    Args:
        folders: the runs.
        out: the file; by default `report.html` in the folder of the one run, and
            `runs/report.html` for several.
        margin: differences inside of it are tested for equivalence; 0 for no such test.
            A race has its own.

    Raises:
        ConfigError: a folder has no results, the margin is below 0, or a search or a
            race has one.
        StorageError: a file cannot be read or written.
    """
    if found := _study(folders):
        if margin:
            raise ConfigError("margin: a search compares no settings, so it has none.")
        drawn = searched.drawings(found)
        scenes = {name: drawing.draw() for name, drawing in drawn.items()}
        page = render_study(found, drawn, scenes)
    else:
        runs = [_load(folder, margin) for folder in folders]
        drawn = drawings(runs)
        scenes = {name: drawing.draw() for name, drawing in drawn.items()}
        page = render_page(runs, drawn, scenes)
    if len(folders) == 1:
        for name, panels in scenes.items():
            for kind in ("png", "svg"):
                write_bytes(
                    folders[0] / f"{name}.{kind}", _encode(drawn[name], panels, kind)
                )
    default = (folders[0] if len(folders) == 1 else Path("runs")) / "report.html"
    path = out or default
    write_bytes(path, page.encode())
    return path


def write_figure(folders: Sequence[Path], name: str, out: Path | None = None) -> Path:
    """Writes one picture to a .png, .svg or .pdf file and returns its path.

    Args:
        folders: the runs.
        name: the picture, as their report names it.
        out: the file; by default NAME.png.

    Raises:
        ConfigError: a folder has no results, or the runs have no such picture.
        StorageError: a file cannot be read or written.
    """
    if found := _study(folders):
        drawn = searched.drawings(found)
    else:
        runs = [_load(folder) for folder in folders]
        if name in data_sets.FIGURES:
            data_sets.over_data_sets(runs)  # raises what does not go together
        drawn = drawings(runs)
    if name not in drawn:
        raise ConfigError(f"figure: must be one of {', '.join(drawn)}, got {name!r}.")
    path = out or Path(f"{name}.png")
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise ConfigError(f"{path}: must end in .{', .'.join(KINDS)}.")
    write_bytes(path, _encode(drawn[name], drawn[name].draw(), kind))
    return path


def print_summary(folder: Path, margin: float = 0.0) -> None:
    """Prints the verdict of a run and its results as a compact table.

    Args:
        folder: the run.
        margin: of equivalence, as for `write_report`.

    Raises:
        ConfigError: the folder has no results.
        StorageError: a file cannot be read.
    """
    console = Console(highlight=False, markup=False)
    if found := _study([folder]):
        table = searched.best_table(found, MOST_BEST)
        console.print(numbers_table(table, "The best trials"))
        for text in (searched.verdict(found), searched.advice(found)):
            console.print(sentences.plain(text), soft_wrap=True)
        return
    run = _load(folder, margin)
    console.print(_summary_table(run))
    for warning in warnings(run) + diverged_lanes(run)[:MOST_ROWS]:
        console.print(sentences.plain(warning), style="red")
    best = lanes.best(run)
    if lanes.is_plane(run) and best is not None:
        chosen = sentences.plain(lanes.describe(best))
        console.print(f"Chosen on validation data: {chosen}.")
    for text in (sentences.verdict(run), sentences.answer(run)):
        console.print(sentences.plain(text))
    console.print(f"\n{time_spent(run)}")


def _study(folders: Sequence[Path]) -> searched.Found | None:
    """Returns the study in the one folder, if it is one."""
    studies = [folder for folder in folders if (folder / STUDY).exists()]
    if studies and len(folders) > 1:
        raise ConfigError(f"report: {studies[0]} is a study; it has a report alone.")
    return searched.read_found(studies[0]) if studies else None


def _load(folder: Path, margin: float = 0.0) -> xr.Dataset:
    if not margin >= 0:
        raise ConfigError(f"margin: must be at least 0, got {margin:g}.")
    data = load_dataset(folder)
    if margin and data.attrs["race"]:
        raise ConfigError(f"margin: {folder} is a race, which has its own.")
    return lanes.started(data.assign_attrs(margin=margin or data.attrs["margin"]))


def _summary_table(run: xr.Dataset):
    label = lanes.loss_label(run, "").strip()
    if run.attrs["race"]:
        table = tables.settled_table(run)
        if run.attrs["race"] == "best":
            heading = f"Each setting against the lowest on validation data: {label}"
            return tested_table(table, heading, "the lowest\n(valid)")
        heading = f"Each setting against its baseline: {label}, lower is better"
        return tested_table(table, heading, BASELINE)
    if lanes.is_plane(run):
        return plane_grid(run)
    if by_method(run):
        heading = f"The best setting of each method: {label}, lower is better"
        return tested_table(tables.methods_table(run), heading, BASELINE)
    heading = f"Lowest test loss: {label}, lower is better"
    return tested_table(tables.settings_table(run, MOST_ROWS), heading, BASELINE)


def _encode(drawing: Drawing, panels: Sequence[Scene], kind: str) -> bytes:
    return encode_scene(side_by_side(panels, drawing.columns), kind)
