"""Network: what a lane trains, recurrent layers with their noise and a readout."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Integer

import rdrop
from experiments.config import Config, ConfigError, Noise, StateNoise, WeightNoise
from experiments.methods import METHODS

Dropout: TypeAlias = rdrop.Dropout | tuple[rdrop.Dropout, ...]

CELLS: dict[str, type[rdrop.Cell]] = {
    "lstm": rdrop.LSTMCell,
    "layernorm_lstm": rdrop.LayerNormLSTMCell,
    "gru": rdrop.GRUCell,
    "simple": rdrop.SimpleCell,
    "mingru": rdrop.MinGRUCell,
}
SITES = tuple(rdrop.Dropout.__dataclass_fields__)


class Network(nn.Module):
    """A stack of recurrent layers and a linear readout.

    Attributes:
        cell: the recurrence.
        units, layers: sizes of the stack.
        outputs: size of the readout.
        readout: of the "last" valid output, or of "each".
    """

    cell: type[rdrop.Cell]
    units: int
    layers: int
    outputs: int
    readout: Literal["last", "each"]

    @nn.compact
    def __call__(
        self,
        xs: Float[Array, "B T D"],
        lengths: Integer[Array, "B"],
        dropout: Dropout | None = None,
        keys: rdrop.StreamKeys | None = None,
    ) -> Float[Array, "B *T O"]:
        """Returns what is read out; without keys there is no noise."""
        layers = [rdrop.RNN(self.cell(self.units)) for _ in range(self.layers)]
        stack = rdrop.Stack(layers, name="stack")
        _, ys = stack(xs, dropout, keys, lengths=lengths)
        if self.readout == "last":
            ys = ys[jnp.arange(len(ys)), lengths.astype(jnp.int32) - 1]
        return nn.Dense(self.outputs, name="readout")(ys)


def cell_of(config: Config) -> type[rdrop.Cell]:
    """Returns the recurrence, which a method may have of its own.

    Raises:
        ConfigError: the method is not meant for the cell.
    """
    chosen = CELLS[config.model.cell]
    if config.dropout.method == "none":
        return chosen
    meant = METHODS[config.dropout.method].cell
    if meant is not None and config.model.cell != "lstm":
        raise ConfigError(
            f"model.cell: the method {config.dropout.method} has a cell of its own; "
            f'must be "lstm", got "{config.model.cell}".'
        )
    return meant or chosen


def dropout_of(configs: Sequence[Config]) -> Dropout:
    """Returns the noise of lanes of one structure; each leaf has an axis of lanes.

    Raises:
        ConfigError: a method and sites are named at once, or options of a site do not
            go together.
    """
    first = configs[0].dropout
    used = [s for s in SITES if any(lane.rate for lane in _at(configs, s))]
    if first.method != "none":
        if used:
            raise ConfigError(
                f"dropout.{used[0]}.rate: must be 0 beside the method {first.method}."
            )
        rates = _column(c.dropout.rate for c in configs)
        return METHODS[first.method].preset(rates, configs[0].model.layers)
    if any(c.dropout.rate for c in configs):
        raise ConfigError("dropout.rate: is that of a method; name dropout.method.")
    return rdrop.Dropout(**{site: noise_of(_at(configs, site), site) for site in used})


def learned(config: Config) -> list[str]:
    """Returns the sites whose rate is learned."""
    return [s for s in SITES if getattr(getattr(config.dropout, s), "learn", False)]


def noise_of(lanes: Sequence[Noise | WeightNoise], site: str) -> Any:
    """Returns the noise of a site, each leaf with an axis of lanes.

    Args:
        lanes: its options in each lane.
        site: what errors are to name.

    Raises:
        ConfigError: the options do not go together.
    """
    first = lanes[0]
    rate = _values(lanes, "rate")
    if isinstance(first, WeightNoise):
        return rdrop.DropConnect(rate, by=first.by)
    drift = _values(lanes, "drift")
    _check(first, site, rate, drift)
    shared: dict[str, Any] = {
        "per": rdrop.Drift(drift) if (drift < 1).any() else first.per,
        "gates": first.gates,
        "batch": first.batch,
    }
    if first.kind == "bernoulli":
        return rdrop.Bernoulli(rate, scale=first.scale, **shared)
    if first.kind == "concrete":
        temperature = _values(lanes, "temperature")
        return rdrop.Concrete(rate, temperature=temperature, **shared)
    kinds = {"gaussian": rdrop.Gaussian, "zoneout": rdrop.Zoneout}
    return kinds[first.kind](rate, **shared)


def _check(noise: Noise | StateNoise, site: str, rate, drift) -> None:
    where = f"dropout.{site}"
    if noise.learn and noise.kind != "concrete":
        raise ConfigError(
            f'{where}.learn: the kind must be "concrete", whose mask is smooth in its '
            f'rate, got "{noise.kind}".'
        )
    if noise.learn and not ((rate > 0) & (rate < 1)).all():
        raise ConfigError(
            f"{where}.rate: must lie inside (0, 1) where it is learned, got "
            f"{rate.min():g}."
        )
    if noise.scale != "inverted" and noise.kind != "bernoulli":
        raise ConfigError(
            f'{where}.scale: must be "inverted" unless the kind is "bernoulli", got '
            f'"{noise.scale}".'
        )
    if noise.per == "sequence" and (drift < 1).any():
        raise ConfigError(f'{where}.drift: must be 1 unless per = "step".')


def _at(configs: Sequence[Config], site: str) -> list[Any]:
    return [getattr(config.dropout, site) for config in configs]


def _values(lanes: Sequence[Any], name: str) -> np.ndarray:
    return _column(getattr(lane, name) for lane in lanes)


def _column(values) -> np.ndarray:
    return np.array([*values], np.float32)
