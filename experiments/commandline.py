"""Command line: the fields of a config as options with one or several values."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from experiments import axes
from experiments.config import Config, is_table


@functools.cache
def several(kind: Any = Config) -> Any:
    """Returns a dataclass like a config in which every field has several values."""
    hints, full = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    made = []
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        text = _description(kind, field.name, full[field.name])
        argument = tyro.conf.arg(help=text)
        values: Any
        if is_table(hint):
            values = several(hint)
            start = dataclasses.field(default_factory=values)
        else:
            values = tuple[hint, ...]
            start = dataclasses.field(default=(field.default,))
        made.append((field.name, Annotated[values, argument], start))
    return dataclasses.make_dataclass(kind.__name__, made, frozen=True)


def filled(values: Any, raw: dict) -> Any:
    """Returns such a dataclass with other values for the fields of nested tables."""
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
    """Returns nested tables, in which a list is an axis."""
    flat = axes.flatten(dataclasses.asdict(values))
    return axes.nest({p: v[0] if len(v) == 1 else list(v) for p, v in flat.items()})


def defaults(path: Path | None, kind: Any = Config) -> Any:
    """Returns the options of a kind of config.

    Args:
        path: a config file with their defaults; None takes the fields' own.
        kind: the dataclass.

    Raises:
        ConfigError: the file is not a valid config.
    """
    blank = several(kind)(seeds=(kind.SEEDS,))
    if path is None:
        return blank
    raw = axes.read_toml(path)
    axes.make_sweep(raw, str(path), kind)
    return filled(blank, raw)


def _description(kind: Any, name: str, hint: Any) -> str:
    """Returns the text of a field: its own, or the docstring below it."""
    for extra in get_args(hint)[1:]:
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    owners = [owner for owner in kind.__mro__ if is_table(owner)]
    return next((_described(o)[name] for o in owners if name in _described(o)), "")


@functools.cache
def _described(kind: Any) -> dict[str, str]:
    """Returns the docstrings below the fields that a class itself declares."""
    schema = TypeAdapter(kind).json_schema()
    own = schema if "properties" in schema else schema["$defs"][kind.__name__]
    return {
        name: " ".join(field["description"].split())
        for name, field in own["properties"].items()
        if "description" in field
    }
