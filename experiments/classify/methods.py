"""Methods of dropout by name, each a function of one rate.

Most are of papers and libraries. The others put noise at one site: masks of
"inputs_held" and the like live for a sequence, masks of "inputs_step" for a step. A
state is the memory that a cell carries, c or else h. "state_..." multiplies it as
RnnDrop does, with masks of 0 or 1; "mixed_..." is zoneout.

A preset with several rates gets the same one at all of its sites, except zoneout: as in
its paper, the rate of h_t is a tenth of the rate of c_t.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import rdrop
from rdrop import presets


class Method(NamedTuple):
    """A method of dropout.

    Attributes:
        preset: (rate, layers, sites of the cell) -> a `Dropout`, or a tuple of one per
            layer.
        cell: the only cell that the method is for; None for any with its sites.
    """

    preset: Callable[..., rdrop.Dropout | tuple[rdrop.Dropout, ...]]
    cell: type[rdrop.Cell] | None = None


def _at(site: str, noise: Callable[..., Any], per: str) -> Method:
    """Returns the method that has noise at one site."""

    def preset(rate, layers, sites):
        state = "cell_state" if "cell_state" in sites else "hidden_state"
        return rdrop.Dropout(**{site or state: noise(rate, per=per)})

    return Method(preset)


STATE = ""
DROPPED = partial(rdrop.Bernoulli, scale="expectation")
AT_SITES: dict[str, tuple[str, Callable[..., Any]]] = {
    "inputs": ("inputs", rdrop.Bernoulli),
    "update": ("update", rdrop.Bernoulli),
    "state": (STATE, DROPPED),
    "mixed": (STATE, rdrop.Zoneout),
    "outputs": ("outputs", rdrop.Bernoulli),
}
LIFETIMES = {"held": "sequence", "step": "step"}

METHODS: dict[str, Method] = {
    "pham": Method(lambda p, layers, sites: presets.pham(p)),
    "zaremba": Method(lambda p, layers, sites: presets.zaremba(p, layers)),
    "gal_tied": Method(lambda p, layers, sites: presets.gal(p, p, p, layers=layers)),
    "gal_untied": Method(lambda p, layers, sites: presets.gal(p, p, p, False, layers)),
    "semeniuta": Method(lambda p, layers, sites: presets.semeniuta(p)),
    "moon": Method(lambda p, layers, sites: presets.moon(p)),
    "zoneout": Method(lambda p, layers, sites: presets.zoneout(p, 0.1 * p)),
    "awd": Method(lambda p, layers, sites: presets.awd(p, p, p, p, layers)),
    "cheng": Method(lambda p, layers, sites: presets.cheng(p)),
    "melis": Method(lambda p, layers, sites: presets.melis(p, p, p, p, layers)),
    "keras": Method(lambda p, layers, sites: presets.keras(p, p)),
    "keras2_fused": Method(lambda p, layers, sites: presets.keras2_fused(p)),
    "keras2": Method(lambda p, layers, sites: presets.keras2(p, p)),
    "tf1_variational": Method(
        lambda p, layers, sites: presets.tf1_variational(p, p, p)
    ),
    "tf1_layernorm": Method(
        lambda p, layers, sites: presets.tf1_layernorm(p), rdrop.LayerNormLSTMCell
    ),
    "torch": Method(lambda p, layers, sites: presets.torch(p, layers)),
    "allennlp": Method(lambda p, layers, sites: presets.allennlp(p)),
    "haste": Method(lambda p, layers, sites: presets.haste(p, p)),
    "lamb": Method(lambda p, layers, sites: presets.lamb(p, p, p, p, layers=layers)),
    **{
        f"{name}_{word}": _at(site, noise, per)
        for name, (site, noise) in AT_SITES.items()
        for word, per in LIFETIMES.items()
    },
}
