"""The laws of DESIGN.md, for every cell and each site that it has.

A mask is a function of noise, key and shape alone, and drawing is what takes long to
compile. So masks are compared bit by bit as they are drawn, and each cell runs, its
masks given, as two compiled programs: forwards with states that are multiplied, and
backwards with states that are mixed. Other kinds and rates change the numbers only.
"""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rdrop
from rdrop import (
    Bernoulli,
    Concrete,
    DropConnect,
    Dropout,
    Gaussian,
    Masks,
    Mix,
    Zoneout,
)
from rdrop.dropout import resolve

BATCH, TIME, UNITS = 4, 6, 3
LENGTHS = np.array([6, 4, 1, 0])
WEIGHTS = ("input_weights", "recurrent_weights")
STATES = ("cell_state", "hidden_state")
PER_GATE = ("inputs", "recurrent", "gates")
HELD = ("inputs", "update")
KEYS = rdrop.stream_keys(jax.random.key(0)).replace(step=7)
double = {"units": UNITS, "param_dtype": jnp.float64}
CELLS = {
    "lstm": rdrop.LSTMCell(**double),
    "layer_norm_lstm": rdrop.LayerNormLSTMCell(**double),
    "gru": rdrop.GRUCell(**double),
    "gru_reset_before": rdrop.GRUCell(reset_after=False, **double),
    "simple": rdrop.SimpleCell(**double),
    "min_gru": rdrop.MinGRUCell(**double),
}
MULTIPLIERS = {"bernoulli": Bernoulli, "gaussian": Gaussian, "concrete": Concrete}
KINDS = (*MULTIPLIERS, "zoneout")
SMOOTH = ("gaussian", "concrete")
every_cell = pytest.mark.parametrize("name", CELLS)


def in_time(names):
    """All but two cells are left to the slow suite."""
    return pytest.mark.parametrize(
        "name",
        [
            n if n in ("lstm", "gru") else pytest.param(n, marks=pytest.mark.slow)
            for n in names
        ],
    )


every_cell_in_time = in_time(CELLS)
# Of each set of sites one cell; the sizes of its sites are all that masks depend on.
SITES_AS = {"layer_norm_lstm": "lstm", "gru_reset_before": "gru"}
SITES_OF = [name for name in CELLS if name not in SITES_AS]
every_set_of_sites = pytest.mark.parametrize("name", SITES_OF)
every_set_of_sites_in_time = in_time(SITES_OF)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_kind_in_time = pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k in SMOOTH)) for k in KINDS],
)

# Compiles three times as fast; bits that are claimed use the full optimisation.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def noise_of(kind, site, gates, rate):
    """The noise of a site; which are held over time does not depend on the kind."""
    per = "sequence" if site in HELD else "step"
    if site in WEIGHTS:
        return DropConnect(rate)
    if kind == "zoneout" and site in STATES:
        return Zoneout(rate, per=per)
    options = {"per": per, "gates": "each" if gates > 1 else "shared"}
    return MULTIPLIERS.get(kind, Bernoulli)(rate, **options)


def every_site(cell, kind, rate):
    """Noise of a kind on each site that the cell has."""
    return Dropout(
        **{
            site: noise_of(kind, site, size.gates if site in PER_GATE else 1, rate)
            for site, size in cell.sites(UNITS).items()
        }
    )


def draw(cell, dropout, time=TIME, keys=KEYS, batch=BATCH):
    return rdrop.draw(dropout, keys, cell.sites(UNITS), batch, time)


def assert_equal(actual, expected):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(actual, expected, tolerance=1e-12):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


@functools.cache
def problem_of(cell):
    """Random parameters, inputs [B, T, D], and an initial carry."""
    shape = jax.ShapeDtypeStruct((BATCH, TIME, UNITS), np.float64)
    params = jax.eval_shape(rdrop.RNN(cell).init, jax.random.key(0), shape)
    carry = cell.initialize_carry(jax.random.key(0), (BATCH, UNITS))
    return random_like(params, 1), random_like(shape, 2), random_like(carry, 3)


def is_reversed(kind):
    return kind == "zoneout"


def by_rnn(cell, reverse):
    rnn = rdrop.RNN(cell, reverse=reverse)

    def run(masks, lengths, params, xs, carry):
        return rnn.apply(params, xs, masks, initial_carry=carry, lengths=lengths)

    return run


def by_definition(cell, reverse):
    """The cell unrolled by lax.scan, given the masks of each step."""

    def run(masks, lengths, params, xs, carry):
        each = jax.tree.map(lambda m: jnp.broadcast_to(m, (TIME, *m.shape[-3:])), masks)

        def step(carry, inputs):
            x, t, mask = inputs
            new, y = cell.apply(params, carry, x, mask)
            valid = (t < lengths)[:, None]
            carry = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            return carry, jnp.where(valid, y, 0)

        inputs = (xs.swapaxes(0, 1), jnp.arange(TIME), each)
        carry, ys = jax.lax.scan(step, carry, inputs, reverse=reverse)
        return carry, ys.swapaxes(0, 1)

    return run


def with_gradients(run):
    """Carry and outputs, and gradients in parameters, inputs and initial carry."""

    def both(masks, lengths, *arguments):
        results, pull_back = jax.vjp(
            lambda *arguments: run(masks, lengths, *arguments), *arguments
        )
        return results, pull_back(random_like(results, 4))

    return both


@functools.cache
def program(cell, reverse, run=by_rnn):
    return quick_jit(with_gradients(run(cell, reverse)))


@functools.cache
def forward(cell):
    """The outputs of training, of one program for each cell."""
    return quick_jit(lambda *arguments: by_rnn(cell, False)(*arguments)[1])


def train(cell, kind, masks, xs=None, lengths=LENGTHS, carry=None, params=None):
    """Results and gradients by the library's fast path."""
    own_params, own_xs, own_carry = problem_of(cell)
    return program(cell, is_reversed(kind))(
        masks,
        lengths,
        own_params if params is None else params,
        own_xs if xs is None else xs,
        own_carry if carry is None else carry,
    )


# Law 1: the definition and the fast path agree.


@every_set_of_sites_in_time
@every_kind_in_time
def test_masks_in_bulk_are_those_of_each_step(name, kind):
    cell = CELLS[name]
    dropout = every_site(cell, kind, 0.4)
    bulk = draw(cell, dropout)
    for t in range(TIME):
        one = draw(cell, dropout, None, KEYS.replace(step=7 + t))
        now = jax.tree.map(lambda m, t=t: m[t] if m.ndim == 4 else m, bulk)
        assert_equal(one, now)


@pytest.mark.parametrize(("name", "other"), SITES_AS.items())
def test_cells_with_the_same_sites_have_the_same_masks(name, other):
    """So what holds of the masks of one cell holds of the other's."""
    assert CELLS[name].sites(UNITS) == CELLS[other].sites(UNITS)


@every_kind
def test_masks_are_the_same_eagerly_and_compiled(kind):
    cell = CELLS["lstm"]
    sites = ("inputs", "update", "cell_state", "recurrent_weights")
    dropout = every_site(cell, kind, 0.4)
    dropout = Dropout(**{site: getattr(dropout, site) for site in sites})
    compiled = jax.jit(lambda keys: draw(cell, dropout, keys=keys))(KEYS)
    assert_equal(compiled, draw(cell, dropout))


@every_cell_in_time
@every_kind_in_time
def test_rnn_is_its_definition(name, kind):
    """Values, and gradients in parameters, inputs and carry, with padding."""
    cell = CELLS[name]
    masks = draw(cell, every_site(cell, kind, 0.4))
    slow = program(cell, is_reversed(kind), by_definition)
    expected = slow(masks, LENGTHS, *problem_of(cell))
    assert_close(train(cell, kind, masks), expected, tolerance=1e-10)


@every_cell_in_time
def test_keys_give_what_their_masks_give(name):
    cell = CELLS[name]
    params, xs, carry = problem_of(cell)
    dropout = every_site(cell, "bernoulli", 0.4)
    run = rdrop.RNN(cell)
    arguments = {"initial_carry": carry}
    from_keys = run.apply(params, xs, dropout, KEYS, **arguments)
    assert_equal(from_keys, run.apply(params, xs, draw(cell, dropout), **arguments))
    from_keys = cell.apply(params, carry, xs[:, 0], dropout, KEYS)
    masks = draw(cell, dropout, None)
    assert_equal(from_keys, cell.apply(params, carry, xs[:, 0], masks))


# Law 3: sites are independent.


@every_set_of_sites_in_time
@every_kind_in_time
def test_other_sites_batch_and_time_change_no_mask(name, kind):
    cell = CELLS[name]
    dropout = every_site(cell, kind, 0.4)
    every = draw(cell, dropout)
    larger = draw(cell, dropout, TIME + 2, batch=BATCH + 3)
    # XLA may round the last digit of a smooth mask by where it lies in the array.
    same = assert_equal
    if kind in SMOOTH:
        same = functools.partial(assert_close, tolerance=1e-6)
    for site, noise in dropout.sites():
        mask = getattr(every, site)
        alone = draw(cell, Dropout(**{site: noise}))
        assert_equal(alone, mask)
        if site in WEIGHTS:
            assert_equal(getattr(larger, site), mask)
        else:
            same(cropped(getattr(larger, site)), mask)


def cropped(mask):
    """The rows of the batch, and the steps, of a mask of a larger batch and time."""
    return jax.tree.map(
        lambda m: (m[:TIME] if m.ndim == 4 else m)[..., :BATCH, :, :], mask
    )


# Law 4: common random numbers.


@every_set_of_sites
@every_kind
def test_masks_are_nested_in_the_rate(name, kind):
    cell = CELLS[name]
    sites = cell.sites(UNITS)
    low, high = (draw(cell, every_site(cell, kind, rate)) for rate in (0.2, 0.7))
    for site in sites:
        a, b = getattr(low, site), getattr(high, site)
        if isinstance(a, Mix):
            assert (a.share <= b.share).all()
            assert (a.share < b.share).any()
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


# Law 5: rates are data.

RATES = (0.0, 0.3, 0.8)


@every_cell_in_time
@every_kind
def test_one_program_serves_every_rate(name, kind):
    """Traced once with the drawing inside; compiled once with the masks given."""
    cell = CELLS[name]
    params, xs, _ = problem_of(cell)
    traces = []

    @jax.jit
    def step(dropout, keys):
        traces.append(dropout)
        rnn = rdrop.RNN(cell)
        return jax.grad(lambda p: rnn.apply(p, xs, dropout, keys)[1].sum())(params)

    for rate in RATES:
        jax.eval_shape(step, every_site(cell, kind, rate), KEYS)
        train(cell, kind, draw(cell, every_site(cell, kind, rate)))
    assert len(traces) == 1
    assert program(cell, is_reversed(kind))._cache_size() == 1


@every_cell_in_time
@every_kind
def test_vmap_over_rates_is_the_loop(name, kind):
    cell = CELLS[name]
    masks = [draw(cell, every_site(cell, kind, rate)) for rate in RATES]
    looped = [train(cell, kind, m)[0] for m in masks]
    mapped = vmapped(cell, is_reversed(kind))(stack(masks), LENGTHS, *problem_of(cell))
    assert_close(mapped, stack(looped))


@functools.cache
def vmapped(cell, reverse):
    in_axes = (0, None, None, None, None)
    return quick_jit(jax.vmap(by_rnn(cell, reverse), in_axes))


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("kind", ["bernoulli", "concrete", "zoneout"])
@every_cell_in_time
def test_rate_one_is_finite(name, kind):
    cell = CELLS[name]
    assert_finite(train(cell, kind, draw(cell, every_site(cell, kind, 1.0))))


@every_set_of_sites
@every_kind
def test_rate_zero_draws_masks_that_change_nothing(name, kind):
    masks = draw(CELLS[name], every_site(CELLS[name], kind, 0.0))
    for mask in jax.tree.leaves(masks, is_leaf=lambda node: isinstance(node, Mix)):
        values, neutral = (mask.share, 0) if isinstance(mask, Mix) else (mask, 1)
        assert (values == neutral).all()


@functools.cache
def large_problem(cell):
    xs = random_like(jnp.zeros((4, 5, 12)), 5).astype(jnp.float32)
    carry = cell.initialize_carry(jax.random.key(0), (4, 12))
    return cell.init(jax.random.key(0), carry, xs[:, 0]), xs, carry


@functools.cache
def without_noise(cell):
    params, xs, _ = large_problem(cell)
    return rdrop.RNN(cell).apply(params, xs)


@pytest.mark.parametrize(("gates", "states"), [("shared", "mixed"), ("each", "times")])
@every_cell_in_time
def test_masks_that_change_nothing_are_bitwise_no_noise(name, gates, states):
    """At a size where another order of summation would show.

    A loop over layer normalisation is compiled with other fused multiply-adds.
    """
    cell = CELLS[name].clone(units=64, param_dtype=jnp.float32)
    params, xs, carry = large_problem(cell)
    options = {"mixed": states == "mixed", "each": gates == "each"}
    step = neutral_masks(cell.sites(12), **options)
    step = cell.apply(params, carry, xs[:, 0], step)
    assert_equal(step, cell.apply(params, carry, xs[:, 0]))
    masks = neutral_masks(cell.sites(12), **options, lead=(5,))
    unrolled = rdrop.RNN(cell).apply(params, xs, masks)
    expected = without_noise(cell)
    if name == "layer_norm_lstm":
        assert_close(unrolled, expected, tolerance=2e-5)
    else:
        assert_equal(unrolled, expected)


@every_cell
def test_rate_one_keeps_the_old_states_exactly(name):
    cell = CELLS[name]
    params, xs, carry = problem_of(cell)
    states = [site for site in STATES if site in cell.sites(UNITS)]
    kept = Dropout(**{site: Zoneout(1.0) for site in states})
    for keys in (KEYS, None):
        assert_equal(cell.apply(params, carry, xs[:, 0], kept, keys)[0], carry)
    unrolled = rdrop.RNN(cell).apply(params, xs, kept, KEYS, initial_carry=carry)
    if name == "min_gru":  # its scan adds up differently, the mask of 1 does not
        assert_close(unrolled[0], carry, tolerance=0)
    assert_equal(unrolled[0], carry)


@every_cell
def test_held_zoneout_is_the_same_mask_at_each_step(name):
    cell = CELLS[name]
    params, xs, carry = problem_of(cell)
    held = draw(cell, Dropout(hidden_state=Zoneout(0.4, per="sequence")))
    steps = jax.tree.map(lambda m: jnp.broadcast_to(m, (TIME, *m.shape)), held)
    run = functools.partial(rdrop.RNN(cell).apply, params, xs, initial_carry=carry)
    assert_close(run(held), run(steps))


def test_rate_one_cuts_what_the_site_multiplies():
    cell = CELLS["lstm"]
    params, xs, carry = problem_of(cell)

    def unroll(params, xs, **sites):
        arguments = (params, xs, Dropout(**sites), KEYS)
        return rdrop.RNN(cell).apply(*arguments, initial_carry=carry)

    def cut_kernel(name):
        weights = params["params"]
        return {"params": weights | {name: jnp.zeros_like(weights[name])}}

    whole, drop = unroll(params, xs), Bernoulli(1.0)
    deaf = unroll(params, jnp.zeros_like(xs))
    assert_equal(unroll(params, xs, inputs=drop), deaf)
    assert_equal(unroll(params, xs, input_weights=DropConnect(1.0)), deaf)
    forgetful = unroll(cut_kernel("recurrent_kernel"), xs)
    assert_close(unroll(params, xs, recurrent=drop), forgetful)
    assert_close(unroll(params, xs, recurrent_weights=DropConnect(1.0)), forgetful)
    assert_equal(unroll(params, xs, outputs=drop), (whole[0], whole[1] * 0))
    assert not any(
        leaf.any() for leaf in jax.tree.leaves(unroll(params, xs, gates=drop))
    )
    (c, h), ys = unroll(params, xs, cell_state=drop)
    assert not any(leaf.any() for leaf in (c, h, ys))
    (c, h), ys = unroll(params, xs, hidden_state=drop)
    assert not h.any()
    assert ys.all()


def test_empty_dropout_is_no_dropout():
    cell = CELLS["gru"]
    params, xs, _ = problem_of(cell)
    run = functools.partial(rdrop.RNN(cell).apply, params, xs)
    expected = run()
    for arguments in ((Dropout(),), (Dropout(), KEYS), (Masks(),)):
        assert_equal(run(*arguments), expected)


def test_a_schedule_trains_as_its_numbers_do():
    cell = CELLS["simple"]
    params, xs, _ = problem_of(cell)
    ramp = Dropout(recurrent=Bernoulli(optax.linear_schedule(0.0, 0.8, 4)))

    @jax.jit
    def train(dropout, step):
        return rdrop.RNN(cell).apply(params, xs, dropout.at(step), KEYS)

    plain = [train(Dropout(recurrent=Bernoulli(r)), 0) for r in (0.0, 0.4, 0.6)]
    for at, expected in zip((0, 2, 3), plain, strict=True):
        assert_close(train(ramp, at), expected)
    assert train._cache_size() == 2


# Law 6: every knob is live, in training only.

KNOBS = {
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
    Bernoulli: set(rdrop.dropout.STREAMS) - set(WEIGHTS),
    Gaussian: set(rdrop.dropout.STREAMS) - set(WEIGHTS),
    Concrete: set(rdrop.dropout.STREAMS) - set(WEIGHTS),
    Zoneout: set(STATES),
    DropConnect: set(WEIGHTS),
}


def knobs_of(noise, site, gates):
    """The changed noises of a site, one for each option that it has."""
    for knob, change in KNOBS.items():
        exists = knob == "rate" or knob in type(noise).__dataclass_fields__
        if exists and (knob != "gates" or (site in PER_GATE and gates > 1)):
            yield knob, noise.replace(**change)


def neutral_masks(sites, mixed, each=True, lead=()):
    """Masks of full size on every site, that change nothing."""

    def neutral(site, size):
        if site in WEIGHTS:
            return jnp.ones((size.rows, size.gates, size.units), jnp.float32)
        gates = size.gates if each and site in PER_GATE else 1
        ones = jnp.ones((*lead, BATCH, gates, size.units), jnp.float32)
        return Mix(0 * ones) if mixed and site in STATES else ones

    return Masks(**{site: neutral(site, size) for site, size in sites.items()})


def outputs(cell, site, noise):
    """The outputs of training with noise on one site; one program for all kinds."""
    mixed = isinstance(noise, Zoneout)
    neutral = neutral_masks(cell.sites(UNITS), mixed, lead=(TIME,))
    if noise is not None:
        mask = getattr(draw(cell, Dropout(**{site: noise})), site)
        full = jax.tree.map(
            lambda m, like: jnp.broadcast_to(m, like.shape),
            mask,
            getattr(neutral, site),
        )
        neutral = neutral.replace(**{site: full})
    return forward(cell)(neutral, np.full(BATCH, TIME), *problem_of(cell))


@pytest.mark.parametrize("kind", SITE_KINDS, ids=lambda kind: kind.__name__)
@every_cell_in_time
def test_every_knob_is_live(name, kind):
    """At full length each option of each site is felt in the outputs."""
    cell = CELLS[name]
    for site, size in cell.sites(UNITS).items():
        if site not in SITE_KINDS[kind]:
            continue
        noise = kind(0.4) if kind is DropConnect else kind(0.4, per="sequence")
        before = outputs(cell, site, noise)
        assert (before != outputs(cell, site, None)).any(), f"{site} switched on"
        for knob, changed in knobs_of(noise, site, size.gates):
            assert (before != outputs(cell, site, changed)).any(), f"{site} {knob}"


def test_drift_is_live():
    cell = CELLS["gru"]
    drifts = (0.0, 0.5, 1.0)
    noises = [Bernoulli(0.4, per=rdrop.Drift(drift)) for drift in drifts]
    results = [outputs(cell, "recurrent", noise) for noise in noises]
    for a, b in itertools.combinations(results, 2):
        assert (a != b).any()


@every_cell
@pytest.mark.parametrize("kind", MULTIPLIERS)
def test_inverted_noise_leaves_evaluation_alone(name, kind):
    """No mask at all is left, whatever the rate: the program is that of no noise."""
    cell = CELLS[name]
    dropout = every_site(cell, kind, 0.4)
    assert resolve(dropout, None, cell.sites(UNITS), BATCH, TIME) == Masks()


@every_cell
def test_expectation_evaluates_with_its_factor(name):
    """As masks of 1 - rate would, at every site."""
    cell = CELLS[name]
    params, xs, carry = problem_of(cell)
    noise = Bernoulli(0.75, scale="expectation")
    for site, size in cell.sites(UNITS).items():
        if site in WEIGHTS:
            continue
        actual = cell.apply(params, carry, xs[:, 0], Dropout(**{site: noise}))
        masks = Masks(**{site: jnp.full((BATCH, 1, size.units), 0.25, jnp.float32)})
        assert_equal(actual, cell.apply(params, carry, xs[:, 0], masks))


@every_cell
def test_zoneout_evaluates_with_the_expected_mixture(name):
    """A step is affine in a mixed state, so many samples have that mean."""
    cell = CELLS[name]
    params, xs, carry = problem_of(cell)
    old = jax.tree.leaves(carry)[-1]
    new = jax.tree.leaves(cell.apply(params, carry, xs[:, 0])[0])[-1]
    mixed, y = cell.apply(params, carry, xs[:, 0], Dropout(hidden_state=Zoneout(0.25)))
    expected = 0.25 * old + 0.75 * new
    assert_close(jax.tree.leaves(mixed)[-1], expected)
    assert_close(y, expected)


# Law 7: nothing explodes.


@functools.cache
def long_run(cell):
    """Runs with each of the sites on, one after the other, and all others off."""

    def run(params, xs, masks, on):
        chosen = {
            site: jnp.where(on[n], getattr(masks, site), 1)
            for n, site in enumerate(cell.sites(UNITS))
        }
        return rdrop.RNN(cell).apply(params, xs, Masks(**chosen))

    return quick_jit(jax.vmap(run, in_axes=(None, None, None, 0)))


def long_masks(cell, noise, time, batch):
    """Masks of one kind on every site, of full length."""
    sites = cell.sites(UNITS)
    dropout = Dropout(**{s: DropConnect(0.5) if s in WEIGHTS else noise for s in sites})
    masks = rdrop.draw(dropout, KEYS, sites, batch, time)

    def whole(site):
        mask = getattr(masks, site)
        if site in WEIGHTS or mask.ndim == 4:
            return mask
        return jnp.broadcast_to(mask, (time, *mask.shape))

    return Masks(**{site: whole(site) for site in sites})


LONG = [
    Bernoulli(0.5),
    Bernoulli(0.5, per="step"),
    Bernoulli(0.5, scale="expectation"),
    Gaussian(0.5, per="step"),
    Concrete(0.5, per="step"),
]
LONG_IDS = ["held", "step", "expectation", "gaussian", "concrete"]
# Inverted masks here multiply the path from h to h itself, which a gate near 1 leaves
# as it is: they compound, as DESIGN.md says of Keras 3.0 to 3.7.
COMPOUND = {
    "gru": (*STATES, "gates"),
    "gru_reset_before": (*STATES, "gates"),
    "min_gru": (*STATES, "gates"),
}
# Masks here multiply h after its tanh, or the candidate that h is an average of.
SCALES_H = {
    "lstm": ("gates", "hidden_state"),
    "layer_norm_lstm": ("gates", "hidden_state"),
    "gru": ("update",),
    "gru_reset_before": ("update",),
    "simple": ("hidden_state",),
    "min_gru": ("update",),
}


def candidate_bound(name, cell, params, xs, masks, site):
    """A minGRU has no tanh: h is an average of the candidates."""
    if name != "min_gru":
        return 1.0
    inside = site if site in ("inputs", "input_weights") else "none"
    masks = Masks(**{inside: getattr(masks, inside)}) if inside != "none" else Masks()
    weights = rdrop.cells.masking.drop_weights(params["params"], masks)
    z = cell.project(weights, xs.swapaxes(0, 1), masks)
    return float(abs(z[..., cell.units :]).max())


@pytest.mark.slow
@pytest.mark.parametrize("noise", LONG, ids=LONG_IDS)
@every_cell_in_time
def test_nothing_explodes_in_a_thousand_steps(name, noise):
    cell = CELLS[name].clone(units=16, param_dtype=jnp.float32)
    params, xs, masks = long_problem(cell, noise)
    sites = list(cell.sites(UNITS))
    carry, ys = long_run(cell)(params, xs, masks, jnp.eye(len(sites), dtype=bool))
    bounded = set(sites)
    if getattr(noise, "scale", "inverted") == "inverted":
        bounded -= set(COMPOUND.get(name, ()))
    for n, site in enumerate(sites):
        if site not in bounded:
            continue
        largest = float(abs(getattr(masks, site)).max())
        bound = candidate_bound(name, cell, params, xs, masks, site)
        h_bound = bound * (largest if site in SCALES_H[name] else 1) * (1 + 1e-5)
        h = jax.tree.leaves(carry)[-1][n]
        assert (abs(h) <= h_bound).all(), site
        assert (abs(ys[n]) <= h_bound * (largest if site == "outputs" else 1)).all(), (
            site
        )


@functools.cache
def long_inputs(cell):
    xs = jnp.float32(random_like(jnp.zeros((2, 1000, UNITS)), 6))
    return rdrop.RNN(cell).init(jax.random.key(0), xs), xs


def long_problem(cell, noise):
    return *long_inputs(cell), long_masks(cell, noise, 1000, 2)


@pytest.mark.parametrize("name", ["gru", "gru_reset_before"])
def test_a_gru_explodes_only_where_its_leak_path_is_masked(name):
    """Keras 3.0 to 3.7 masked it: h is doubled, and an update gate near 1 keeps it."""
    cell = rdrop.GRUCell(16, reset_after=CELLS[name].reset_after)
    xs = jnp.zeros((2, 1000, 3), jnp.float32)
    params = rdrop.RNN(cell).init(jax.random.key(0), xs)
    params["params"]["bias"] = params["params"]["bias"].at[:16].set(2.0)
    start = jnp.full((2, 16), 0.5, jnp.float32)

    def largest(xs, **site):
        run = functools.partial(rdrop.RNN(cell).apply, params, xs)
        h, ys = run(Dropout(**site), KEYS, initial_carry=start)
        return max(abs(h).max(), abs(ys).max())

    noise = Bernoulli(0.5)
    assert largest(xs, recurrent=noise) <= 1
    assert 1e6 < largest(xs[:, :60], hidden_state=noise) < np.inf
    assert 1e6 < largest(xs[:, :60], gates=noise) < np.inf
    tame = noise.replace(scale="expectation")
    assert largest(xs, hidden_state=tame) <= 1
    assert largest(xs, gates=tame) <= 1


# Laws 8 and 9: time is absolute, and padding is invisible.


@every_cell_in_time
@every_kind
def test_two_chunks_are_one_sequence(name, kind):
    """The chunks are padded to the whole length, so one program runs them all."""
    cell = CELLS[name]
    dropout = every_site(cell, kind, 0.4)
    whole = draw(cell, dropout)
    _, xs, carry = problem_of(cell)
    full = np.full(BATCH, TIME)
    (last, ys), _ = train(cell, kind, whole, lengths=full)
    parts = [None, None]
    for n in (1, 0) if is_reversed(kind) else (0, 1):
        masks = draw(cell, dropout, keys=KEYS.replace(step=7 + 3 * n))
        assert_equal(steps(masks, 0), steps(whole, 3 * n))
        part = jnp.roll(xs, -3 * n, axis=1)
        results, _ = train(cell, kind, masks, part, full - 3, carry)
        carry, parts[n] = results[0], results[1][:, :3]
    assert_close((carry, jnp.concatenate(parts, axis=1)), (last, ys))


def steps(masks, start):
    """Three steps of masks."""
    return jax.tree.map(lambda m: m[start : start + 3] if m.ndim == 4 else m, masks)


PADDING = np.arange(TIME)[None] >= LENGTHS[:, None]


@every_cell_in_time
@every_kind
def test_padding_is_invisible(name, kind):
    """Not numbers as well: in outputs, the final carry, and every gradient."""
    cell = CELLS[name]
    masks = draw(cell, every_site(cell, kind, 0.4))
    _, xs, carry = problem_of(cell)
    expected = train(cell, kind, masks)
    assert_finite(expected)
    for filling in (1e30, np.inf, np.nan):
        padded = jnp.where(PADDING[..., None], filling, xs)
        assert_equal(train(cell, kind, masks, padded), expected)
    (last, ys), (_, gradient_in_xs, _) = expected
    assert not ys[PADDING].any()
    assert not gradient_in_xs[PADDING].any()
    assert_equal(*jax.tree.map(lambda leaf: leaf[3], (last, carry)))


# Law 10: same key, same bits.


@every_cell_in_time
@pytest.mark.parametrize("kind", ["gaussian", "zoneout"])  # one for each program
def test_resumed_training_is_bitwise_the_uninterrupted(name, kind):
    """The parameters are stored after two steps; keys come from the step alone."""
    cell = CELLS[name]

    def descend(params, first, last):
        for step in range(first, last):
            keys = rdrop.stream_keys(jax.random.fold_in(jax.random.key(3), step))
            masks = draw(cell, every_site(cell, kind, 0.1 * step), keys=keys)
            _, (gradient, *_) = train(cell, kind, masks, params=params)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
        return params

    start = problem_of(cell)[0]
    stored = jax.tree.map(np.asarray, descend(start, 0, 2))
    resumed = descend(jax.tree.map(jnp.asarray, stored), 2, 4)
    assert_equal(resumed, descend(start, 0, 4))


def test_same_key_same_bits_in_two_programs():
    for cell in CELLS.values():
        masks = draw(cell, every_site(cell, "bernoulli", 0.4))
        arguments = (masks, LENGTHS, *problem_of(cell))
        first, second = (forward.__wrapped__(cell)(*arguments) for _ in range(2))
        assert_equal(first, second)


MASKS = """
import hashlib
import jax, numpy as np, rdrop

dropout = rdrop.Dropout(
    inputs=rdrop.Bernoulli(0.5, per="step", gates="each"),
    recurrent=rdrop.Bernoulli(0.5),
    cell_state=rdrop.Zoneout(0.5),
    recurrent_weights=rdrop.DropConnect(0.5),
)
keys = rdrop.stream_keys(jax.random.key(0))
sites = rdrop.LSTMCell(3).sites(3)

def draw(keys):
    masks = rdrop.draw(dropout, keys, sites, 4, 6)
    def by_batch(mask):
        spec = [None] * mask.ndim
        spec[-3] = "batch" if mask.shape[-3] == 4 else None
        return jax.lax.with_sharding_constraint(
            mask, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        )
    return jax.tree.map(by_batch, masks)

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
masks = jax.tree.leaves(jax.jit(draw)(keys))
digest = hashlib.sha256(b"".join(np.asarray(m).tobytes() for m in masks)).hexdigest()
print(jax.device_count(), len(masks[0].sharding.device_set), digest)
"""


def test_masks_do_not_depend_on_the_number_of_devices():
    """Two processes: one with a device, one with the batch spread over two."""
    printed = []
    for count in (1, 2):
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", MASKS]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        printed.append(result.stdout.split())
    assert [line[:2] for line in printed] == [["1", "1"], ["2", "2"]]
    assert printed[0][2] == printed[1][2]
