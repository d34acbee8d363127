"""Text: a `Dropout` as JSON, TOML or plain data.

It is a table of its sites, in the words that the experiments' configs have under
`[dropout]`; one a layer is a list of such tables, `layers`:

    [recurrent]                     [[layers]]
    kind = "bernoulli"
    rate = 0.5                      [layers.recurrent]
    per = "sequence"                kind = "bernoulli"
    gates = "shared"                ...
    batch = "each"
    scale = "inverted"              [[layers]]

Every option is written, whatever a later version takes for its default, except
`units` and `drift` where they are not used, and the kind of noise on weights, which
can only be DropConnect: the experiments' tables have no word for these. A kind left out
is the site's usual one: "zoneout" for states, "dropconnect" for weights, else
"bernoulli".

A number of Python's is written as it is. Any other rate is written as the float32 that
masks are drawn with, and comes back with these bits: an array as a NumPy array, which
is checked as it is read, an array without axes as a number.
"""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rdrop.dropout import KINDS, Dropout
from rdrop.noise import Bernoulli, Concrete, DropConnect, Gaussian, Schedule, Zoneout

NAMES: dict[type, str] = {
    Bernoulli: "bernoulli",
    Gaussian: "gaussian",
    Concrete: "concrete",
    Zoneout: "zoneout",
    DropConnect: "dropconnect",
}
NAMED = {name: kind for kind, name in NAMES.items()}
USUAL = {  # kinds of the sites where it is not "bernoulli"
    "cell_state": "zoneout",
    "hidden_state": "zoneout",
    "input_weights": "dropconnect",
    "recurrent_weights": "dropconnect",
}


def to_dict(dropout: Dropout | Sequence[Dropout]) -> dict[str, Any]:
    """Returns a `Dropout` as plain dicts, lists, numbers and text.

    Args:
        dropout: one, or a sequence of one a layer.

    Returns:
        A dict of its sites, each a dict of its kind and options; or `{"layers": [...]}`
        with a list of such dicts.

    Raises:
        TypeError: `dropout` is neither.
        ValueError: a rate is a schedule, a tracer or not finite.

    Example:
        >>> to_dict(Dropout(recurrent_weights=DropConnect(0.5)))
        {'recurrent_weights': {'rate': 0.5, 'by': 'weight'}}
    """
    if isinstance(dropout, Dropout):
        return {site: _table(site, noise) for site, noise in dropout.sites()}
    if not isinstance(dropout, (list, tuple)):
        raise TypeError(
            "`dropout` must be a Dropout, or a sequence of one a layer, got "
            f"{type(dropout).__name__}."
        )
    return {"layers": [_layer(depth, layer) for depth, layer in enumerate(dropout)]}


def from_dict(data: Mapping[str, Any]) -> Dropout | tuple[Dropout, ...]:
    """Returns what `to_dict` was given; serves for the `dropout` table of a config.

    Raises:
        TypeError: what should be a table, a list or a number is none, or a site does
            not take the kind.
        ValueError: a site, a kind or an option is unknown, or a value is not allowed.

    Example:
        >>> from_dict({"recurrent": {"rate": 0.5, "per": "step"}}).recurrent.per
        'step'
    """
    _check_table("`data`", data)
    if "layers" not in data:
        return _dropout(data)
    if beside := [f"`{site}`" for site in data if site != "layers"]:
        raise ValueError(f"`layers` must stand alone, got {', '.join(beside)} as well.")
    layers = data["layers"]
    if not isinstance(layers, (list, tuple)):
        raise TypeError(f"`layers` must be a list of tables, got {layers!r}.")
    return tuple(_read_layer(depth, layer) for depth, layer in enumerate(layers))


def to_json(dropout: Dropout | Sequence[Dropout]) -> str:
    """Writes a `Dropout`, or a sequence of one a layer, as JSON.

    Raises:
        TypeError: as `to_dict`.
        ValueError: as `to_dict`.
    """
    return json.dumps(to_dict(dropout), indent=2)


def from_json(text: str) -> Dropout | tuple[Dropout, ...]:
    """Reads what `to_json` wrote.

    Raises:
        TypeError: as `from_dict`.
        ValueError: as `from_dict`, or `text` is not JSON.

    Example:
        >>> from_json(to_json(Dropout(inputs=Bernoulli(0.2)))).inputs.rate
        0.2
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`text` must be JSON: {error}.") from None
    return from_dict(data)


def to_toml(dropout: Dropout | Sequence[Dropout]) -> str:
    """Writes a `Dropout`, or a sequence of one a layer, as TOML.

    Raises:
        ImportError: tomli_w is not installed.
        TypeError: as `to_dict`.
        ValueError: as `to_dict`.
    """
    try:
        import tomli_w
    except ImportError:
        raise ImportError(
            "`to_toml` needs tomli_w: pip install 'rdrop[interop]'"
        ) from None
    return tomli_w.dumps(to_dict(dropout))


def from_toml(text: str) -> Dropout | tuple[Dropout, ...]:
    """Reads what `to_toml` wrote.

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
    """Puts a place in front of what an error says."""
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
            raise TypeError(f"no kind of rdrop's, got {type(noise).__name__}.")
        only = len(KINDS[site]) == 1
        kind = {} if only else {"kind": NAMES[type(noise)]}
        return kind | {name: _plain(name, value) for name, value in _used(noise)}


def _used(noise) -> Iterator[tuple[str, Any]]:
    """Options and their values, without those that are left out when unused."""
    unused = {"drift": None, "units": "each"}
    for field in dataclasses.fields(noise):
        value = getattr(noise, field.name)
        if field.name not in unused or value is not unused[field.name]:
            yield field.name, value


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Schedule):
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
    if site not in KINDS:
        raise ValueError(f"There is no site `{site}`; there are {', '.join(KINDS)}.")
    with _within(f"Site `{site}`"):
        _check_table("the noise", table)
        name = table.get("kind", USUAL.get(site, "bernoulli"))
        if name not in list(NAMED):
            raise ValueError(f"`kind` must be one of {', '.join(NAMED)}, got {name!r}.")
        return NAMED[name](**_options(name, table))


def _options(kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(NAMED[kind])}
    options = {name: value for name, value in table.items() if name != "kind"}
    if unknown := [name for name in options if name not in fields]:
        raise ValueError(
            f'kind "{kind}" has no option `{unknown[0]}`; it has {", ".join(fields)}.'
        )
    if "rate" not in options:
        raise ValueError("`rate` is missing.")
    return {
        name: _leaf(name, value)
        if fields[name].metadata.get("pytree_node", True)
        else value
        for name, value in options.items()
    }


def _leaf(name: str, value: Any) -> Any:
    """A number as it is, nested lists as a float32 array."""
    if type(value) in (int, float):
        return value
    with contextlib.suppress(ValueError):  # of lists of unequal lengths
        array = np.asarray(value)
        if isinstance(value, list) and array.dtype.kind in "iuf":
            return array.astype(np.float32)
    raise TypeError(
        f"`{name}` must be a number, or lists of numbers as an array has them, got "
        f"{value!r}."
    )
