"""Results: what a plane's lanes came to, and what may be said of it.

Cells are chosen by validation figures only; test figures are reported for every cell.
"""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.stats
from jaxtyping import Float

from experiments.config import Config
from experiments.train import Metrics

PACKAGES = ("rdrop", "jax", "jaxlib", "flax", "optax", "numpy")


class Cell(NamedTuple):
    """A cell of the plane, by the indices of its two rates."""

    inputs: int
    recurrent: int


class Plane(NamedTuple):
    """The figures of a plane, each [inputs rates, recurrent rates, seeds, ...].

    Attributes:
        inputs, recurrent: rates of the two axes.
        epochs: epoch of each evaluation.
        metrics: NLL in nats an utterance, accuracy in [0, 1].
    """

    inputs: tuple[float, ...]
    recurrent: tuple[float, ...]
    epochs: np.ndarray
    metrics: Metrics

    def final(self, metric: str) -> Float[np.ndarray, "I R seeds"]:
        """The last evaluation of every lane."""
        return getattr(self.metrics, metric)[..., -1]

    def rates(self, cell: Cell) -> tuple[float, float]:
        """The rates (inputs, recurrent) of a cell."""
        return self.inputs[cell.inputs], self.recurrent[cell.recurrent]


class Choice(NamedTuple):
    """The baseline, and the best cell of each kind by mean validation NLL.

    None where the plane has no cell of that kind, or none whose NLL is finite.
    """

    none: Cell
    inputs: Cell | None
    recurrent: Cell | None
    both: Cell | None
    best: Cell


def stack(chunks: Sequence[Metrics]) -> Metrics:
    """Joins the metrics of consecutive chunks to [lanes, epochs or evaluations]."""
    train = np.concatenate([chunk.train_nll for chunk in chunks], axis=1)
    rest = (np.stack(leaves, axis=1) for leaves in list(zip(*chunks, strict=True))[1:])
    return Metrics(train, *rest)


def plane(config: Config, history: Metrics) -> Plane:
    """Lays the lanes out by rate and seed."""
    rates = config.dropout.inputs.rate, config.dropout.recurrent.rate
    shape = (*map(len, rates), config.seeds)
    metrics = Metrics(*(leaf.reshape(*shape, -1) for leaf in history))
    evaluations = np.arange(1, history.valid_nll.shape[1] + 1)
    return Plane(*rates, evaluations * config.train.evaluate_every, metrics)


def choose(plane: Plane) -> Choice:
    """Chooses the best cells by their validation NLL, averaged over the seeds."""
    nll = plane.final("valid_nll").mean(axis=-1)
    nll = np.where(np.isfinite(nll), nll, np.inf)
    inputs_on = np.array(plane.inputs)[:, None] > 0
    recurrent_on = np.array(plane.recurrent)[None] > 0

    def best(candidates):
        scores = np.where(candidates, nll, np.inf)
        if not np.isfinite(scores).any():
            return None
        return Cell(*map(int, np.unravel_index(scores.argmin(), scores.shape)))

    none = Cell(plane.inputs.index(0), plane.recurrent.index(0))
    return Choice(
        none=none,
        inputs=best(inputs_on & ~recurrent_on),
        recurrent=best(~inputs_on & recurrent_on),
        both=best(inputs_on & recurrent_on),
        best=best(np.full(nll.shape, True)) or none,
    )


def answer(plane: Plane, choice: Choice) -> str:
    """Answers "dropout or recurrent_dropout?" in at most two sentences."""
    test = plane.final("test_nll")
    seeds = test.shape[-1]

    def figure(cell):
        return f"{test[cell].mean():.3f}"

    def wins(cell, other):
        return int((test[cell] < test[other]).sum())

    alone = [
        (f"`{argument}` alone (rate {max(plane.rates(cell)):g})", cell)
        for argument, cell in (
            ("dropout", choice.inputs),
            ("recurrent_dropout", choice.recurrent),
        )
        if cell
    ]
    if not alone:
        return (
            "No noise was compared: the plane has no finite cell with a rate above 0."
        )
    reached = " and ".join(
        f"{name} brings the test NLL to {figure(cell)}, below no dropout in "
        f"{wins(cell, choice.none)} of {seeds} seeds"
        for name, cell in alone
    )
    first = f"No dropout gives {figure(choice.none)}; {reached}."
    if not choice.both:
        return first
    name, better = min(alone, key=lambda item: plane.final("valid_nll")[item[1]].mean())
    rates = "({:g}, {:g})".format(*plane.rates(choice.both))
    return (
        f"{first} Both together, at {rates}, give {figure(choice.both)}, below {name} "
        f"in {wins(choice.both, better)} of {seeds} seeds: "
        f"{_verdict(test[choice.both], test[better])}."
    )


def _verdict(both, alone):
    """What a paired t-test over the seeds supports at the 5 % level."""
    unsettled = "the seeds do not settle whether the second kind adds to the first"
    if len(both) < 2:
        return unsettled
    p = scipy.stats.ttest_rel(both, alone).pvalue
    if not p < 0.05:
        return f"{unsettled} (paired t-test, p = {p:.2g})"
    better = "use both" if both.mean() < alone.mean() else "one kind is enough"
    return f"{better} (paired t-test, p = {p:.2g})"


def environment() -> dict:
    """What the numbers may depend on besides the config: versions and platform."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "platform": {
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "machine": f"{platform.system()} {platform.machine()}",
            "prng": str(jax.random.key_impl(jax.random.key(0))),
        },
    }


def records(plane: Plane, config: Config, wall_seconds: float) -> list[dict]:
    """Returns one plain record a lane, in the order of `sweep.make_lanes`."""
    shared = {"wall_seconds": round(wall_seconds, 3)} | environment()
    epochs = plane.metrics.train_nll.shape[-1]
    return [
        {
            "inputs": plane.inputs[i],
            "recurrent": plane.recurrent[r],
            "seed": seed,
            "status": "finished" if epochs == config.train.epochs else "interrupted",
            "epochs": epochs,
            "evaluated_at": plane.epochs.tolist(),
            "metrics": {
                name: _plain(leaf[i, r, seed])
                for name, leaf in plane.metrics._asdict().items()
            },
        }
        | shared
        for i, r, seed in np.ndindex(plane.final("valid_nll").shape)
    ]


def write(path: Path, lines: Sequence[dict]) -> None:
    """Writes JSON lines; the file is the old one or the new one, never half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(
        "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    )
    os.replace(partial, path)


def _plain(values) -> list[float | None]:
    """The shortest decimals that read back as the same float32; None if not finite."""
    return [float(str(value)) if np.isfinite(value) else None for value in values]
