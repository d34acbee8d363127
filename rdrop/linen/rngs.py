"""Rng collections: keys that a linen module takes from flax.

The collections have the names of the streams, `inputs` and `recurrent`. If there is
only flax's own collection, `dropout`, both streams are split from it. How long such a
key lives is decided by the transformation around the module: `flax.linen.RNN` holds a
collection over the sequence if `split_rngs` says False, splits it at each step if it
says True, and keeps it from the cell if `split_rngs` does not name it.
"""

from flax import linen as nn
from flax.core.scope import in_filter

from rdrop.dropout import Dropout, Masks
from rdrop.keys import StreamKeys, stream_keys

STREAMS = ("inputs", "recurrent")
COLLECTIONS = (*STREAMS, "dropout")


def collected_keys(module: nn.Module) -> StreamKeys | None:
    """Draws keys from the rng collections of a bound module, if it has them.

    Raises:
        ValueError: it has one of the two streams only.
    """
    given = [name for name in STREAMS if module.has_rng(name)]
    if len(given) == 1:
        raise ValueError(
            "`rngs` must have both collections, `inputs` and `recurrent`, or neither, "
            f"got `{given[0]}` only."
        )
    if given:
        return StreamKeys(module.make_rng("inputs"), module.make_rng("recurrent"))
    if module.has_rng("dropout"):
        return stream_keys(module.make_rng("dropout"))
    return None


def check_lifetimes(dropout: Dropout | Masks | None) -> None:
    """Raises a ValueError if noise depends on the step, which a collection lacks."""
    for name, noise in dropout.sites() if isinstance(dropout, Dropout) else ():
        if noise.per != "sequence":
            raise ValueError(
                f'Site `{name}`: `per` must be "sequence" if a cell draws from rng '
                "collections, which do not tell the step; there `split_rngs` says how "
                f"long a mask lives. Got {noise.per!r}: use rdrop.RNN, or pass keys."
            )


def check_collections_reach(cell: nn.Module) -> None:
    """Raises a ValueError if a `flax.linen.RNN` keeps its collections from a cell."""
    rnn = cell.parent
    if cell.scope is None or cell.dropout is None or not isinstance(rnn, nn.RNN):
        return
    for name in COLLECTIONS:
        named = any(in_filter(which, name) for which in rnn.split_rngs)
        if cell.has_rng(name) and not named:
            held = ", ".join(f"'{n}': False" for n in ("params", name))
            raise ValueError(
                f"`split_rngs` of flax.linen.RNN must name the collection `{name}`, or "
                f"the cell gets no keys: {{{held}}} holds masks over the sequence, "
                f"True draws them at each step. Got {dict(rnn.split_rngs)}."
            )
