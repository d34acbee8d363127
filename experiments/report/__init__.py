"""Report: one HTML file that explains a run or several and opens without a network."""

import base64
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from rich.console import Console

import rdrop
from experiments.config import ConfigError
from experiments.report import across, answers, outcomes, plots, tables
from experiments.report.figures import Drawing, drawings
from experiments.report.outcomes import PLANE, Outcomes
from experiments.report.terminal import grid, table
from experiments.results import WHOLE, StorageError

TEMPLATES = Path(__file__).parent / "templates"
MOST_ROWS = 20


def write(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or one that compares several.

    Of one run, the figures are saved in its folder as well, as NAME.png and NAME.svg.

    Args:
        folders: of the runs.
        out: where the report goes; by default `report.html` in the folder of the one
            run, and `runs/report.html` for several.

    Returns:
        The path of the report.

    Raises:
        ConfigError: a folder cannot be read.
        StorageError: the report cannot be written.
    """
    runs = [outcomes.read(folder) for folder in folders]
    drawn = drawings(runs)
    images = {name: _pictures(drawing) for name, drawing in drawn.items()}
    if len(runs) == 1:
        for name, kinds in images.items():
            for kind, picture in kinds.items():
                _write(folders[0] / f"{name}.{kind}", picture)
    default = (folders[0] if len(runs) == 1 else Path("runs")) / "report.html"
    path = out or default
    html = _render(runs, drawn, {name: k["png"] for name, k in images.items()})
    _write(path, html.encode())
    return path


def figure(folders: Sequence[Path], name: str, out: Path | None = None) -> Path:
    """Draws one figure into a .png, .svg or .pdf file.

    Args:
        folders: of the runs.
        name: of the figure, as in their report.
        out: the file; by default NAME.png.

    Returns:
        The path of the file.

    Raises:
        ConfigError: a folder cannot be read, or the runs have no figure of that name.
        StorageError: the file cannot be written.
    """
    drawn = drawings([outcomes.read(folder) for folder in folders])
    if name not in drawn:
        raise ConfigError(f"no figure {name!r}; there are {', '.join(drawn)}.")
    path = out or Path(f"{name}.png")
    kind = path.suffix.removeprefix(".")
    if kind not in plots.UNDATED:
        raise ConfigError(f"{path}: must end in .{', .'.join(plots.UNDATED)}.")
    _write(path, plots.encode(drawn[name].draw(), kind))
    return path


def summary(folder: Path) -> None:
    """Prints the answer of a run, and its figures as a compact table.

    Raises:
        ConfigError: the folder cannot be read.
    """
    run = outcomes.read(folder)
    console = Console(highlight=False)
    if run.is_plane():
        console.print(grid(run))
    elif answers.METHOD in run.axes:
        heading = f"Best setting of each method: {plots.loss_label(run, 'mean')}"
        console.print(table(tables.of_methods(run), heading))
    else:
        heading = f"Best on validation: {plots.loss_label(run, 'mean')}"
        console.print(table(tables.of_best(run, MOST_ROWS), heading))
    for warning in answers.warnings(run) + answers.diverged(run)[:MOST_ROWS]:
        console.print(warning.replace("`", ""), style="red")
    if run.is_plane() and (best := run.best()) is not None:
        chosen = answers.describe(run.settings[best]).replace("`", "")
        console.print(f"Chosen on validation data: {chosen}.\n")
    console.print(answers.answer(run).replace("`", ""))
    console.print(f"\n{_spent(run)}")


def _spent(run: Outcomes) -> str:
    programs = run.run.get("programs", [])
    lanes = _several(len(run.settings) * len(run.seeds), "lane")
    times = {
        what: sum(p.get(f"{key}_seconds", 0) for p in programs)
        for what, key in (("compiling", "compile"), ("training", "train"))
    }
    spent = ", ".join(f"{seconds:.1f} s {what}" for what, seconds in times.items())
    count = len({str(p.get("setting")) for p in programs})
    return (
        f"{lanes} in {_several(count, 'program')}: {spent}."
        if programs
        else f"{lanes}."
    )


def _several(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _render(
    runs: Sequence[Outcomes], drawn: dict[str, Drawing], pngs: dict[str, bytes]
) -> str:
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["code"] = _code
    folders = shlex.join(run.folder.as_posix() for run in runs)
    name, values = ("run", _one(runs[0])) if len(runs) == 1 else ("runs", _all(runs))
    return jinja.get_template(f"{name}.html.jinja").render(
        drawings=drawn,
        images={name: _inline(png) for name, png in pngs.items()},
        colours=plots.COLOURS,
        command=f"python -m experiments report {folders}",
        runs=runs,
        **values,
    )


def _one(run: Outcomes) -> dict:
    """What the template of one run shows besides its figures."""
    by_method = answers.METHOD in run.axes
    return {
        "run": run,
        "heading": _heading(run),
        "answer": answers.answer(run),
        "warnings": answers.warnings(run),
        "diverged": answers.diverged(run),
        "lifetimes": _lifetimes(run) if set(PLANE) <= set(run.axes) else None,
        "settings": tables.of_settings(run),
        "methods": tables.of_methods(run) if by_method else None,
        "presets": rdrop.presets.rows() if by_method else [],
        "loss": plots.loss_label(run, "").strip(),
        "spent": _spent(run),
    }


def _all(runs: Sequence[Outcomes]) -> dict:
    """What the template of several runs shows besides its figures."""
    compared = across.compare_runs(runs)
    return {
        "heading": "Runs beside each other",
        "answer": across.answer(compared),
        "warnings": [f"`{r.name}`: {w}" for r in runs for w in answers.warnings(r)],
        "best": tables.of_runs(compared),
        "spent": [_spent(run) for run in runs],
    }


def _heading(run: Outcomes) -> str:
    if run.is_plane():
        return "`dropout` or `recurrent_dropout`?"
    if answers.METHOD in run.axes:
        return "Methods of recurrent dropout"
    return " and ".join(f"`{path}`" for path in run.axes) or "One setting"


def _lifetimes(run: Outcomes) -> list[str]:
    """How long a mask of each of the two rates lives."""
    sites = tomllib.loads(run.config).get("dropout", {})
    lives = [sites.get(s, {}).get("per", "sequence") for s in ("inputs", "recurrent")]
    return [" or ".join(np.atleast_1d(life)) for life in lives]


def _pictures(drawing: Drawing) -> dict[str, bytes]:
    """Draws each kind afresh: a second layout would move a figure by a hair."""
    return {kind: plots.encode(drawing.draw(), kind) for kind in ("png", "svg")}


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}."
        raise StorageError(f"{path}: {reason} {WHOLE}") from None


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _code(text: str) -> Markup:
    """Turns `backticks` into code elements."""
    parts = str(Markup.escape(text)).split("`")
    return Markup(
        "".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(parts))
    )
