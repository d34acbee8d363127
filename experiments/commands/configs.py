"""Commands that take a config, and train: ablate, tune, train and reproduce."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from experiments import axes, commandline
from experiments.classify.run import Sequences
from experiments.commands import KINDS
from experiments.config import Config, ConfigError
from experiments.devices import HERE, Machine
from experiments.engine import Options, run
from experiments.estimate import estimate
from experiments.language.config import Config as ModelConfig
from experiments.language.run import LanguageModels
from experiments.progress import console
from experiments.race import Race
from experiments.runs.folder import folder_of
from experiments.runs.weights import Keep
from experiments.search import tune as searching
from experiments.wording import count_text

ConfigPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
NO_LIMITS = Race()
USUAL_SEARCH = searching.Search()
_Several: Any = commandline.several(Config)
_SeveralModels: Any = commandline.several(ModelConfig)


def ablate(arguments: Sequence[str]) -> Callable[..., int]:
    """Returns a command whose options default to the config named on the line."""
    options = _defaults("ablate", arguments, Config)

    def command(
        path: ConfigPath,
        /,
        config: Annotated[_Several, tyro.conf.arg(name="")] = options,
        out: Path | None = None,
        keep: Keep = Sequences.keep,
        dry_run: bool = False,
        log: Tracker | None = None,
        until: Literal["trained", "settled", "best"] = "trained",
        race: Annotated[Race, tyro.conf.arg(name="")] = NO_LIMITS,
        machine: Annotated[Machine, tyro.conf.arg(name="")] = HERE,
    ) -> int:
        """Trains every combination of the values in a config, and writes a report.

        The config is a TOML file; each of its fields can be overridden by one value, or
        by several values, which are then an axis of the sweep:
        `python -m experiments ablate CONFIG.toml --dropout.recurrent.rate 0 0.25 0.5`.
        The same command resumes an interrupted run.

        Args:
            path: the config, for example one of those that `configs` lists.
            config: the fields of the config.
            out: the folder of the run; by default runs/NAME.
            keep: the weights to keep: of no lanes, of the best setting, or of all.
            dry_run: print programs, memory and time, and stop.
            log: the tracker that gets each lane as a run, too.
            until: when to stop: once all lanes are trained; once each setting is
                settled against its baseline, by the test loss; or once the best setting
                is found, by the validation loss. Settled settings leave, and the others
                get more seeds, up to `--seeds`.
            race: the other ends of such a race.
            machine: devices and processes.
        """
        machine.check()
        racing = _racing(until, race)
        _join(machine)
        sweep = _sweep(path, config, options, Config)
        if dry_run:
            estimate(KINDS["sequences"], sweep, machine, racing)
            return 0
        text = shlex.join(["python", "-m", "experiments", *arguments])
        how = Options(machine, text, keep, racing, _concluding(log))
        done = run(KINDS["sequences"], sweep, out or folder_of(path), how)
        return 0 if done else 130

    return command


def tune(arguments: Sequence[str]) -> Callable[..., int]:
    """Returns a command whose options default to the config named on the line."""
    options = _defaults("tune", arguments, Config)

    def command(
        path: ConfigPath,
        /,
        config: Annotated[_Several, tyro.conf.arg(name="")] = options,
        out: Path | None = None,
        search: Annotated[searching.Search, tyro.conf.arg(name="")] = USUAL_SEARCH,
    ) -> int:
        """Searches a config for the setting with the lowest validation loss.

        The config is one of `ablate`, but its axes are not a grid: rates and other
        traced fields with several values are ranges from the lowest to the highest, and
        any number in them is tried; the values of other fields are choices.
        `python -m experiments tune CONFIG.toml --lanes 256 --halving 3`. The same
        command resumes an interrupted search, or helps one that is running.

        Args:
            path: the config, for example configs/vowels_plane.toml.
            config: the fields of the config.
            out: the folder of the study; by default runs/NAME_search.
            search: how it is searched.
        """
        sweep = _sweep(path, config, options, Config)
        folder = out or folder_of(path).with_name(f"{path.stem}_search")
        return 0 if searching.tune(sweep, folder, search, _concluding(None)) else 130

    return command


def train(arguments: Sequence[str]) -> Callable[..., int]:
    """Returns a command whose options default to the config named on the line."""
    options = _defaults("train", arguments, ModelConfig)

    def command(
        path: ConfigPath,
        /,
        config: Annotated[_SeveralModels, tyro.conf.arg(name="")] = options,
        out: Path | None = None,
        keep: Keep = LanguageModels.keep,
        dry_run: bool = False,
        log: Tracker | None = None,
        stop_after: int | None = None,
    ) -> int:
        """Trains language models, and writes a report.

        The config is a TOML file; each of its fields can be overridden:
        `python -m experiments train configs/ptb_zaremba_small.toml --task.data FOLDER`.
        Several values of a field are trained in turn. The same command resumes an
        interrupted run, also within an epoch.

        Args:
            path: the config, for example one of configs/ptb_*.toml.
            config: the fields of the config.
            out: the folder of the run; by default runs/NAME.
            keep: the weights to keep: of no lanes, of the best setting, or of all.
            dry_run: print programs, memory and time, and stop.
            log: the tracker that gets each lane as a run, too.
            stop_after: windows after which each lane stops, to be resumed later.
        """
        kind = LanguageModels(stop_after)
        sweep = _sweep(path, config, options, ModelConfig)
        if dry_run:
            estimate(kind, sweep)
            return 0
        text = shlex.join(["python", "-m", "experiments", *arguments])
        how = Options(HERE, text, keep, conclude=_concluding(log))
        return 0 if run(kind, sweep, out or folder_of(path), how) else 130

    return command


def reproduce(
    path: ConfigPath,
    /,
    data: str = "",
    seeds: int | None = None,
    out: Path | None = None,
    keep_result: bool = False,
) -> int:
    """Trains and evaluates the row of a paper, and compares it with the paper.

    `python -m experiments reproduce configs/ptb_zaremba_small.toml --data FOLDER`.
    The same command resumes an interrupted training; what is done is not repeated.

    Args:
        path: a config with the table [paper].
        data: the data, as the header of the config says.
        seeds: how many trainings; by default as in the config.
        out: the folder of the run; by default runs/NAME.
        keep_result: keep the result in results/ next to the config.
    """
    from experiments import reproduce as reproducing

    paper, sweep = reproducing.read_recipe(path, KINDS, data, seeds)
    command = reproducing.command(path, sweep.seeds)
    text = f"{command} --data {shlex.quote(data)}"
    text += f" --out {shlex.quote(str(out))}" if out else ""
    how = Options(HERE, text, KINDS[paper.kind].keep, conclude=_concluding(None))
    folder = out or folder_of(path)
    result = reproducing.reproduce(path, paper, sweep, KINDS[paper.kind], folder, how)
    if result is None:
        return 130
    if keep_result:
        reproducing.keep_result(path, result)
    return 0


def _racing(until: Literal["trained", "settled", "best"], race: Race) -> Race | None:
    """Returns the race of a run, if it is one; limits of a race need one."""
    if until != "trained":
        return dataclasses.replace(race, until=until)
    if race != NO_LIMITS:
        raise ConfigError(
            "until: must be settled or best for --margin, --lanes and --minutes."
        )
    return None


def _sweep(path: Path, config: Any, options: Any, kind: Any) -> axes.Sweep:
    """Builds the sweep; errors name the command line if it overrides fields."""
    source = str(path) if config == options else "command line"
    return axes.make_sweep(commandline.plain(config), source, kind)


def _defaults(command: str, arguments: Sequence[str], kind: Any) -> Any:
    """Returns the options of a command, with the defaults of its config.

    Raises:
        ConfigError: the config cannot be used, or is for another command.
    """
    path = _named(command, arguments)
    try:
        return commandline.defaults(path, kind)
    except ConfigError:
        other, name = (
            (Config, "ablate") if kind is ModelConfig else (ModelConfig, "train")
        )
        try:
            commandline.defaults(path, other)
        except ConfigError:
            pass
        else:
            raise ConfigError(f"{path}: is a config for `{name}`.") from None
        raise


def _named(command: str, arguments: Sequence[str]) -> Path | None:
    """Returns the config that the arguments of a command name, if any."""
    words = [word for word in arguments[1:] if not word.startswith("-")]
    named = [word for word in words if word.endswith(".toml")] or words
    return Path(named[0]) if list(arguments[:1]) == [command] and named else None


def _concluding(log: Tracker | None) -> Callable[[Path], None]:
    """Returns a function that writes the report of a run; checks the tracker first."""
    if log:
        from experiments.report import trackers

        trackers.check_tracker(log)

    def conclude(folder: Path) -> None:
        from experiments import report

        path = report.write_report([folder])
        report.print_summary(folder)
        if log:
            count = trackers.log_lanes(folder, log)
            console.print(f"Logged to {log}: {count_text(count, 'lane')}.")
        console.print(f"Report: {path}", style="bold", soft_wrap=True)

    return conclude


def _join(machine: Machine) -> None:
    """Takes part in a run of several processes.

    Raises:
        ConfigError: the other processes cannot be reached.
    """
    if not machine.distributed:
        return
    try:
        jax.distributed.initialize(
            machine.coordinator, machine.processes, machine.process
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"distributed: the processes cannot meet: {reason}") from None
    console.quiet = jax.process_index() > 0
