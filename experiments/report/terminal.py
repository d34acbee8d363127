"""Terminal tables that fit 80 columns."""

import xarray as xr
from rich import box
from rich import table as rich_table
from rich.text import Text

from experiments.axes import value_text
from experiments.report import lanes
from experiments.report.lanes import PLANE, Setting
from experiments.report.tables import Table
from experiments.wording import mean_sd

CHOSEN = "bold green"


def plane_grid(data: xr.Dataset) -> rich_table.Table:
    """Returns the plane as a table; its lowest rate is at the bottom, as in the map."""
    label = lanes.loss_label(data)
    grid = _empty(
        f"{label[:1].upper()}{label[1:]}, lower is better, mean ± sd over seeds",
        "columns: recurrent_dropout; bold: chosen on validation data",
    )
    rows, columns = (sorted(lanes.axes(data)[path]) for path in PLANE)
    grid.add_column("dropout", justify="right")
    for rate in columns:
        grid.add_column(value_text(rate), justify="center", no_wrap=True)
    best = lanes.best(data)
    for row in reversed(rows):
        settings = [dict(zip(PLANE, (row, column), strict=True)) for column in columns]
        cells = [_cell(data, setting, setting == best) for setting in settings]
        grid.add_row(value_text(row), *cells)
    return grid


def tested_table(table: Table, title: str, other: str) -> rich_table.Table:
    """Returns rows with the validation and test loss, and their difference or test."""
    tested = len(table.tested) > 1
    found = _empty(title, "bold: chosen on validation data")
    for heading in table.names:
        found.add_column(heading.replace(".", ".\n"), no_wrap=True)
    for heading in ("test", "valid", f"to {other}"):
        found.add_column(heading, justify="right", no_wrap=True)
    if tested:
        found.add_column("p\n(corr.)", justify="right", no_wrap=True)
        found.add_column("verdict", min_width=7)
    for row in table.rows:
        difference = row.tested[1] if tested else row.tested[0]
        cells = [
            *row.names,
            row.numbers[0],
            row.numbers[1].split()[0],
            difference.split(" (")[0],
        ]
        if tested:
            cells += [row.tested[2], row.tested[0]]
        found.add_row(*cells, style=CHOSEN if row.chosen else None)
    return found


def numbers_table(table: Table, title: str) -> rich_table.Table:
    """Returns rows of names and numbers."""
    found = _empty(title, "bold: chosen on validation data")
    for heading in table.names:
        found.add_column(heading.replace(".", ".\n"), no_wrap=True)
    for heading in table.numbers:
        found.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        found.add_row(*row.names, *row.numbers, style=CHOSEN if row.chosen else None)
    return found


def _empty(title: str, caption: str) -> rich_table.Table:
    return rich_table.Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def _cell(data: xr.Dataset, setting: Setting, chosen: bool) -> Text:
    return Text(mean_sd(lanes.losses_at(data, setting)), CHOSEN if chosen else "")
