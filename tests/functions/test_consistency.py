"""What two passes cost is what the papers' code computes; what they share is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

import rdrop

PENALTIES = {
    rdrop.fraternal: reference.fraternal,
    rdrop.r_drop: reference.r_drop,
}
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
SITES = [name for name, _ in NOISE.sites()]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES)


@pytest.fixture
def passes(rng):
    return tuple(jnp.asarray(3 * rng.normal(size=(2, 4, 5, 3))))


@pytest.fixture
def weights():
    """Of sequences of 5, 3, 1 and no steps."""
    return jnp.asarray(np.arange(5)[None] < np.array([5, 3, 1, 0])[:, None])


@every_penalty
def test_penalty_is_that_of_the_paper(passes, penalty):
    flat = [np.asarray(z).reshape(-1, 3) for z in passes]
    expected = PENALTIES[penalty](*flat, [1.0] * 20)
    np.testing.assert_allclose(penalty(*passes), expected, rtol=1e-12)


@every_penalty
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float64])
def test_padded_steps_weigh_nothing(passes, weights, penalty, dtype):
    """Of one batch as of its valid steps alone, and their gradients are zero."""
    flat = [np.asarray(z)[weights] for z in passes]
    expected = PENALTIES[penalty](*flat, [1.0] * 9)
    actual, gradient = jax.value_and_grad(penalty)(*passes, weights.astype(dtype))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert ((gradient != 0).all(axis=-1) == weights).all()


@every_penalty
def test_weights_are_relative(passes, rng, penalty):
    weights = rng.random((4, 5))
    flat = [np.asarray(z).reshape(-1, 3) for z in passes]
    expected = PENALTIES[penalty](*flat, weights.ravel())
    for scale in (1, 7):
        actual = penalty(*passes, jnp.asarray(scale * weights))
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@every_penalty
def test_gradients_are_those_of_differences(passes, weights, penalty):
    """Into both passes."""

    def cost(*passes):
        return penalty(*map(jnp.asarray, passes), weights)

    check_grads(cost, passes, 2, ["rev"], rtol=1e-6)
    gradients = jax.grad(penalty, argnums=(0, 1))(*passes)
    assert all((gradient != 0).any() for gradient in gradients)


@every_penalty
def test_penalty_is_symmetric_positive_and_zero_for_equal_passes(passes, penalty):
    first, second = passes
    assert penalty(first, second) == penalty(second, first) > 0
    value, gradient = jax.value_and_grad(penalty)(first, first)
    assert value == 0
    assert not gradient.any()


@every_penalty
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_penalty_is_computed_in_float32_at_least(passes, penalty, dtype):
    narrow = [z.astype(dtype) for z in passes]
    value = penalty(*narrow)
    assert value.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    exact = penalty(*(z.astype(jnp.float64) for z in narrow))
    np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_r_drop_of_distributions_without_overlap_is_finite():
    """Where the probabilities of one are 0 in float32."""
    first, second = jnp.float32([[500.0, 0.0]]), jnp.float32([[0.0, 500.0]])
    value, gradient = jax.value_and_grad(rdrop.r_drop)(first, second)
    assert value == 500
    assert jnp.isfinite(gradient).all()


def test_r_drop_of_distributions_that_are_close_is_precise():
    """To second order it is half the variance of the difference of the logits."""
    first = jnp.zeros((1, 4), jnp.float32)
    second = first + jnp.float32([[1e-4, -1e-4, 1e-4, -1e-4]])
    np.testing.assert_allclose(rdrop.r_drop(first, second), 1e-8 / 2, rtol=1e-3)


@every_penalty
def test_penalty_of_nothing_is_zero(passes, penalty):
    nothing = jnp.zeros((4, 5))
    value, gradient = jax.value_and_grad(penalty)(*passes, nothing)
    assert value == 0
    assert not gradient.any()


@every_penalty
def test_penalty_maps_and_compiles_once(passes, penalty):
    program = jax.jit(penalty)
    looped = [program(*z) for z in zip(*passes, strict=True)]
    assert program._cache_size() == 1
    np.testing.assert_allclose(jax.vmap(program)(*passes), looped, rtol=1e-12)


@every_penalty
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_fit_are_refused(passes, weights, penalty):
    first, second = passes
    with pytest.raises(ValueError, match=r"`second` must have .* got \(4, 5, 2\)"):
        penalty(first, second[..., :2])
    with pytest.raises(ValueError, match=r"`weights` must have .* got \(4,\)"):
        penalty(first, second, weights[:, 0])


def two(seed=0):
    return (rdrop.stream_keys(jax.random.key(n)) for n in (seed, seed + 1))


def drawn(keys):
    """The masks of a layer that reads backwards, by site."""
    sites = rdrop.LSTMCell(3).sites(2)
    keys = keys.replace(step=7, layer=2, direction="backward")
    masks = rdrop.draw(NOISE, keys, sites, batch=4, time=5)
    return {name: jax.tree.leaves(getattr(masks, name)) for name in SITES}


def same(first, second):
    return all((a == b).all() for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_a_site_that_is_shared_has_the_masks_of_the_other_and_no_other_has():
    first, second = two()
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
    first, second = two()
    shared = [second.sharing(first, *n) for n in (["recurrent"], [*SITES])]
    ys, apart, one, every, expected = (
        stack.apply(params, problem.xs, noise, keys)[1]
        for keys in (first, second, *shared, None)
    )
    assert not same([apart], [one])
    assert not same([ys], [one])
    assert same([ys], [every])
    for cost in PENALTIES:
        assert cost(ys, apart) > 0
        assert cost(ys, every) == 0
    # As (a - b)^2 is at most 2 (a - e)^2 + 2 (b - e)^2.
    gaps = [rdrop.fraternal(pass_, expected) for pass_ in (ys, apart)]
    assert rdrop.fraternal(ys, apart) <= 2 * sum(gaps)


def test_what_is_shared_is_shared_on():
    """With a third pass, and beside what is shared with another."""
    first, second = two()
    third, fourth = two(2)
    second = second.sharing(first, "inputs")
    third = third.sharing(second, "inputs", "update").sharing(fourth, "gates")
    masks = [drawn(keys) for keys in (first, second, third, fourth)]
    assert same(masks[2]["inputs"], masks[0]["inputs"])
    assert same(masks[2]["update"], masks[1]["update"])
    assert same(masks[2]["gates"], masks[3]["gates"])


def site_keys(keys):
    return [jax.random.key_data(keys.site("recurrent", name)) for name in SITES]


def test_shared_keys_compile_and_map():
    def passes(key):
        keys = [rdrop.stream_keys(jax.random.fold_in(key, n)) for n in (0, 1)]
        return keys[1].sharing(keys[0], "recurrent_weights")

    program = jax.jit(site_keys)
    seeds = jax.random.split(jax.random.key(5), 3)
    looped = [site_keys(passes(seed)) for seed in seeds]
    compiled = [program(passes(seed)) for seed in seeds]
    assert program._cache_size() == 1
    mapped = jax.vmap(program)(jax.vmap(passes)(seeds))
    for n in range(3):
        assert same(compiled[n], looped[n])
        assert same([leaf[n] for leaf in mapped], looped[n])


def test_a_site_outside_the_cells_is_shared_by_its_key():
    first, second = two()
    second = second.replace(sites={"words": first.inputs})
    keys = [jax.random.key_data(k.site("inputs", "words")) for k in (first, second)]
    assert (keys[0] == keys[1]).all()


def test_a_site_that_is_none_is_not_shared():
    first, second = two()
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
        (("update",), TypeError, "`keys.sites` must map names .* got tuple"),
    ],
)
def test_sites_without_one_typed_key_are_not_drawn_from(problem, sites, error, message):
    keys = problem.keys.replace(sites=sites)
    with pytest.raises(error, match=message):
        rdrop.draw(rdrop.Dropout(), keys, problem.sites, 2)
