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
    [5] Cheng et al. An exploration of dropout with LSTMs. Interspeech 2017.
    [6] Moon et al. RnnDrop: a novel dropout for RNNs in ASR. ASRU 2015.
    [7] Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
        activations. ICLR 2017. arXiv:1606.01305.
    [8] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182.
    [9] Wan et al. Regularization of neural networks using DropConnect. ICML 2013.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from rdrop.keys import STREAMS, StreamKeys, check_keys
from rdrop.lifetime import draw_step, draw_steps
from rdrop.noise import (
    Bernoulli,
    Concrete,
    DropConnect,
    Gaussian,
    Mix,
    Site,
    Zoneout,
    check,
)

MULTIPLIERS = (Bernoulli, Gaussian, Concrete)
KINDS: dict[str, tuple[type, ...]] = {
    "inputs": MULTIPLIERS,
    "outputs": MULTIPLIERS,
    "input_weights": (DropConnect,),
    "recurrent": MULTIPLIERS,
    "update": MULTIPLIERS,
    "gates": MULTIPLIERS,
    "cell_state": (*MULTIPLIERS, Zoneout),
    "hidden_state": (*MULTIPLIERS, Zoneout),
    "recurrent_weights": (DropConnect,),
}
# What a site must not be set to, besides a kind that it does not take. Anything else
# may be a placeholder of JAX's, which rebuilds pytrees around what is no noise at all.
MISTAKES = (bool, int, float, str, np.generic, np.ndarray, jax.Array)
NOISES = (*MULTIPLIERS, Zoneout, DropConnect)

Multiplier = Bernoulli | Gaussian | Concrete
State = Multiplier | Zoneout
Mask = Float[Array, "..."]


class Dropout(struct.PyTreeNode):
    """The noise of each site of a recurrence.

    Attributes:
        inputs: multiplies x_t before the input kernel [1, 2, 3]; Keras `dropout`.
        outputs: multiplies y_t on its way up, not the h_t handed on in time [1, 2].
        input_weights: drops weights of the input kernel [9].
        recurrent: multiplies h_{t-1} before the recurrent kernel, never the leak path
            of a GRU [3]; Keras `recurrent_dropout`.
        update: multiplies the candidate (g_t, or n_t of a GRU) before it is added to
            the memory [4].
        gates: multiplies the gates after their sigmoid, but not the candidate [5].
            Inverted multipliers compound over time where a gate keeps the state.
        cell_state: multiplies c_t [6], or mixes it with c_{t-1}; then h_t is made from
            the memory before mixing [7]. Inverted multipliers compound over time.
        hidden_state: mixes h_t with h_{t-1}, and puts out the mixture [7]; or
            multiplies the h_t handed on in time, leak path of a GRU included, but not
            y_t. Inverted multipliers compound there: Keras 3.0 to 3.7 did so.
        recurrent_weights: drops weights of the recurrent kernel [8].

    Raises:
        TypeError: a site is set to what is no noise, or to a kind it does not take.

    Example:
        >>> gal = Dropout(inputs=Bernoulli(0.25), recurrent=Bernoulli(0.5))
        >>> jax.tree.leaves(gal)
        [0.25, 0.5]
    """

    inputs: Multiplier | None = None
    outputs: Multiplier | None = None
    input_weights: DropConnect | None = None
    recurrent: Multiplier | None = None
    update: Multiplier | None = None
    gates: Multiplier | None = None
    cell_state: State | None = None
    hidden_state: State | None = None
    recurrent_weights: DropConnect | None = None

    def __post_init__(self):
        for name, noise in self.sites():
            if isinstance(noise, MISTAKES + NOISES) and not isinstance(
                noise, KINDS[name]
            ):
                kinds = " or ".join(f"{kind.__name__}(rate)" for kind in KINDS[name])
                raise TypeError(f"Site `{name}` takes {kinds}, got {noise!r}.")

    def at(self, step) -> "Dropout":
        """Evaluates every rate that is a schedule.

        Args:
            step: the training step, int or int32[], that the schedules take.
        """
        return self.replace(**{name: noise.at(step) for name, noise in self.sites()})

    def expected(self) -> "Masks":
        """Returns the masks of evaluation.

        They are the factor 1 - rate of a site whose scale is "expectation", the
        expected mix of zoneout, and nothing for the rest.
        """
        return Masks(**{name: noise.expected() for name, noise in self.sites()})

    def sites(self) -> list[tuple[str, Any]]:
        """Returns the sites in use, with their noise."""
        return [(s, n) for s in STREAMS if (n := getattr(self, s)) is not None]


class Masks(struct.PyTreeNode):
    """The masks drawn for a `Dropout`: to look at, to store, to pass in its place.

    A mask held over time has the axes (B, G, U), one of each step (T, B, G, U): batch,
    gates, units; that of a kernel (R, G, U): rows, gates, units. An axis of size 1 is
    shared. `Masks()` is no noise at all.

    Attributes:
        inputs, outputs, ...: the mask of the site of that name in `Dropout`, or None; a
            `Mix` where states are mixed.
    """

    inputs: Mask | None = None
    outputs: Mask | None = None
    input_weights: Mask | None = None
    recurrent: Mask | None = None
    update: Mask | None = None
    gates: Mask | None = None
    cell_state: Mask | Mix | None = None
    hidden_state: Mask | Mix | None = None
    recurrent_weights: Mask | None = None


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
        ValueError: the cell has no such site, a rate does not broadcast, or
            `gates="each"` where no two gates read the site.
    """
    check_keys(keys)
    shapes = _shapes(dropout, sites, batch)

    def mask(name, noise):
        key = keys.site(STREAMS[name], name)
        if time is None:
            return draw_step(noise, key, shapes[name], keys.step)
        return draw_steps(noise, key, shapes[name], keys.step, time)

    return Masks(**{name: mask(name, noise) for name, noise in dropout.sites()})


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
    if keys is not None:
        check_keys(keys)
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
        _shapes(dropout, sites, batch)
        return dropout.expected()
    return draw(dropout, keys, sites, batch, time)


def _shapes(dropout, sites, batch) -> dict[str, tuple[int, int, int]]:
    """The shape of every mask in use; raises where a site and its noise do not fit."""
    shapes = {}
    for name, noise in dropout.sites():
        site = _site(name, sites)
        if noise.gates == "each" and site.gates == 1 and site.rows is None:
            raise ValueError(
                f'Site `{name}`: `gates` must be "shared", as no two gates read it, '
                'got "each".'
            )
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


def _check_masks(masks, sites, batch, time) -> None:
    for name in STREAMS:
        mask = getattr(masks, name)
        if mask is None:
            continue
        site = _site(name, sites)
        if isinstance(mask, Mix) and Zoneout not in KINDS[name]:
            raise TypeError(f"`masks.{name}` must be an array, got a Mix.")
        held = (site.rows or batch, site.gates, site.units)
        shape = jax.tree.leaves(mask)[0].shape
        *steps, b, g, u = (0, 0, 0, *shape)[-max(3, len(shape)) :]
        if steps not in ([], [time]) or not _fits((b, g, u), held):
            raise ValueError(
                f"`masks.{name}` must have the axes {held}, each whole or 1"
                + (
                    f", after one of T = {time} if it changes with the step"
                    * bool(time)
                )
                + f"; got shape {shape}."
            )


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return all(size in (1, full) for size, full in zip(shape, whole, strict=True))
