"""The command line: `python -m experiments ablate configs/vowels_plane.toml`."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import tyro

from experiments.ablate import ablate, free_folder
from experiments.config import Config, ConfigError, load, validate


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status.

    Status 2 is a mistake in the config or the command line, 130 a run that was stopped.
    """
    try:
        ended = tyro.extras.subcommand_cli_from_dict(
            {"ablate": _ablate_command(_defaults(arguments))},
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


def _ablate_command(defaults: Config) -> Callable[..., bool]:
    """The command `ablate`, whose options default to the config that was named."""

    def command(
        path: Annotated[
            tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")
        ],
        /,
        config: Annotated[Config, tyro.conf.arg(name="")] = defaults,
        out: Path | None = None,
    ) -> bool:
        """Trains a plane of dropout x recurrent_dropout rates and reports on it.

        The config is a TOML file; any of its fields can be overridden here:

            python -m experiments ablate configs/vowels_plane.toml --seeds 3

        Args:
            path: the config, for example configs/vowels_plane.toml.
            config: what is run.
            out: a new folder for the results; by default the first free one of
                runs/NAME, runs/NAME-2, ...
        """
        config = validate(dataclasses.asdict(config), "command line")
        return ablate(config, out or free_folder(path.stem))

    return command


def _defaults(arguments: list[str]) -> Config:
    """The config that the command line names, or the built-in one for `--help`."""
    named = [a for a in arguments[1:] if not a.startswith("-")][:1]
    return load(Path(named[0])) if named else Config()


def _one_device_a_core() -> None:
    """Lets each processor core train its own lanes; without effect on GPU and TPU."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    _one_device_a_core()
    sys.exit(main(sys.argv[1:]))
