"""Sentences: the findings of a run in words; code is marked with `backticks`.

Each run gets a verdict, which says what to do, and an answer with its numbers.
"""

import numpy as np
import xarray as xr

from experiments.report import lanes
from experiments.report.findings import (
    ARGUMENTS,
    Kinds,
    by_method,
    kind_names,
    kinds,
    methods,
    planned,
)
from experiments.report.lanes import METHOD, PLANE, Setting
from experiments.runs.dataset import MISSING
from experiments.wording import count_text, mean_sd

NOTHING = "No setting has a finite validation loss at every seed."
NOT_COMPARED = "not compared, as results are missing"
CHOSEN_RATES = "The rates of each kind were chosen on validation data."
OTHER = {"inputs": "recurrent", "recurrent": "inputs"}
ONE_SEED = "One seed: no statistics. Another seed may order the settings otherwise."


def heading(data: xr.Dataset) -> str:
    """Returns the question that a run answers."""
    if lanes.is_plane(data):
        return "`dropout` or `recurrent_dropout`?"
    axes = lanes.axes(data)
    if METHOD in axes:
        return "Which method of recurrent dropout?"
    if not axes:
        return "One setting"
    return f"Which {' and '.join(f'`{path}`' for path in axes)}?"


def compared(data: xr.Dataset) -> str:
    """Returns the settings, seeds and task that were compared, in one sentence."""
    parts = [
        f"{len(values)} {'methods' if path == METHOD else f'values of `{path}`'}"
        for path, values in lanes.axes(data).items()
    ]
    most = "up to " if data.attrs["race"] else ""
    seeds = most + count_text(data.sizes["seed"], "seed")
    task = f" on `{data.attrs['task']}`" if data.attrs["task"] else ""
    trained = f"trained with {seeds}{task}"
    if len(parts) < 2:
        return f"{parts[0]}, each {trained}." if parts else f"One setting, {trained}."
    every = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{every}, each combination {trained}."


def verdict(data: xr.Dataset) -> str:
    """Returns the conclusion in one sentence or two."""
    best = lanes.best(data)
    if best is None:
        return NOTHING
    if data.sizes["seed"] == 1:
        return ONE_SEED
    if data.attrs["race"] == "best":
        return _verdict_of_best(data, best)
    if data.attrs["race"]:
        return _verdict_of_race(data)
    found = kinds(data)
    if found and found.none and any(found[1:]):
        return _verdict_of_kinds(data, found)
    if by_method(data):
        return _verdict_of_methods(data, best)
    rows = list(planned(data).values())
    if not rows:
        return (
            f"Chosen on validation data: {lanes.describe(best) or 'the one setting'}."
        )
    comparison = rows[0].comparison
    tested = comparison.verdict() if comparison else NOT_COMPARED
    return f"Chosen on validation data: {lanes.describe(best)}. {_capital(tested)}."


def answer(data: xr.Dataset) -> str:
    """Returns the numbers behind the verdict; empty if there are none."""
    best = lanes.best(data)
    if best is None:
        return ""
    found = kinds(data)
    if found and found.none and any(found[1:]):
        names = kind_names(data, found)
        settings = {name: getattr(found, kind) for kind, name in names.items()}
        return f"{_measure(data)}: {_listed(data, settings)}. {CHOSEN_RATES}"
    base = lanes.baseline(data, best)
    reached = mean_sd(lanes.losses_at(data, best))
    if not best or data.attrs["race"] == "best":
        return f"{_measure(data)}: {reached}."
    if base == best:
        return (
            f"{_measure(data)}: {reached}. The chosen setting is the baseline itself."
        )
    if base is None:
        return f"{_measure(data)}: {reached}. Its baseline is missing."
    numbers = f"{reached}, and {mean_sd(lanes.losses_at(data, base))} at the baseline"
    key = ("best", "baseline")
    if data.attrs["race"]:
        key = (lanes.describe(best), "baseline")
    elif METHOD in best:
        key = (best[METHOD], "baseline")
    return (
        f"{_measure(data)}: {numbers} ({_difference(best, base)}){_tested(data, key)}."
    )


def plain(text: str) -> str:
    """Returns a sentence without its backticks."""
    return text.replace("`", "")


def _measure(data: xr.Dataset) -> str:
    seeds = data.sizes["seed"]
    over = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    if data.attrs["race"]:
        over = "mean ± sd over its seeds"
    return f"{_capital(lanes.loss_label(data))}, lower is better, {over}"


def _listed(data: xr.Dataset, settings: dict[str, Setting]) -> str:
    parts = [
        f"{name} {mean_sd(lanes.losses_at(data, setting))}"
        for name, setting in settings.items()
    ]
    return "; ".join(parts)


def _tested(data: xr.Dataset, key: tuple[str, str]) -> str:
    """The planned comparison of the chosen setting, after a colon."""
    if data.sizes["seed"] == 1:
        return ""
    row = planned(data).get(key)
    if row is None or row.comparison is None:
        return f", {NOT_COMPARED}"
    return f": {row.comparison.sentence()}"


def _verdict_of_kinds(data: xr.Dataset, found: Kinds) -> str:
    """Recommends the simplest kind of noise that the planned comparisons support."""
    tests = {key: row.comparison for key, row in planned(data).items()}
    lower = {key for key, test in tests.items() if test and test.lower}
    higher = {key for key, test in tests.items() if test and test.higher}
    seeds = count_text(data.sizes["seed"], "seed")
    loss = f"the test {lanes.loss_name(data)}"
    present = [kind for kind in ("inputs", "recurrent", "both") if getattr(found, kind)]
    alone = [kind for kind in present[:2] if (kind, "none") in lower and kind != "both"]
    if not alone:
        if ("both", "none") in lower:
            unsettled = f"{seeds} do not settle whether one alone does"
            return f"Use both together: they lower {loss}; {unsettled}."
        if all((kind, "none") in higher for kind in present):
            return f"Use no dropout: every kind raises {loss}."
        return f"{_capital(seeds)} do not settle whether dropout lowers {loss}."
    chosen = min(alone, key=lambda kind: _validation(data, getattr(found, kind)))
    name, other = _argument(chosen), _argument(OTHER[chosen])
    helps = _who_helps(alone, loss)
    if ("both", chosen) in lower:
        return f"Use both. {helps} and both together lower it further."
    if ("both", chosen) in higher:
        return f"Use {name} alone. {helps}; adding {other} to it raises {loss}."
    if "both" not in present:
        return f"Use {name}. {helps}."
    unsettled = f"{seeds} do not settle whether adding {other} lowers it further"
    return f"Use {name}. {helps}; {unsettled}."


def _verdict_of_best(data: xr.Dataset, best: Setting) -> str:
    """Names the best setting, and counts those that are settled as higher."""
    tests = [row.comparison for row in planned(data).values()]
    higher = sum(1 for test in tests if test and test.higher)
    lost = sum(1 for test in tests if test is None)
    left = len(tests) - higher - lost
    margin = data.attrs["margin"]
    same = sum(1 for test in tests if test and test.equivalent and not test.differs)
    trained = count_text(int((data["status"] != MISSING).sum()), "lane")
    rest = f"; {same} of the others equivalent within {margin:g}" if same else ""
    open_ = f"; {left - same} not settled" if left > same else ""
    open_ += f"; {lost} diverged" if lost else ""
    return (
        f"The lowest on validation data: {lanes.describe(best)}. Settled as higher: "
        f"{higher} of {count_text(len(tests), 'other setting')}{rest}{open_}, with "
        f"{trained}."
    )


def _verdict_of_race(data: xr.Dataset) -> str:
    """Counts the settings that are settled against their baselines."""
    tests = [row.comparison for row in planned(data).values()]
    counts = {
        "lower than the baseline": sum(1 for t in tests if t and t.lower),
        "higher than the baseline": sum(1 for t in tests if t and t.higher),
        f"equivalent to the baseline within {data.attrs['margin']:g}": sum(
            1 for t in tests if t and t.equivalent and not t.differs
        ),
    }
    found = [f"{count} {name}" for name, count in counts.items() if count]
    settled = sum(counts.values())
    of = f"{settled} of {count_text(len(tests), 'setting')}"
    listed = f": {', '.join(found)}" if found else ""
    trained = int((data["status"] != MISSING).sum())
    return f"Settled: {of}{listed}, with {count_text(trained, 'lane')}."


def _who_helps(alone: list[str], loss: str) -> str:
    if len(alone) == 2:
        return f"Each kind alone lowers {loss}"
    return f"{_capital(_argument(alone[0]))} alone lowers {loss}"


def _verdict_of_methods(data: xr.Dataset, best: Setting) -> str:
    """Names the chosen method, and how many methods beat their baselines."""
    rows = [row for row in methods(data) if row.same_as == row.method]
    tests = [row.comparison for row in rows if row.comparison]
    lower = [row for row in rows if row.comparison and row.comparison.lower]
    seeds = count_text(data.sizes["seed"], "seed")
    first = f"`{best[METHOD]}` does best on validation data."
    if not tests:
        return f"{first} No method could be tested against its baseline."
    if not lower:
        tested = f"{count_text(len(tests), 'test')}, {seeds}"
        return f"{first} No method is settled as better than its baseline ({tested})."
    names = ", ".join(f"`{row.method}`" for row in lower)
    of = count_text(len(tests), "method")
    return f"{first} Settled as better than their baselines, of {of}: {names}."


def _validation(data: xr.Dataset, setting: Setting) -> float:
    loss = f"valid_{data.attrs['loss']}"
    return float(np.mean(lanes.values_at(data, setting, loss)))


def _argument(kind: str) -> str:
    return ARGUMENTS[PLANE[kind == "recurrent"]]


def _difference(setting: Setting, base: Setting) -> str:
    """Names the values of a baseline that the setting does not share."""
    return lanes.describe({p: v for p, v in base.items() if v != setting[p]})


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
