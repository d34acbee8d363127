"""Page: the HTML of a report, from its templates."""

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from markupsafe import Markup

import rdrop
from experiments.report import data_sets, lanes, searched, sentences, several, tables
from experiments.report.figures import Drawing
from experiments.report.findings import (
    by_method,
    diverged_lanes,
    planned,
    warnings,
)
from experiments.report.lanes import PLANE
from experiments.report.palette import DARK, LIGHT, theme_css
from experiments.report.rendering import inline_svg
from experiments.report.scene import Scene
from experiments.wording import count_text

TEMPLATES = Path(__file__).parent / "templates"
# A longer table is shown on demand: the pictures above it show the same results.
MOST_OPEN_ROWS = 12
MOST_ROWS = 200


def render_page(
    runs: Sequence[xr.Dataset],
    drawn: Mapping[str, Drawing],
    scenes: Mapping[str, Sequence[Scene]],
) -> str:
    """Returns the report of one run or several as one HTML page."""
    name, values = ("run", _one(runs[0])) if len(runs) == 1 else ("runs", _all(runs))
    folders = shlex.join(run.attrs["folder"] for run in runs)
    return _render(name, drawn, scenes, folders, values)


def render_study(
    found: searched.Found,
    drawn: Mapping[str, Drawing],
    scenes: Mapping[str, Sequence[Scene]],
) -> str:
    """Returns the report of a study as one HTML page."""
    values = {
        "heading": searched.heading(found),
        "compared": searched.compared(found),
        "verdict": searched.verdict(found),
        "answer": searched.advice(found),
        "warnings": [],
        "trials": searched.best_table(found, MOST_OPEN_ROWS),
    }
    return _render("search", drawn, scenes, shlex.quote(str(found.folder)), values)


def _render(
    name: str,
    drawn: Mapping[str, Drawing],
    scenes: Mapping[str, Sequence[Scene]],
    folders: str,
    values: Mapping[str, Any],
) -> str:
    """Fills a template; `folders` are those on the command line of the report."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["code"] = _code
    return jinja.get_template(f"{name}.html.jinja").render(
        drawings=drawn,
        pictures={
            n: [Markup(inline_svg(p)) for p in panels] for n, panels in scenes.items()
        },
        light=Markup(theme_css(LIGHT)),
        dark=Markup(theme_css(DARK)),
        command=f"python -m experiments report {folders}",
        **values,
    )


def time_spent(run: xr.Dataset) -> str:
    """Returns how many lanes a run has, and how long its programs took."""
    programs = json.loads(run.attrs["programs"])
    count = count_text(int((run["status"] != "missing").sum()), "lane")
    if not programs:
        return f"{count}."
    different = len({str(program["setting"]) for program in programs})
    compiling = sum(program["compile_seconds"] for program in programs)
    training = sum(program["train_seconds"] for program in programs)
    return (
        f"{count} in {count_text(different, 'program')}: {compiling:.1f} s compiling, "
        f"{training:.1f} s training."
    )


def _one(run: xr.Dataset) -> dict:
    """The texts and tables of one run."""
    compared_by_method = by_method(run)
    settings = tables.settings_table(run, MOST_ROWS)
    count = len(lanes.settings(run))
    tested = not compared_by_method and bool(planned(run)) and run.sizes["seed"] > 1
    return {
        "heading": sentences.heading(run),
        "compared": sentences.compared(run),
        "verdict": sentences.verdict(run),
        "answer": sentences.answer(run),
        "warnings": warnings(run),
        "diverged": diverged_lanes(run),
        "lifetimes": _lifetimes(run) if set(PLANE) <= set(lanes.axes(run)) else None,
        "planned": tables.planned_table(run) if tested else None,
        "methods": tables.methods_table(run) if compared_by_method else None,
        "settings": settings,
        "cut": f"The first {MOST_ROWS} of {count:,} are shown. " * (count > MOST_ROWS),
        "open": len(settings.rows) <= MOST_OPEN_ROWS,
        "presets": rdrop.presets.rows() if compared_by_method else [],
        "race": run.attrs["race"],
        "loss": lanes.loss_label(run, "").strip(),
        "seeds": count_text(run.sizes["seed"], "seed"),
        "epoch": int(run["epoch"].values[-1]),
        "made": _made(run),
    }


def _all(runs: Sequence[xr.Dataset]) -> dict:
    """The texts and tables of several runs."""
    compared = several.compare_runs(runs)
    names = [run.attrs["name"] for run in runs]
    reason = data_sets.refusal(runs)
    over = None if reason else data_sets.over_data_sets(runs)
    several_data = len({run.attrs["data"] for run in runs}) > 1
    return {
        "heading": "Settings over data sets" if over else "Runs compared",
        "compared": f"{', '.join(f'`{name}`' for name in names)}.",
        "verdict": (
            data_sets.verdict(over) if over else several.verdict_runs(compared)
        ),
        "answer": data_sets.answer(over) if over else several.answer_runs(compared),
        "data_sets": tables.data_sets_table(over) if over else None,
        "refusal": reason if several_data else "",
        "warnings": [
            f"`{n}`: {w}"
            for n, run in zip(names, runs, strict=True)
            for w in warnings(run)
        ],
        "best": tables.runs_table(compared),
        "race": any(run.attrs["race"] for run in runs),
        "made": [_made(run) for run in runs],
    }


def _made(run: xr.Dataset) -> dict:
    """How a run was made."""
    kept = ("name", "command", "config", "source", "versions", "platform")
    facts = {name: run.attrs[name] for name in kept}
    programs = json.loads(run.attrs["programs"])
    named = [p | {"name": lanes.describe(p["setting"])} for p in programs]
    return facts | {"spent": time_spent(run), "programs": named}


def _lifetimes(run: xr.Dataset) -> list[str]:
    """The lifetime of a mask of each of the two rates."""
    sites = tomllib.loads(run.attrs["config"]).get("dropout", {})
    lives = [sites.get(s, {}).get("per", "sequence") for s in ("inputs", "recurrent")]
    return [" or ".join(np.atleast_1d(life)) for life in lives]


def _code(text: str) -> Markup:
    """Turns `backticks` into code elements."""
    parts = str(Markup.escape(text)).split("`")
    return Markup(
        "".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(parts))
    )
