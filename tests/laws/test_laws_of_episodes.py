"""Law 11: a row with resets equals each of its episodes run alone.

Same row of the batch, keys with the index of the episode: masks bitwise, values and
gradients to rounding. Without resets nothing changes.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, quickly, random_like, traced_once
from law_cases import (
    BATCH,
    CELLS,
    KEYS,
    KINDS,
    LENGTHS,
    SITES_OF,
    SMOOTH,
    TIME,
    UNITS,
    WEIGHTS,
    each_pair,
    every_site,
    is_reversed,
    problem_of,
    with_gradients,
)

import rdrop
import rdrop.nnx
from rdrop import Bernoulli, Block, Drift, Dropout, Zoneout
from rdrop.keys import of_episode, rows_of

RESETS = np.array(
    [
        [0, 0, 1, 0, 1, 1],
        [1, 0, 0, 0, 0, 0],  # at the first step too
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 0],
    ],
    bool,
)
AT = KEYS.replace(episode=np.array([0, 0, 5, 2]), step=np.array([7, 0, 3, 1]))
LOOPS = ("fused", "recompute", "plain")


def quickly_first(first, *others):
    """Returns parameters, of which all but the first are slow."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


def episodes(row, resets=RESETS, keys=AT):
    """(first step, end, index, index of the first step) of each episode of a row."""
    begins = [t for t in range(TIME) if resets[row, t]]
    starts = begins if begins[:1] == [0] else [0, *begins]
    first = int(np.broadcast_to(keys.episode, BATCH)[row])
    found = []
    for number, (start, end) in enumerate(
        zip(starts, [*starts[1:], TIME], strict=True)
    ):
        continued = start == 0 and not resets[row, 0]
        index = first + number + (1 - (starts[0] not in begins)) * 1
        step = int(np.broadcast_to(keys.step, BATCH)[row]) if continued else 0
        found.append((start, end, index, step))
    return found


def test_the_episodes_of_a_row_are_counted():
    assert episodes(0) == [(0, 2, 0, 7), (2, 4, 1, 0), (4, 5, 2, 0), (5, 6, 3, 0)]
    assert episodes(1) == [(0, 6, 1, 0)]
    assert episodes(2) == [(0, 6, 5, 3)]
    rows = rows_of(AT, jnp.asarray(RESETS.T), BATCH, TIME)
    for row in range(BATCH):
        for start, end, index, step in episodes(row):
            assert set(np.asarray(rows.episode[start:end, row])) == {index}
            expected = step + np.arange(end - start)
            np.testing.assert_array_equal(rows.step[start:end, row], expected)


# Masks.


@functools.cache
def drawing(name, kind, resets):
    cell, sites = CELLS[name], CELLS[name].sites(UNITS)

    @jax.jit
    def run(keys, where):
        dropout = every_site(cell, kind, 0.4)
        where = where.T if resets else None
        return rdrop.draw(dropout, keys, sites, BATCH, TIME, where)

    return run


@each_pair(SITES_OF, KINDS, ("simple", "gaussian"), ("simple", "zoneout"))
def test_masks_of_a_row_are_those_of_its_episodes(name, kind):
    drawn = drawing(name, kind, True)(AT, RESETS)
    for row in range(BATCH):
        for start, end, index, step in episodes(row):
            keys = KEYS.replace(episode=jnp.int32(index), step=jnp.int32(step))
            alone = drawing(name, kind, False)(keys, RESETS)
            for site, whole in drawn.sites():
                one, whole = (
                    jax.tree.leaves(m)[0] for m in (getattr(alone, site), whole)
                )
                if site in WEIGHTS:
                    np.testing.assert_array_equal(whole, one)
                    continue
                one = jnp.broadcast_to(one, (TIME, *one.shape[-3:]))
                np.testing.assert_allclose(
                    whole[start:end, row],
                    one[: end - start, row],
                    rtol=0,
                    atol=1e-6 if kind in SMOOTH else 0,  # the last digit, as in law 1
                )


@pytest.mark.parametrize(
    ("probability", "batch"),
    [
        *((0.0, "shared"), (0.3, "each"), (1.0, "shared")),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0.0, "each"), (0.3, "shared"), (1.0, "each"))
        ),
    ],
)
def test_drifting_masks_begin_anew_in_each_episode(probability, batch):
    noise = Bernoulli(0.5, per=Drift(probability), batch=batch)
    sites = {"recurrent": rdrop.Site(1, 16)}
    dropout = Dropout(recurrent=noise)
    draw = jax.jit(
        lambda keys, where=None: (
            rdrop.draw(dropout, keys, sites, BATCH, TIME, where).recurrent
        )
    )
    drawn = draw(AT, jnp.asarray(RESETS.T))
    for row in range(BATCH):
        for start, end, index, step in episodes(row):
            keys = KEYS.replace(episode=jnp.int32(index), step=jnp.int32(step))
            alone = draw(keys)
            mine = alone[:, row if batch == "each" else 0]
            np.testing.assert_array_equal(drawn[start:end, row], mine[: end - start])


@pytest.mark.parametrize("per", ["sequence", "step", Drift(0.3), Block(2)])
def test_a_step_with_places_of_the_rows_has_the_masks_of_the_sequence(per):
    """What an actor needs: each row in its own episode and step."""
    dropout = Dropout(inputs=Bernoulli(0.5, per=per), cell_state=Zoneout(0.5, per=per))
    sites = CELLS["lstm"].sites(UNITS)
    drawn = jax.jit(lambda: rdrop.draw(dropout, AT, sites, BATCH, TIME, RESETS.T))()
    rows = rows_of(AT, jnp.asarray(RESETS.T), BATCH, TIME)
    step = jax.jit(lambda keys: rdrop.draw(dropout, keys, sites, BATCH))
    for t in range(TIME):
        keys = KEYS.replace(episode=rows.episode[t], step=rows.step[t])
        now = jax.tree.map(lambda mask, t=t: mask[t], drawn)
        chex.assert_trees_all_equal(step(keys), now)


def test_without_resets_masks_are_the_same_as_ever():
    """An episode of index 0, also if it is traced or one per row."""
    cell, sites = CELLS["simple"], CELLS["simple"].sites(UNITS)
    dropout = every_site(cell, "bernoulli", 0.4)
    traced = jax.jit(lambda keys: rdrop.draw(dropout, keys, sites, BATCH, TIME))
    usual = traced(KEYS)
    zero = KEYS.replace(episode=jnp.int32(0), step=jnp.int32(7))
    chex.assert_trees_all_equal(traced(zero), usual)
    by_row = traced(KEYS.replace(episode=np.zeros(BATCH, np.int32)))
    for site, mask in usual.sites():
        whole = getattr(by_row, site)
        np.testing.assert_array_equal(jnp.broadcast_to(mask, whole.shape), whole)


def test_episodes_have_keys_of_their_own():
    """Also other keys than those of the steps of episode 0."""
    key = jax.random.key(0)
    keys = [of_episode(key, n) for n in range(50)]
    keys += [jax.random.fold_in(key, n) for n in range(50)]
    assert len({tuple(np.asarray(jax.random.key_data(k))) for k in keys}) == 100


# Layers.


def by_definition(cell, reverse):
    """The cell unrolled by lax.scan over steps, its carry reset between episodes."""

    def run(masks, lengths, params, xs, carry):
        each = jax.tree.map(lambda m: jnp.broadcast_to(m, (TIME, *m.shape[-3:])), masks)
        initial = cell.initialize_carry(jax.random.key(0), (BATCH, UNITS))
        ends = np.concatenate([RESETS[:, 1:], np.zeros((BATCH, 1), bool)], axis=1)

        def step(carry, inputs):
            x, t, begins, ends, mask = inputs
            valid = (t < lengths)[:, None]
            anew = (ends & (t + 1 < lengths) if reverse else begins)[:, None] & valid
            carry = jax.tree.map(lambda a, b: jnp.where(anew, a, b), initial, carry)
            new, y = cell.apply(params, carry, x, mask)
            carry = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            return carry, jnp.where(valid, y, 0)

        inputs = (xs.swapaxes(0, 1), jnp.arange(TIME), RESETS.T, ends.T, each)
        carry, ys = jax.lax.scan(step, carry, inputs, reverse=reverse)
        return carry, ys.swapaxes(0, 1)

    return run


def by_rnn(cell, reverse, loop="fused"):
    rnn = rdrop.RNN(cell, reverse=reverse, loop=loop)

    def run(masks, lengths, params, xs, carry):
        options = {"lengths": lengths, "resets": RESETS}
        return rnn.apply(params, xs, masks, initial_carry=carry, **options)

    return run


@each_pair(CELLS, KINDS, ("simple", "zoneout"), ("min_gru", "bernoulli"))
def test_rnn_with_resets_is_its_definition(name, kind):
    """Values, and gradients in parameters, inputs and carry, with padding."""
    cell, reverse = CELLS[name], is_reversed(kind)
    masks = drawing("lstm" if name == "layer_norm_lstm" else name, kind, True)(
        AT, RESETS
    )
    arguments = (masks, jnp.asarray(LENGTHS), *problem_of(cell))
    expected = jax.jit(with_gradients(by_definition(cell, reverse)))(*arguments)
    for loop in LOOPS if name in ("lstm", "min_gru") else ("fused",):
        found = jax.jit(with_gradients(by_rnn(cell, reverse, loop)))(*arguments)
        assert_close(found, expected, tolerance=1e-10)
    (_, _), (_, _, in_carry) = expected
    leaves = jax.tree.leaves(in_carry)
    assert any(leaf.any() for leaf in leaves)
    if not reverse:
        assert not any(leaf[1].any() for leaf in leaves)  # reset at the first step


@pytest.mark.parametrize("reverse", quickly([False, True], True))
def test_blocks_of_a_long_sequence_keep_their_resets(monkeypatch, reverse):
    """With recomputation, in blocks of two steps."""
    monkeypatch.setattr("rdrop.loops.fused.steps_of_block", lambda *_: 2)
    cell = CELLS["gru"]
    masks = drawing("gru", "bernoulli", True)(AT, RESETS)
    arguments = (masks, jnp.asarray(LENGTHS), *problem_of(cell))
    expected = jax.jit(with_gradients(by_definition(cell, reverse)))(*arguments)
    found = jax.jit(with_gradients(by_rnn(cell, reverse, "recompute")))(*arguments)
    assert_close(found, expected, tolerance=1e-10)


@pytest.mark.parametrize(
    ("name", "loop", "reverse"),
    quickly(
        itertools.product(CELLS, LOOPS, (False, True)),
        ("simple", "fused", True),
    ),
)
def test_a_row_equals_its_episodes_run_alone(name, loop, reverse):
    """From keys; values, and gradients in the inputs."""
    cell = CELLS[name]
    dropout = every_site(cell, "zoneout", 0.4)
    params, xs, _ = problem_of(cell)
    rnn, weight = rdrop.RNN(cell, reverse=reverse, loop=loop), random_like(xs, 5)

    @functools.partial(jax.jit, static_argnums=1)
    def run(xs, length, keys, resets, weight):
        def loss(xs):
            xs, resets_ = xs[:, :length], None if resets is None else resets[:, :length]
            ys = rnn.apply(params, xs, dropout, keys, resets=resets_)[1]
            return (ys * weight[:, :length]).sum(), ys

        return jax.grad(loss, has_aux=True)(xs)

    d_xs, ys = run(xs, TIME, AT, RESETS, weight)
    for row in range(BATCH):
        for start, end, index, step in episodes(row):
            keys = KEYS.replace(episode=jnp.int32(index), step=jnp.int32(step))
            shifted, weights = (jnp.roll(a, -start, axis=1) for a in (xs, weight))
            d_alone, alone = run(shifted, end - start, keys, None, weights)
            size = end - start
            assert_close(ys[row, start:end], alone[row, :size], 1e-10)
            assert_close(d_xs[row, start:end], d_alone[row, :size], 1e-10)


@pytest.mark.parametrize("resets", quickly_first(RESETS, np.zeros_like(RESETS)))
def test_two_pieces_are_one_sequence(resets):
    """Carry, step and episode are carried over."""
    cell = CELLS["simple"]
    dropout = every_site(cell, "zoneout", 0.4)
    params, xs, carry = problem_of(cell)
    rnn = rdrop.RNN(cell)

    @jax.jit
    def run(xs, resets, keys, carry):
        options = {"initial_carry": carry, "resets": resets}
        return rnn.apply(params, xs, dropout, keys, **options), keys.advance(resets)

    whole, _ = run(xs, resets, AT, carry)
    keys, parts = AT, []
    for start in (0, 3):
        piece = slice(start, start + 3)
        (carry, ys), keys = run(xs[:, piece], resets[:, piece], keys, carry)
        parts.append(ys)
    assert_close((carry, jnp.concatenate(parts, axis=1)), whole, 1e-10)
    rows = rows_of(AT, jnp.asarray(resets.T), BATCH, TIME)
    np.testing.assert_array_equal(keys.step, rows.step[-1] + 1)
    np.testing.assert_array_equal(keys.episode, rows.episode[-1])


def test_cells_step_by_step_are_the_sequence():
    """As an actor runs it, which resets its carry where an episode begins."""
    cell = CELLS["simple"]
    dropout = every_site(cell, "bernoulli", 0.4)
    params, xs, carry = problem_of(cell)
    expected, ys = rdrop.RNN(cell).apply(
        params, xs, dropout, AT, initial_carry=carry, resets=RESETS
    )
    step = jax.jit(lambda keys, carry, x: cell.apply(params, carry, x, dropout, keys))
    keys = AT
    for t in range(TIME):
        begins = RESETS[:, t]
        carry = jnp.where(begins[:, None], 0, carry)
        place = rows_of(keys, jnp.asarray(begins[None]), BATCH, 1)
        now = keys.replace(step=place.step[0], episode=place.episode[0])
        carry, y = step(now, carry, xs[:, t])
        assert_close(y, ys[:, t], 1e-10)
        keys = keys.advance(begins[:, None])
    assert_close(carry, expected, 1e-10)


def test_one_program_serves_all_resets():
    cell = CELLS["lstm"]
    dropout = every_site(cell, "bernoulli", 0.4)
    params, xs, _ = problem_of(cell)
    run = traced_once(
        lambda keys, resets: rdrop.RNN(cell).apply(
            params, xs, dropout, keys, resets=resets
        )[1]
    )
    found = [run(AT, resets) for resets in (RESETS, ~RESETS, RESETS & False)]
    assert not np.array_equal(found[0], found[1])


def test_layers_of_all_kinds_pass_resets_on():
    """A stack of two layers and two directions, in linen and nnx, time in front."""
    options = {"param_dtype": jnp.float64}
    forward, backward = rdrop.GRUCell(3, **options), rdrop.GRUCell(3, **options)
    stack = rdrop.Stack(
        [
            rdrop.RNN(rdrop.LSTMCell(UNITS, **options)),
            rdrop.Bidirectional(forward, backward),
        ]
    )
    xs = problem_of(CELLS["lstm"])[1]
    params = jax.tree.map(
        lambda leaf: random_like(leaf, 1),
        jax.eval_shape(stack.init, jax.random.key(0), xs),
    )
    dropout = Dropout(recurrent=Bernoulli(0.4), hidden_state=Zoneout(0.3))
    _, ys = stack.apply(params, xs, dropout, AT, resets=RESETS)
    layers = params["params"]
    _, hs = rdrop.RNN(rdrop.LSTMCell(UNITS, **options)).apply(
        {"params": layers["layers_0"]}, xs, dropout, AT, resets=RESETS
    )
    parts = []
    for way, reverse in (("forward", False), ("backward", True)):
        cell = rdrop.GRUCell(3, **options)
        part = rdrop.RNN(cell, reverse=reverse, time_major=True).apply(
            {"params": layers["layers_1"][way]},
            hs.swapaxes(0, 1),
            dropout,
            AT.replace(layer=1),
            resets=RESETS.T,
        )[1]
        parts.append(part.swapaxes(0, 1))
    assert_close(ys, jnp.concatenate(parts, axis=-1), 1e-10)
    module = rdrop.nnx.from_linen(stack, params)
    assert_close(module(xs, dropout, AT, resets=RESETS)[1], ys, 1e-10)


def test_an_nnx_cell_continues_its_own_episodes():
    dropout = Dropout(recurrent=Bernoulli(0.5), inputs=Bernoulli(0.5, per="step"))
    make = functools.partial(rdrop.nnx.GRUCell, UNITS, UNITS, dropout=dropout)
    xs = problem_of(CELLS["lstm"])[1].astype(np.float32)
    whole, pieces = (rdrop.nnx.RNN(make(rngs=nnx.Rngs(0))) for _ in range(2))
    carry, expected = whole(xs, resets=RESETS)
    first, ys = pieces(xs[:, :3], resets=RESETS[:, :3])
    last, zs = pieces(xs[:, 3:], initial_carry=first, resets=RESETS[:, 3:])
    assert_close((last, jnp.concatenate([ys, zs], axis=1)), (carry, expected), 1e-5)


# Mistakes.


@pytest.mark.parametrize(
    ("resets", "message"),
    [
        (RESETS.T, r"`resets` must be bool of shape \(4, 6\), .* got bool\[6, 4\]"),
        (RESETS.astype(np.int32), r"`resets` must be bool .* got int32\[4, 6\]"),
        ([True] * BATCH, r"`resets` must be bool .* got bool\[4\]"),
    ],
)
def test_resets_that_do_not_fit_are_rejected(resets, message):
    params, xs, _ = problem_of(CELLS["simple"])
    with pytest.raises(ValueError, match=message):
        rdrop.RNN(CELLS["simple"]).apply(params, xs, resets=resets)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"episode": -1}, ValueError, r"`keys.episode` must lie in \[0, 2\*\*31\)"),
        ({"episode": 0.5}, TypeError, "`keys.episode` must be an integer"),
        ({"episode": np.zeros(3, int)}, ValueError, r"one per row, \[B\] = \[4\]"),
        ({"step": np.zeros((2, 4), int)}, ValueError, "`keys.step` must be a single"),
        ({"step": np.array([0, 1, 2, -3])}, ValueError, "`keys.step` must lie in"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_places_that_do_not_fit_are_rejected(changes, error, message):
    params, xs, _ = problem_of(CELLS["simple"])
    dropout = Dropout(recurrent=Bernoulli(0.5))
    with pytest.raises(error, match=message):
        rdrop.RNN(CELLS["simple"]).apply(params, xs, dropout, KEYS.replace(**changes))
