"""Scales: from data to pixels, with ticks, linear or logarithmic."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import LogLocator, MaxNLocator

from experiments.report.scene import Number


class Scale(NamedTuple):
    """A map from data to pixels.

    Attributes:
        low, high: the range of the data.
        start, end: the pixels of its ends.
        log: whether it is logarithmic.
        whole: whether its ticks are whole numbers, as of epochs and seeds.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def place(self, value: Number) -> float:
        """Returns the pixel of a value; values outside the range are at its ends."""
        return self.start + self.share(value) * (self.end - self.start)

    def share(self, value: Number) -> float:
        """Returns how far a value is from the low end, from 0 to 1."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Returns round values within the range."""
        for subs in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)) if self.log else ():
            found = self._within(LogLocator(subs=subs, numticks=20))
            if len(found) >= 3:
                return found
        return self._within(
            MaxNLocator(most, steps=[1, 2, 5, 10], integer=self.whole, min_n_ticks=1)
        )

    def _within(self, locator) -> list[float]:
        values = locator.tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        inside = [
            float(v) for v in values if self.low - slack <= v <= self.high + slack
        ]
        found = [round(value, 12) for value in inside]
        return [v for v in found if v.is_integer()] if self.whole else found


def fit_scale(
    values: Float[np.ndarray, "..."] | list,
    start: Number,
    end: Number,
    log: bool = False,
    whole: bool = False,
) -> Scale:
    """Returns a scale that holds all finite values with a small margin.

    With `log`, it is logarithmic if all values are above 0; with `whole`, its ticks are
    whole numbers.
    """
    flat = np.asarray(values, float).reshape(-1)
    flat = flat[np.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
    if log and low > 0:
        margin = max(1.02, (high / low) ** 0.04)
        return Scale(low / margin, high * margin, start, end, True, whole)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return Scale(low - margin, high + margin, start, end, whole=whole)


def spans_decades(values: Float[np.ndarray, "..."] | list) -> bool:
    """Returns whether positive values are spread enough for a logarithmic scale."""
    flat = np.asarray(values, float).reshape(-1)
    flat = flat[np.isfinite(flat)]
    return bool(flat.size and flat.min() > 0 and flat.max() >= 20 * flat.min())
