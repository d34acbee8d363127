"""Tune: searches a space until its lanes are used up."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import axes
from experiments.axes import Sweep, value_text
from experiments.classify.run import Sequences
from experiments.config import ConfigError
from experiments.kinds import Loaded
from experiments.progress import console, watch
from experiments.runs.files import write_text
from experiments.search.population import Population
from experiments.search.space import Space
from experiments.search.study import (
    SUGGESTED_DIGITS,
    Result,
    Rules,
    SamplerName,
    Study,
    best_first,
    loss_of,
    read_results,
)
from experiments.wording import count_text

BEST = "best.toml"


@dataclass(frozen=True)
class Search:
    """How a space is searched."""

    sampler: SamplerName = "tpe"
    """What suggests settings: the tree-structured Parzen estimator, CMA-ES (numbers
    only), or chance."""
    lanes: int = 256
    """The lanes that the search may train, in all its processes. A setting has one per
    seed; lanes that are stopped early count in part. More lanes continue a search."""
    population: int = 16
    """Settings that are suggested and trained together."""
    halving: int = 0
    """Successive halving: at a few rungs, one of so many settings is trained on, such
    as 3; 0 trains all of them to the end."""

    def check(self, space: Space) -> None:
        """Raises a ConfigError for a search that is not possible."""
        seeds = len(space.sweep.seeds)
        if self.population < 1:
            raise ConfigError(f"population: must be at least 1, got {self.population}.")
        if self.halving < 0 or self.halving == 1:
            raise ConfigError(f"halving: must be 0, or at least 2, got {self.halving}.")
        if self.lanes < seeds:
            raise ConfigError(
                f"lanes: must be at least {seeds}, one per seed, got {self.lanes}."
            )
        if self.sampler == "cmaes" and space.choices:
            raise ConfigError(
                f"sampler: cmaes suggests numbers only, but {space.choices[0]} is a "
                "choice; use tpe or random."
            )


def tune(
    sweep: Sweep,
    folder: Path,
    search: Search = Search(),
    conclude: Callable[[Path], None] = lambda folder: None,
) -> bool:
    """Searches the axes of a sweep for the setting with the lowest validation loss.

    Several processes may search in one folder. Ctrl-C and SIGTERM stop a process at the
    next evaluation; its trials, and the trials of a dead process, are trained again by
    the next one.

    Args:
        sweep: the config; see `experiments.search.space` for what its axes mean.
        folder: of the study.
        search: how.
        conclude: a function of the folder that writes a report.

    Returns:
        Whether the lanes are used up.

    Raises:
        ConfigError: the config does not suit the data, or the folder belongs to
            another study or run.
        StorageError: a file of the study is damaged or cannot be written.
    """
    space = Space.of(sweep)
    search.check(space)
    kind = Sequences()
    loaded = kind.load(sweep.base)
    for structure in space.structures():
        kind.check([lane.config for lane in space.inside(structure)], loaded)
    loss = next(iter(loaded.units))
    rules = Rules(search.sampler, search.halving, loss, loaded.fingerprint)
    with Study(folder, space, rules) as study:
        done = _search(study, loaded, search)
    if results := best_first(read_results(folder)):
        write_text(folder / BEST, best_config(sweep, results[0]))
        conclude(folder)
    else:
        console.print("No trial was trained to the end: nothing to report.")
    if not done:
        console.print("Stopped. The same command resumes.")
    return done


def best_config(sweep: Sweep, result: Result) -> str:
    """Returns the config of a trial as TOML, for `ablate`."""
    base = sweep.lanes_of(result["setting"])[0].config
    one = Sweep(base, {}, sweep.seeds, sweep.source)
    return (
        f"# Trial {result['trial']} of a search; its validation loss was the lowest.\n"
        f"{axes.to_toml(one)}"
    )


def _search(study: Study, loaded: Loaded, search: Search) -> bool:
    space, epochs = study.space, study.space.sweep.base.train.epochs
    population = Population(space, loaded, search.population, search.halving)
    with watch(search.lanes, epochs) as watcher:
        while trials := study.claim(search.population, search.lanes):
            if watcher.stopped():
                return False
            settings = {n: trial.params for n, trial in trials.items()}
            results = population.train(settings, watcher)
            if results is None:
                return False
            study.tell(trials, results)
            console.print(_standing(study.folder))
    return True


def _standing(folder: Path) -> str:
    """Returns how many trials there are, and the best of them, in words."""
    results = read_results(folder)
    count = count_text(len(results), "trial")
    if not (best := best_first(results)):
        return f"{count}, none of them to the end."
    setting = ", ".join(
        f"{p} {value_text(v, SUGGESTED_DIGITS)}" for p, v in best[0]["setting"].items()
    )
    return f"{count}, the best {loss_of(best[0]):.4g} on validation data at {setting}."
