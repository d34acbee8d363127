"""The command line: `python -m experiments ablate configs/vowels_plane.toml`."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import tyro
from rich.text import Text

import rdrop
from experiments.commands import configs, runs
from experiments.config import ConfigError
from experiments.devices import one_device_per_core
from experiments.progress import console
from experiments.runs.files import StorageError

EXAMPLES = Path(__file__).parents[1] / "configs"
EXHAUSTED = "RESOURCE_EXHAUSTED"  # the code of XLA's errors about memory
BEGIN = "python -m experiments ablate configs/vowels_plane.toml"


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status.

    0: done. 1: a lane that does not replay, a damaged file, a full disk, or too little
    memory. 2: a mistake in a config or on the command line. 130: stopped by Ctrl-C or
    SIGTERM.
    """
    if arguments[:1] == ["--version"]:
        print(f"rdrop {rdrop.__version__}, jax {jax.__version__}")
        return 0
    try:
        for argument in arguments:
            _check_utf8(argument)
        commands: dict[str, Callable[..., int]] = {
            "ablate": configs.ablate(arguments),
            "tune": configs.tune(arguments),
            "train": configs.train(arguments),
            "reproduce": configs.reproduce,
            "configs": _configs,
            "evaluate": runs.evaluate,
            "replay": runs.replay,
            "report": runs.report,
            "export": runs.export,
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
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and EXHAUSTED not in reason:
            raise
        print(f"error: not enough memory: {reason[:200]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command resumes.", file=sys.stderr)
        return 130


def _check_utf8(argument: str) -> None:
    """Raises a ConfigError for bytes of another encoding, which no file can store."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"command line: must be UTF-8, got {argument.encode(errors='replace')!r}."
        ) from None


def _piped(arguments: list[str]) -> int:
    """Runs one command, whose output may be a pipe with a reader that leaves."""
    try:
        try:
            return main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _overview(commands: Mapping[str, Callable[..., int]]) -> int:
    """Lists the commands and the configs, and says how to begin."""
    console.print("Commands; each has --help:")
    for name, command in commands.items():
        first = (command.__doc__ or "").partition("\n")[0]
        _print_named(f"{name:10}", first)
    console.print("\nConfigs:")
    _configs()
    console.print("\nTo begin: ", end="")
    console.print(BEGIN, style="bold", soft_wrap=True)
    return 0


def _configs() -> int:
    """Lists the configs that come with rdrop."""
    for path in sorted(EXAMPLES.glob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        _print_named(f"configs/{path.name} ", first)
    return 0


def _print_named(name: str, text: str) -> None:
    console.print(Text.assemble((name, "bold"), f" {text}"), soft_wrap=True)


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised, too
    one_device_per_core()
    sys.exit(_piped(sys.argv[1:]))
