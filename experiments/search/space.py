"""Space: what a search may try, read from a config with axes.

A traced axis (a rate, the learning rate) is a range from its lowest to its highest
value, and every number in it may be tried. Any other axis is a choice among its values,
each of which is a compiled program of its own.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from experiments.axes import TRACED, Lane, Sweep
from experiments.config import ConfigError

# If their lowest value is above 0, these are searched on a logarithmic scale.
LOGARITHMIC = re.compile(
    r"train\.(learning_rate|weight_decay)|second_pass\.weight|.*\.temperature"
)


class Space(NamedTuple):
    """The settings that a search may try.

    Attributes:
        sweep: the config and its axes.
        distributions: what each axis may be, by its path.
    """

    sweep: Sweep
    distributions: dict[str, BaseDistribution]

    @classmethod
    def of(cls, sweep: Sweep) -> "Space":
        """Reads the axes of a sweep.

        Raises:
            ConfigError: it lacks a range to search.
        """
        if not any(TRACED.fullmatch(path) for path in sweep.axes):
            raise ConfigError(
                f"{sweep.source}: must have a range to be searched: several values of "
                "a rate, the learning rate or another number that may be traced. "
                "`ablate` trains every combination of choices."
            )
        return cls(sweep, {p: _distribution(p, v) for p, v in sweep.axes.items()})

    @property
    def choices(self) -> list[str]:
        """The paths that are not ranges."""
        return [p for p in self.distributions if not TRACED.fullmatch(p)]

    def structures(self) -> list[dict[str, Any]]:
        """Returns each combination of choices."""
        values = itertools.product(*(self.sweep.axes[path] for path in self.choices))
        return [dict(zip(self.choices, each, strict=True)) for each in values]

    def inside(self, structure: Mapping[str, Any]) -> list[Lane]:
        """Returns the lanes in the middle of each range, where all noise is on."""
        middle = {
            path: (min(values) + max(values)) / 2
            for path, values in self.sweep.axes.items()
            if TRACED.fullmatch(path)
        }
        return self.sweep.lanes_of({**structure, **middle})


def _distribution(path: str, values: tuple[Any, ...]) -> BaseDistribution:
    if not TRACED.fullmatch(path):
        return CategoricalDistribution(values)
    low, high = min(values), max(values)
    log = bool(LOGARITHMIC.fullmatch(path)) and low > 0
    assert math.isfinite(high)
    return FloatDistribution(low, high, log=log)
