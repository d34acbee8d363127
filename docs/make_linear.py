"""The study of noise in linear recurrences: `python docs/make_linear.py RUNS`.

It reads the runs of configs/linear_sites.toml, which docs/linear.md lists, from the
folder RUNS, and keeps their final losses in configs/results/linear_sites.json. The
table and the picture of the page are made from that file.

Each method has the rate with the lowest mean validation loss. Its effect is the log of
the ratio of its test loss to the test loss without noise, paired by seed; the effects
of the linear cells are averaged at each seed. They are tested with t-tests and Holm's
correction, all methods and tasks together; and all sites and tasks together for the
difference of masks held and masks per step.

Shapes:
    N seeds.
"""

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import runs
from experiments.classify.methods import AT_SITES, LIFETIMES
from experiments.report import lanes
from experiments.report.lanes import METHOD
from experiments.runs.records import FINAL
from experiments.statistics import Comparison, compare
from experiments.wording import MINUS, count_text

RESULT = Path(__file__).parents[1] / "configs/results/linear_sites.json"
TASKS = {
    "vowels": "Japanese Vowels",
    "jsb": "JSB Chorales",
    "characters": "PTB characters",
    "copy": "selective copy",
}
GATED = ("lstm", "gru")
CELL, RATE = "model.cell", "dropout.rate"
DIGITS = 5


class Effect(NamedTuple):
    """The effect of a method on a task.

    Attributes:
        linear: mean over the linear cells, tested.
        cells: by the name of each cell, [N].
    """

    linear: Comparison
    cells: dict[str, Float[np.ndarray, "N"]]


def collect(folder: Path) -> dict[str, Any]:
    """Returns the losses of the runs in a folder, by task."""
    found = {task: sorted(folder.glob(f"linear_{task}*/")) for task in TASKS}
    return {task: _collect(folders) for task, folders in found.items() if folders}


def effects(kept: dict[str, Any]) -> dict[tuple[str, str], Effect]:
    """Returns the effect of each method on each task, in one family."""
    found = {
        (task, method): _cells(rows, method)
        for task, rows in kept.items()
        for method in _methods()
    }
    tested = compare([(x := _linear(cells), 0 * x) for cells in found.values()])
    return {
        key: Effect(comparison, cells)
        for (key, cells), comparison in zip(found.items(), tested, strict=True)
        if comparison is not None
    }


def lifetimes(kept: dict[str, Any]) -> dict[tuple[str, str], Comparison | None]:
    """Returns the effect of masks per step minus that of held masks, by task and site.

    The mean is over the linear cells; all are one family.
    """
    keys = [(task, site) for task in kept for site in AT_SITES]
    step, held = (
        [_linear(_cells(kept[task], f"{site}_{word}")) for task, site in keys]
        for word in ("step", "held")
    )
    compared = compare(list(zip(step, held, strict=True)))
    return dict(zip(keys, compared, strict=True))


def table() -> str:
    """Returns the effects as a Markdown table: a row per method, a column per task."""
    found = effects(json.loads(RESULT.read_text()))
    tested = {key: effect.linear for key, effect in found.items()}
    return _by_task("noise", _methods(), tested)


def lifetimes_table() -> str:
    """Returns the differences of lifetimes as a Markdown table."""
    return _by_task("site", AT_SITES, lifetimes(json.loads(RESULT.read_text())))


def cost_table() -> str:
    """Returns what each run took as a Markdown table."""
    lines = ["| task | cells | rates | lanes | time |", "|---|---|---|---|---|"]
    for task, rows in json.loads(RESULT.read_text()).items():
        cells = ", ".join(rows["baseline"])
        rates = ", ".join(f"{rate:g}" for rate in rows["rates"])
        minutes = round(rows["seconds"] / 60)
        lines.append(
            f"| {TASKS[task]} | {cells} | {rates} | {rows['lanes']:,} | {minutes} min |"
        )
    return "".join(f"{line}\n" for line in lines)


def draw() -> Figure:
    """Draws the effects: a panel per task, a row per method."""
    kept = json.loads(RESULT.read_text())
    found, methods = effects(kept), _methods()[::-1]
    figure = Figure(figsize=(3.3 * len(kept) + 1.2, 4.2), layout="constrained")
    panels = figure.subplots(1, len(kept), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, kept, strict=True):
        axes.axvline(0, color="0.6", lw=1, ls="--")
        for row, method in enumerate(methods):
            _draw_row(axes, row, found[task, method])
        axes.set_title(TASKS[task], fontsize=10)
        axes.set_xlabel("change of the test loss, %")
    panels[0].set_yticks(range(len(methods)), methods)
    handles, names = panels[0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=9
    )
    return figure


def _by_task(
    heading: str,
    names: Iterable[str],
    found: Mapping[tuple[str, str], Comparison | None],
) -> str:
    """A Markdown table with a row per name and a column per task."""
    tasks = list(dict.fromkeys(task for task, _ in found))
    lines = [
        f"| {heading} | {' | '.join(TASKS[task] for task in tasks)} |",
        "|---" * (1 + len(tasks)) + "|",
    ]
    for name in names:
        cells = [_text(found[task, name]) for task in tasks]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def _draw_row(axes, row: int, effect: Effect) -> None:
    """The mean of the linear cells with its interval, and each cell."""
    linear = effect.linear
    ends = _percent(np.array([linear.low, linear.high]))
    axes.plot(ends, [row, row], color="tab:blue", lw=2)
    fill = "tab:blue" if linear.differs else "white"
    style = {"marker": "o", "ls": "", "mec": "tab:blue", "ms": 7}
    name = "linear cells, mean" + ("" if linear.differs else " (not settled)")
    mean = _percent(linear.difference)
    axes.plot(mean, row, mfc=fill, label=name, zorder=3, **style)
    for cell, values in effect.cells.items():
        gated = cell in GATED
        axes.plot(
            _percent(values.mean()),
            row + (-0.28 if gated else 0.28),
            marker="s" if gated else "|",
            ls="",
            color="tab:orange" if gated else "tab:blue",
            ms=4 if gated else 6,
            label="LSTM, GRU" if gated else "each linear cell",
        )


def _collect(folders: Sequence[Path]) -> dict[str, Any]:
    """The final losses of a task's runs."""
    found = [runs.load(folder) for folder in folders]
    baseline: dict[str, list[float | None]] = {}
    rows: list[dict[str, Any]] = []
    for data in found:
        fixed = tomllib.loads(data.attrs["config"])
        for setting in lanes.settings(data):
            if not np.isin(lanes.history(data, setting, "status"), FINAL).all():
                continue  # another run has it
            cell = setting.get(CELL, fixed["model"]["cell"])
            method = setting.get(METHOD, fixed["dropout"]["method"])
            rate = setting.get(RATE, fixed["dropout"]["rate"])
            losses = {
                split: lanes.values_at(data, setting, f"{split}_{data.attrs['loss']}")
                for split in ("valid", "test")
            }
            test = _rounded(losses["test"])
            if rate == 0:
                baseline.setdefault(cell, test)
                continue
            valid = _rounded(losses["valid"].mean()[None])[0]
            row = {"cell": cell, "method": method, "rate": rate, "valid": valid}
            rows.append(row | {"test": test})
    programs = [p for data in found for p in json.loads(data.attrs["programs"])]
    seconds = sum(p["compile_seconds"] + p["train_seconds"] for p in programs)
    return {
        "unit": lanes.loss_unit(found[0]),
        "lanes": sum(int(np.isin(data["status"], FINAL).sum()) for data in found),
        "seconds": round(seconds),
        "versions": found[0].attrs["versions"],
        "rates": sorted({row["rate"] for row in rows}),
        "baseline": baseline,
        "rows": rows,
    }


def _rounded(values) -> list[float | None]:
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in values]


def _methods() -> list[str]:
    return [f"{site}_{word}" for site in AT_SITES for word in LIFETIMES]


def _cells(rows: dict[str, Any], method: str) -> dict[str, Float[np.ndarray, "N"]]:
    """The effect of a method on each cell, at the rate chosen on validation data."""
    found = {}
    for cell, base in rows["baseline"].items():
        some = [r for r in rows["rows"] if (r["cell"], r["method"]) == (cell, method)]
        finite = [row for row in some if row["valid"] is not None]
        if finite:
            best = min(finite, key=lambda row: row["valid"])
            ratio = np.array(best["test"], float) / np.array(base, float)
            found[cell] = np.log(ratio)
    return found


def _linear(cells: dict[str, Any]) -> Float[np.ndarray, "N"]:
    return np.mean([x for cell, x in cells.items() if cell not in GATED], axis=0)


def _percent(effect: Any) -> Any:
    return 100 * np.expm1(effect)


def _text(comparison: Comparison | None) -> str:
    """A change in percent with its interval; bold if it is settled."""
    if comparison is None:
        return "-"
    ends = (comparison.difference, comparison.low, comparison.high)
    mean, low, high = (f"{_percent(v):+.1f}".replace("-", MINUS) for v in ends)
    text = f"{mean} ({low} to {high})"
    return f"**{text}**" if comparison.differs else text


if __name__ == "__main__":
    found = collect(Path(sys.argv[1]))
    RESULT.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    lanes_run = sum(rows["lanes"] for rows in found.values())
    print(f"{count_text(lanes_run, 'lane')} of {', '.join(found)}: {RESULT}")
