"""Methods of dropout by name, each a function of one rate.

A preset with several rates gets the same one at all of its sites, except zoneout: as in
its paper, the rate of h_t is a tenth of the rate of c_t.
"""

from collections.abc import Callable
from typing import NamedTuple

import rdrop
from rdrop import presets


class Method(NamedTuple):
    """A method of dropout.

    Attributes:
        preset: (rate, layers) -> a `Dropout`, or a tuple of one per layer.
        cell: the only cell that the method is for; None for any with its sites.
    """

    preset: Callable[..., rdrop.Dropout | tuple[rdrop.Dropout, ...]]
    cell: type[rdrop.Cell] | None = None


METHODS: dict[str, Method] = {
    "pham": Method(lambda p, layers: presets.pham(p)),
    "zaremba": Method(lambda p, layers: presets.zaremba(p, layers)),
    "gal_tied": Method(lambda p, layers: presets.gal(p, p, p, layers=layers)),
    "gal_untied": Method(lambda p, layers: presets.gal(p, p, p, False, layers)),
    "semeniuta": Method(lambda p, layers: presets.semeniuta(p)),
    "moon": Method(lambda p, layers: presets.moon(p)),
    "zoneout": Method(lambda p, layers: presets.zoneout(p, 0.1 * p)),
    "awd": Method(lambda p, layers: presets.awd(p, p, p, p, layers)),
    "cheng": Method(lambda p, layers: presets.cheng(p)),
    "melis": Method(lambda p, layers: presets.melis(p, p, p, p, layers)),
    "keras": Method(lambda p, layers: presets.keras(p, p)),
    "keras2_fused": Method(lambda p, layers: presets.keras2_fused(p)),
    "keras2": Method(lambda p, layers: presets.keras2(p, p)),
    "tf1_variational": Method(lambda p, layers: presets.tf1_variational(p, p, p)),
    "tf1_layernorm": Method(
        lambda p, layers: presets.tf1_layernorm(p), rdrop.LayerNormLSTMCell
    ),
    "torch": Method(lambda p, layers: presets.torch(p, layers)),
    "allennlp": Method(lambda p, layers: presets.allennlp(p)),
    "haste": Method(lambda p, layers: presets.haste(p, p)),
    "lamb": Method(lambda p, layers: presets.lamb(p, p, p, p, layers=layers)),
}
