"""The command line: `python -m experiments ablate configs/vowels_plane.toml`."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from experiments import axes, commandline
from experiments import folder as folders
from experiments import report as reports
from experiments.ablate import HERE, Machine, ablate
from experiments.config import Config, ConfigError
from experiments.devices import one_device_a_core
from experiments.language.config import Config as ModelConfig
from experiments.language.evaluate import Options, evaluate
from experiments.language.run import train
from experiments.replay import replay
from experiments.results import StorageError
from experiments.running import console

ConfigPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")]
Line = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RESULTS.jsonl:LINE")]
Folders = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")
]

Run = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
DETERMINISTIC = Options()
_Several: Any = commandline.several(Config)
_SeveralModels: Any = commandline.several(ModelConfig)


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status.

    Status 1 is a lane that does not replay, or what could not be stored; 2 a mistake in
    the config or the command line; 130 a run that was stopped.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {
                "ablate": _ablate(arguments),
                "train": _train(arguments),
                "evaluate": _evaluate,
                "replay": _replay,
                "report": _report,
            },
            prog="python -m experiments",
            description="Ablations of recurrent dropout one can trust.",
            args=arguments,
        )
    except (ConfigError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("Stopped at once; the same command goes on from here.", file=sys.stderr)
        return 130


def _ablate(arguments: Sequence[str]) -> Callable[..., int]:
    """A command whose options default to the config that was named to it."""
    options = commandline.defaults(_named("ablate", arguments))

    def command(
        path: ConfigPath,
        /,
        config: Annotated[_Several, tyro.conf.arg(name="")] = options,
        out: Path | None = None,
        tensorboard: bool = False,
        machine: Annotated[Machine, tyro.conf.arg(name="")] = HERE,
    ) -> int:
        """Trains every combination of the values of a config and reports on them.

        The config is a TOML file; any of its fields can be overridden here, by one
        value or by several, which then are an axis of the sweep:
        `python -m experiments ablate CONFIG.toml --dropout.recurrent.rate 0 0.25 0.5`.
        The same command goes on with a run that was ended, whatever ended it.

        Args:
            path: the config, one of those in configs/.
            config: what is run.
            out: the folder of the run; by default runs/NAME.
            tensorboard: whether to write TensorBoard's event files too.
            machine: what it runs on.
        """
        _join(machine)
        sweep = axes.sweep(commandline.plain(config), str(path))
        folder = out or folders.of_config(path)
        text = shlex.join(["python", "-m", "experiments", *arguments])
        return 0 if ablate(sweep, folder, machine, text, tensorboard) else 130

    return command


def _train(arguments: Sequence[str]) -> Callable[..., int]:
    """A command whose options default to the config that was named to it."""
    options = commandline.defaults(_named("train", arguments), ModelConfig)

    def command(
        path: ConfigPath,
        /,
        config: Annotated[_SeveralModels, tyro.conf.arg(name="")] = options,
        out: Path | None = None,
        tensorboard: bool = False,
        stop_after: int | None = None,
    ) -> int:
        """Trains language models and reports on them.

        The config is a TOML file; any of its fields can be overridden here:
        `python -m experiments train configs/ptb_zaremba_small.toml --task.data FOLDER`.
        Of a field with several values every one is trained, in turn. The same command
        goes on with a run that was ended, in the midst of an epoch.

        Args:
            path: the config, one of configs/ptb_*.toml.
            config: what is run.
            out: the folder of the run; by default runs/NAME.
            tensorboard: whether to write TensorBoard's event files too.
            stop_after: windows after which a training stops, to be gone on with.
        """
        sweep = axes.sweep(commandline.plain(config), str(path), ModelConfig)
        folder = out or folders.of_config(path)
        text = shlex.join(["python", "-m", "experiments", *arguments])
        done = train(sweep, folder, text, tensorboard, stop_after)
        return 0 if done else 130

    return command


def _evaluate(
    run: Run, /, options: Annotated[Options, tyro.conf.arg(name="")] = DETERMINISTIC
) -> int:
    """Evaluates a language model of a run, deterministically and by Monte Carlo.

    `python -m experiments evaluate runs/ptb_gal_medium_tied --passes 10 --powers 1 0`.

    Args:
        run: the folder of a run of `train`.
        options: how.
    """
    evaluate(run, options)
    return 0


def _named(command: str, arguments: Sequence[str]) -> Path | None:
    """The config that the arguments of a command name; None of another command."""
    named = [a for a in arguments[1:] if not a.startswith("-")][:1]
    return Path(named[0]) if list(arguments[:1]) == [command] and named else None


def _replay(line: Line, /, data_devices: int = 1) -> int:
    """Trains one lane of a run again and compares it bit by bit.

    Args:
        line: a line of results, as runs/vowels_plane/results.jsonl:17, from 1.
        data_devices: devices that share each batch, as in the run.
    """
    return 0 if replay(line, data_devices) else 1


def _report(
    runs: Folders, /, figure: str | None = None, out: Path | None = None
) -> int:
    """Writes the report of a run again, or one that compares several.

    Args:
        runs: folders of runs.
        figure: the name of one figure to draw alone.
        out: the file to write.
    """
    if figure is None:
        path = reports.write(runs, out)
        reports.summary(runs[0]) if len(runs) == 1 else None
    else:
        path = reports.figure(runs, figure, out)
    console.print(f"Written: {path}", style="bold", soft_wrap=True)
    return 0


def _join(machine: Machine) -> None:
    """Takes part in a sweep of several processes."""
    if not machine.distributed:
        return
    jax.distributed.initialize(machine.coordinator, machine.processes, machine.process)
    console.quiet = jax.process_index() > 0


if __name__ == "__main__":
    one_device_a_core()
    sys.exit(main(sys.argv[1:]))
