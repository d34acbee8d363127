"""Laws 5 and 6 of DESIGN.md: rates are data, and every option is live in training."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    assert_close,
    optimised_jit,
    quickly,
    random_like,
    stack_trees,
    traced_once,
)
from law_cases import (
    BATCH,
    CELLS,
    KEYS,
    KINDS,
    LENGTHS,
    PER_GATE,
    STATES,
    TIME,
    UNITS,
    WEIGHTS,
    by_rnn,
    draw,
    draw_all,
    each_pair,
    every_site,
    forward,
    in_each_program,
    is_reversed,
    neutral_masks,
    problem_of,
    train,
    with_gradients,
)

import rdrop
from rdrop import (
    Additive,
    Bernoulli,
    Concrete,
    DropConnect,
    Dropout,
    Gaussian,
    Masks,
    WeightNoise,
    Zoneout,
)

# Law 5: rates are data.

RATES = (0.0, 0.3, 0.8)


@each_pair(CELLS, KINDS, ("lstm", "bernoulli"), ("gru", "zoneout"))
def test_one_trace_serves_every_rate(name, kind):
    """With the drawing inside, and with the masks given."""
    cell = CELLS[name]
    problem = problem_of(cell)

    def from_keys(dropout, keys, params, xs, carry):
        rnn = rdrop.RNN(cell)
        return jax.grad(lambda p: rnn.apply(p, xs, dropout, keys)[1].sum())(params)

    def from_masks(masks, params, xs, carry):
        return with_gradients(by_rnn(cell, False))(masks, LENGTHS, params, xs, carry)

    from_keys, from_masks = traced_once(from_keys), traced_once(from_masks)
    for rate in RATES:
        jax.eval_shape(from_keys, every_site(cell, kind, rate), KEYS, *problem)
        jax.eval_shape(from_masks, draw_all(name, kind, rate), *problem)


@each_pair(CELLS, KINDS, ("lstm", "bernoulli"), ("gru", "zoneout"))
def test_vmap_over_rates_is_the_loop(name, kind):
    cell = CELLS[name]
    masks = [draw_all(name, kind, rate) for rate in RATES]
    looped = stack_trees([train(cell, kind, m)[0] for m in masks])
    mapped = vmapped(cell, is_reversed(kind))
    assert_close(mapped(stack_trees(masks), LENGTHS, *problem_of(cell)), looped)


@functools.cache
def vmapped(cell, reverse):
    in_axes = (0, None, None, None, None)
    return jax.jit(jax.vmap(by_rnn(cell, reverse), in_axes))


@each_pair(CELLS, ("bernoulli", "concrete", "zoneout"), *in_each_program)
def test_rate_one_is_finite(name, kind):
    results = train(CELLS[name], kind, draw_all(name, kind, 1.0))
    chex.assert_tree_all_finite(results)


@functools.cache
def large_problem(cell):
    xs = random_like(jnp.zeros((4, 5, 12)), 5).astype(jnp.float32)
    carry = cell.initialize_carry(jax.random.key(0), (4, 12))
    return cell.init(jax.random.key(0), carry, xs[:, 0]), xs, carry


INEXACT = {
    "layer_norm_lstm": 2e-5,
    "min_gru": 1e-6,
    "min_lstm": 1e-6,
    "rg_lru": 1e-6,
    "lru": 1e-5,
    "s5": 1e-5,
    "slstm": 1e-6,
}


@pytest.mark.parametrize(
    ("name", "gates", "states"),
    quickly(
        [(n, *g) for n in CELLS for g in (("shared", "mixed"), ("each", "times"))],
        ("simple", "each", "times"),
    ),
)
def test_masks_that_change_nothing_are_bitwise_no_noise(name, gates, states):
    """At a size that shows another order of summation, and the full optimisation.

    Some cells are compiled with other fused multiply-adds.
    """
    cell = CELLS[name].clone(units=64, param_dtype=jnp.float32)
    params, xs, carry = large_problem(cell)
    options = {"mixed": states == "mixed", "each": gates == "each"}

    @optimised_jit
    def run(masks, params, xs, carry):
        one = cell.apply(params, carry, xs[:, 0], masks and masks[0])
        return one, rdrop.RNN(cell).apply(params, xs, masks and masks[1])

    sites = cell.sites(12)
    masks = neutral_masks(sites, **options), neutral_masks(sites, **options, lead=(5,))
    step, unrolled = run(masks, params, xs, carry)
    expected_step, expected = run(None, params, xs, carry)
    if name in INEXACT:
        assert_close((step, unrolled), (expected_step, expected), INEXACT[name])
    else:
        chex.assert_trees_all_equal((step, unrolled), (expected_step, expected))


@pytest.mark.parametrize("name", quickly(CELLS, "lstm", "min_gru"))
def test_rate_one_keeps_the_old_states_exactly(name):
    """From keys, in evaluation, and over a sequence.

    The memory of an sLSTM is kept on the scale of each step: there c / n is the same.
    """
    cell = CELLS[name]
    states = [site for site in STATES if site in cell.sites(UNITS)]
    kept = Dropout(**{site: Zoneout(1.0) for site in states})

    @jax.jit
    def run(params, xs, carry):
        step = functools.partial(cell.apply, params, carry, xs[:, 0], kept)
        rnn = rdrop.RNN(cell).apply(params, xs, kept, KEYS, initial_carry=carry)
        return step(KEYS)[0], step()[0], rnn[0]

    problem = problem_of(cell)
    for carry in run(*problem):
        if name == "slstm":
            (c, n, _, h), (c_old, n_old, _, h_old) = carry, problem[2]
            assert_close((c / n, h), (c_old / n_old, h_old))
        else:
            chex.assert_trees_all_equal(carry, problem[2])


@pytest.mark.parametrize("name", quickly(CELLS, "simple"))
def test_held_zoneout_is_the_same_mask_at_each_step(name):
    cell = CELLS[name]
    states = [site for site in STATES if site in cell.sites(UNITS)]
    held = draw(cell, Dropout(**{states[-1]: Zoneout(0.4, per="sequence")}))
    steps = jax.tree.map(lambda m: jnp.broadcast_to(m, (TIME, *m.shape)), held)

    @jax.jit
    def run(*arguments):
        return [by_rnn(cell, False)(masks, None, *arguments) for masks in (held, steps)]

    assert_close(*run(*problem_of(cell)))


def outputs(cell, masks, params=None, xs=None):
    """The outputs of training, with full masks; one program for all."""
    own_params, own_xs, carry = problem_of(cell)
    params = own_params if params is None else params
    xs = own_xs if xs is None else xs
    return forward(cell)(masks, np.full(BATCH, TIME), params, xs, carry)


def test_rate_one_cuts_what_the_site_multiplies():
    cell = CELLS["lstm"]
    params, xs, _ = problem_of(cell)
    neutral = neutral_masks(cell.sites(UNITS), mixed=False, lead=(TIME,))

    def cut(site):
        return neutral.replace(**{site: 0 * getattr(neutral, site)})

    def without(name):
        weights = params["params"]
        return {"params": weights | {name: jnp.zeros_like(weights[name])}}

    deaf = outputs(cell, neutral, xs=jnp.zeros_like(xs))
    assert_close(outputs(cell, cut("inputs")), deaf)
    assert_close(outputs(cell, cut("input_weights")), deaf)
    forgetful = outputs(cell, neutral, without("recurrent_kernel"))
    assert_close(outputs(cell, cut("recurrent")), forgetful)
    assert_close(outputs(cell, cut("recurrent_weights")), forgetful)
    assert outputs(cell, cut("hidden_state")).all()
    for site in ("outputs", "gates", "cell_state"):
        assert not outputs(cell, cut(site)).any()
    start = problem_of(cell)[2][0]
    decayed = abs(outputs(cell, cut("update")))
    assert (decayed <= abs(np.tanh(start))[:, None]).all()


def test_empty_dropout_is_no_dropout():
    cell = CELLS["simple"]
    params, xs, _ = problem_of(cell)
    nothing = [(), (Dropout(),), (Dropout(), KEYS), (Masks(),)]

    @jax.jit
    def run():
        return [rdrop.RNN(cell).apply(params, xs, *arguments) for arguments in nothing]

    chex.assert_trees_all_equal(*run())


def test_a_schedule_trains_as_its_numbers_do():
    """Two programs: of a schedule, and of numbers."""
    cell = CELLS["simple"]
    params, xs, _ = problem_of(cell)
    ramp = Dropout(recurrent=Bernoulli(optax.linear_schedule(0.0, 0.8, 4)))

    def train(dropout, step):
        return rdrop.RNN(cell).apply(params, xs, dropout.at(step), KEYS)

    train = jax.jit(chex.assert_max_traces(train, n=2))
    plain = [train(Dropout(recurrent=Bernoulli(r)), 0) for r in (0.0, 0.4, 0.6)]
    for at, expected in zip((0, 2, 3), plain, strict=True):
        assert_close(train(ramp, at), expected)


# Law 6: every option is live, in training only.

OPTIONS = {
    "rate": {"rate": 0.95},
    "per": {"per": "step"},
    "gates": {"gates": "each"},
    "batch": {"batch": "shared"},
    "units": {"units": "shared"},
    "scale": {"scale": "expectation"},
    "by": {"by": "row"},
    "temperature": {"temperature": 0.7},
}
SITE_KINDS = {  # each kind, and the sites that take it
    Bernoulli: set(rdrop.keys.STREAMS) - set(WEIGHTS),
    Gaussian: set(rdrop.keys.STREAMS) - set(WEIGHTS),
    Concrete: set(rdrop.keys.STREAMS) - set(WEIGHTS),
    Zoneout: set(STATES),
    Additive: set(STATES),
    DropConnect: set(WEIGHTS),
    WeightNoise: set(WEIGHTS),
}


def changes_of(noise, site, gates):
    """The changed noises of a site, one for each option that it has."""
    for option, change in OPTIONS.items():
        exists = option == "rate" or option in type(noise).__dataclass_fields__
        if exists and (option != "gates" or (site in PER_GATE and gates > 1)):
            yield option, noise.replace(**change)


def outputs_with(cell, noises):
    """The outputs of training with each (site, noise) alone, by the same names."""
    sites = cell.sites(UNITS)

    def masks_with(site, noise):
        neutral = neutral_masks(sites, isinstance(noise, Zoneout), lead=(TIME,))
        if noise is None:
            return neutral
        mask = getattr(draw(cell, Dropout(**{site: noise})), site)
        (like,) = jax.tree.leaves(getattr(neutral, site))
        full = jax.tree.map(lambda m: jnp.broadcast_to(m, like.shape), mask)
        return neutral.replace(**{site: full})

    drawn = jax.jit(lambda: {n: masks_with(*noise) for n, noise in noises.items()})()
    return {name: outputs(cell, masks) for name, masks in drawn.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    quickly(
        [(name, kind) for name in CELLS for kind in SITE_KINDS],
        ("lstm", Bernoulli),
        ("lstm", DropConnect),
        ("simple", Concrete),
        ("simple", Zoneout),
        ("simple", Additive),
        ("simple", WeightNoise),
    ),
)
def test_every_option_is_live(name, kind):
    """At full length each option of each site is felt in the outputs."""
    cell, noises = CELLS[name], {}
    for site, size in cell.sites(UNITS).items():
        if site not in SITE_KINDS[kind] or (size.is_complex and kind is Additive):
            continue
        noise = kind(0.4) if site in WEIGHTS else kind(0.4, per="sequence")
        noises[site, "on"], noises[site, "off"] = (site, noise), (site, None)
        for option, changed in changes_of(noise, site, size.gates):
            noises[site, option] = site, changed
    ys = outputs_with(cell, noises)
    for site, option in noises:
        if option != "on":
            assert (ys[site, option] != ys[site, "on"]).any(), f"{site} {option}"


def test_drift_is_live():
    drifts = {p: Bernoulli(0.4, per=rdrop.Drift(p)) for p in (0.0, 0.5, 1.0)}
    noises = {p: ("recurrent", noise) for p, noise in drifts.items()}
    ys = outputs_with(CELLS["gru"], noises)
    for a, b in itertools.combinations(ys.values(), 2):
        assert (a != b).any()


@pytest.mark.parametrize("name", quickly(CELLS, "lstm"))
def test_expectation_evaluates_with_its_factor(name):
    """As masks of 1 - rate would, at every site."""
    cell = CELLS[name]
    noise = Bernoulli(0.75, scale="expectation")
    sites = {s: size for s, size in cell.sites(UNITS).items() if s not in WEIGHTS}

    @jax.jit
    def run(params, xs, carry):
        step = functools.partial(cell.apply, params, carry, xs[:, 0])
        evaluated = {site: step(Dropout(**{site: noise})) for site in sites}
        quarters = {
            site: step(
                Masks(**{site: jnp.full((BATCH, 1, n.units), 0.25, jnp.float32)})
            )
            for site, n in sites.items()
        }
        return evaluated, quarters

    assert_close(*run(*problem_of(cell)))


HIDDEN = [name for name in CELLS if "hidden_state" in CELLS[name].sites(UNITS)]


@pytest.mark.parametrize("name", quickly(HIDDEN, "gru"))
def test_zoneout_evaluates_with_the_expected_mixture(name):
    """A step is affine in a mixed state, so many samples have that mean."""
    cell = CELLS[name]

    @jax.jit
    def run(params, xs, carry):
        step = functools.partial(cell.apply, params, carry, xs[:, 0])
        return step(), step(Dropout(hidden_state=Zoneout(0.25)))

    (new, _), (mixed, y) = run(*problem_of(cell))
    old, new, mixed = (
        jax.tree.leaves(carry)[-1] for carry in (problem_of(cell)[2], new, mixed)
    )
    assert_close(mixed, 0.25 * old + 0.75 * new)
    assert_close(y, mixed)
