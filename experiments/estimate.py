"""Estimate: programs, lanes, memory and time of a run before it starts."""

import rich.table

from experiments.axes import Sweep
from experiments.devices import HERE, Machine
from experiments.engine import divide
from experiments.kinds import Kind
from experiments.progress import console
from experiments.race import Race


def estimate(
    kind: Kind, sweep: Sweep, machine: Machine = HERE, race: Race | None = None
) -> None:
    """Prints the programs of a sweep, and the measured cost of the first one.

    The first program is compiled and trains for some seconds; the time of the others is
    estimated from its lanes. Nothing is written.

    Args:
        kind: the kind of program.
        sweep: the lanes.
        machine: devices and processes.
        race: of a run that may train fewer lanes.

    Raises:
        ConfigError: the config does not suit the data, or does not fit into memory.
    """
    if race:
        race.check(sweep)
    lanes = sweep.lanes()
    loaded = kind.load(sweep.base)
    parts = divide(lanes)
    for part in parts:
        kind.check(part.configs, loaded)
    with console.status("measuring one lane ..."):
        program = kind.compile(parts[0].lanes, loaded, machine)
        seconds = program.seconds()
    training = seconds * len(lanes) / len(parts[0].lanes)
    compiling = program.compile_seconds * len(parts)
    table = rich.table.Table(show_header=False, box=None)
    table.add_row("programs", f"{len(parts)}")
    table.add_row("lanes", f"{len(lanes)} ({len(sweep.seeds)} seeds)")
    table.add_row("memory", f"{program.megabytes:,.1f} MB for {program.resident} lanes")
    table.add_row("compiling", f"about {duration(compiling)}")
    table.add_row("training", f"about {duration(training)}")
    console.print(table)
    if race:
        console.print("A race trains at most these lanes.")
    console.print("Dry run: nothing was written.")


def duration(seconds: float) -> str:
    """Returns a duration in words, such as "1 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
    )
