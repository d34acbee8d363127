"""Race: trains more seeds of those settings of a sweep that are not settled yet.

All settings start with a few seeds. Settled settings leave, and the same compiled
programs train more seeds of the others, until the race is over, or the seeds of the
sweep, lanes or minutes are used up. The tests hold whenever one looks
(`experiments.sequential`).

Until it is settled: a setting leaves once its test loss is lower or higher than its
baseline's, or equivalent to it within a margin, after Holm's correction over all
settings.

Until the best is found: a setting leaves once its validation loss is higher than the
lowest of those in the race. The race is over once one is left, or all that are left are
equivalent to the lowest. The best setting leaves in at most 5 % of races: it would have
to be found higher than one of the S - 1 others, each at 5 % / (S - 1), whichever of
them is the lowest when one looks.

The next round depends on the results of the earlier ones alone, so that a race that was
interrupted continues as if it had not been.

Shapes:
    S settings, K seeds of the sweep.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import tyro
from jaxtyping import Bool, Float, Int

from experiments.axes import Lane, Sweep, baseline
from experiments.config import ConfigError
from experiments.sequential import (
    SEQUENTIAL,
    equivalence_p,
    fewest_seeds,
    p_value,
)
from experiments.statistics import LEVEL, Comparison, compare
from experiments.wording import count_text

# A race that looks too rarely trains more seeds than it needs.
MOST_NEW_SHARE = 0.25  # of the seeds so far
Flags: TypeAlias = Bool[np.ndarray, "S"]


@dataclass(frozen=True)
class Race:
    """When a race ends."""

    until: tyro.conf.Suppress[Literal["settled", "best"]] = "settled"
    margin: float = 0.0
    """Differences inside this margin, in the unit of the loss, are settled as
    equivalent; 0 for no such verdict."""
    lanes: int | None = None
    """The most lanes that are trained."""
    minutes: float | None = None
    """Minutes after which no more seeds are started."""

    @property
    def facts(self) -> dict[str, Any]:
        """What decides which lanes are trained; the limits do not."""
        return {"until": self.until, "margin": float(self.margin)}

    @property
    def split(self) -> str:
        """The data whose loss is compared; the best setting is chosen on validation."""
        return "test" if self.until == "settled" else "valid"

    def check(self, sweep: Sweep) -> None:
        """Raises a ConfigError if a sweep cannot be raced."""
        if not 0 <= self.margin < math.inf:
            raise ConfigError(
                f"margin: must be finite and at least 0, got {self.margin:g}."
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes: must be above 0, got {self.minutes:g}.")
        field = _Field.of(sweep.lanes(), self)
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


class Departure(NamedTuple):
    """When a setting left a race until the best.

    Attributes:
        lowest: the place of the setting that was the lowest then.
        seeds: how many of both were compared.
    """

    lowest: int
    seeds: int


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
        loss: the loss that is compared, such as "nll".
        race: its end.
    """
    field = _Field.of(lanes, race)
    values = np.full(len(lanes), np.nan)
    for place, record in records.items():
        last = (record["metrics"].get(f"{race.split}_{loss}") or [None])[-1]
        lost = last is None or record["status"] == "diverged"
        values[place] = np.nan if lost else last
    losses = values.reshape(field.shape)
    return _standing(field, losses, race).next(records)


def departures(
    losses: Float[np.ndarray, "S K"], ended: Bool[np.ndarray, "S K"], race: Race
) -> dict[int, Departure]:
    """Returns the settings that left a race until the best, by their places.

    Args:
        losses: validation losses; NaN of lanes that diverged or were not trained.
        ended: the lanes that were trained.
        race: its end.
    """
    field = _Field(np.arange(len(losses)), losses.shape[1], race)
    standing = _Best(field, losses, race)
    standing.next(set(np.flatnonzero(ended).tolist()))
    return standing.left


class _Field(NamedTuple):
    """The settings of a sweep, in its order.

    Attributes:
        bases: [S], the place of each setting's baseline among the settings.
        seeds: K.
        race: its end.
    """

    bases: Int[np.ndarray, "S"]
    seeds: int
    race: Race

    @classmethod
    def of(cls, lanes: Sequence[Lane], race: Race) -> "_Field":
        """Finds the baselines of a sweep's lanes, whose seeds vary fastest."""
        seeds = len({lane.config.seeds for lane in lanes})
        settings = [lane.setting for lane in lanes[::seeds]]
        axes: dict[str, list[Any]] = {}
        for setting in settings:
            for path, value in setting.items():
                if value not in axes.setdefault(path, []):
                    axes[path].append(value)
        bases = [settings.index(baseline(axes, setting)) for setting in settings]
        return cls(np.array(bases), seeds, race)

    @property
    def shape(self) -> tuple[int, int]:
        """S and K."""
        return len(self.bases), self.seeds

    @property
    def tested(self) -> Bool[np.ndarray, "S"]:
        """Which settings may be settled: all but baselines, or all but one."""
        if self.race.until == "best":
            return np.arange(len(self.bases)) > 0
        return self.bases != np.arange(len(self.bases))

    @property
    def first(self) -> int:
        """The seeds of the first round: the fewest that can settle a setting."""
        return fewest_seeds(LEVEL / max(1, int(self.tested.sum())))


class _Standing:
    """A race as far as its results go."""

    def __init__(self, field: _Field, losses: Float[np.ndarray, "S K"], race: Race):
        self.field, self.losses, self.race = field, losses, race

    def next(self, ended: Collection[int]) -> Round:
        """Returns the first round with a lane that is still to be trained."""
        field, settings = self.field, len(self.field.bases)
        counts = np.zeros(settings, int)
        undecided, seeds = self._start(), field.first
        while True:
            racing = self._racing(undecided)
            grid = np.arange(field.seeds)
            new = racing[:, None] & (grid >= counts[:, None]) & (grid < seeds)
            places = np.flatnonzero(new).tolist()
            left = self._undecided(undecided)
            most = self.race.lanes or new.size
            if int(counts.sum()) + len(places) > most:
                places = []
            if not places or not set(ended) >= set(places):
                return Round(places, left, seeds, int(field.tested.sum()))
            counts[racing] = seeds
            undecided &= ~self._settled(undecided, counts)
            width = settings * field.first // max(1, int(racing.sum()))
            most_new = max(1, int(seeds * MOST_NEW_SHARE))
            seeds = min(field.seeds, seeds + max(1, min(width, most_new)))

    def _start(self) -> Flags:
        """Returns the settings that can leave."""
        return self.field.tested.copy()

    def _racing(self, undecided: Flags) -> Flags:
        """Returns the settings that are trained: also the baselines of others."""
        racing = undecided.copy()
        racing[self.field.bases[undecided]] = True
        return racing

    def _undecided(self, undecided: Flags) -> int:
        """Returns how many settings are not settled."""
        return int(undecided.sum())

    def _settled(self, undecided: Flags, counts: Int[np.ndarray, "S"]) -> Flags:
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


class _Best(_Standing):
    """A race until the best setting is found."""

    def __init__(self, field: _Field, losses: Float[np.ndarray, "S K"], race: Race):
        super().__init__(field, losses, race)
        self.left: dict[int, Departure] = {}

    def _start(self) -> Flags:
        return np.ones(len(self.losses), bool)

    def _racing(self, undecided: Flags) -> Flags:
        return undecided if undecided.sum() > 1 else np.zeros_like(undecided)

    def _undecided(self, undecided: Flags) -> int:
        return int(undecided.sum()) - 1

    def _settled(self, undecided: Flags, counts: Int[np.ndarray, "S"]) -> Flags:
        found = np.zeros(len(counts), bool)
        places = np.flatnonzero(undecided).tolist()
        seeds = int(counts[places].min())
        losses = self.losses[:, :seeds]
        means = np.where(undecided, losses.mean(axis=1), np.inf)
        lowest = int(np.argmin(np.where(np.isnan(means), np.inf, means)))
        level = LEVEL / (len(self.losses) - 1)
        equivalent = self.race.margin > 0
        others = [place for place in places if place != lowest]
        for place in others:
            differences = losses[place] - losses[lowest]
            lost = not np.isfinite(differences).all()
            same = not differences.any()
            higher = differences.mean() > 0 and p_value(differences) < level
            if lost or same or higher:
                found[place] = True
                self.left[place] = Departure(lowest, seeds)
            elif equivalent:
                equivalent = equivalence_p(differences, self.race.margin) < level
        if equivalent:
            found[others] = True
        return found


def _standing(field: _Field, losses: Float[np.ndarray, "S K"], race: Race) -> _Standing:
    kind = _Best if race.until == "best" else _Standing
    return kind(field, losses, race)


def _leaves(row: Comparison | None) -> bool:
    """Whether a setting is settled, or cannot be: a lane has diverged."""
    return row is None or row.settled


def race_text(facts: Mapping[str, Any] | None) -> str:
    """Returns whether a run is a race, in words."""
    if facts is None:
        return "without --until"
    return f"with --until {facts['until']} --margin {facts['margin']:g}"
