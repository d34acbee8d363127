"""Sites draw independently of each other, and wrong noise is refused by name."""

import re

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

SITES = ("inputs", "outputs", "recurrent", "update")


def assert_same_masks(actual, expected, names=SITES):
    for name in names:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


@pytest.fixture
def big(problem):
    """The problem with sites so large that two masks do not agree by chance."""
    cell = problem.cell.clone(units=50)
    return problem._replace(cell=cell, xs=jnp.zeros((4, 5, 50)))


@pytest.mark.parametrize("per", ["sequence", "step"])
def test_switching_sites_off_changes_no_other_mask(problem, every_site, per):
    dropout = every_site(0.5, per=per)
    every = problem.draw(dropout, time=5)
    for name in SITES:
        others = set(SITES) - {name}
        without = problem.draw(dropout.replace(**{name: None}), time=5)
        assert_same_masks(without, every, others)
        alone = problem.draw(Dropout(**{name: getattr(dropout, name)}), time=5)
        assert_same_masks(alone, every, [name])
        assert all(getattr(alone, other) is None for other in others)


def test_options_of_a_site_change_no_other_mask(problem, every_site):
    every = every_site(0.5, per="step")
    other = every.replace(recurrent=Bernoulli(0.9, gates="each", batch="shared"))
    unchanged = ("inputs", "outputs", "update")
    assert_same_masks(problem.draw(every, 5), problem.draw(other, 5), unchanged)


def test_sites_streams_layers_directions_and_seeds_differ(big):
    """All nine sites of an LSTM: no two masks begin with the same 50 units."""
    other_key = jax.random.key(9)
    places = [
        {},
        {"layer": 1},
        {"direction": "backward"},
        {"inputs": other_key, "recurrent": jax.random.key(8)},
    ]
    noises = {"Bernoulli": Bernoulli(0.5), "DropConnect": DropConnect(0.5)}
    dropout = Dropout(
        **{s: noises[takes.split("(")[0]] for s, (takes, *_) in TAKES.items()}
    )
    drawn = [big.draw(dropout, **place) for place in places]
    masks = [
        np.asarray(getattr(mask, name)).ravel()[:50].tobytes()
        for mask in drawn
        for name in TAKES
    ]
    assert len(set(masks)) == len(places) * len(TAKES)


@pytest.mark.parametrize(
    ("stream", "changed"),
    [("inputs", ("inputs", "outputs")), ("recurrent", ("recurrent", "update"))],
)
def test_a_stream_feeds_its_own_sites_only(big, every_site, stream, changed):
    before = big.draw(every_site(0.5))
    after = big.draw(every_site(0.5), **{stream: jax.random.key(9)})
    assert_same_masks(before, after, set(SITES) - set(changed))
    for name in changed:
        assert (getattr(before, name) != getattr(after, name)).any()


def test_padding_the_batch_keeps_the_rows(problem, every_site):
    dropout = every_site(0.5, per="step", gates="each")
    padded = problem._replace(xs=jnp.zeros((9, 5, 2))).draw(dropout, 5)
    rows = jax.tree.map(lambda mask: mask[:, :4], padded)
    assert_same_masks(rows, problem.draw(dropout, 5))


def test_padding_the_time_keeps_the_steps(problem, every_site):
    dropout = every_site(0.5, per="step")
    first = jax.tree.map(lambda mask: mask[:5], problem.draw(dropout, 8))
    assert_same_masks(first, problem.draw(dropout, 5))


@pytest.mark.parametrize("gates", ["shared", "each"])
def test_a_step_draws_what_the_sequence_draws_at_it(problem, every_site, gates):
    dropout = every_site(0.5, per="step", gates=gates)
    bulk = problem.draw(dropout, 5, step=3)
    step = jax.jit(lambda t: problem.draw(dropout, step=t))
    for t in range(5):
        assert_same_masks(step(3 + t), jax.tree.map(lambda mask, t=t: mask[t], bulk))


def test_steps_differ_and_sequences_do_not(big, every_site):
    per_step = big.draw(every_site(0.5, per="step"), 5)
    for mask in jax.tree.leaves(per_step):
        assert len({np.asarray(row).tobytes() for row in mask}) == 5
    held = big.draw(every_site(0.5), 5)
    assert_same_masks(held, big.draw(every_site(0.5), 5, step=100))
    assert_same_masks(held, big.draw(every_site(0.5)))


def test_gates_and_batch_are_drawn_apart_or_shared(big, every_site):
    each = big.draw(every_site(0.5, gates="each"))
    for mask in (each.inputs, each.recurrent):
        assert mask.shape == (4, 4, 50)
        rows = np.asarray(mask).reshape(16, 50)
        assert len({row.tobytes() for row in rows}) == 16
    shared = big.draw(every_site(0.5, batch="shared"))
    assert [mask.shape for mask in jax.tree.leaves(shared)] == [(1, 1, 50)] * 4


def test_expected_has_a_factor_only_where_the_scale_is_expectation():
    noise = Bernoulli(0.25, scale="expectation")
    factors = Dropout(inputs=Bernoulli(0.5), update=noise).expected()
    assert factors.inputs is None
    np.testing.assert_array_equal(factors.update, np.full((1, 1, 1), 0.75))


def test_schedules_are_resolved_by_a_traced_step(problem):
    ramp = Dropout(inputs=Bernoulli(optax.linear_schedule(0.0, 1.0, 2)))
    program = jax.jit(lambda dropout, step: problem.draw(dropout.at(step)).inputs)
    for step, rate in ((0, 0.0), (1, 0.5), (2, 1.0)):
        plain = problem.draw(Dropout(inputs=Bernoulli(rate))).inputs
        np.testing.assert_array_equal(program(ramp, step), plain)
    assert program._cache_size() == 1


def test_unresolved_schedule_is_not_drawn(problem):
    ramp = Dropout(update=Bernoulli(optax.constant_schedule(0.5)))
    with pytest.raises(ValueError, match=r"`rate` is a schedule.*`dropout.at\(step\)`"):
        problem.draw(ramp)


MULTIPLIER = "Bernoulli(rate) or Gaussian(rate) or Concrete(rate)"
STATE = f"{MULTIPLIER} or Zoneout(rate)"
TAKES = {  # each site, the kinds it takes as its message has them, and some it does not
    "inputs": (MULTIPLIER, Zoneout(0.5)),
    "outputs": (MULTIPLIER, DropConnect(0.5)),
    "input_weights": ("DropConnect(rate)", Bernoulli(0.5), Concrete(0.5)),
    "recurrent": (MULTIPLIER, Zoneout(0.5)),
    "update": (MULTIPLIER, DropConnect(0.5)),
    "gates": (MULTIPLIER, Zoneout(0.5)),
    "cell_state": (STATE, DropConnect(0.5)),
    "hidden_state": (STATE, DropConnect(0.5)),
    "recurrent_weights": ("DropConnect(rate)", Gaussian(0.5), Concrete(0.5)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", TAKES)
def test_what_a_site_does_not_take_is_refused(name):
    """Bare numbers, text, and noise of a kind that has no meaning there."""
    takes, *other_kinds = TAKES[name]
    bare = (0.5, 0, True, np.float32(0.5), np.ones(3), jnp.ones(3), "0.5")
    for value in (*bare, *other_kinds):
        with pytest.raises(TypeError) as error:
            Dropout(**{name: value})
        assert str(error.value) == f"Site `{name}` takes {takes}, got {value!r}."


CELLS = {
    "SimpleCell": (rdrop.SimpleCell, {"update", "gates", "cell_state"}),
    "GRUCell": (rdrop.GRUCell, {"cell_state"}),
    "MinGRUCell": (
        rdrop.MinGRUCell,
        {"recurrent", "cell_state", "recurrent_weights"},
    ),
    "LSTMCell": (rdrop.LSTMCell, set()),
    "LayerNormLSTMCell": (rdrop.LayerNormLSTMCell, set()),
}


@pytest.mark.parametrize("name", CELLS)
def test_site_that_a_cell_lacks_is_refused_by_name(problem, name):
    cell, lacks = CELLS[name]
    sites = cell(3).sites(2)
    assert set(TAKES) - set(sites) == lacks
    for site in lacks:
        weights = site.endswith("_weights")
        noise = DropConnect(0.5) if weights else Bernoulli(0.5)
        message = f"Site `{site}` does not exist in this cell; it has inputs, outputs, "
        for keys in (problem.keys, None):
            with pytest.raises(ValueError, match=message):
                resolve(Dropout(**{site: noise}), keys, sites, 4)
        with pytest.raises(ValueError, match=message):
            resolve(Masks(**{site: jnp.ones((4, 1, 3))}), None, sites, 4)


@pytest.mark.parametrize("name", ["outputs", "update", "cell_state", "hidden_state"])
def test_gates_cannot_differ_where_none_read(problem, name):
    message = f'Site `{name}`: `gates` must be "shared".*, got "each"'
    with pytest.raises(ValueError, match=message):
        problem.draw(Dropout(**{name: Bernoulli(0.5, gates="each")}))


@pytest.mark.parametrize("name", SITES)
def test_rate_that_does_not_fit_the_site_is_refused(problem, name):
    message = (
        rf"Site `{name}`: `rate` must broadcast to the mask's axes \(4, 1, [23]\), "
        r"got shape \(7,\)"
    )
    with pytest.raises(ValueError, match=message):
        problem.draw(Dropout(**{name: Bernoulli(jnp.zeros(7))}))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("keys", "got"),
    [(jax.random.key(0), "ArrayImpl|PRNGKeyArray"), (3, "int"), (None, "NoneType")],
)
def test_keys_that_are_no_stream_keys_are_refused(problem, keys, got):
    message = f"`keys` must be StreamKeys, made by rdrop.stream_keys.*, got ({got})"
    with pytest.raises(TypeError, match=message):
        rdrop.draw(Dropout(inputs=Bernoulli(0.5)), keys, problem.sites, 4)


def run_step(problem, dropout, keys=None):
    return problem.cell.apply(
        problem.params, problem.carry, problem.xs[:, 0], dropout, keys
    )


@pytest.mark.parametrize(
    "shape", [(4, 2), (3, 1, 2), (4, 2, 2), (4, 1, 3), (5, 4, 1, 2)]
)
def test_masks_of_a_wrong_shape_are_refused(problem, shape):
    got = r", ".join(map(str, shape))
    message = rf"`masks.inputs` must have the axes \(4, 4, 2\), .* got shape \({got}\)"
    with pytest.raises(ValueError, match=message):
        run_step(problem, Masks(inputs=jnp.ones(shape)))


def test_masks_beside_keys_are_refused(problem):
    with pytest.raises(ValueError, match="`keys` must be None beside Masks"):
        run_step(problem, Masks(), problem.keys)


def test_masks_of_a_wrong_shape_are_refused_at_every_site(problem):
    for name, site in problem.sites.items():
        axes = (site.rows or 4, site.gates, site.units)
        wrong = jnp.ones((7, *axes[1:]))
        mask = Mix(wrong) if name.endswith("_state") else wrong
        message = rf"`masks.{name}` must have the axes {re.escape(str(axes))}, .* got"
        with pytest.raises(ValueError, match=message):
            run_step(problem, Masks(**{name: mask}))


@pytest.mark.usefixtures("unchecked")
def test_what_is_neither_dropout_nor_masks_is_refused(problem):
    message = "`dropout` must be a Dropout, Masks or None, got float"
    with pytest.raises(TypeError, match=message):
        run_step(problem, 0.5)
