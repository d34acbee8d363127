"""Report: one HTML file that explains a run and opens without a network."""

import base64
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from experiments import plots
from experiments.config import Config, to_toml
from experiments.results import Choice, Plane, answer, environment

TEMPLATE = Path(__file__).parent / "report.html.jinja"


def write(
    folder: Path, config: Config, plane: Plane, choice: Choice, timing: dict[str, float]
) -> Path:
    """Writes the figures and `report.html` into the folder of a run.

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
    for name, figure in figures.items():
        plots.save(figure, folder / name)
    jinja = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    jinja.filters["code"] = _code
    html = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=config,
        toml=to_toml(config),
        answer=answer(plane, choice),
        rows=rows(plane, choice),
        interrupted=plane.metrics.train_nll.shape[-1] < config.train.epochs,
        epochs=plane.metrics.train_nll.shape[-1],
        images={name: _inline(folder / f"{name}.png") for name in figures},
        colours=plots.COLOURS,
        timing=timing,
        lanes=plane.final("test_nll").size,
        environment=environment(),
        folder=folder.as_posix(),
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def rows(plane: Plane, choice: Choice) -> list[dict]:
    """Returns the figures of every cell, mean and standard deviation over seeds."""
    return [
        {
            "inputs": plane.inputs[i],
            "recurrent": plane.recurrent[r],
            "chosen": (i, r) == choice.best,
        }
        | {
            metric: _mean_sd(plane.final(metric)[i, r])
            for metric in ("valid_nll", "test_nll", "test_accuracy")
        }
        for i, r in np.ndindex(len(plane.inputs), len(plane.recurrent))
    ]


def _mean_sd(values) -> str:
    sd = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.3f} ±{sd:.3f}"


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _code(text: str) -> Markup:
    """Turns `backticks` into code elements."""
    parts = str(Markup.escape(text)).split("`")
    return Markup(
        "".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(parts))
    )
