"""Text: a `Dropout` as JSON, TOML or plain data.

A `Dropout` is a table of its sites, in the words of the experiments' configs under
`[dropout]`; one per layer is a list of such tables, `layers`:

    [recurrent]                     [[layers]]
    kind = "bernoulli"
    rate = 0.5                      [layers.recurrent]
    per = "sequence"                kind = "bernoulli"
    gates = "shared"                rate = 0.5
    batch = "each"                  per = {drift = 0.1}
    scale = "inverted"              ...

Every option is written, so that defaults of later versions do not change it, except for
`units = "each"` and for the kind of a site that takes one kind only. A kind that is
left out is the usual one of its site, the first in `rdrop.sites.SITES`.

A Python number is written as it is. Any other rate is written as float32, the dtype
that masks are drawn with, and read back bitwise: an array as a NumPy array, an array
without axes as a number.
"""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rdrop.dropout import Dropout
from rdrop.noise import KINDS_BY_NAME, Block, Drift, ScheduledRate
from rdrop.sites import SITES

NAMES = {kind: name for name, kind in KINDS_BY_NAME.items()}


def to_dict(dropout: Dropout | Sequence[Dropout]) -> dict[str, Any]:
    """Returns a `Dropout` as plain dicts, lists, numbers and text.

    Args:
        dropout: one, or a sequence with one per layer.

    Returns:
        A dict of its sites, each a dict of its kind and options; for a sequence a dict
        with such dicts as the list "layers".

    Raises:
        TypeError: `dropout` is of another type.
        ValueError: a rate is a schedule, a tracer or not finite.

    Example:
        >>> from rdrop import DropConnect
        >>> to_dict(Dropout(recurrent_weights=DropConnect(0.5)))
        {'recurrent_weights': {'kind': 'dropconnect', 'rate': 0.5, 'by': 'weight'}}
    """
    if isinstance(dropout, Dropout):
        return {site: _table(site, noise) for site, noise in dropout.sites()}
    if not isinstance(dropout, (list, tuple)):
        raise TypeError(
            "`dropout` must be a Dropout, or a sequence with one per layer, got "
            f"{type(dropout).__name__}."
        )
    return {"layers": [_layer(depth, layer) for depth, layer in enumerate(dropout)]}


def from_dict(data: Mapping[str, Any]) -> Dropout | tuple[Dropout, ...]:
    """Returns the `Dropout` of a dict, such as the `dropout` table of a config.

    Raises:
        TypeError: a value has another type than `to_dict` returns, or a site does not
            take the kind.
        ValueError: a site, a kind or an option is unknown, or a value is not allowed.

    Example:
        >>> from_dict({"recurrent": {"rate": 0.5, "per": "step"}}).recurrent.per
        'step'
    """
    _check_table("`data`", data)
    if "layers" not in data:
        return _dropout(data)
    if others := [f"`{site}`" for site in data if site != "layers"]:
        raise ValueError(f"`layers` must stand alone, got also {', '.join(others)}.")
    layers = data["layers"]
    if not isinstance(layers, (list, tuple)):
        raise TypeError(f"`layers` must be a list of tables, got {layers!r}.")
    return tuple(_read_layer(depth, layer) for depth, layer in enumerate(layers))


def to_json(dropout: Dropout | Sequence[Dropout]) -> str:
    """Returns a `Dropout`, or a sequence with one per layer, as JSON.

    Raises:
        TypeError: as `to_dict`.
        ValueError: as `to_dict`.
    """
    return json.dumps(to_dict(dropout), indent=2)


def from_json(text: str) -> Dropout | tuple[Dropout, ...]:
    """Returns the `Dropout` of a JSON text.

    Raises:
        TypeError: as `from_dict`.
        ValueError: as `from_dict`, or `text` is not JSON.

    Example:
        >>> from rdrop import Bernoulli
        >>> from_json(to_json(Dropout(inputs=Bernoulli(0.2)))).inputs.rate
        0.2
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`text` must be JSON: {error}.") from None
    return from_dict(data)


def to_toml(dropout: Dropout | Sequence[Dropout]) -> str:
    """Returns a `Dropout`, or a sequence with one per layer, as TOML.

    Raises:
        ImportError: tomli-w is not installed.
        TypeError: as `to_dict`.
        ValueError: as `to_dict`.
    """
    try:
        import tomli_w
    except ImportError:
        raise ImportError(
            "tomli-w is not installed; from a checkout of rdrop: "
            "pip install '.[interop]'."
        ) from None
    return tomli_w.dumps(to_dict(dropout))


def from_toml(text: str) -> Dropout | tuple[Dropout, ...]:
    """Returns the `Dropout` of a TOML text.

    Raises:
        TypeError: as `from_dict`.
        ValueError: as `from_dict`, or `text` is not TOML.

    Example:
        >>> from_toml("cell_state.rate = 0.5").cell_state.per
        'step'
    """
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"`text` must be TOML: {error}.") from None
    return from_dict(data)


@contextlib.contextmanager
def _within(place: str) -> Iterator[None]:
    """Prefixes error messages with a place."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from None


def _layer(depth: int, dropout: Any) -> dict[str, Any]:
    with _within(f"layers[{depth}]"):
        if not isinstance(dropout, Dropout):
            raise TypeError(f"must be a Dropout, got {type(dropout).__name__}.")
        return to_dict(dropout)


def _table(site: str, noise: Any) -> dict[str, Any]:
    """The kind of a noise and its options, as plain data."""
    with _within(f"Site `{site}`"):
        if type(noise) not in NAMES:
            raise TypeError(
                f"the noise must be a kind of rdrop, got {type(noise).__name__}."
            )
        table = {"kind": NAMES[type(noise)]}
        for field in dataclasses.fields(noise):
            value = getattr(noise, field.name)
            if (field.name, value) != ("units", "each"):
                table[field.name] = _plain(field.name, value)
        return table


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Drift):
        return {"drift": _plain("drift", value.probability)}
    if isinstance(value, Block):
        return {"block": value.steps}
    if isinstance(value, ScheduledRate):
        raise ValueError(
            f"`{name}` is a schedule; resolve it with `dropout.at(step)` first."
        )
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"`{name}` is a tracer; write it outside of jit and vmap.")
    if isinstance(value, str):
        return value
    if not isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)):
        raise TypeError(f"`{name}` must be a number or an array, got {value!r}.")
    array = np.asarray(value, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite, got {value}.")
    return value if type(value) in (int, float) else array.tolist()


def _check_table(place: str, data: Any) -> None:
    if not isinstance(data, Mapping):
        raise TypeError(f"{place} must be a table, got {data!r}.")


def _read_layer(depth: int, table: Any) -> Dropout:
    with _within(f"layers[{depth}]"):
        _check_table("a layer", table)
        return _dropout(table)


def _dropout(table: Mapping[str, Any]) -> Dropout:
    return Dropout(**{site: _noise(site, table[site]) for site in table})


def _noise(site: str, table: Any) -> Any:
    if site not in SITES:
        raise ValueError(f"unknown site {site!r}; expected one of {', '.join(SITES)}.")
    with _within(f"Site `{site}`"):
        _check_table("the noise", table)
        name = table.get("kind", SITES[site].kinds[0])
        if name not in list(KINDS_BY_NAME):
            names = ", ".join(KINDS_BY_NAME)
            raise ValueError(f"`kind` must be one of {names}, got {name!r}.")
        return KINDS_BY_NAME[name](**_options(name, table))


def _options(kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(KINDS_BY_NAME[kind])]
    options = {name: value for name, value in table.items() if name != "kind"}
    for name in options:
        if name not in names:
            raise ValueError(
                f'unknown option `{name}` of kind "{kind}"; expected one of '
                f"{', '.join(names)}."
            )
    if "rate" not in options:
        raise ValueError("`rate` is missing.")
    return {name: _value(name, value) for name, value in options.items()}


def _value(name: str, value: Any) -> Any:
    """A word or a number as it is, nested lists as a float32 array, a lifetime."""
    if isinstance(value, str) or type(value) in (int, float):
        return value
    if name == "per" and isinstance(value, Mapping) and set(value) == {"drift"}:
        return Drift(_value("drift", value["drift"]))
    if name == "per" and isinstance(value, Mapping) and set(value) == {"block"}:
        return Block(value["block"])
    with contextlib.suppress(ValueError):  # raised for lists of unequal lengths
        array = np.asarray(value)
        if isinstance(value, list) and array.dtype.kind in "iuf":
            return array.astype(np.float32)
    raise TypeError(
        f"`{name}` must be a word, a number, or lists of numbers that form an array, "
        f"got {value!r}."
    )
