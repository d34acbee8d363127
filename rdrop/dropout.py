"""Dropout: where noise enters a recurrent layer.

A `Dropout` names the noise of each site, `Masks` are what was drawn. In both, `None`
means that the site is untouched: nothing is drawn and nothing is compiled for it. The
structure is static and the rates are leaves, so one compiled program serves them all.

Sites, by stream (vertical arrows: inputs; horizontal arrows: recurrent):

    inputs      inputs, outputs, input_weights
    recurrent   recurrent, update, gates, cell_state, hidden_state, recurrent_weights

References:
    [1] Pham et al. Dropout improves recurrent neural networks for handwriting
        recognition. ICFHR 2014. arXiv:1312.4569.
    [2] Zaremba, Sutskever, Vinyals. Recurrent neural network regularization. 2014.
        arXiv:1409.2329.
    [3] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
    [4] Semeniuta, Severyn, Barth. Recurrent dropout without memory loss. COLING 2016.
        arXiv:1603.05118.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from rdrop.keys import StreamKeys
from rdrop.noise import Bernoulli

STREAMS = {
    "inputs": "inputs",
    "outputs": "inputs",
    "input_weights": "inputs",
    "recurrent": "recurrent",
    "update": "recurrent",
    "gates": "recurrent",
    "cell_state": "recurrent",
    "hidden_state": "recurrent",
    "recurrent_weights": "recurrent",
}
IMPLEMENTED = ("inputs", "outputs", "recurrent", "update")


class Site(NamedTuple):
    """The size of a site in a given cell: how many gates read it, and its units."""

    gates: int
    units: int


class Dropout(struct.PyTreeNode):
    """The noise of each site of a recurrence.

    Attributes:
        inputs: multiplies x_t before the input kernel [1, 2, 3]; Keras `dropout`.
        outputs: multiplies y_t on its way up, not the h_t handed on in time [1, 2].
        input_weights: the input kernel (DropConnect). Not implemented yet.
        recurrent: multiplies h_{t-1} before the recurrent kernel [3]; Keras
            `recurrent_dropout`.
        update: multiplies the candidate g_t before it is added to the memory [4].
        gates, cell_state, hidden_state, recurrent_weights: not implemented yet.

    Raises:
        NotImplementedError: a site that has no implementation yet is set.
        TypeError: a site is set to a bare number.

    Example:
        >>> gal = Dropout(inputs=Bernoulli(0.25), recurrent=Bernoulli(0.5))
        >>> jax.tree.leaves(gal)
        [0.25, 0.5]
    """

    inputs: Bernoulli | None = None
    outputs: Bernoulli | None = None
    input_weights: Bernoulli | None = None
    recurrent: Bernoulli | None = None
    update: Bernoulli | None = None
    gates: Bernoulli | None = None
    cell_state: Bernoulli | None = None
    hidden_state: Bernoulli | None = None
    recurrent_weights: Bernoulli | None = None

    def __post_init__(self):
        for name, noise in self._sites():
            if name not in IMPLEMENTED:
                raise NotImplementedError(f"Site `{name}` is not implemented yet.")
            if isinstance(noise, (int, float)):
                raise TypeError(
                    f"`{name}` must be a noise such as Bernoulli({noise}), got {noise}."
                )

    def at(self, step) -> "Dropout":
        """Evaluates every rate that is a schedule.

        Args:
            step: the training step, int or int32[], that the schedules take.
        """
        return self.replace(**{name: noise.at(step) for name, noise in self._sites()})

    def expected(self) -> "Masks":
        """Returns the masks of evaluation.

        They are the factor 1 - rate of a site whose scale is "expectation", and nothing
        for inverted noise.
        """
        return Masks(**{name: noise.expected() for name, noise in self._sites()})

    def _sites(self):
        """The sites in use, by name."""
        return [(s, n) for s in STREAMS if (n := getattr(self, s)) is not None]


class Masks(struct.PyTreeNode):
    """The masks drawn for a `Dropout`: to look at, to store, to pass in its place.

    A mask held over time has the axes (B, G, U), one of each step (T, B, G, U): batch,
    gates, units; an axis of size 1 is shared. `Masks()` is no noise at all.

    Attributes:
        inputs, outputs, ...: the mask of the site of that name in `Dropout`, or None.
    """

    inputs: Float[Array, "..."] | None = None
    outputs: Float[Array, "..."] | None = None
    input_weights: Float[Array, "..."] | None = None
    recurrent: Float[Array, "..."] | None = None
    update: Float[Array, "..."] | None = None
    gates: Float[Array, "..."] | None = None
    cell_state: Float[Array, "..."] | None = None
    hidden_state: Float[Array, "..."] | None = None
    recurrent_weights: Float[Array, "..."] | None = None


def draw(
    dropout: Dropout,
    keys: StreamKeys,
    sites: Mapping[str, Site],
    batch: int,
    time: int | None = None,
) -> Masks:
    """Draws the masks of a sequence, or of the single step `keys.step`.

    Args:
        dropout: where noise enters, and how it is drawn.
        keys: the explicit keys; the mask of time step t is drawn from
            (site key, keys.step + t), that of a sequence from the site key alone.
        sites: sizes of the cell's sites, `cell.sites(features)`.
        batch: B.
        time: T, or None for one step.

    Returns:
        float32 masks: (B, G, U), or (T, B, G, U) for noise with per="step" when `time`
        is given. Both ways of drawing a step give the same bits.

    Raises:
        TypeError: `keys` are not `StreamKeys` of typed keys.
        ValueError: a rate does not broadcast, or `gates="each"` where gates share.
    """
    if not isinstance(keys, StreamKeys):
        raise TypeError(
            "`keys` must be StreamKeys, made by rdrop.stream_keys(key), got "
            f"{type(keys).__name__}."
        )
    _check_noise(dropout, sites, batch)
    return Masks(
        **{
            name: _draw_site(
                noise,
                keys.site(STREAMS[name], name),
                noise.shape(batch, *sites[name]),
                keys.step,
                time,
            )
            for name, noise in dropout._sites()
        }
    )


def resolve(
    dropout: Dropout | Masks | None,
    keys: StreamKeys | None,
    sites: Mapping[str, Site],
    batch: int,
    time: int | None = None,
) -> Masks:
    """Turns what a layer was given into masks: no keys, no noise.

    Args:
        dropout: a `Dropout` to draw from, `Masks` to use as they are, or None.
        keys: explicit keys; without them a `Dropout` gives its expectation.
        sites: as in `draw`.
        batch: B.
        time: T, or None for one step.

    Raises:
        TypeError: `dropout` or `keys` are of another type.
        ValueError: as `draw`; masks of a wrong shape; keys given beside masks.
    """
    if dropout is None:
        return Masks()
    if isinstance(dropout, Masks):
        if keys is not None:
            raise ValueError(
                "`keys` must be None beside Masks: nothing is left to draw."
            )
        _check_masks(dropout, sites, batch, time)
        return dropout
    if not isinstance(dropout, Dropout):
        raise TypeError(
            f"`dropout` must be a Dropout, Masks or None, got {type(dropout).__name__}."
        )
    if keys is None:
        _check_noise(dropout, sites, batch)
        return dropout.expected()
    return draw(dropout, keys, sites, batch, time)


def _draw_site(noise, key, shape, step, time):
    if noise.per == "sequence":
        return noise.draw(key, shape)
    step = jnp.asarray(step, jnp.int32)
    if time is None:
        return noise.draw(jax.random.fold_in(key, step), shape)
    steps = step[None] + jnp.arange(time, dtype=jnp.int32)
    return jax.vmap(lambda t: noise.draw(jax.random.fold_in(key, t), shape))(steps)


def _check_noise(dropout, sites, batch) -> None:
    for name, noise in dropout._sites():
        if noise.gates == "each" and sites[name].gates == 1:
            raise ValueError(
                f'Site `{name}`: `gates` must be "shared", as no two gates read it, '
                'got "each".'
            )
        try:
            noise.check(noise.shape(batch, *sites[name]))
        except ValueError as error:
            raise ValueError(f"Site `{name}`: {error}") from None


def _check_masks(masks, sites, batch, time) -> None:
    for name in STREAMS:
        mask = getattr(masks, name)
        if mask is None:
            continue
        if name not in sites:
            raise NotImplementedError(f"Site `{name}` is not implemented yet.")
        held = (batch, *sites[name])
        *steps, b, g, u = (0, 0, 0, *mask.shape)[-max(3, mask.ndim) :]
        if steps not in ([], [time]) or not _fits((b, g, u), held):
            raise ValueError(
                f"`masks.{name}` must have the axes (batch, gates, units) = {held}, "
                f"each whole or 1, after one of time = {time} if it changes with the "
                f"step; got shape {mask.shape}."
            )


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return all(size in (1, full) for size, full in zip(shape, whole, strict=True))
