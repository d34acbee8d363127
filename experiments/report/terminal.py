"""Terminal: the figures of a run as tables that fit a screen."""

from rich import box
from rich import table as rich_table

from experiments.report.answers import text
from experiments.report.outcomes import PLANE, Outcomes
from experiments.report.plots import loss_label
from experiments.report.statistics import mean_sd
from experiments.report.tables import Table


def grid(outcomes: Outcomes) -> rich_table.Table:
    """The plane as a table, its first row at the bottom as in the heat map."""
    grid = rich_table.Table(
        title=f"{loss_label(outcomes, 'Test')}, mean ± sd over seeds",
        caption="columns: recurrent_dropout; bold: chosen on validation",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    rows, columns = (sorted(outcomes.axes[path]) for path in PLANE)
    grid.add_column("dropout", justify="right")
    for rate in columns:
        grid.add_column(text(rate), justify="center", no_wrap=True)
    for row in reversed(rows):
        cells = [
            _cell(outcomes, dict(zip(PLANE, (row, c), strict=True))) for c in columns
        ]
        grid.add_row(text(row), *cells)
    return grid


def table(table: Table, title: str) -> rich_table.Table:
    """A table of settings; bold is the one chosen on validation."""
    found = rich_table.Table(
        title=title,
        caption="sorted or chosen by validation; p of the paired test differences",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in table.names:
        found.add_column(heading.replace(".", ".\n"), no_wrap=True)
    for heading in ("valid", "test", "to the\nbaseline", "p\n(Holm)"):
        found.add_column(heading, justify="right", no_wrap=True)
    found.add_column("verdict", min_width=11)
    for row in table.rows:
        verdict, difference, p, _ = row.compared
        found.add_row(
            *row.names,
            row.figures[0].split()[0],
            row.figures[1],
            difference.split()[0],
            p,
            verdict.removesuffix(" than the baseline").removesuffix(" of a difference"),
            style="bold green" if row.chosen else None,
        )
    return found


def _cell(outcomes: Outcomes, setting) -> str:
    s = outcomes.index(setting)
    if s is None:
        return "-"
    figures = mean_sd(outcomes.final(f"test_{outcomes.loss}")[s])
    return f"[bold green]{figures}[/]" if s == outcomes.best() else figures
