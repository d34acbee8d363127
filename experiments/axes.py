"""Axes: a config in which any field may have several values.

Each combination of values is a setting, and each setting at each seed is a lane. The
values of static axes (a method, a cell, units) come first: each of their combinations
is a compiled program. Traced axes (rates, drift, learning rate, weights, seeds) are
arrays in one program, so the lanes of a program are neighbours.
"""

import dataclasses
import difflib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from experiments.config import Config, ConfigError, check_value, leaves, with_values
from experiments.text import read_text

TRACED = re.compile(
    r"dropout\.(\w+\.)?(rate|drift|temperature)|second_pass\.weight"
    r"|train\.(learning_rate|weight_decay)"
)
# The lanes of a sweep share data, and the epochs at which they are compared.
SHARED = re.compile(
    r"seed|task\..*|train\.(epochs|evaluate_every|checkpoint_every|validation)"
)
RATE = re.compile(r"dropout\.([^.]+\.)?rate")
MOST_LANES = 1_000_000
DIGITS = 6  # of a number in a text
PAPER = "paper"  # a table that describes a published result, see experiments.papers
# Parsing takes time and memory that grow with the square of a key's depth.
DEEP_KEY = re.compile(r"(?<![\w'\"-])(?:[\w'\"-]+\s*\.\s*){16}")


class Lane(NamedTuple):
    """One training: a setting at a seed.

    Attributes:
        structure: values of the static axes, by the path of the field.
        traced: values of the traced axes.
        config: all fields of the lane.
    """

    structure: dict[str, Any]
    traced: dict[str, Any]
    config: Any

    @property
    def setting(self) -> dict[str, Any]:
        """The values of all axes except the seed."""
        return self.structure | self.traced


class Sweep(NamedTuple):
    """A config with axes.

    Attributes:
        base: the config with the first value of each axis.
        axes: values by path, static ones first, each in the order of the fields.
        seeds: seeds of each setting.
        source: name of the file or command in errors.
    """

    base: Any
    axes: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    source: str

    def lanes(self) -> list[Lane]:
        """Returns each setting at each seed; the seed varies fastest.

        Raises:
            ConfigError: the values of a setting do not go together.
        """
        settings = itertools.product(*self.axes.values())
        return [
            lane
            for values in settings
            for lane in self.lanes_of(dict(zip(self.axes, values, strict=True)))
        ]

    def lanes_of(self, setting: Mapping[str, Any]) -> list[Lane]:
        """Returns each seed of a setting, whose values may lie between the axes'.

        Raises:
            ConfigError: the values do not go together.
        """
        config = _combine(self.base, setting, self.source)
        traced = {p: v for p, v in setting.items() if TRACED.fullmatch(p)}
        structure = {p: v for p, v in setting.items() if p not in traced}
        return [
            Lane(structure, traced, dataclasses.replace(config, seeds=seed))
            for seed in self.seeds
        ]


def baseline(
    axes: Mapping[str, Sequence[Any]], setting: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the setting with the lowest rates and all else equal.

    Without an axis of numeric rates, it is the first setting of the sweep.

    Args:
        axes: values by path.
        setting: one value of each.
    """
    lowest = {path: min(v) for path, v in axes.items() if RATE.fullmatch(path)}
    return {p: lowest.get(p, setting[p] if lowest else v[0]) for p, v in axes.items()}


def read_toml(path: Path) -> dict:
    """Reads the fields of a config file, without the table `[paper]`.

    Raises:
        ConfigError: it is missing, has no fields, is not UTF-8 or not TOML.
    """
    raw = {name: value for name, value in load_toml(path).items() if name != PAPER}
    if not raw:
        raise ConfigError(f"{path}: has no fields; configs/ has examples.")
    return raw


def load_toml(path: Path) -> dict:
    """Reads a TOML file.

    Raises:
        ConfigError: it is missing, not UTF-8 or not TOML.
    """
    text = read_text(path)
    try:
        if DEEP_KEY.search(text):
            raise RecursionError
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply for a config.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}.") from None


def make_sweep(raw: Mapping[str, Any], source: str, kind: Any = Config) -> Sweep:
    """Builds a sweep from plain data, in which a list is an axis.

    `seeds` is a number of seeds, or a list of them.

    Args:
        raw: tables of fields.
        source: name of the file or command in errors.
        kind: dataclass of a lane's config.

    Raises:
        ConfigError: a field is unknown, a value has a wrong type or is impossible, or a
            field cannot be an axis; the text starts with `source`.
    """
    flat = flatten(raw)
    _check_names(flat, kind, source)
    seeds = flat.pop("seeds", kind.SEEDS)
    several = {
        path: tuple(
            check_value(kind, path, value, source)
            for value in (values if isinstance(values, list | tuple) else [values])
        )
        for path, values in flat.items()
    }
    for path, values in several.items():
        _check_axis(path, values, source)
    first = {path: values[0] for path, values in several.items()}
    base = _combine(kind(), first, source)
    order = sorted((p for p in several if len(several[p]) > 1), key=_order(kind))
    axes = {p: several[p] for p in order}
    settings = math.prod(len(values) for values in axes.values())
    return Sweep(base, axes, _seeds(seeds, settings, kind, source), source)


def flatten(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested tables by their dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        name = json.dumps(name) if "." in name else name
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict:
    """Returns the nested tables of values by their dotted paths."""
    raw: dict = {}
    for path, value in flat.items():
        *tables, name = path.split(".")
        table = raw
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return raw


def fields(sweep: Sweep) -> dict[str, Any]:
    """Returns each field that matters by its path: a value, or a list of values.

    Sites without noise are left out.
    """
    flat = flatten(dataclasses.asdict(sweep.base))
    flat["seeds"] = sweep.seeds
    untouched = flatten(dataclasses.asdict(type(sweep.base)()))
    flat |= sweep.axes
    sites = {path.rsplit(".", 1)[0] for path in flat if path.count(".") == 2}
    silent = {
        site
        for site in sites
        if all(flat[p] == untouched[p] for p in flat if p.startswith(site + "."))
    }
    return {
        path: list(value) if isinstance(value, tuple) else value
        for path, value in flat.items()
        if path.rsplit(".", 1)[0] not in silent
    }


def to_toml(sweep: Sweep) -> str:
    """Returns the text of a TOML file, which `read_toml` and `make_sweep` read."""
    flat = fields(sweep)
    if flat["seeds"] == list(range(len(sweep.seeds))):
        flat["seeds"] = len(sweep.seeds)
    return tomli_w.dumps(nest(flat))


def alone(lane: Lane) -> Sweep:
    """Returns a lane as a sweep of nothing else."""
    return Sweep(lane.config, {}, (lane.config.seeds,), "")


def differences(before: Sweep, now: Sweep) -> list[str]:
    """Returns a line for each field in which two sweeps differ."""
    old, new = fields(before), fields(now)
    return [
        f"{path} was {_text(old.get(path))}, is {_text(new.get(path))}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


def value_text(value: Any, digits: int = DIGITS) -> str:
    """Returns a value of an axis as a config has it, a string without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _combine(base: Any, values: Mapping[str, Any], source: str) -> Any:
    try:
        return with_values(base, values)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}.") from None


def _check_names(flat: Mapping[str, Any], kind: Any, source: str) -> None:
    """Rejects unknown fields, and values in the place of tables."""
    known = leaves(kind)
    for path in flat:
        if path in known:
            continue
        inside = [p.removeprefix(f"{path}.") for p in known if p.startswith(f"{path}.")]
        if inside:
            names = ", ".join(dict.fromkeys(p.partition(".")[0] for p in inside))
            raise ConfigError(f"{source}: {path}: must be a table ({names}).")
        close = _closest(path, list(known)) if len(path) < 100 else None
        hint = f"; did you mean {close}?" if close else "."
        short = path if len(path) < 100 else f"{path[:100]}..."
        raise ConfigError(f"{source}: {short}: unknown field{hint}")


def _closest(path: str, known: Sequence[str]) -> str | None:
    """Returns the field that was probably meant, first of the same table."""
    table, _, name = path.rpartition(".")
    near = {p.rpartition(".")[2]: p for p in known if p.rpartition(".")[0] == table}
    if names := difflib.get_close_matches(name, near, 1):
        return near[names[0]]
    plain = path.replace('"', "")
    return next(iter(difflib.get_close_matches(plain, known, 1, cutoff=0.8)), None)


def _seeds(value: Any, settings: int, kind: Any, source: str) -> tuple[int, ...]:
    several = isinstance(value, list | tuple)
    if several and len(value) == 1:
        raise ConfigError(
            f"{source}: seeds: must be a number of seeds, or a list of two or more, "
            f"got {value}."
        )
    numbers = list(value) if several else [value]
    seeds = tuple(check_value(kind, "seeds", number, source) for number in numbers)
    count = len(seeds) if several else seeds[0]
    if several:
        _check_axis("seeds", seeds, source)
    if count < 1:
        raise ConfigError(f"{source}: seeds: must be at least 1, got {count}.")
    if count * settings > MOST_LANES:
        raise ConfigError(
            f"{source}: has {count * settings:,} lanes; the most are {MOST_LANES:,}."
        )
    return seeds if several else tuple(range(count))


def _check_axis(path: str, values: tuple, source: str) -> None:
    shown = json.dumps(values[:10])[:-1] + (", ...]" if len(values) > 10 else "]")
    if not values:
        raise ConfigError(f"{source}: {path}: must have at least one value, got [].")
    if len(set(values)) < len(values):
        raise ConfigError(f"{source}: {path}: values must differ, got {shown}.")
    if len(values) > 1 and SHARED.fullmatch(path):
        raise ConfigError(
            f"{source}: {path}: must have one value in the whole sweep, got {shown}."
        )


def _order(kind: Any):
    """Static axes before traced ones, each in the order of the fields."""
    places = {path: place for place, path in enumerate(leaves(kind))}
    return lambda path: (bool(TRACED.fullmatch(path)), places[path])


def _text(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
