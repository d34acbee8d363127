"""Rngs: keys that a linen module takes from its rng collections.

They are named after the streams, `inputs` and `recurrent`. How long such a key lives is
up to the transformation around the module: `flax.linen.RNN` holds a collection over the
sequence where `split_rngs` says False, splits it at each step where it says True, and
keeps it from the cell where `split_rngs` does not name it.
"""

from flax import linen as nn
from flax.core.scope import in_filter

from rdrop.dropout import Dropout, Masks
from rdrop.keys import StreamKeys

COLLECTIONS = ("inputs", "recurrent")


def collected_keys(module: nn.Module) -> StreamKeys | None:
    """Draws keys from the rng collections of a bound module, if it has them.

    Raises:
        ValueError: it has one of the two collections only.
    """
    given = [name for name in COLLECTIONS if module.has_rng(name)]
    if not given:
        return None
    if len(given) == 1:
        raise ValueError(
            "`rngs` must have both collections, `inputs` and `recurrent`, or neither, "
            f"got `{given[0]}` only."
        )
    return StreamKeys(module.make_rng("inputs"), module.make_rng("recurrent"))


def check_lifetimes(dropout: Dropout | Masks | None) -> None:
    """Raises where noise must know the step, which a collection does not tell.

    Raises:
        ValueError: a site draws anew at each step, or drifts.
    """
    for name, noise in dropout.sites() if isinstance(dropout, Dropout) else ():
        if noise.per != "sequence":
            raise ValueError(
                f'Site `{name}`: `per` must be "sequence" where a cell draws from rng '
                "collections, which do not tell the step; there `split_rngs` says how "
                f"long a mask lives. Got {noise.per!r}: use rdrop.RNN, or hand in keys."
            )


def check_collections_reach(cell: nn.Module) -> None:
    """Raises where a `flax.linen.RNN` around a noisy cell keeps its collections back.

    Raises:
        ValueError: `split_rngs` does not name a collection that is there.
    """
    rnn = cell.parent
    if cell.scope is None or cell.dropout is None or not isinstance(rnn, nn.RNN):
        return
    for name in COLLECTIONS:
        named = any(in_filter(which, name) for which in rnn.split_rngs)
        if cell.has_rng(name) and not named:
            raise ValueError(
                f"`split_rngs` of flax.linen.RNN must name the collection `{name}`, or "
                "the cell gets no keys: {'params': False, 'inputs': False, 'recurrent':"
                " False} holds masks over the sequence, True draws them at each step. "
                f"Got {dict(rnn.split_rngs)}."
            )
