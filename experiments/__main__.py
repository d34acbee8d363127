"""The command line: `python -m experiments ablate configs/vowels_plane.toml`."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import tyro

from experiments.ablate import ablate
from experiments.compare import compare
from experiments.config import ConfigError, MethodsConfig, PlaneConfig, load, validate
from experiments.running import free_folder

ABLATE = "Trains a plane of dropout x recurrent_dropout rates and reports on it."
COMPARE = "Trains every method of dropout at several rates and reports on them."
ConfigPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")]


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status.

    Status 2 is a mistake in the config or the command line, 130 a run that was stopped.
    """
    try:
        ended = tyro.extras.subcommand_cli_from_dict(
            {
                "ablate": _command(ablate, PlaneConfig, ABLATE, arguments),
                "compare": _command(compare, MethodsConfig, COMPARE, arguments),
            },
            prog="python -m experiments",
            description="Ablations of recurrent dropout as single compiled programs.",
            args=arguments,
        )
        return 0 if ended else 130
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped at once.", file=sys.stderr)
        return 130


def _command(run, kind, summary: str, arguments: list[str]) -> Callable[..., bool]:
    """A command whose options default to the config that was named to it."""
    defaults = _defaults(run.__name__, kind, arguments)

    def command(
        path: ConfigPath,
        /,
        config: Annotated[kind, tyro.conf.arg(name="")] = defaults,
        out: Path | None = None,
    ) -> bool:
        checked = validate(dataclasses.asdict(config), kind, "command line")
        return run(checked, out or free_folder(path.stem))

    command.__doc__ = f"""{summary}

        The config is a TOML file; any of its fields can be overridden here, as in
        `python -m experiments {run.__name__} CONFIG.toml --seeds 3`.

        Args:
            path: the config, one of those in configs/.
            config: what is run.
            out: a new folder for the results; by default the first free one of
                runs/NAME, runs/NAME-2, ...
        """
    return command


def _defaults(command: str, kind, arguments: list[str]):
    """The config that is named to a command, or the built-in one."""
    named = [a for a in arguments[1:] if not a.startswith("-")][:1]
    if arguments[:1] != [command] or not named:
        return kind()
    return load(Path(named[0]), kind)


def _one_device_a_core() -> None:
    """Lets each processor core train its own lanes; without effect on GPU and TPU."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    _one_device_a_core()
    sys.exit(main(sys.argv[1:]))
