"""Dropout: the noise of each site of a recurrent layer, and the masks drawn for it.

A `Dropout` names the noise of each site, `Masks` are the arrays drawn for it. In both,
`None` means that the site is untouched: nothing is drawn and nothing is compiled for
it. The structure is static and the rates are leaves, so one compiled program serves all
rates. The sites are the rows of `rdrop.sites.SITES`; numbers in brackets are its
references.
"""

import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from rdrop.advice import describe
from rdrop.keys import STREAMS, StreamKeys, check_keys, of_episode, rows_of
from rdrop.noise.kinds import KINDS_BY_NAME, Add, Additive, Mix, NoiseKind
from rdrop.noise.lifetime import lifetime_of
from rdrop.noise.node import check
from rdrop.noise.rates import Shape
from rdrop.noise.threefry import sharded
from rdrop.sites import SITES, Site

KINDS: dict[str, tuple[type[NoiseKind], ...]] = {
    name: tuple(KINDS_BY_NAME[kind] for kind in site.kinds)
    for name, site in SITES.items()
}
# A site must not be set to these, nor to anything that can be called: a module, a
# schedule, a class. Any other object may be a placeholder with which JAX or a user
# rebuilds the pytree.
NUMBERS = (bool, int, float, str, np.generic, np.ndarray, jax.Array)

# The forms of a mask other than an array, and the kinds of noise that draw them.
FORMS = {Mix: {"zoneout"}, Add: {"additive", "weight_noise"}}

Mask = Float[Array, "..."]
# The fields of `Dropout` and `Masks`, one per site.
PerSite: Any = dataclasses.make_dataclass(
    "PerSite", [(name, Any, None) for name in SITES], frozen=True
)


class Dropout(PerSite, struct.PyTreeNode):
    """The noise of each site of a recurrence.

    Attributes:
    {sites}

    Raises:
        TypeError: a name is not a site, or the site does not take the noise.

    Example:
        >>> from rdrop import Bernoulli
        >>> gal = Dropout(inputs=Bernoulli(0.25), recurrent=Bernoulli(0.5))
        >>> jax.tree.leaves(gal)
        [0.25, 0.5]
    """

    def __init__(self, *unnamed: Any, **noises: Any):
        _set_sites(self, unnamed, noises)
        for name, noise in self.sites():
            is_mistake = isinstance(noise, (*NUMBERS, NoiseKind)) or callable(noise)
            if is_mistake and not isinstance(noise, KINDS[name]):
                raise TypeError(_refusal(name, noise))

    def at(self, step) -> "Dropout":
        """Evaluates every rate that is a schedule.

        Args:
            step: the training step, int or int32[], that the schedules take.
        """
        return self.replace(**{name: noise.at(step) for name, noise in self.sites()})

    def expected(self) -> "Masks":
        """Returns the masks of evaluation.

        They are the factor 1 - rate at a site whose scale is "expectation", the
        expected mix of zoneout, and None elsewhere.
        """
        return Masks(**{name: noise.expected() for name, noise in self.sites()})

    def sites(self) -> list[tuple[str, Any]]:
        """Returns the sites in use, with their noise."""
        return _in_use(self)


class Masks(PerSite, struct.PyTreeNode):
    """The masks drawn for a `Dropout`: can be inspected, stored and passed in.

    A mask held over time has the axes (B, G, U), masks per step (T, B, G, U): batch,
    gates, units; a mask on weights (R, G, U): rows, gates, units. An axis of size 1 is
    shared. `Masks()` means no noise. A field is None if its site has no mask, a `Mix`
    if states are mixed, and an `Add` if noise is added.

    Attributes:
    {sites}

    Raises:
        TypeError: a name is not a site.
    """

    def __init__(self, *unnamed: Any, **masks: Any):
        _set_sites(self, unnamed, masks)

    def sites(self) -> list[tuple[str, Any]]:
        """Returns the sites that have a mask, with their mask."""
        return _in_use(self)


def draw(
    dropout: Dropout,
    keys: StreamKeys,
    sites: Mapping[str, Site],
    batch: int,
    time: int | None = None,
    resets: Bool[Array | np.ndarray, "T B"] | None = None,
) -> Masks:
    """Draws the masks of a sequence, or of the single step `keys.step`.

    Args:
        dropout: the noise of each site.
        keys: the explicit keys; the mask of time step t is drawn from
            (site key, keys.step + t), a mask held over time from the site key alone.
        sites: sizes of the cell's sites, `cell.sites(features)`.
        batch: B.
        time: T, or None for one step.
        resets: where an episode begins. A row then has the masks of its episodes, and
            counts their steps from 0. Masks on weights are the same in all episodes.

    Returns:
        float32 masks: (B, G, U), or (T, B, G, U) for noise with per="step" or a `Drift`
        if `time` is given, and for all noise on activations if rows may be in different
        episodes. All ways of drawing a step are bitwise identical.

    Raises:
        TypeError: `keys` are not `StreamKeys` of typed keys.
        ValueError: the cell does not have a site, a rate does not broadcast, or
            `gates="each"` at a site that no two gates read.
    """
    check_keys(keys)
    return _draw(dropout, keys, sites, batch, time, resets)


def resolve(
    dropout: Dropout | Masks | None,
    keys: StreamKeys | None,
    sites: Mapping[str, Site],
    batch: int,
    time: int | None = None,
    resets: Bool[Array | np.ndarray, "T B"] | None = None,
) -> Masks:
    """Returns the masks of one call of a layer: no keys, no noise.

    Args:
        dropout: a `Dropout` to draw from, `Masks` to use as they are, or None.
        keys: explicit keys; without them a `Dropout` gives its expectation.
        sites: as in `draw`.
        batch: B.
        time: T, or None for one step.
        resets: as in `draw`.

    Raises:
        TypeError: `dropout` or `keys` are of another type.
        ValueError: as `draw`; masks of a wrong shape or of another cell; both keys and
            masks.
    """
    if keys is not None:
        check_keys(keys)
    if dropout is None:
        return Masks()
    if isinstance(dropout, Masks):
        if keys is not None:
            raise ValueError(
                "`keys` must be None if `dropout` is Masks: nothing is left to draw."
            )
        _check_masks(dropout, sites, batch, time)
        return dropout
    if not isinstance(dropout, Dropout):
        raise TypeError(
            "`dropout` must be an rdrop.Dropout, rdrop.Masks or None, got "
            f"{describe(dropout)}."
        )
    if keys is None:
        _shapes(dropout, sites, batch)
        return dropout.expected()
    return _draw(dropout, keys, sites, batch, time, resets)


def _draw(dropout, keys, sites, batch, time, resets) -> Masks:
    shapes = _shapes(dropout, sites, batch)
    for name, count in (("step", keys.step), ("episode", keys.episode)):
        if jnp.shape(count) not in ((), (batch,)):
            raise ValueError(
                f"`keys.{name}` must be a single integer or one per row, [B] = "
                f"[{batch}], got shape {jnp.shape(count)}."
            )
    rows = rows_of(keys, resets, batch, time)

    def mask(name, noise):
        key, lifetime = keys.site(STREAMS[name], name), lifetime_of(noise)
        noise = noise if keys.plan is None else keys.plan.over(noise)
        if SITES[name].on_weights:
            return noise.draw(key, shapes[name])
        if rows is not None:
            of_rows = of_episode(key, rows.episode)
            return lifetime.draw_rows(noise, of_rows, shapes[name], rows)
        key, step = of_episode(key, keys.episode), jnp.asarray(keys.step, jnp.int32)
        if time is None:
            return lifetime.draw_step(noise, key, shapes[name], step)
        return lifetime.draw_steps(noise, key, shapes[name], step, time)

    masks = {}
    for name, noise in dropout.sites():
        with sharded(sites[name].spec):
            masks[name] = mask(name, noise)
    return Masks(**masks)


def _shapes(dropout, sites, batch) -> dict[str, Shape]:
    """The shape of each mask; raises if a site of the cell does not fit its noise."""
    shapes = {}
    for name, noise in dropout.sites():
        site = _site(name, sites)
        if noise.gates == "each" and site.gates == 1 and site.rows is None:
            raise ValueError(
                f'Site `{name}`: `gates` must be "shared", as no two gates read it, '
                'got "each".'
            )
        _check_complex(name, site, isinstance(noise, Additive))
        shapes[name] = noise.shape(site.rows or batch, site.gates, site.units)
        try:
            check(noise, shapes[name])
        except ValueError as error:
            raise ValueError(f"Site `{name}`: {error}") from None
    return shapes


def _site(name: str, sites: Mapping[str, Site]) -> Site:
    if name not in sites:
        raise ValueError(
            f"Site `{name}` does not exist in this cell; it has {', '.join(sites)}."
        )
    return sites[name]


def _check_complex(name: str, site: Site, is_added: bool) -> None:
    if is_added and site.is_complex:
        raise ValueError(
            f"Site `{name}`: additive noise is real, and the units of this cell are "
            "complex. Multiply or mix them, for example by Zoneout."
        )


def _check_masks(masks, sites, batch, time) -> None:
    for name, mask in masks.sites():
        site = _site(name, sites)
        for form, kinds in FORMS.items():
            if isinstance(mask, form) and not kinds & {*SITES[name].kinds}:
                raise TypeError(
                    f"`masks.{name}` must be an array, got a {form.__name__}."
                )
        _check_complex(name, site, isinstance(mask, Add))
        held = (site.rows or batch, site.gates, site.units)
        per_step = [] if time is None or site.rows else [(time, *held)]
        shape = jax.tree.leaves(mask)[0].shape
        if not any(_fits(shape, whole) for whole in (held, *per_step)):
            axes = "(R, G, U)" if site.rows else "(B, G, U)"
            steps = f", or (T, B, G, U) = {per_step[0]}" if per_step else ""
            raise ValueError(
                f"`masks.{name}` must have shape {axes} = {held}{steps}, got {shape}. "
                f"Each of {axes[1:-1]} may be 1: the mask is then shared along it."
            )


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether axes are whole, or 1 among the last three."""
    return len(shape) == len(whole) and all(
        size == full or (size == 1 and axis >= len(whole) - 3)
        for axis, (size, full) in enumerate(zip(shape, whole, strict=True))
    )


def _set_sites(node, unnamed, values) -> None:
    """Sets the fields of a frozen node with one field per site."""
    kind = type(node).__name__
    if unnamed:
        raise TypeError(
            f"`{kind}` takes sites by name, for example {kind}(inputs=...), got "
            f"{_shown(unnamed[0])} without a name."
        )
    for name in values.keys() - SITES.keys():
        raise TypeError(f"`{kind}` does not have a site `{name}`. {_hint(name)}")
    for name in SITES:
        object.__setattr__(node, name, values.get(name))


def _in_use(node) -> list[tuple[str, Any]]:
    return [(s, value) for s in SITES if (value := getattr(node, s)) is not None]


def _hint(name: str) -> str:
    """Advice for the unknown name of a site."""
    for site, row in SITES.items():
        if row.keras == name:
            return (
                f"Keras' argument `{name}` is the site `{site}`: "
                f"Dropout({site}=Bernoulli(rate)). For Keras' masks, write "
                "rdrop.presets.keras(dropout, recurrent_dropout)."
            )
    close = difflib.get_close_matches(name, SITES, n=1)
    meant = f"Did you mean `{close[0]}`? " if close else ""
    return f"{meant}The sites are {', '.join(SITES)}."


def _refusal(name: str, noise: Any) -> str:
    """The message for a value that a site does not take."""
    kinds = [f"{kind.__name__}(rate)" for kind in KINDS[name]]
    advice = ""
    if isinstance(noise, (int, float)) and not isinstance(noise, bool):
        advice = f" Write {name}={KINDS[name][0].__name__}({noise!r})."
    return f"Site `{name}` takes {' or '.join(kinds)}, got {_shown(noise)}.{advice}"


def _shown(value: Any) -> str:
    """A value in an error: itself if it is short, else the name of its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (*NUMBERS, NoiseKind)):
        return repr(value)
    return "a function" if inspect.isfunction(value) else describe(value)


def _document(node: type) -> None:
    """Puts the texts of the table into the docstring of a class."""
    texts = (f"{name}: {site.text}" for name, site in SITES.items())
    wrap = textwrap.TextWrapper(88, initial_indent=" " * 4, subsequent_indent=" " * 8)
    lines = "\n".join(wrap.fill(text) for text in texts)
    # Python 3.13 has removed the common indentation already.
    node.__doc__ = inspect.cleandoc(node.__doc__ or "").replace("{sites}", lines)


_document(Dropout)
_document(Masks)
