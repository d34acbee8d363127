"""Facts: run.json, the command, the task and the programs of a run."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from experiments.runs.files import StorageError, parse, read_file, write_text

FACTS = "run.json"
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


@with_config({"strict": True, "extra": "forbid"})
class TaskFacts(TypedDict):
    """The task: its name, its loss, units by metric, origin and hash of the data."""

    name: str
    loss: str
    units: dict[str, str]
    source: str
    data: str


@with_config({"strict": True, "extra": "forbid"})
class ProgramFacts(TypedDict):
    """One compiled program: its static axes, time, memory and device."""

    setting: dict[str, bool | int | float | str]
    lanes: Count
    resident: Count
    compiles: Annotated[int, Field(ge=0)]
    compile_seconds: Seconds
    train_seconds: Seconds
    megabytes: Annotated[float, Field(ge=0)]
    device: NotRequired[str]


@with_config({"strict": True, "extra": "forbid"})
class RaceFacts(TypedDict):
    """A race: its end; and the margin of equivalence, 0 for none."""

    until: Literal["settled", "best"]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@with_config({"strict": True, "extra": "forbid"})
class Facts(TypedDict):
    """The whole file.

    Attributes:
        kind: the kind of program.
        command: the command line.
        task: see `TaskFacts`.
        axes: values by the path of the field.
        seeds: seeds of each setting.
        lanes, epochs: how many.
        programs: one entry per program and command.
        resident: lanes trained at a time, by the number of the program.
        race: of a run that trains only lanes that are not settled.
        earlier: lanes that were trained before the run got more seeds.
    """

    kind: Literal["sequences", "language"]
    command: str
    task: TaskFacts
    axes: dict[str, list[bool | int | float | str]]
    seeds: list[int]
    lanes: Count
    epochs: Count
    programs: list[ProgramFacts]
    resident: dict[str, Count]
    race: NotRequired[RaceFacts]
    earlier: NotRequired[Count]


ADAPTER = TypeAdapter(Facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads run.json; empty if the run has none yet.

    Raises:
        StorageError: the file is not a run's; one line says why.
    """
    path = folder / FACTS
    text = read_file(path)
    if not text and not path.exists():
        return {}
    return parse(ADAPTER, text, str(path), name="the facts of a run")


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Writes run.json; raises a StorageError if that fails."""
    write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")


def check_data(folder: Path, facts: dict[str, Any], data: str) -> None:
    """Checks that the data are the same as at the start of the run.

    Args:
        folder: the run.
        facts: its facts.
        data: fingerprint of the data as they are now.

    Raises:
        StorageError: the data have changed.
    """
    if facts["task"]["data"] != data:
        raise StorageError(
            f"{folder}: was trained on other data (hash {facts['task']['data']}, now "
            f"{data}); restore the data, or use another folder with --out."
        )
