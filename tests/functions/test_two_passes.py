"""Two passes over a batch share the masks of the named sites, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import traced_once

import rdrop

NOISE = rdrop.Dropout(
    inputs=rdrop.Bernoulli(0.5, gates="each"),
    outputs=rdrop.Bernoulli(0.5, per="step"),
    input_weights=rdrop.DropConnect(0.5),
    recurrent=rdrop.Bernoulli(0.5, per="step"),
    update=rdrop.Bernoulli(0.5),
    gates=rdrop.Gaussian(0.5),
    cell_state=rdrop.Zoneout(0.5),
    hidden_state=rdrop.Zoneout(0.5),
    recurrent_weights=rdrop.DropConnect(0.5),
)
FEW = rdrop.Dropout(inputs=NOISE.inputs, update=NOISE.update)
SITES = [name for name, _ in NOISE.sites()]


def some(count):
    return [rdrop.stream_keys(jax.random.key(n)) for n in range(count)]


def drawn(keys, noise=NOISE):
    """The masks of a layer that reads backwards, by site."""
    sites = rdrop.LSTMCell(3).sites(2)
    keys = keys.replace(step=7, layer=2, direction="backward")
    masks = rdrop.draw(noise, keys, sites, batch=4, time=5)
    return {name: jax.tree.leaves(getattr(masks, name)) for name, _ in noise.sites()}


def same(first, second):
    return all(map(np.array_equal, first, second))


@pytest.mark.slow
def test_every_site_is_shared_by_its_name():
    first, second = some(2)
    masks, apart = drawn(first), drawn(second)
    for shared in SITES:
        found = drawn(second.sharing(first, shared))
        for name in SITES:
            assert same(found[name], masks[name]) == (name == shared)
            assert same(found[name], apart[name]) == (name != shared)


@pytest.mark.slow
def test_passes_that_share_all_are_bitwise_equal_and_cost_nothing(problem):
    """In every layer and direction."""
    cells = [rdrop.SimpleCell(3, param_dtype=jnp.float64) for _ in range(3)]
    stack = rdrop.Stack([rdrop.Bidirectional(*cells[:2]), rdrop.RNN(cells[2])])
    params = stack.init(jax.random.key(9), problem.xs)
    noise = rdrop.Dropout(
        recurrent=rdrop.Bernoulli(0.5, per="step"),
        recurrent_weights=rdrop.DropConnect(0.5),
    )
    first, second = some(2)
    shared = [second.sharing(first, *n) for n in (["recurrent"], [*SITES])]
    ys, apart, one, every, expected = (
        stack.apply(params, problem.xs, noise, keys)[1]
        for keys in (first, second, *shared, None)
    )
    assert not same([apart], [one])
    assert not same([ys], [one])
    assert same([ys], [every])
    for cost in (rdrop.fraternal, rdrop.r_drop):
        assert cost(ys, apart) > 0
        assert cost(ys, every) == 0
    # As (a - b)^2 is at most 2 (a - e)^2 + 2 (b - e)^2.
    gaps = [rdrop.fraternal(pass_, expected) for pass_ in (ys, apart)]
    assert rdrop.fraternal(ys, apart) <= 2 * sum(gaps)


def test_a_pass_may_share_with_two_others():
    """One site is shared along a chain of three, one with the fourth."""

    @jax.jit
    def run():
        first, second, third, fourth = some(4)
        second = second.sharing(first, "inputs")
        third = third.sharing(second, "inputs").sharing(fourth, "update")
        return [drawn(keys, FEW) for keys in (first, second, third, fourth)]

    first, second, third, fourth = run()
    assert same(second["inputs"], first["inputs"])
    assert same(third["inputs"], first["inputs"])
    assert same(third["update"], fourth["update"])
    assert not same(fourth["inputs"], first["inputs"])
    for other in (first, third):
        assert not same(second["update"], other["update"])


def test_shared_keys_compile_and_map():
    def passes(seed):
        first, second = (rdrop.stream_keys(jax.random.fold_in(seed, n)) for n in (0, 1))
        return first, second.sharing(first, "update")

    def site_keys(passes):
        names = ("recurrent", "update")
        return jnp.array(
            [
                [jax.random.key_data(keys.site("recurrent", name)) for name in names]
                for keys in passes
            ]
        )

    seeds = jax.random.split(jax.random.key(5), 3)
    program, make = traced_once(site_keys), jax.jit(passes)
    looped = np.array([program(make(seed)) for seed in seeds])
    mapped = jax.jit(lambda seeds: jax.vmap(site_keys)(jax.vmap(passes)(seeds)))(seeds)
    np.testing.assert_array_equal(mapped, looped)
    shared = (looped[:, 0] == looped[:, 1]).all(axis=-1)
    assert shared.tolist() == [[False, True]] * 3


def test_a_site_outside_the_cells_is_shared_by_its_key():
    first, second = some(2)
    second = second.replace(sites={"words": first.inputs})
    keys = [jax.random.key_data(k.site("inputs", "words")) for k in (first, second)]
    np.testing.assert_array_equal(*keys)


def test_a_site_that_does_not_exist_is_not_shared():
    first, second = some(2)
    with pytest.raises(ValueError, match=r"`names` must be among .*, got 'recurent'"):
        second.sharing(first, "inputs", "recurent")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ({"update": np.zeros(2, np.uint32)}, TypeError, r"`keys.sites\['update'\]` mu"),
        ({"words": None}, TypeError, r"`keys.sites\['words'\]` must be a typed"),
        (
            {"update": jax.random.split(jax.random.key(0), 3)},
            ValueError,
            r"`keys.sites\['update'\]` must be a single key",
        ),
        (("update",), TypeError, "`keys.sites` must map names .* got"),
    ],
)
def test_sites_without_one_typed_key_are_not_drawn_from(sites, error, message):
    keys = some(1)[0].replace(sites=sites)
    with pytest.raises(error, match=message):
        rdrop.draw(rdrop.Dropout(), keys, rdrop.LSTMCell(3).sites(2), 2)
