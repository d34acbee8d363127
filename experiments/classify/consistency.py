"""Consistency penalties on the outputs of two passes over the same batch.

The second pass draws new masks, except at the sites that it shares with the first, or
has no noise at all. See `rdrop.fraternal` and `rdrop.r_drop` for the papers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import rdrop
from experiments.classify.model import SITES, Dropout
from experiments.config import Config, ConfigError, SecondPass
from experiments.task import Arrays, Batch, Data, Score

PENALTIES = {
    "fraternal": rdrop.fraternal,
    "r_drop": rdrop.r_drop,
    "expectation_linear": rdrop.fraternal,
}


def keys(config: SecondPass, key, first: rdrop.StreamKeys) -> rdrop.StreamKeys | None:
    """Returns the keys of the second pass; None if it has no noise.

    Args:
        config: options; it may share sites of cells, and names outside of cells whose
            masks are drawn from the stream of inputs.
        key: the key from which `first` was derived.
        first: the keys of the first pass.
    """
    if config.penalty == "expectation_linear":
        return None
    second = rdrop.stream_keys(jax.random.fold_in(key, 1))
    names = config.shares.split()
    second = second.sharing(first, *(name for name in names if name in SITES))
    outside = {name: first.inputs for name in names if name not in SITES}
    return second.replace(sites={**second.sites, **outside})


def weights(
    outputs: Float[Arrays, "B *T O"], score: Score, batch: Batch
) -> Float[Array, "B *T"]:
    """Returns the weight of each output, its share of the weight of its sequence."""
    if outputs.ndim == 2:
        return jnp.asarray(score.weight)
    valid = batch.valid_steps(outputs.shape[1])
    return valid * (score.weight / batch.lengths)[:, None]


def check(configs: Sequence[Config], dropout: Dropout, data: Data) -> None:
    """Checks that the two passes differ, and that their outputs can be compared.

    Args:
        configs: one per lane, of one structure.
        dropout: their noise.
        data: the data.

    Raises:
        ConfigError: no lane has noise, a shared site has none, or the penalty compares
            logits and the outputs are not logits.
    """
    config = configs[0].second_pass
    layers = dropout if isinstance(dropout, tuple) else (dropout,)
    there = {name for layer in layers for name, _ in layer.sites()}
    check_noise(config, any(_is_noisy(c) for c in configs), there)
    loss, unit = next(iter(data.units.items()))
    if config.penalty == "r_drop" and not unit.startswith(("nats", "bits")):
        raise ConfigError(
            "second_pass.penalty: r_drop compares distributions over classes, whose "
            f"loss is in nats or bits, and {loss} is not; fraternal takes any outputs."
        )


def check_noise(config: SecondPass, noisy: bool, sites: set[str]) -> None:
    """Checks that there is noise, and some at each site that the passes share.

    Args:
        config: options.
        noisy: whether any lane has noise.
        sites: names of those with noise.

    Raises:
        ConfigError: no lane has noise, or a shared site has none.
    """
    if config.penalty == "none":
        return
    if not noisy:
        raise ConfigError(
            f"second_pass.penalty: {config.penalty} compares passes that differ by "
            "their noise; set a rate of dropout above 0."
        )
    there = sites if config.penalty != "expectation_linear" else set()
    if silent := [name for name in config.shares.split() if name not in there]:
        raise ConfigError(
            f"second_pass.shares: the second pass has no noise at {silent[0]}."
        )


def _is_noisy(config: Config) -> bool:
    dropout = config.dropout
    places = (dropout, dropout.depth, *(getattr(dropout, site) for site in SITES))
    return any(place.rate for place in places)
