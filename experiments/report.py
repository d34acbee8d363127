"""Report: one HTML file that explains a run and opens without a network."""

import base64
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

import rdrop
from experiments import plots
from experiments.comparison import Curve
from experiments.config import MethodsConfig, PlaneConfig, to_toml
from experiments.plane import Choice, Plane, answer
from experiments.results import environment, mean_sd

TEMPLATES = Path(__file__).parent / "templates"


def write_plane(
    folder: Path,
    config: PlaneConfig,
    plane: Plane,
    choice: Choice,
    timing: dict[str, float],
) -> Path:
    """Writes the figures and `report.html` of a plane into the folder of its run.

    Args:
        folder: where they go.
        config: the resolved config.
        plane: what came out.
        choice: the cells chosen.
        timing: seconds by what they were spent on.

    Returns:
        The path of the report.
    """
    figures = {
        "plane": plots.plane_map(plane, choice),
        "learning_curves": plots.learning_curves(plane, choice),
    }
    return _write(
        "plane.html.jinja",
        folder,
        config,
        figures,
        command="ablate",
        answer=answer(plane, choice),
        rows=plane_rows(plane, choice),
        epochs=plane.metrics.train_nll.shape[-1],
        timing=timing,
        lanes=plane.final("test_nll").size,
    )


def write_methods(
    folder: Path, config: MethodsConfig, curves: list[Curve], seconds: float
) -> Path:
    """Writes the figure and `report.html` of a comparison into the folder of its run.

    Args:
        folder: where they go.
        config: the resolved config.
        curves: one a method that was trained to the end.
        seconds: that all took.

    Returns:
        The path of the report.
    """
    return _write(
        "methods.html.jinja",
        folder,
        config,
        {"methods": plots.method_curves(curves)},
        command="compare",
        rows=method_rows(curves),
        presets=rdrop.presets.rows(),
        missing=len(config.methods) - len(curves),
        programs=len({curve.same_as for curve in curves}),
        timing={"in all": seconds},
        lanes=len({c.same_as for c in curves}) * len(config.rate) * config.seeds,
    )


def plane_rows(plane: Plane, choice: Choice) -> list[dict]:
    """Returns the figures of every cell, mean and standard deviation over seeds."""
    return [
        {
            "inputs": plane.inputs[i],
            "recurrent": plane.recurrent[r],
            "chosen": (i, r) == choice.best,
        }
        | {
            metric: mean_sd(plane.final(metric)[i, r])
            for metric in ("valid_nll", "test_nll", "test_accuracy")
        }
        for i, r in np.ndindex(len(plane.inputs), len(plane.recurrent))
    ]


def method_rows(curves: list[Curve]) -> list[dict[str, str]]:
    """Returns the best rate of every method and its test figures, the lowest first."""

    def row(curve):
        best = curve.best()
        p = curve.p_value()
        same = "" if curve.same_as == curve.method else f" (= {curve.same_as})"
        return {
            "method": curve.method + same,
            "rate": f"{curve.rates[best]:g}",
            "test_nll": mean_sd(curve.final("test_nll")[best]),
            "test_accuracy": f"{curve.final('test_accuracy')[best].mean():.1%}",
            "p": "-" if np.isnan(p) else f"{p:.2g}",
        }

    def test_nll(curve):
        return curve.final("test_nll")[curve.best()].mean()

    return [row(curve) for curve in sorted(curves, key=test_nll)]


def _write(
    template: str,
    folder: Path,
    config: PlaneConfig | MethodsConfig,
    figures: dict[str, Figure],
    **values,
) -> Path:
    for name, figure in figures.items():
        plots.save(figure, folder / name)
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    jinja.filters["code"] = _code
    html = jinja.get_template(template).render(
        config=config,
        toml=to_toml(config),
        images={name: _inline(folder / f"{name}.png") for name in figures},
        colours=plots.COLOURS,
        environment=environment(),
        folder=folder.as_posix(),
        **values,
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _code(text: str) -> Markup:
    """Turns `backticks` into code elements."""
    parts = str(Markup.escape(text)).split("`")
    return Markup(
        "".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(parts))
    )
