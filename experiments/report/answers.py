"""Answers: what the figures of a run say, in words."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.report.outcomes import PLANE, Outcomes, Setting, Trouble, Value
from experiments.report.statistics import (
    Comparison,
    compare,
    interval,
    mean_sd,
    paired_p,
)

METHOD = "dropout.method"
ONE_SEED = "One seed: no statistics; another seed may order the settings otherwise."


class Kinds(NamedTuple):
    """The baseline, and the best setting of each kind by mean validation loss.

    None where the plane has no setting of that kind, or none whose loss is finite.
    """

    none: int | None
    inputs: int | None
    recurrent: int | None
    both: int | None
    best: int | None


class MethodBest(NamedTuple):
    """The best setting of one method.

    Attributes:
        method: its name.
        same_as: the first method with the same figures, or itself.
        best: index of the setting chosen on validation; None if none is finite.
        comparison: with its baseline, all methods one family; None if it is the
            baseline or cannot be compared.
    """

    method: str
    same_as: str
    best: int | None
    comparison: Comparison | None


def kinds(outcomes: Outcomes) -> Kinds | None:
    """Returns the best setting of each kind; None where the two rates are not swept.

    Where there are more axes, all have the values of the best setting on those.
    """
    best = outcomes.best()
    if best is None or not set(PLANE) <= set(outcomes.axes):
        return None
    members = next(m for _, m in outcomes.split(*PLANE) if best in m)

    def of_kind(inputs, recurrent):
        wanted = inputs, recurrent
        rates = {s: [outcomes.settings[s][path] for path in PLANE] for s in members}
        return outcomes.best(
            s for s, (x, h) in rates.items() if (x != 0, h != 0) == wanted
        )

    return Kinds(
        none=outcomes.baseline(best),
        inputs=of_kind(True, False),
        recurrent=of_kind(False, True),
        both=of_kind(True, True),
        best=best,
    )


def comparisons(outcomes: Outcomes) -> list[Comparison | None]:
    """Compares every setting with its baseline on test figures, all one family."""
    return compare([_pair(outcomes, s) for s in range(len(outcomes.settings))])


def methods(outcomes: Outcomes) -> list[MethodBest]:
    """Returns the best setting of each method, the lowest test loss first.

    Methods that draw the same masks have the same figures to the bit.
    """
    members = _by_method(outcomes)
    firsts = _first_of_its_figures(outcomes, members)
    best = {method: outcomes.best(found) for method, found in members.items()}
    compared = compare(
        [None if s is None else _pair(outcomes, s) for s in best.values()]
    )
    rows = [
        MethodBest(method, firsts[method], chosen, comparison)
        for (method, chosen), comparison in zip(best.items(), compared, strict=True)
    ]
    test = outcomes.final(f"test_{outcomes.loss}").mean(axis=1)
    return sorted(rows, key=lambda r: np.inf if r.best is None else test[r.best])


def answer(outcomes: Outcomes) -> str:
    """Says in a few sentences what a run found; code stands in `backticks`."""
    best = outcomes.best()
    if best is None:
        return "No setting has a finite validation loss at every seed."
    if outcomes.is_plane() and (found := kinds(outcomes)):
        return _plane_answer(outcomes, found)
    seeds = len(outcomes.seeds)
    test = outcomes.final(f"test_{outcomes.loss}")
    reached = f"{mean_sd(test[best])} over {seeds} seed{'s' if seeds > 1 else ''}"
    loss = f"test {title(outcomes.loss)}"
    if len(outcomes.settings) == 1:
        return f"The one setting reaches a {loss} of {reached}{_interval(test[best])}."
    chosen = f"Chosen on validation data: {describe(outcomes.settings[best])}."
    base = outcomes.baseline(best)
    if base == best:
        return f"{chosen} It is the baseline itself, with a {loss} of {reached}."
    if base is None:
        return f"{chosen} Its {loss} is {reached}; its baseline is missing."
    return (
        f"{chosen} Its {loss} is {reached}, and {mean_sd(test[base])} at the baseline "
        f"({_difference(outcomes, base, best)}){_verdict(outcomes, best)}"
    )


def warnings(outcomes: Outcomes) -> list[str]:
    """Says what is missing from a run."""
    found = []
    reached, planned = int(outcomes.evaluated_at[-1]), outcomes.run.get("epochs")
    if outcomes.interrupted and reached != planned:
        of = f" of {planned}" if planned else ""
        found.append(
            f"Stopped after {reached}{of} epochs: the figures are those of that epoch."
        )
    known = len(outcomes.settings) * len(outcomes.seeds)
    if outcomes.stopped:
        found.append(
            f"{len(outcomes.stopped)} of {known} lanes ended before epoch {reached} or "
            "are missing; their settings are not compared."
        )
    if (absent := outcomes.run.get("lanes", known) - known) > 0:
        found.append(f"{absent} lanes of the sweep never started.")
    if outcomes.diverged:
        found.append(
            f"{len(outcomes.diverged)} of {known} lanes diverged; their settings are "
            "not chosen."
        )
    return found


def diverged(outcomes: Outcomes) -> list[str]:
    """Names every lane that diverged, and the step it did at."""
    return [_name(outcomes, lane) for lane in outcomes.diverged]


def describe(setting: Setting) -> str:
    """Names a setting: "`dropout.rate` 0.3, `model.cell` gru"."""
    return ", ".join(f"`{path}` {text(v)}" for path, v in setting.items())


def text(value: Value) -> str:
    """Formats a value of an axis."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def title(loss: str) -> str:
    """The name of a loss as prose writes it: "NLL" for nll."""
    return loss.upper() if len(loss) <= 3 else loss.replace("_", " ")


def _plane_answer(outcomes: Outcomes, found: Kinds) -> str:
    """Answers "dropout or recurrent_dropout?" in at most two sentences."""
    test = outcomes.final(f"test_{outcomes.loss}")
    seeds = len(outcomes.seeds)

    def wins(setting, other):
        return int((test[setting] < test[other]).sum())

    alone = [
        (f"`{argument}` alone (rate {text(outcomes.settings[s][path])})", s)
        for argument, path, s in (
            ("dropout", PLANE[0], found.inputs),
            ("recurrent_dropout", PLANE[1], found.recurrent),
        )
        if s is not None
    ]
    if not alone or found.none is None:
        return (
            "No noise was compared: the plane has no finite cell with a rate above 0."
        )
    reached = " and ".join(
        f"{name} brings the test {title(outcomes.loss)} to {test[s].mean():.3f}, below "
        f"no dropout in {wins(s, found.none)} of {seeds} seeds"
        for name, s in alone
    )
    first = f"No dropout gives {test[found.none].mean():.3f}; {reached}."
    if found.both is None:
        return first
    best_alone = outcomes.best(s for _, s in alone)
    name = next(name for name, s in alone if s == best_alone)
    rates = ", ".join(text(outcomes.settings[found.both][path]) for path in PLANE)
    return (
        f"{first} Both together, at ({rates}), give {test[found.both].mean():.3f}, "
        f"below {name} in {wins(found.both, best_alone)} of {seeds} seeds: "
        f"{_adds(test[found.both], test[best_alone])}."
    )


def _adds(both: Float[np.ndarray, "N"], alone: Float[np.ndarray, "N"]) -> str:
    """What a paired t-test over the seeds supports at the 5 % level."""
    unsettled = "the seeds do not settle whether the second kind adds to the first"
    if len(both) < 2:
        return unsettled
    p = paired_p(both - alone)
    if not p < 0.05:
        return f"{unsettled} (paired t-test, p = {p:.2g})"
    better = "use both" if both.mean() < alone.mean() else "one kind is enough"
    return f"{better} (paired t-test, p = {p:.2g})"


def _verdict(outcomes: Outcomes, best: int) -> str:
    """The verdict on the chosen setting, within the table it is chosen from."""
    if len(outcomes.seeds) == 1:
        return f". {ONE_SEED}"
    comparison = comparisons(outcomes)[best]
    if METHOD in outcomes.axes:
        comparison = next(r.comparison for r in methods(outcomes) if r.best == best)
    if comparison is None:
        return ", not compared as figures are missing."
    return f": {comparison.sentence()}."


def _pair(outcomes: Outcomes, setting: int):
    base = outcomes.baseline(setting)
    if base is None or base == setting:
        return None
    test = outcomes.final(f"test_{outcomes.loss}")
    return test[setting], test[base]


def _by_method(outcomes: Outcomes) -> dict[str, list[int]]:
    """The settings of each method."""
    members: dict[str, list[int]] = {}
    for s, setting in enumerate(outcomes.settings):
        members.setdefault(str(setting[METHOD]), []).append(s)
    return members


def _first_of_its_figures(
    outcomes: Outcomes, members: dict[str, list[int]]
) -> dict[str, str]:
    """Maps each method to the first one with the same figures in all its settings."""

    def same(one, other):
        return len(one) == len(other) and all(
            np.array_equal(values[one], values[other], equal_nan=True)
            for values in outcomes.metrics.values()
        )

    firsts: dict[str, str] = {}
    for method, found in members.items():
        equal = (m for m in dict.fromkeys(firsts.values()) if same(members[m], found))
        firsts[method] = next(equal, method)
    return firsts


def _difference(outcomes: Outcomes, base: int, best: int) -> str:
    """Names what a baseline has other than the chosen setting."""
    chosen = outcomes.settings[best]
    other = {p: v for p, v in outcomes.settings[base].items() if v != chosen[p]}
    return describe(other)


def _interval(values: Float[np.ndarray, "N"]) -> str:
    if len(values) < 2:
        return ": no statistics of one seed"
    low, high = interval(values)
    return f", 95 % CI {low:.3f} to {high:.3f}"


def _name(outcomes: Outcomes, lane: Trouble) -> str:
    setting = describe(outcomes.settings[lane.setting])
    step = "" if lane.at is None else f", at step {lane.at}"
    return f"{setting}{', ' if setting else ''}seed {outcomes.seeds[lane.seed]}{step}"
