"""Optimisers of the papers on language models.

References:
    [1] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182; algorithm 1, and main.py of their code.
    [2] Polyak, Juditsky. Acceleration of stochastic approximation by averaging. SIAM
        Journal on Control and Optimization 30(4), 1992.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from experiments.language.config import Config, Train


class Average(NamedTuple):
    """Parameters averaged over the steps since NT-ASGD was triggered.

    Attributes:
        params: the average; before that, the parameters themselves.
        steps: number of steps that are averaged.
    """

    params: Any
    steps: Int[Array, ""]


def nt_asgd() -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that averages the updated parameters [1, 2].

    It must be the last one in a chain and does not change the updates. `update` takes
    the keyword argument `triggered`: whether to average at this step, by
    `is_non_monotone`. `average` finds the result.
    """

    def init(params):
        return Average(params, jnp.int32(0))

    def update(updates, state, params, *, triggered, **_):
        params = optax.apply_updates(params, updates)
        steps = jnp.where(triggered, state.steps + 1, 0)

        def mean(old, new):
            share = 1 / jnp.maximum(steps, 1).astype(new.dtype)
            return jnp.where(steps > 1, old + (new - old) * share, new)

        return updates, Average(jax.tree.map(mean, state.params, params), steps)

    return optax.GradientTransformationExtraArgs(init, update)


def average(opt_state: optax.OptState) -> Any:
    """Returns the averaged parameters of a state; None without averaging."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, Average))
    return next((s.params for s in found if isinstance(s, Average)), None)


def is_non_monotone(losses: Sequence[float], interval: int) -> bool:
    """Returns whether the validation losses, one per epoch, trigger NT-ASGD [1].

    The trigger is a loss above the lowest loss of all epochs that are at least
    `interval` epochs older. It stays.
    """
    return any(
        losses[t] > min(losses[: max(0, t - interval)], default=math.inf)
        for t in range(len(losses))
    )


def make_optimiser(
    config: Config, rate: Any, weight_decay: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimiser: clipping, L2 penalty, descent.

    Args:
        config: its options are static.
        rate: learning rate; may be traced.
        weight_decay: L2 penalty; may be traced.
    """
    train = config.train
    l2 = optax.add_decayed_weights(weight_decay)
    twice = _scale_biases(math.sqrt(2)) if config.model.two_biases else None
    adam = train.optimiser == "adam"
    clip = optax.clip_by_global_norm(train.clip) if train.clip else None
    steps = {
        "penalty inside": l2 if train.weight_decay_on == "gradients" else None,
        "both biases": twice,
        "clipping": clip if train.clip_on == "gradients" else None,
        "their sum": twice,
        "penalty": l2 if train.weight_decay_on == "clipped" else None,
        "adam": optax.scale_by_adam(b1=train.beta1) if adam else None,
        "descent": optax.scale_by_learning_rate(rate),
        "clipped step": clip if train.clip_on == "step" else None,
        "shrinkage": _shrink(weight_decay)
        if train.weight_decay_on == "parameters"
        else None,
        "averaging": nt_asgd() if train.averaging == "nt_asgd" else None,
    }
    return optax.chain(*(step or optax.identity() for step in steps.values()))


def _scale_biases(factor: float) -> optax.GradientTransformation:
    """Returns a transformation that scales the gradients of the gates' biases.

    Two biases that are added have the same gradient g: their squared norm is that of
    sqrt(2) g, and a step moves their sum as sqrt(2) times sqrt(2) g does.
    """

    def scale(path, leaf):
        gates = path[-1].key == "bias" and len(path) > 2
        return leaf * factor if gates else leaf

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
    )


def _shrink(share: Any) -> optax.GradientTransformation:
    """Returns a transformation that takes a share of the updated parameters away."""

    def shrink(update, param):
        return update - share * (param + update)

    return optax.stateless(
        lambda updates, params: jax.tree.map(shrink, updates, params)
    )


def decays(train: Train, figures: Sequence[float]) -> int:
    """Returns how many times the learning rate has decayed before the next epoch.

    Args:
        train: options; the rate decays at every epoch after `hold`, or with `patience`,
            after that many epochs since the last improvement or the last decay.
        figures: of the validation text, in the quoted unit, one per epoch.
    """
    if not train.patience:
        return max(0, len(figures) + 1 - train.hold)
    standard, waited, count = math.inf, 0, 0
    for figure in figures:
        improved = figure < standard - train.least_improvement
        standard = min(standard, figure) if train.improves_on == "best" else figure
        waited = 0 if improved else waited + 1
        if waited == train.patience:
            count, waited = count + 1, 0
            standard = math.inf if train.forget_best else standard
    return count
