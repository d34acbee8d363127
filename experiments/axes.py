"""Axes: a config in which any field may have several values.

Every combination of values is a setting, and every setting at every seed a lane. Axes
of structure (a method, a cell, units) come first: each of their combinations is a
program. Those of leaves (rates, drift, learning rate, weights, seeds) are data of one
program, so the lanes of a program lie side by side.
"""

import dataclasses
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from experiments.config import Config, ConfigError, validate

LEAVES = re.compile(
    r"dropout\.(\w+\.)?(rate|drift|temperature)|second_pass\.weight"
    r"|train\.(learning_rate|weight_decay)"
)
# Of these a sweep has one: its lanes share data, and epochs to compare them at.
SHARED = re.compile(
    r"seed|task\..*|train\.(epochs|evaluate_every|checkpoint_every|validation)"
)
MOST_LANES = 1_000_000


class Lane(NamedTuple):
    """One training: a setting at a seed.

    Attributes:
        structure: values of the axes of structure, by the path of the field.
        leaves: values of the axes of leaves.
        config: all fields of the lane.
    """

    structure: dict[str, Any]
    leaves: dict[str, Any]
    config: Any

    @property
    def setting(self) -> dict[str, Any]:
        """The values of all axes but the seed."""
        return self.structure | self.leaves


class Sweep(NamedTuple):
    """A config with axes.

    Attributes:
        base: the config with the first value of every axis, of whatever kind it is.
        axes: values by path, those of structure first, each in the order of the fields.
        seeds: of every setting.
        source: the file it was read from, or what else errors are to name.
    """

    base: Any
    axes: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    source: str

    def lanes(self) -> list[Lane]:
        """Returns every setting at every seed, the seed fastest.

        Raises:
            ConfigError: the values of a setting do not go together.
        """
        return [
            Lane(structure, leaves, _config(self, structure | leaves, seed))
            for structure, leaves in self._settings()
            for seed in self.seeds
        ]

    def _settings(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for values in itertools.product(*self.axes.values()):
            setting = dict(zip(self.axes, values, strict=True))
            leaves = {p: v for p, v in setting.items() if LEAVES.fullmatch(p)}
            yield {p: v for p, v in setting.items() if p not in leaves}, leaves


def load(path: Path) -> dict:
    """Reads a TOML file.

    Raises:
        ConfigError: it is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}.") from None


def sweep(raw: dict, source: str, kind: Any = Config) -> Sweep:
    """Builds a sweep from plain data, in which a list is an axis.

    `seeds` is a number of seeds, or a list of them.

    Args:
        raw: tables of fields.
        source: the file it was read from, or what else errors are to name.
        kind: the dataclass of a lane's config.

    Raises:
        ConfigError: a field is unknown, a value of a wrong type or impossible, or a
            field cannot be an axis; its text starts with `source`.
    """
    flat = flatten(raw)
    seeds = _seeds(flat.pop("seeds", kind.SEEDS), source)
    several = {p: tuple(v) for p, v in flat.items() if isinstance(v, list | tuple)}
    for path, values in several.items():
        _check_axis(path, values, source)
    first = flat | {path: values[0] for path, values in several.items()}
    base = validate(nest(first), source, kind)
    order = sorted(several, key=_order(base))
    axes = {p: several[p] for p in order if len(several[p]) > 1}
    found = Sweep(base, axes, seeds, source)
    count = math.prod(len(values) for values in axes.values()) * len(seeds)
    if count > MOST_LANES:
        raise ConfigError(f"{source}: {count:,} lanes; at most {MOST_LANES:,} will do.")
    for path, values in axes.items():
        for value in values:
            _config(found, {path: value}, seeds[0])
    return found


def flatten(raw: dict, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested tables by their dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def nest(flat: dict[str, Any]) -> dict:
    """The inverse of `flatten`."""
    raw: dict = {}
    for path, value in flat.items():
        *tables, name = path.split(".")
        table = raw
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return raw


def fields(sweep: Sweep) -> dict[str, Any]:
    """Returns every field that matters, by its path: a value, or a list of them.

    A site that the sweep leaves alone has none.
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
    """The inverse of `load`: the text of a TOML file."""
    flat = fields(sweep)
    if flat["seeds"] == list(range(len(sweep.seeds))):
        flat["seeds"] = len(sweep.seeds)
    return tomli_w.dumps(nest(flat))


def differences(there: Sweep, here: Sweep) -> list[str]:
    """Returns a line for each field in which two sweeps differ."""
    old, new = fields(there), fields(here)
    return [
        f"{path}: {_text(old.get(path))} there, {_text(new.get(path))} here"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


def _config(sweep: Sweep, setting: dict[str, Any], seed: int) -> Any:
    flat = flatten(dataclasses.asdict(sweep.base)) | setting | {"seeds": seed}
    return validate(nest(flat), sweep.source, type(sweep.base))


def _seeds(value, source) -> tuple[int, ...]:
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{source}: seeds: must be integers, got {number!r}.")
    if len(numbers) != 1:
        _check_axis("seeds", tuple(numbers), source)
        return tuple(numbers)
    if numbers[0] < 1:
        raise ConfigError(f"{source}: seeds: must be at least 1, got {numbers[0]}.")
    return tuple(range(numbers[0]))


def _check_axis(path: str, values: tuple, source: str) -> None:
    texts = [json.dumps(value, default=str) for value in values]
    if not values:
        raise ConfigError(f"{source}: {path}: must have at least one value, got [].")
    if len(set(texts)) < len(texts):
        raise ConfigError(
            f"{source}: {path}: values must differ, got [{', '.join(texts)}]."
        )
    if len(values) > 1 and SHARED.fullmatch(path):
        raise ConfigError(
            f"{source}: {path}: must be one value for the whole sweep, got "
            f"[{', '.join(texts)}]."
        )


def _order(base: Any):
    """Structure before leaves, each in the order of the fields."""
    paths = list(flatten(dataclasses.asdict(base)))

    def key(path):
        known = path in paths
        return bool(LEAVES.fullmatch(path)), paths.index(path) if known else -1

    return key


def _text(value) -> str:
    return "nothing" if value is None else json.dumps(value)
