"""Command line: the fields of a config as options that take one value or several."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from pydantic import TypeAdapter

from experiments import axes
from experiments.config import Config


@functools.cache
def several(kind: type = Config) -> Any:
    """Returns a dataclass like a config, every field of which takes several values."""
    hints = get_type_hints(kind)
    made = []
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        argument = tyro.conf.arg(help=_description(kind, field.name))
        values: Any
        if dataclasses.is_dataclass(hint):
            values = several(hint)  # type: ignore[arg-type]
            start = dataclasses.field(default_factory=values)
        else:
            values = tuple[hint, ...]
            start = dataclasses.field(default=(field.default,))
        made.append((field.name, Annotated[values, argument], start))
    return dataclasses.make_dataclass(kind.__name__, made, frozen=True)


def filled(values: Any, raw: dict) -> Any:
    """Returns such a dataclass with the values of plain data in their places."""
    changes = {
        name: filled(getattr(values, name), value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else (value,)
        for name, value in raw.items()
    }
    return dataclasses.replace(values, **changes)


def plain(values: Any) -> dict:
    """The inverse of `filled`; one value alone is no axis."""
    flat = axes.flatten(dataclasses.asdict(values))
    return axes.nest({p: v[0] if len(v) == 1 else list(v) for p, v in flat.items()})


def defaults(path: Path | None, kind: Any = Config) -> Any:
    """Returns the options of a kind of config.

    Args:
        path: a file that has their values, which are checked; None leaves them.
        kind: the dataclass.
    """
    blank = several(kind)(seeds=(kind.SEEDS,))
    if path is None:
        return blank
    raw = axes.load(path)
    axes.sweep(raw, str(path), kind)
    return filled(blank, raw)


def _description(kind: type, name: str) -> str:
    """What the docstring under a field says, in the class that declares it last."""
    owners = (owner for owner in kind.__mro__ if dataclasses.is_dataclass(owner))
    return next((_described(o)[name] for o in owners if name in _described(o)), "")


@functools.cache
def _described(kind: type) -> dict[str, str]:
    """The docstrings under the fields that a class itself declares."""
    schema = TypeAdapter(kind).json_schema()
    own = schema if "properties" in schema else schema["$defs"][kind.__name__]
    return {
        name: " ".join(field["description"].split())
        for name, field in own["properties"].items()
        if "description" in field
    }
