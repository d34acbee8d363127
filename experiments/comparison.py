"""Comparison: methods of dropout, each a curve over its rate.

Two methods whose dropout is the same value are the same method: they are trained once.
A rate is chosen by validation figures only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float

from experiments import sweep
from experiments.config import MethodsConfig
from experiments.methods import METHODS
from experiments.train import Lane, Metrics
from experiments.vowels import Utterances


class Curve(NamedTuple):
    """The figures of one method, each [rates, seeds, ...].

    Attributes:
        method: its name.
        same_as: the method of the same value, whose figures these are, or itself.
        rates: of the axis.
        epochs: epoch of each evaluation.
        metrics: NLL in nats an utterance, accuracy in [0, 1].
    """

    method: str
    same_as: str
    rates: tuple[float, ...]
    epochs: np.ndarray
    metrics: Metrics

    def final(self, metric: str) -> Float[np.ndarray, "rates seeds"]:
        """The last evaluation of every lane."""
        return getattr(self.metrics, metric)[..., -1]

    def best(self) -> int:
        """The index of the rate with the lowest mean validation NLL."""
        nll = self.final("valid_nll").mean(axis=-1)
        return int(np.where(np.isfinite(nll), nll, np.inf).argmin())

    def baseline(self) -> int:
        """The index of rate 0."""
        return self.rates.index(0)

    def p_value(self) -> float:
        """Of a paired t-test over the seeds, the best rate against rate 0.

        It is nan if the best rate is 0, or there is one seed.
        """
        nll = self.final("test_nll")
        best, none = nll[self.best()], nll[self.baseline()]
        if len(best) < 2 or self.best() == self.baseline():
            return float("nan")
        return float(scipy.stats.ttest_rel(best, none).pvalue)


def lanes(method: str, config: MethodsConfig, train: Utterances) -> Lane:
    """Returns the lanes of one method, in the order (rate, seed).

    Raises:
        ConfigError: too few utterances for the validation split or for one batch.
    """
    rates, seeds = (
        grid.ravel()
        for grid in np.meshgrid(
            np.asarray(config.rate, np.float32),
            np.arange(config.seeds, dtype=np.uint32),
            indexing="ij",
        )
    )
    dropout = METHODS[method].preset(jnp.asarray(rates), config.model.layers)
    return sweep.make_lanes(dropout, seeds, config.seed, config.train, train)


def settings(method: str, config: MethodsConfig) -> list[dict]:
    """Returns what tells each lane from the others, in the order of `lanes`."""
    return [
        {"method": method, "rate": rate, "seed": seed}
        for rate in config.rate
        for seed in range(config.seeds)
    ]


def first_of_its_value(config: MethodsConfig) -> dict[str, str]:
    """Maps each method to the first one of the config that is the same value."""

    def value(name):
        method = METHODS[name]
        leaves, structure = jax.tree.flatten(method.preset(0.5, config.model.layers))
        return method.cell, structure, tuple(leaves)

    firsts: dict[tuple, str] = {}
    return {name: firsts.setdefault(value(name), name) for name in config.methods}


def lay_out(
    method: str, same_as: str, config: MethodsConfig, history: Metrics
) -> Curve:
    """Lays the lanes of a method out by rate and seed."""
    shape = (len(config.rate), config.seeds)
    metrics = Metrics(*(leaf.reshape(*shape, -1) for leaf in history))
    evaluations = np.arange(1, history.valid_nll.shape[1] + 1)
    epochs = evaluations * config.train.evaluate_every
    return Curve(method, same_as, config.rate, epochs, metrics)
