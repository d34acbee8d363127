"""Lifetimes: held masks, masks per step, and masks that drift between the two."""

import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from helpers import assert_frequency, traced_once

import rdrop
from rdrop import Bernoulli, Concrete, DropConnect, Dropout, Gaussian, Mix, Zoneout
from rdrop.noise import Block, Drift, lifetime
from rdrop.noise.lifetime import lifetime_of

KEY = jax.random.key(0)
SHAPE = (3, 2, 5)
TIME = 60


class Numbers(Zoneout):
    """Shows its numbers, which never agree by chance."""

    def mask(self, variate):
        return Mix(variate)


def draw_step(noise, step, shape=SHAPE):
    return lifetime_of(noise).draw_step(noise, KEY, shape, jnp.int32(step))


def draw_steps(noise, step, time=TIME):
    return lifetime_of(noise).draw_steps(noise, KEY, SHAPE, jnp.int32(step), time)


@pytest.fixture(scope="module")
def drifting():
    """Masks of 60 steps from one program for every probability and first step."""
    return traced_once(lambda p, step: draw_steps(Numbers(0.4, per=Drift(p)), step))


@pytest.fixture(scope="module")
def stepping():
    """The masks of one step, likewise."""
    return traced_once(lambda p, step: draw_step(Numbers(0.4, per=Drift(p)), step))


def by_definition(probability, noise):
    """The masks of 60 steps, each number redrawn or kept from step to step."""

    def advance(numbers, step):
        key = jax.random.fold_in(KEY, step)
        chance = jax.random.uniform(jax.random.fold_in(key, 0), SHAPE, jnp.float32)
        fresh = noise.variate(key, SHAPE)
        numbers = jnp.where(chance < probability, fresh, numbers)
        return numbers, noise.mask(numbers)

    steps = jnp.arange(TIME, dtype=jnp.int32)
    return jax.lax.scan(advance, noise.variate(KEY, SHAPE), steps)[1]


defined = jax.jit(lambda probability: by_definition(probability, Numbers(0.4)))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_drifting_masks_follow_their_definition(drifting, stepping, probability):
    """The whole sequence, a chunk that starts late, and single steps."""
    probability = jnp.float32(probability)
    whole = defined(probability)
    chex.assert_trees_all_equal(drifting(probability, 0), whole)
    chunk = jax.tree.map(lambda mask: mask[:10], drifting(probability, 50))
    chex.assert_trees_all_equal(chunk, jax.tree.map(lambda mask: mask[50:], whole))
    for t in (0, 1, 59):
        mask = jax.tree.map(lambda mask, t=t: mask[t], whole)
        chex.assert_trees_all_equal(stepping(probability, t), mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Bernoulli, Gaussian])
def test_other_kinds_drift_by_the_same_definition(kind):
    drifting = kind(0.4, per=Drift(0.3))
    whole = draw_steps(drifting, 0)
    chex.assert_trees_all_equal(whole, by_definition(0.3, kind(0.4)))
    chex.assert_trees_all_equal(draw_steps(drifting, 50, 10), whole[50:])
    chex.assert_trees_all_equal(draw_step(drifting, 59), whole[59])


def test_drift_runs_from_a_held_mask_to_one_per_step(drifting):
    held, per_step = (drifting(jnp.float32(p), 0).share for p in (0, 1))
    for t in (0, 7, 59):
        for numbers, key in ((held, KEY), (per_step, jax.random.fold_in(KEY, t))):
            of_jax = jax.random.uniform(key, SHAPE, jnp.float32)
            chex.assert_trees_all_equal(numbers[t], of_jax)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_numbers_are_redrawn_with_their_probability(drifting, probability):
    numbers = np.asarray(drifting(jnp.float32(probability), 0).share)
    redrawn = numbers[1:] != numbers[:-1]
    assert_frequency(redrawn.sum(), redrawn.size, probability)
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        counts = redrawn.sum(axes)
        for count in counts:
            assert_frequency(count, redrawn.size // counts.size, probability)


@pytest.mark.parametrize(("probability", "draws"), [(0.0, 1), (1.0, 2), (0.5, 20)])
def test_a_late_step_costs_no_more_than_an_early_one(
    probability, draws, monkeypatch, rng
):
    """Counts how often numbers are drawn: once held, and once per step searched."""
    counted = []

    class Counting(Numbers):
        def variate(self, key, shape):
            counted.append(shape)
            return jnp.zeros(shape, jnp.float32)

    def python_loop(condition, body, state):
        while condition(state):
            state = body(state)
        return state

    def uniform(key, shape):
        return jnp.asarray(rng.random(shape), jnp.float32)

    monkeypatch.setattr(jax.lax, "while_loop", python_loop)
    monkeypatch.setattr(lifetime, "uniform", uniform)
    monkeypatch.setattr(lifetime, "fold_in", lambda key, step: key)
    draw_step(Counting(0.4, per=Drift(probability)), 2**31 - 1)
    assert 1 <= len(counted) <= draws


def test_late_steps_of_traced_probabilities_end(stepping):
    for probability in (0.0, 0.3, 1.0):
        late = stepping(jnp.float32(probability), 10**6)
        chex.assert_tree_all_finite(late)
    held = stepping(jnp.float32(0), 10**6)
    chex.assert_trees_all_equal(held, stepping(jnp.float32(0), 0))


def test_traced_probabilities_out_of_range_make_masks_nan():
    def masks(probability):
        noise = Bernoulli(0.5, per=Drift(probability))
        return draw_step(noise, 3), draw_steps(noise, 3, 4)

    program = jax.jit(masks)
    for probability in (np.nan, -0.1, 1.5):
        for mask in program(jnp.float32(probability)):
            assert np.isnan(mask).all()


def test_one_probability_per_unit_and_a_vmap_over_probabilities():
    rates = jnp.asarray([0.0, 0.3, 1.0, 0.3, 0.0], jnp.float32)

    def step(probability):
        return draw_step(Bernoulli(0.5, per=Drift(probability)), 7)

    mapped, together = jax.jit(lambda: (jax.vmap(step)(rates), step(rates)))()
    apart = np.diagonal(mapped, axis1=0, axis2=3)
    chex.assert_trees_all_equal(apart, together)


def test_gradients_pass_the_search_and_the_scan():
    def total(rate, probability):
        return draw_steps(Concrete(rate, per=Drift(probability)), 3, 4).sum()

    rates = jnp.float32(0.4), jnp.float32(0.3)
    assert jax.eval_shape(jax.grad(total, argnums=(0, 1)), *rates)


# CRC-32 of the bits (mask > 0.5) of version 0.1.0: 20 masks from step 7 on at the site
# `hidden_state`, and the mask of DropConnect at `recurrent_weights`.
CHECKSUMS = {
    ("Bernoulli", "sequence"): 51067421,
    ("Bernoulli", "step"): 613014472,
    ("Zoneout", "drift"): 1321388341,
    ("DropConnect", "sequence"): 1006264869,
}
MORE_CHECKSUMS = {
    ("Bernoulli", "drift"): 2768601093,
    ("Gaussian", "sequence"): 2021752723,
    ("Gaussian", "step"): 329687539,
    ("Gaussian", "drift"): 3749163246,
    ("Concrete", "sequence"): 51067421,
    ("Concrete", "step"): 2658781956,
    ("Concrete", "drift"): 974635207,
    ("Zoneout", "sequence"): 3391756404,
    ("Zoneout", "step"): 3478033144,
}
SITES = {"hidden_state": rdrop.Site(4, 5), "recurrent_weights": rdrop.Site(4, 5, 6)}


@pytest.mark.parametrize(
    "checksums", [CHECKSUMS, pytest.param(MORE_CHECKSUMS, marks=pytest.mark.slow)]
)
def test_masks_are_the_same_in_every_version(checksums):
    keys = rdrop.stream_keys(KEY).replace(step=7)

    def mask(kind, per):
        if kind == "DropConnect":
            dropout = Dropout(recurrent_weights=DropConnect(0.4))
        else:
            noise = getattr(rdrop, kind)
            per = Drift(0.3) if per == "drift" else per
            dropout = Dropout(hidden_state=noise(0.4, per=per))
        return jax.tree.leaves(rdrop.draw(dropout, keys, SITES, 3, 20))[0]

    masks = jax.jit(lambda: [mask(*name) for name in checksums])()
    for (name, expected), drawn in zip(checksums.items(), masks, strict=True):
        bits = np.packbits(np.asarray(drawn) > 0.5).tobytes()
        assert zlib.crc32(bits) == expected, name


# Blocks


@pytest.mark.parametrize("kind", ["Bernoulli", "Gaussian", "Concrete", "Zoneout"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_a_block_has_the_mask_of_its_number(kind, steps):
    """At any first step: in bulk, step by step, and as masks per step of blocks."""
    make = getattr(rdrop, kind)
    in_blocks = Dropout(hidden_state=make(0.4, per=Block(steps)))
    per_step = Dropout(hidden_state=make(0.4, per="step"))

    @jax.jit
    def drawn(step):
        keys = rdrop.stream_keys(KEY).replace(step=step)
        bulk = rdrop.draw(in_blocks, keys, SITES, 3, 11).hidden_state
        one = rdrop.draw(in_blocks, keys, SITES, 3).hidden_state
        block = keys.replace(step=step // steps)
        same = rdrop.draw(per_step, block, SITES, 3).hidden_state
        return bulk, one, same

    for first in (0, 1, 5, 12):
        bulk = drawn(jnp.int32(first))[0]
        for t in range(11):
            _, one, same = drawn(jnp.int32(first + t))
            now = jax.tree.map(lambda mask, t=t: mask[t], bulk)
            chex.assert_trees_all_close(one, now, rtol=1e-6)
            chex.assert_trees_all_equal(one, same)


@pytest.mark.usefixtures("unchecked")
def test_blocks_are_static_and_checked():
    noise = Bernoulli(0.5, per=Block(np.int64(3)))
    assert jax.tree.leaves(noise) == [0.5]
    assert (
        jax.tree.map(lambda leaf: leaf, noise) == noise == Bernoulli(0.5, per=Block(3))
    )
    assert jax.tree.structure(noise) != jax.tree.structure(Bernoulli(0.5, per=Block(4)))
    for steps in (0, -1, 2.5, "3"):
        with pytest.raises(ValueError, match="`steps` must be an integer of 1 or more"):
            Block(steps)
    state = serialization.to_state_dict(noise)
    assert serialization.from_state_dict(noise, state) == noise
    assert not jax.tree.leaves(state["per"])


# Noise as a pytree


def test_words_are_static_and_numbers_are_leaves():
    noise = Concrete(0.5, per=Drift(0.1), gates="each", temperature=0.7)
    assert jax.tree.leaves(noise) == [0.5, 0.1, 0.7]
    assert jax.tree.leaves(Concrete(0.5, per="step")) == [0.5, 0.1]
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(noise)]
    assert paths == [".rate", ".per.probability", ".temperature"]
    assert jax.tree.map(lambda leaf: leaf, noise) == noise
    structures = {
        jax.tree.structure(Bernoulli(0.5, per=per))
        for per in ("sequence", "step", Drift(0.1))
    }
    assert len(structures) == 3


def test_gradients_and_placeholders_are_not_checked_as_rates():
    dropout = Dropout(inputs=Concrete(jnp.float32(0.5), per=Drift(jnp.float32(0.1))))

    def loss(dropout):
        return -9 * dropout.inputs.rate + 7 * dropout.inputs.per.probability

    gradient = jax.grad(loss, allow_int=True)(dropout)
    assert (gradient.inputs.rate, gradient.inputs.per.probability) == (-9, 7)
    for value in ("label", None, object(), -1.0):
        tree = jax.tree.map(lambda _: value, dropout)  # noqa: B023
        assert tree.inputs.per.probability is value
    shapes = jax.eval_shape(lambda: dropout)
    assert jax.tree.structure(shapes) == jax.tree.structure(dropout)


def test_flax_serialises_the_numbers():
    serialization = pytest.importorskip("flax.serialization")
    noise = Dropout(inputs=Concrete(0.5, per=Drift(0.1)), outputs=Bernoulli(0.2))
    state = serialization.to_bytes(noise)
    other = Dropout(inputs=Concrete(0.3, per=Drift(0.3)), outputs=Bernoulli(0.3))
    assert serialization.from_bytes(other, state) == noise


def test_schedules_are_resolved_by_the_training_step():
    ramp = optax.linear_schedule(0.0, 0.8, 4)
    noise = Bernoulli(ramp, per=Drift(ramp), gates="each")
    assert jax.tree.leaves(noise) == []
    for step, rate in ((0, 0.0), (1, 0.2), (9, 0.8)):
        resolved = noise.at(step)
        assert resolved.gates == "each"
        chex.assert_trees_all_close(jax.tree.leaves(resolved), [rate, rate], rtol=1e-6)
    assert Bernoulli(0.3).at(5) == Bernoulli(0.3)
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\], got 2"):
        Bernoulli(lambda step: 2.0 * step).at(1)


def test_schedules_without_their_step_are_not_drawn():
    ramp = optax.constant_schedule(0.5)
    for noise, name in (
        (Bernoulli(ramp), "rate"),
        (Gaussian(ramp), "rate"),
        (Bernoulli(0.5, per=Drift(ramp)), "probability"),
    ):
        message = rf"`{name}` is a schedule.*`dropout.at\(step\)`"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda: draw_step(noise, 0))  # noqa: B023
    with pytest.raises(ValueError, match="`rate` is a schedule"):
        Bernoulli(ramp, scale="expectation").expected()
