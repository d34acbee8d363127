"""Designs of passes: each pass is as random as any, and together they are even."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly, traced_once

import rdrop
from rdrop import Add, Bernoulli, Dropout, Gaussian, montecarlo
from rdrop.noise import Plan

KEY, UNITS = jax.random.key(3), 8
CELL = rdrop.LSTMCell(UNITS)
SITES = CELL.sites(UNITS)
LIFETIMES = ("sequence", "step", rdrop.Drift(0.4), rdrop.Block(2))
DESIGNS = ("antithetic", "balanced")
designs = pytest.mark.parametrize("design", quickly(DESIGNS, "balanced"))


def draw(noise, keys, batch=1, time=None, resets=None):
    """The mask of each of some passes."""
    dropout = Dropout(hidden_state=noise)
    masks = jax.jit(
        jax.vmap(lambda k: rdrop.draw(dropout, k, SITES, batch, time, resets))
    )(keys)
    return masks.hidden_state


def kept(rate, keys, **options):
    return np.asarray(draw(Bernoulli(rate), keys, **options)) != 0


@pytest.mark.parametrize(
    ("design", "rate"),
    quickly([(d, r) for d in DESIGNS for r in (0.5, 0.25)], ("balanced", 0.25)),
)
def test_each_pass_has_every_mask_as_often_as_an_independent_one(design, rate):
    """All 256 masks of 8 units: their counts over many keys, in each of 4 passes."""
    count, passes = 2**15, 4

    @jax.jit
    @jax.vmap
    def masks(key):
        keys = montecarlo.pass_keys(key, passes, design)
        return jax.vmap(lambda k: kept_of(rate, k))(keys)

    found = np.asarray(masks(jax.random.split(KEY, count)))
    numbers = found @ (1 << np.arange(UNITS))
    size = np.bitwise_count(np.arange(2**UNITS))
    expected = count * (1 - rate) ** size * rate ** (UNITS - size)
    for k in range(passes):
        seen = np.bincount(numbers[:, k], minlength=2**UNITS)
        statistic = ((seen - expected) ** 2 / expected).sum()
        assert abs(statistic - 255) < 5 * np.sqrt(2 * 255)


def kept_of(rate, keys):
    dropout = Dropout(hidden_state=Bernoulli(rate))
    return rdrop.draw(dropout, keys, SITES, 1).hidden_state[0, 0] != 0


@pytest.mark.parametrize("per", quickly(LIFETIMES, "step"), ids=str)
@pytest.mark.parametrize(("rate", "passes"), [(0.25, 16), (0.2, 5), (1, 3)])
def test_balanced_passes_drop_each_unit_equally_often(per, rate, passes):
    keys = montecarlo.pass_keys(KEY, passes, "balanced")
    masks = draw(Bernoulli(rate, per=per), keys, batch=3, time=4)
    assert (np.sum(np.asarray(masks) == 0, axis=0) == round(rate * passes)).all()


def test_balanced_passes_round_up_or_down():
    dropped = (~kept(0.3, montecarlo.pass_keys(KEY, 16, "balanced"), batch=64)).sum(0)
    assert set(np.unique(dropped)) == {4, 5}  # 4.8


def test_balanced_passes_are_not_in_one_order():
    """Neighbouring passes agree no more often than independent ones."""
    masks = kept(0.5, montecarlo.pass_keys(KEY, 16, "balanced"), batch=512)
    same = (masks[1:] == masks[:-1]).mean()
    assert abs(same - 1 / 2) < 0.02


@pytest.mark.parametrize("rate", [0.5, 0.25])
def test_antithetic_passes_mirror_each_other(rate):
    keys = montecarlo.pass_keys(KEY, 6, "antithetic")
    first, second = kept(rate, keys, batch=64).reshape(3, 2, -1).swapaxes(0, 1)
    assert not (~first & ~second).any()
    if rate == 0.5:
        assert (first != second).all()
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("kind", quickly([Gaussian, rdrop.Additive], Gaussian))
@pytest.mark.parametrize("design", DESIGNS)
def test_normal_numbers_have_their_distribution(kind, design):
    count = 16
    mask = draw(kind(0.5), montecarlo.pass_keys(KEY, count, design), batch=256)
    values = np.asarray(mask.noise / 0.5 if isinstance(mask, Add) else mask - 1)
    assert abs(values.mean(axis=0)).max() < (1e-3 if design == "antithetic" else 0.5)
    for of_pass in values:
        assert abs(of_pass.mean()) < 0.1
        assert abs(of_pass.std() - 1) < 0.1


@pytest.mark.parametrize(
    ("design", "per"),
    quickly(
        [(d, per) for d in DESIGNS for per in LIFETIMES],
        ("balanced", "step"),
        ("antithetic", "sequence"),
    ),
)
def test_steps_have_the_masks_of_the_sequence(design, per):
    """And rows with episodes have those of each episode."""
    keys = montecarlo.pass_keys(KEY, 4, design)
    noise = Bernoulli(0.5, per=per)
    whole = draw(noise, keys, batch=2, time=4)
    if per == "sequence":
        whole = jnp.broadcast_to(whole[:, None], (4, 4, *whole.shape[1:]))
    resets = np.zeros((4, 2), bool)
    resets[2, 1] = True
    parts = draw(noise, keys, batch=2, time=4, resets=resets)
    np.testing.assert_array_equal(parts[:, :, 0], whole[:, :, 0])
    np.testing.assert_array_equal(parts[:, :2, 1], whole[:, :2, 1])
    for step in range(4):
        one = draw(noise, keys.replace(step=jnp.full(4, step, jnp.int32)), batch=2)
        np.testing.assert_array_equal(one, whole[:, step])
    later = keys.replace(episode=jnp.ones(4, jnp.int32))
    for step in (0, 1):
        one = draw(noise, later.replace(step=jnp.full(4, step, jnp.int32)), batch=2)
        np.testing.assert_array_equal(one[:, 1], parts[:, 2 + step, 1])


@pytest.mark.parametrize("least", [True, False])
def test_numbers_stay_below_one(least, monkeypatch):
    """At both ends of the 2^23 uniform numbers; a rate of 1 then drops all units."""
    end = np.float32(0 if least else 1 - 2.0**-23)
    ends = lambda key, shape: jnp.full(shape, end)  # noqa: E731
    monkeypatch.setattr("rdrop.noise.plan.uniform", ends)
    mirrored = Plan(1, 2, "antithetic").numbers(KEY, (1, 1, 2))
    np.testing.assert_array_equal(mirrored, np.full((1, 1, 2), 1 - 2.0**-23 - end))
    for number in range(3):
        numbers = Plan(number, 3, "balanced").numbers(KEY, (1, 1, 2))
        assert ((numbers >= 0) & (numbers < 1)).all()


def test_independent_passes_are_those_without_a_plan():
    keys = montecarlo.pass_keys(KEY, 3)
    assert keys.plan is None
    for k in range(3):
        own = rdrop.stream_keys(jax.random.fold_in(KEY, k))
        one = jax.tree.map(lambda leaf, k=k: leaf[k], keys)
        np.testing.assert_array_equal(
            jax.random.key_data(one.recurrent), jax.random.key_data(own.recurrent)
        )


@designs
def test_means_of_a_linear_function_vary_less(design):
    """The mean of a sum over units: balanced passes leave nothing of its variance."""
    weights = jnp.arange(1.0, UNITS + 1, dtype=jnp.float32)

    def mean(key, design):
        keys = montecarlo.pass_keys(key, 16, design)
        masks = jax.vmap(
            lambda k: (
                rdrop.draw(
                    Dropout(hidden_state=Bernoulli(0.25)), k, SITES, 1
                ).hidden_state
            )
        )(keys)
        return (masks[:, 0, 0] @ weights).mean()

    many = jax.random.split(KEY, 2048)
    variance = {
        d: float(jax.jit(jax.vmap(lambda key, d=d: mean(key, d)))(many).var())
        for d in ("independent", design)
    }
    most = {"antithetic": 0.75, "balanced": 1e-6}[design]  # 2 / 3 and 0
    assert variance[design] < most * variance["independent"]


@designs
def test_one_program_serves_all_keys(design):
    @traced_once
    def run(key):
        keys = montecarlo.pass_keys(key, 4, design)
        return jax.vmap(lambda k: kept_of(0.5, k))(keys)

    assert (run(KEY) != run(jax.random.key(4))).any()


@pytest.mark.usefixtures("unchecked")
def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"`design` must be one of .*, got 'sobol'"):
        montecarlo.pass_keys(KEY, 4, "sobol")
