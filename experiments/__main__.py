"""The command line: `python -m experiments ablate configs/vowels_plane.toml`."""

import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

import rdrop
from experiments import axes, commandline
from experiments.classify.evaluate import compare_settings, evaluate_sequences
from experiments.classify.run import Sequences
from experiments.config import Config, ConfigError
from experiments.devices import HERE, Machine, one_device_per_core
from experiments.engine import Options, run
from experiments.estimate import estimate
from experiments.kinds import Kind
from experiments.language.config import Config as ModelConfig
from experiments.language.evaluate import Options as Evaluate
from experiments.language.evaluate import evaluate, show
from experiments.language.run import LanguageModels
from experiments.progress import console
from experiments.race import Race
from experiments.runs.facts import read_facts
from experiments.runs.files import StorageError
from experiments.runs.folder import folder_of
from experiments.runs.weights import Keep
from experiments.search.tune import Search, tune
from experiments.statistics import count_text

ConfigPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")]
Line = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RESULTS.jsonl:LINE")]
Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
Folders = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")
]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
EXAMPLES = Path(__file__).parents[1] / "configs"
KINDS: dict[str, Kind] = {k.name: k for k in (Sequences(), LanguageModels())}
"""Kinds of program by their names in run.json."""
BEGIN = "python -m experiments ablate configs/vowels_plane.toml"
DETERMINISTIC = Evaluate()
NO_LIMITS = Race()
USUAL_SEARCH = Search()
_Several: Any = commandline.several(Config)
_SeveralModels: Any = commandline.several(ModelConfig)


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status.

    0: done. 1: a lane that does not replay, a damaged file, or a full disk. 2: a
    mistake in a config or on the command line. 130: stopped by Ctrl-C or SIGTERM.
    """
    if arguments[:1] == ["--version"]:
        print(f"rdrop {rdrop.__version__}, jax {jax.__version__}")
        return 0
    try:
        commands: dict[str, Callable[..., int]] = {
            "ablate": _ablate(arguments),
            "tune": _tune(arguments),
            "train": _train(arguments),
            "reproduce": _reproduce,
            "configs": _configs,
            "evaluate": _evaluate,
            "replay": _replay,
            "report": _report,
            "export": _export,
        }
        if not arguments:
            return _overview(commands)
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m experiments",
            description="Ablations of recurrent dropout; --version prints versions.",
            args=arguments,
        )
    except (ConfigError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("Stopped at once. The same command resumes.", file=sys.stderr)
        return 130


def _ablate(arguments: Sequence[str]) -> Callable[..., int]:
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


def _tune(arguments: Sequence[str]) -> Callable[..., int]:
    """Returns a command whose options default to the config named on the line."""
    options = _defaults("tune", arguments, Config)

    def command(
        path: ConfigPath,
        /,
        config: Annotated[_Several, tyro.conf.arg(name="")] = options,
        out: Path | None = None,
        search: Annotated[Search, tyro.conf.arg(name="")] = USUAL_SEARCH,
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
        return 0 if tune(sweep, folder, search, _concluding(None)) else 130

    return command


def _train(arguments: Sequence[str]) -> Callable[..., int]:
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


def _reproduce(
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
    command = f"python -m experiments reproduce {path} --data {shlex.quote(data)}"
    how = Options(HERE, command, KINDS[paper.kind].keep, conclude=_concluding(None))
    folder = out or folder_of(path)
    result = reproducing.reproduce(path, paper, sweep, KINDS[paper.kind], folder, how)
    if result is None:
        return 130
    if keep_result:
        reproducing.keep_result(path, result)
    return 0


def _overview(commands: Mapping[str, Callable[..., int]]) -> int:
    """Lists the commands and the configs, and says how to begin."""
    console.print("Commands; each has --help:")
    for name, command in commands.items():
        first = (command.__doc__ or "").partition("\n")[0]
        console.print(f"[bold]{name:10}[/bold] {first}", soft_wrap=True)
    console.print("\nConfigs:")
    _configs()
    console.print(f"\nTo begin: [bold]{BEGIN}[/bold]", soft_wrap=True)
    return 0


def _configs() -> int:
    """Lists the configs that come with rdrop."""
    for path in sorted(EXAMPLES.glob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        console.print(f"[bold]configs/{path.name}[/bold]  {first}", soft_wrap=True)
    return 0


def _evaluate(
    run: Folder,
    /,
    options: Annotated[Evaluate, tyro.conf.arg(name="")] = DETERMINISTIC,
    against: int | None = None,
) -> int:
    """Evaluates a trained lane of a run, without noise and by Monte Carlo dropout.

    `python -m experiments evaluate runs/ptb_gal_medium_tied --passes 10 --powers 1 0`.
    `python -m experiments evaluate runs/vowels_plane --passes 32 --ensemble seeds`.

    Args:
        run: the folder of a run that kept weights (--keep best or all).
        options: of the evaluation.
        against: a lane of another setting, which is compared with the setting of --lane
            over their seeds and the sequences of the split.
    """
    facts = read_facts(run)
    if not facts:
        raise ConfigError(f"{run}: is not the folder of a run: no run.json.")
    if facts["kind"] == LanguageModels.name:
        if against is not None:
            raise ConfigError("against: compares networks of sequences only.")
        show(evaluate(run, options))
        return 0
    kept = {n: getattr(options, n) for n in ("powers", "masks", "noise", "temperature")}
    if dataclasses.replace(DETERMINISTIC, **kept) != DETERMINISTIC or options.window:
        raise ConfigError(
            "evaluate: networks of sequences take --lane, --split, --passes, "
            "--ensemble, --seed, --chunk and --against only."
        )
    if against is not None:
        if options.passes or options.ensemble != "none":
            raise ConfigError("against: takes neither --passes nor --ensemble.")
        found = [compare_settings(run, options.lane, against, options.split)]
    else:
        found = evaluate_sequences(
            run,
            options.lane,
            options.split,
            options.passes,
            options.ensemble == "seeds",
            options.seed,
            options.chunk,
        )
    for row in found:
        texts = (
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
        )
        console.print("  ".join(texts), soft_wrap=True)
    return 0


def _replay(line: Line, /, data_devices: int = 1) -> int:
    """Trains one lane of a run again and compares it bitwise.

    Args:
        line: a line of results, such as runs/vowels_plane/results.jsonl:17, from 1.
        data_devices: devices that share each batch, as in the run.
    """
    from experiments.replay import replay

    return 0 if replay(line, KINDS, data_devices) else 1


def _report(
    runs: Folders,
    /,
    figure: str | None = None,
    out: Path | None = None,
    margin: float = 0.0,
) -> int:
    """Writes the report of a run again, or one that compares several runs.

    Args:
        runs: folders of runs.
        figure: the name of one figure to draw alone.
        out: the file to write.
        margin: differences inside of it, in the unit of the test loss, are tested for
            equivalence; 0 for no such test.
    """
    # Plots and tables take a second to import.
    from experiments import report

    if figure is None:
        path = report.write_report(runs, out, margin)
        report.print_summary(runs[0], margin) if len(runs) == 1 else None
    else:
        path = report.write_figure(runs, figure, out)
    console.print(f"Written: {path}", style="bold", soft_wrap=True)
    return 0


def _export(
    run: Folder,
    /,
    to: Literal["csv", "parquet", "json"] = "csv",
    out: Path | None = None,
) -> int:
    """Writes the results of a run as one table, with a row per lane and evaluation.

    Args:
        run: the folder of the run.
        to: the format.
        out: the file to write; by default table.csv, .parquet or .json in the run.
    """
    from experiments.runs import export

    path = export(run, to, out)
    console.print(f"Written: {path}", style="bold", soft_wrap=True)
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


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised, too
    one_device_per_core()
    sys.exit(main(sys.argv[1:]))
