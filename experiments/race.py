"""Race: trains more seeds of those settings of a sweep that are not settled yet.

All settings start with a few seeds. A setting is settled once it is lower or higher
than its baseline, or equivalent to it within a margin; the tests hold whenever one
looks (`experiments.sequential`), after Holm's correction over all settings. Settled
settings leave, and the same compiled programs train more seeds of the others, until
none is left, or the seeds of the sweep, lanes or minutes are used up.

The next round depends on the results of the earlier ones alone, so that a race that was
interrupted continues as if it had not been.

Shapes:
    S settings, K seeds of the sweep.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.axes import Lane, Sweep, baseline
from experiments.config import ConfigError
from experiments.sequential import SEQUENTIAL, fewest_seeds
from experiments.statistics import LEVEL, Comparison, compare, count_text

# A race that looks too rarely trains more seeds than it needs.
MOST_NEW_SHARE = 0.25  # of the seeds so far


@dataclass(frozen=True)
class Race:
    """When a race ends."""

    margin: float = 0.0
    """A setting whose difference to its baseline is inside this margin, in the unit of
    the test loss, is settled as equivalent; 0 for no such verdict."""
    lanes: int | None = None
    """The most lanes that are trained."""
    minutes: float | None = None
    """Minutes after which no more seeds are started."""

    @property
    def facts(self) -> dict[str, float]:
        """What decides which lanes are trained; the limits do not."""
        return {"margin": float(self.margin)}

    def check(self, sweep: Sweep) -> None:
        """Raises a ConfigError if a sweep cannot be raced."""
        if not 0 <= self.margin < math.inf:
            raise ConfigError(
                f"margin: must be finite and at least 0, got {self.margin:g}."
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes: must be above 0, got {self.minutes:g}.")
        field = _Field.of(sweep.lanes())
        if not field.tested.any():
            raise ConfigError(
                f"{sweep.source}: must have an axis with several values to be raced."
            )
        if len(sweep.seeds) < field.first:
            raise ConfigError(
                f"{sweep.source}: seeds: must be at least {field.first}, the fewest "
                f"that can settle {field.tested.sum()} differences, got "
                f"{len(sweep.seeds)}; a race may use all of them, such as 64."
            )
        fewest = field.first * len(field.bases)
        if self.lanes is not None and self.lanes < fewest:
            raise ConfigError(
                f"lanes: must be at least {fewest}, {field.first} seeds of each "
                f"setting, got {self.lanes}."
            )


class Round(NamedTuple):
    """A round of a race.

    Attributes:
        places: of its lanes in the sweep, ascending; none if the race is over.
        undecided: settings that are not settled yet.
        seeds: of each of them after the round.
        settings: of the sweep, without baselines.
    """

    places: list[int]
    undecided: int
    seeds: int
    settings: int

    def __str__(self) -> str:
        of = count_text(self.settings, "setting")
        return f"{self.undecided} of {of} undecided: {count_text(self.seeds, 'seed')}"


def next_round(
    lanes: Sequence[Lane], records: Mapping[int, dict], loss: str, race: Race
) -> Round:
    """Returns the first round that has lanes without a record.

    Args:
        lanes: all lanes of the sweep.
        records: of the lanes that have ended, by their places.
        loss: the metric that is compared, such as "test_nll".
        race: its end.
    """
    field = _Field.of(lanes)
    values = np.full(len(lanes), np.nan)
    for place, record in records.items():
        last = (record["metrics"].get(loss) or [None])[-1]
        lost = last is None or record["status"] == "diverged"
        values[place] = np.nan if lost else last
    losses = values.reshape(field.shape)
    return _Standing(field, losses, race).next(records)


class _Field(NamedTuple):
    """The settings of a sweep, in its order.

    Attributes:
        bases: [S], the place of each setting's baseline among the settings.
        seeds: K.
    """

    bases: Int[np.ndarray, "S"]
    seeds: int

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> "_Field":
        """Finds the baselines of a sweep's lanes, whose seeds vary fastest."""
        seeds = len({lane.config.seeds for lane in lanes})
        settings = [lane.setting for lane in lanes[::seeds]]
        axes: dict[str, list[Any]] = {}
        for setting in settings:
            for path, value in setting.items():
                if value not in axes.setdefault(path, []):
                    axes[path].append(value)
        bases = [settings.index(baseline(axes, setting)) for setting in settings]
        return cls(np.array(bases), seeds)

    @property
    def shape(self) -> tuple[int, int]:
        """S and K."""
        return len(self.bases), self.seeds

    @property
    def tested(self) -> Bool[np.ndarray, "S"]:
        """Which settings are not baselines themselves."""
        return self.bases != np.arange(len(self.bases))

    @property
    def first(self) -> int:
        """The seeds of the first round: the fewest that can settle a setting."""
        return fewest_seeds(LEVEL / max(1, int(self.tested.sum())))


class _Standing:
    """A race as far as its results go."""

    def __init__(self, field: _Field, losses: Float[np.ndarray, "S K"], race: Race):
        self.field, self.losses, self.race = field, losses, race

    def next(self, records: Mapping[int, dict]) -> Round:
        field, settings = self.field, len(self.field.bases)
        counts = np.zeros(settings, int)
        undecided, seeds = field.tested.copy(), field.first
        while True:
            racing = undecided.copy()
            racing[field.bases[undecided]] = True
            grid = np.arange(field.seeds)
            new = racing[:, None] & (grid >= counts[:, None]) & (grid < seeds)
            places = np.flatnonzero(new).tolist()
            left = int(undecided.sum())
            most = self.race.lanes or new.size
            if int(counts.sum()) + len(places) > most:
                places = []
            if not places or not records.keys() >= set(places):
                return Round(places, left, seeds, int(field.tested.sum()))
            counts[racing] = seeds
            undecided &= ~self._settled(counts)
            width = settings * field.first // max(1, int(racing.sum()))
            most_new = max(1, int(seeds * MOST_NEW_SHARE))
            seeds = min(field.seeds, seeds + max(1, min(width, most_new)))

    def _settled(self, counts: Int[np.ndarray, "S"]) -> Bool[np.ndarray, "S"]:
        """Returns which settings leave, if each has so many seeds."""
        found = np.zeros(len(counts), bool)
        tested = np.flatnonzero(self.field.tested)
        pairs = [self._pair(int(setting), counts) for setting in tested]
        compared = compare(pairs, SEQUENTIAL, self.race.margin)
        for setting, (one, other), row in zip(tested, pairs, compared, strict=True):
            found[setting] = _leaves(row) or np.array_equal(one, other)
        return found

    def _pair(self, setting: int, counts):
        """The losses of a setting and of its baseline at the seeds of both."""
        base = self.field.bases[setting]
        seeds = min(counts[setting], counts[base])
        return self.losses[setting, :seeds], self.losses[base, :seeds]


def _leaves(row: Comparison | None) -> bool:
    """Whether a setting is settled, or cannot be: a lane has diverged."""
    return row is None or row.settled


def race_text(facts: Mapping[str, float] | None) -> str:
    """Returns whether a run is a race, in words."""
    if facts is None:
        return "without --until"
    return f"with --until settled --margin {facts['margin']:g}"
