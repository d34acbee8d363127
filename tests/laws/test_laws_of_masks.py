"""The laws of DESIGN.md that are about masks, for every set of sites and every kind.

Masks are compared bit by bit as they are drawn.
"""

import chex
import jax
import numpy as np
import pytest
from helpers import assert_close, quickly
from law_cases import (
    BATCH,
    CELLS,
    KEYS,
    KINDS,
    MULTIPLIERS,
    SITES_AS,
    SITES_OF,
    SMOOTH,
    TIME,
    UNITS,
    WEIGHTS,
    draw,
    draw_all,
    each_pair,
    every_kind_of_an_lstm,
    every_site,
)

from rdrop import Add, Dropout, Masks, Mix
from rdrop.dropout import resolve

# XLA may round the last digit of a smooth mask by where it lies in the array.
SAME = {kind: 1e-6 if kind in SMOOTH else 0.0 for kind in KINDS}


@pytest.mark.parametrize(("name", "other"), SITES_AS.items())
def test_cells_with_the_same_sites_have_the_same_masks(name, other):
    """So the laws of the masks of one cell are laws of the masks of the other."""
    assert CELLS[name].sites(UNITS) == CELLS[other].sites(UNITS)


# Law 1: the definition and the fast path agree.


@each_pair(SITES_OF, KINDS, ("lstm", "zoneout"))
def test_masks_in_bulk_are_those_of_each_step(name, kind):
    bulk = draw_all(name, kind)
    for t in range(TIME):
        one = draw_all(name, kind, keys=KEYS.replace(step=7 + t), time=None)
        now = jax.tree.map(lambda m, t=t: m[t] if m.ndim == 4 else m, bulk)
        assert_close(one, now, tolerance=SAME[kind])


@pytest.mark.parametrize("kind", quickly(KINDS, "zoneout"))
def test_masks_are_the_same_eagerly_and_compiled(kind):
    """Bitwise; also with the optimisation of users, if XLA_FLAGS asks for it."""
    cell = CELLS["lstm"]
    sites = ("inputs", "cell_state", "recurrent_weights")
    dropout = every_site(cell, kind, 0.4)
    dropout = Dropout(**{site: getattr(dropout, site) for site in sites})
    compiled = jax.jit(lambda keys: draw(cell, dropout, keys=keys))(KEYS)
    chex.assert_trees_all_equal(compiled, draw(cell, dropout))


# Law 3: sites are independent.


@each_pair(SITES_OF, KINDS, ("simple", "zoneout"))
def test_other_sites_batch_and_time_change_no_mask(name, kind):
    cell = CELLS[name]
    dropout = every_site(cell, kind, 0.4)

    @jax.jit
    def others(keys):
        larger = draw(cell, dropout, TIME + 2, keys, BATCH + 3)
        alone = {
            s: draw(cell, Dropout(**{s: n}), TIME, keys) for s, n in dropout.sites()
        }
        return larger, alone

    every, (larger, alone) = draw_all(name, kind), others(KEYS)
    for site, mask in every.sites():
        assert_close(getattr(alone[site], site), mask, tolerance=SAME[kind])
        part = getattr(larger, site)
        part = part if site in WEIGHTS else cropped(part)
        assert_close(part, mask, tolerance=SAME[kind])


def cropped(mask):
    """The rows of the batch, and the steps, of a mask of a larger batch and time."""
    return jax.tree.map(
        lambda m: (m[:TIME] if m.ndim == 4 else m)[..., :BATCH, :, :], mask
    )


@pytest.mark.parametrize("name", CELLS)
def test_no_two_sites_have_the_same_key(name):
    """In any layer, direction or stream."""
    places = [
        KEYS.replace(layer=layer, direction=direction).site(stream, site)
        for site in CELLS[name].sites(UNITS)
        for layer in (0, 1)
        for direction in ("forward", "backward")
        for stream in ("inputs", "recurrent")
    ]
    words = {jax.random.key_data(key).tobytes() for key in places}
    assert len(words) == len(places)


# Law 4: common random numbers.


@each_pair(SITES_OF, KINDS, *every_kind_of_an_lstm)
def test_masks_are_nested_in_the_rate(name, kind):
    low, high = (draw_all(name, kind, rate) for rate in (0.2, 0.7))
    for site in CELLS[name].sites(UNITS):
        a, b = getattr(low, site), getattr(high, site)
        if isinstance(a, Mix):
            assert (a.share <= b.share).all()
            assert (a.share < b.share).any()
        elif isinstance(a, Add):
            assert_close(a.noise / 0.2, b.noise / 0.7, tolerance=1e-6)
        elif kind == "gaussian" and site not in WEIGHTS:
            odds = np.sqrt(np.float32([0.2 / 0.8, 0.7 / 0.3]))
            assert_close((a - 1) / odds[0], (b - 1) / odds[1], tolerance=1e-5)
        elif kind == "concrete" and site not in WEIGHTS:
            left_a, left_b = (1 - 0.2) * a, (1 - 0.7) * b
            assert (left_a >= left_b).all()
            assert (left_a > left_b + 0.5).any()
        else:
            assert ((a != 0) >= (b != 0)).all()
            assert ((a != 0) > (b != 0)).any()


# Law 5: the ends of the rates.


def values_and_neutral(mask):
    mixed_or_added = isinstance(mask, Mix | Add)
    return (*jax.tree.leaves(mask), 0) if mixed_or_added else (mask, 1)


@each_pair(SITES_OF, KINDS, *every_kind_of_an_lstm)
def test_rate_zero_draws_masks_that_change_nothing(name, kind):
    for _, mask in draw_all(name, kind, 0.0).sites():
        values, neutral = values_and_neutral(mask)
        assert (values == neutral).all()


@each_pair(SITES_OF, ("bernoulli", "concrete", "zoneout"), *every_kind_of_an_lstm)
def test_rate_one_draws_masks_that_drop_all(name, kind):
    for _, mask in draw_all(name, kind, 1.0).sites():
        values, neutral = values_and_neutral(mask)
        assert (values == 1 - neutral).all()


# Law 6: inverted noise never changes evaluation.


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("kind", MULTIPLIERS)
def test_inverted_noise_leaves_evaluation_alone(name, kind):
    """No mask at all is left, whatever the rate: the program is that of no noise."""
    cell = CELLS[name]
    dropout = every_site(cell, kind, 0.4)
    assert resolve(dropout, None, cell.sites(UNITS), BATCH, TIME) == Masks()


# Law 8: time is absolute.


@each_pair(SITES_OF, KINDS, *every_kind_of_an_lstm)
def test_a_later_chunk_has_the_masks_of_the_whole(name, kind):
    whole = draw_all(name, kind)
    chunk = draw_all(name, kind, keys=KEYS.replace(step=7 + 3))
    for site, mask in whole.sites():
        for a, b in zip(
            *map(jax.tree.leaves, (mask, getattr(chunk, site))), strict=True
        ):
            later, first = (a[3:], b[:3]) if a.ndim == 4 else (a, b)
            assert_close(first, later, tolerance=SAME[kind])
