"""The network of a lane: recurrent layers with noise, and a readout."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Integer

import rdrop
from experiments.classify.methods import METHODS
from experiments.config import Config, ConfigError, Noise, StateNoise, WeightNoise

Dropout: TypeAlias = rdrop.Dropout | tuple[rdrop.Dropout, ...]

MakeCell: TypeAlias = Callable[..., rdrop.Cell]

CELLS: dict[str, MakeCell] = {
    "lstm": rdrop.LSTMCell,
    "layernorm_lstm": rdrop.LayerNormLSTMCell,
    "gru": rdrop.GRUCell,
    "gru_reset_before": partial(rdrop.GRUCell, reset_after=False),
    "simple": rdrop.SimpleCell,
    "slstm": rdrop.SLSTMCell,
    "mingru": rdrop.MinGRUCell,
    "minlstm": rdrop.MinLSTMCell,
    "rg_lru": rdrop.RGLRUCell,
    "lru": rdrop.LRUCell,
    "s5": rdrop.S5Cell,
}
SITES = tuple(rdrop.Dropout.__dataclass_fields__)


class ResidualBlock(nn.Module):
    """A recurrence with a residual connection around it.

        y = x + mix(recurrence(normalise(x)))

    Normalisation is over units. The mix is `glu`, a * sigmoid(b) with a and b linear in
    gelu(z) [1], or `mlp`, linear in gelu(a), a linear in z.

    References:
        [1] Smith, Warrington, Linderman. Simplified state space layers for sequence
            modeling. ICLR 2023. arXiv:2208.04933; s5/layers.py.

    Attributes:
        cell: the recurrence, which keeps the number of units.
        mix: "glu" or "mlp".
    """

    cell: rdrop.Cell
    mix: Literal["glu", "mlp"]

    @nn.compact
    def __call__(
        self,
        xs: Float[Array, "B T H"],
        lengths: Integer[Array, "B"],
        dropout: rdrop.Dropout | None = None,
        keys: rdrop.StreamKeys | None = None,
        depth: Float[Array, ""] | None = None,
    ) -> Float[Array, "B T H"]:
        """Returns the outputs; without keys, no noise.

        Args:
            xs: inputs.
            lengths: of the sequences.
            dropout: noise of the recurrence.
            keys: of the noise.
            depth: rate at which the block is left out of a sequence, or None.
        """
        units = xs.shape[-1]
        zs = nn.LayerNorm(name="norm")(xs)
        _, zs = rdrop.RNN(self.cell)(zs, dropout, keys, lengths=lengths)
        if self.mix == "glu":
            zs = nn.glu(nn.Dense(2 * units, name="mix")(nn.gelu(zs)))
        else:
            zs = nn.gelu(nn.Dense(2 * units, name="mix")(zs))
            zs = nn.Dense(units, name="out")(zs)
        if depth is not None and keys is not None:
            key = keys.site("inputs", "depth")
            kept: Any = rdrop.Bernoulli(depth).draw(key, (len(xs), 1, 1))
            zs = zs * kept
        return xs + zs


class Network(nn.Module):
    """A stack of recurrent layers, or of residual blocks, and a linear readout.

    Attributes:
        cell: constructor of the recurrence, which takes a number of units.
        units: units of each layer.
        layers: number of layers.
        outputs: size of the readout.
        readout: whether the "last" valid output or "each" one is read out.
        block: "none", or what is around each recurrence, see `ResidualBlock`.
    """

    cell: MakeCell
    units: int
    layers: int
    outputs: int
    readout: Literal["last", "each"]
    block: Literal["none", "glu", "mlp"] = "none"

    @nn.compact
    def __call__(
        self,
        xs: Float[Array, "B T D"],
        lengths: Integer[Array, "B"],
        dropout: Dropout | None = None,
        keys: rdrop.StreamKeys | None = None,
        depth: Float[Array, ""] | None = None,
    ) -> Float[Array, "B *T O"]:
        """Returns the readout; without keys, no noise."""
        cells = [self.cell(self.units) for _ in range(self.layers)]
        if self.block == "none":
            stack = rdrop.Stack([rdrop.RNN(cell) for cell in cells], name="stack")
            _, ys = stack(xs, dropout, keys, lengths=lengths)
        else:
            ys = self._blocks(cells, xs, lengths, dropout, keys, depth)
        if self.readout == "last":
            ys = ys[jnp.arange(len(ys)), lengths.astype(jnp.int32) - 1]
        return nn.Dense(self.outputs, name="readout")(ys)

    def _blocks(self, cells, xs, lengths, dropout, keys, depth):
        """Runs residual blocks over embedded inputs, and normalises their result."""
        ys = nn.Dense(self.units, name="encoder")(xs)
        for n, cell in enumerate(cells):
            block = ResidualBlock(cell, self.block, name=f"block_{n}")
            own = dropout[n] if isinstance(dropout, tuple) else dropout
            of_layer = keys and keys.replace(layer=keys.layer + n)
            ys = block(ys, lengths, own, of_layer, depth)
        return nn.LayerNorm(name="norm")(ys)


def cell_of(config: Config) -> MakeCell:
    """Returns the constructor of the recurrence; some methods have their own.

    Raises:
        ConfigError: the method is for another cell.
    """
    chosen = CELLS[config.model.cell]
    if config.dropout.method == "none":
        return chosen
    meant = METHODS[config.dropout.method].cell
    if meant is not None and config.model.cell != "lstm":
        raise ConfigError(
            f'model.cell: must be "lstm" with the method {config.dropout.method}, got '
            f'"{config.model.cell}".'
        )
    return meant or chosen


def dropout_of(configs: Sequence[Config]) -> Dropout:
    """Returns the noise of lanes of one structure; each leaf has an axis of lanes.

    Raises:
        ConfigError: a method and a site are combined, or options of a site exclude one
            another.
    """
    first = configs[0].dropout
    learns = learned(configs[0])
    rated = [s for s in SITES if any(lane.rate for lane in _at(configs, s))]
    used = [s for s in SITES if s in rated or s in learns]
    if first.method != "none":
        if used:
            raise ConfigError(
                f"dropout.{used[0]}.rate: must be 0 with the method {first.method}."
            )
        rates = _column(c.dropout.rate for c in configs)
        model = configs[0].model
        sites = cell_of(configs[0])(model.units).sites(model.units)
        return METHODS[first.method].preset(rates, model.layers, sites)
    if any(c.dropout.rate for c in configs):
        raise ConfigError(
            "dropout.rate: must be 0 without a method; set dropout.method or the rate "
            "of a site, such as dropout.inputs.rate."
        )
    return rdrop.Dropout(**{site: noise_of(_at(configs, site), site) for site in used})


def depth_of(configs: Sequence[Config]) -> np.ndarray | None:
    """Returns the rates of stochastic depth of lanes, None if all are 0.

    Raises:
        ConfigError: the model lacks residual blocks to leave out.
    """
    rates = _column(c.dropout.depth.rate for c in configs)
    if not rates.any():
        return None
    if configs[0].model.block == "none":
        raise ConfigError(
            'dropout.depth.rate: must be 0 if model.block is "none", got '
            f"{rates.max():g}."
        )
    return rates


def learned(config: Config) -> list[str]:
    """Returns the sites whose rate gradient descent learns."""
    return [s for s in SITES if getattr(getattr(config.dropout, s), "learn", False)]


def noise_of(lanes: Sequence[Noise | WeightNoise], site: str) -> Any:
    """Returns the noise of a site, each leaf with an axis of lanes.

    Args:
        lanes: its options in each lane.
        site: its name, for errors.

    Raises:
        ConfigError: the options exclude one another, or the kind excludes a rate.
    """
    try:
        return _noise(lanes, site)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"dropout.{site}: {reason}") from None


def _noise(lanes: Sequence[Noise | WeightNoise], site: str) -> Any:
    first = lanes[0]
    rate = _values(lanes, "rate")
    if isinstance(first, WeightNoise):
        if first.kind == "weight_noise":
            if first.by != "weight":
                raise ConfigError(
                    f'dropout.{site}.by: must be "weight" unless the kind is '
                    f'"dropconnect", got "{first.by}".'
                )
            return rdrop.WeightNoise(rate)
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
    kinds = {
        "gaussian": rdrop.Gaussian,
        "zoneout": rdrop.Zoneout,
        "additive": rdrop.Additive,
    }
    return kinds[first.kind](rate, **shared)


def _check(noise: Noise | StateNoise, site: str, rate, drift) -> None:
    where = f"dropout.{site}"
    if noise.learn and noise.kind != "concrete":
        raise ConfigError(
            f'{where}.learn: the kind must be "concrete", whose mask has a gradient in '
            f'the rate, got "{noise.kind}".'
        )
    if noise.learn and not ((rate > 0) & (rate < 1)).all():
        raise ConfigError(
            f"{where}.rate: must lie inside (0, 1) if it is learned, got "
            f"{_outside(rate):g}."
        )
    if noise.kind == "gaussian" and (rate == 1).any():
        raise ConfigError(
            f'{where}.rate: must be below 1 for kind = "gaussian", got 1.'
        )
    if noise.scale != "inverted" and noise.kind != "bernoulli":
        raise ConfigError(
            f'{where}.scale: must be "inverted" unless the kind is "bernoulli", got '
            f'"{noise.scale}".'
        )
    if noise.per == "sequence" and (drift < 1).any():
        raise ConfigError(f'{where}.drift: must be 1 unless per = "step".')


def _outside(rates: np.ndarray) -> float:
    return float(rates[(rates <= 0) | (rates >= 1)][0])


def _at(configs: Sequence[Config], site: str) -> list[Any]:
    return [getattr(config.dropout, site) for config in configs]


def _values(lanes: Sequence[Any], name: str) -> np.ndarray:
    return _column(getattr(lane, name) for lane in lanes)


def _column(values) -> np.ndarray:
    return np.array([*values], np.float32)
