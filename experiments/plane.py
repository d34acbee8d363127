"""Plane: the rates of two arrows, every pair of them a cell.

Cells are chosen by validation figures only; test figures are reported for every cell.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float

import rdrop
from experiments import sweep
from experiments.config import Noise, PlaneConfig
from experiments.train import Lane, Metrics
from experiments.vowels import Utterances


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


def lanes(config: PlaneConfig, train: Utterances) -> Lane:
    """Returns all lanes of the plane, in the order (inputs, recurrent, seed).

    Raises:
        ConfigError: too few utterances for the validation split or for one batch.
    """
    axes = config.dropout
    inputs, recurrent, seeds = (
        grid.ravel()
        for grid in np.meshgrid(
            np.asarray(axes.inputs.rate, np.float32),
            np.asarray(axes.recurrent.rate, np.float32),
            np.arange(config.seeds, dtype=np.uint32),
            indexing="ij",
        )
    )
    dropout = rdrop.Dropout(
        inputs=_noise(axes.inputs, inputs), recurrent=_noise(axes.recurrent, recurrent)
    )
    return sweep.make_lanes(dropout, seeds, config.seed, config.train, train)


def settings(config: PlaneConfig) -> list[dict]:
    """Returns what tells each lane from the others, in the order of `lanes`."""
    return [
        {"inputs": inputs, "recurrent": recurrent, "seed": seed}
        for inputs in config.dropout.inputs.rate
        for recurrent in config.dropout.recurrent.rate
        for seed in range(config.seeds)
    ]


def lay_out(config: PlaneConfig, history: Metrics) -> Plane:
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


def _noise(axis: Noise, rates: np.ndarray) -> rdrop.Bernoulli:
    return rdrop.Bernoulli(
        jnp.asarray(rates),
        per=axis.per,
        gates=axis.gates,
        batch=axis.batch,
        scale=axis.scale,
    )
