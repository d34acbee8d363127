"""Sites draw independently of each other, and wrong noise is rejected by name."""

import functools
import re

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import traced_once

import rdrop
from rdrop import (
    Bernoulli,
    Concrete,
    DropConnect,
    Dropout,
    Gaussian,
    Masks,
    Mix,
    Site,
    Zoneout,
)
from rdrop.dropout import resolve
from rdrop.sites import SITES

BATCH, UNITS = 4, 50
SIZES = {  # so large that two masks do not agree by chance
    name: Site(4 if site.per_gate else 1, UNITS, UNITS if site.on_weights else None)
    for name, site in SITES.items()
}
SHAPES = {name: (site.rows or BATCH, site.gates, UNITS) for name, site in SIZES.items()}
USED = ("inputs", "outputs", "recurrent", "update")
KEYS = rdrop.stream_keys(jax.random.key(0)).replace(step=7)
OTHER = rdrop.stream_keys(jax.random.key(9))


def draw(dropout, time=None, batch=BATCH, **place):
    return rdrop.draw(dropout, KEYS.replace(**place), SIZES, batch, time)


def noise_at(names, rate=0.5, gates="shared", **options):
    """The same noise at some sites; gates may differ only if several read the site."""
    kind = functools.partial(Bernoulli, rate, **options)
    each = {name: gates if SITES[name].per_gate else "shared" for name in names}
    return Dropout(**{name: kind(gates=gates) for name, gates in each.items()})


def at(masks, names):
    return [getattr(masks, name) for name in names]


def test_switching_sites_or_their_options_changes_no_other_mask():
    every = draw(noise_at(USED))
    for name in USED:
        others = [other for other in USED if other != name]
        without = draw(noise_at(USED).replace(**{name: None}))
        chex.assert_trees_all_equal(at(without, others), at(every, others))
        alone = Masks(**{name: getattr(every, name)})
        chex.assert_trees_all_equal(draw(noise_at([name])), alone)
        changed = {name: Bernoulli(0.9, batch="shared", scale="expectation")}
        other = draw(noise_at(USED).replace(**changed))
        chex.assert_trees_all_equal(at(other, others), at(every, others))


def test_sites_streams_layers_directions_and_seeds_differ():
    """Of all sites, no two masks begin with the same 50 units."""
    places = [
        {},
        {"layer": 1},
        {"direction": "backward"},
        {"inputs": OTHER.inputs, "recurrent": OTHER.recurrent},
    ]
    dropout = Dropout(
        **{
            name: DropConnect(0.5) if site.on_weights else Bernoulli(0.5)
            for name, site in SITES.items()
        }
    )
    drawn = jax.tree.leaves([draw(dropout, **place) for place in places])
    masks = [np.asarray(mask).ravel()[:UNITS].tobytes() for mask in drawn]
    assert len(set(masks)) == len(places) * len(SITES)


def test_a_stream_feeds_the_sites_of_its_direction_only():
    before = draw(noise_at(USED))
    for stream in ("inputs", "recurrent"):
        after = draw(noise_at(USED), **{stream: getattr(OTHER, stream)})
        for name in USED:
            same = (getattr(before, name) == getattr(after, name)).all()
            assert same == (SITES[name].stream != stream)


def test_padding_batch_or_time_keeps_masks_and_steps_draw_what_sequences_do():
    dropout = noise_at(("inputs", "update"), per="step", gates="each")

    @jax.jit
    def masks():
        steps = jax.vmap(lambda t: draw(dropout, step=t))(jnp.int32([3, 4, 5, 6, 7]))
        longer, wider = draw(dropout, 8, step=3), draw(dropout, 5, batch=9, step=3)
        return draw(dropout, 5, step=3), steps, longer, wider

    whole, steps, longer, wider = masks()
    chex.assert_trees_all_equal(steps, whole)
    chex.assert_trees_all_equal(jax.tree.map(lambda mask: mask[:5], longer), whole)
    chex.assert_trees_all_equal(jax.tree.map(lambda mask: mask[:, :4], wider), whole)
    for mask in jax.tree.leaves(whole):
        assert len({np.asarray(row).tobytes() for row in mask}) == 5


def test_held_masks_do_not_depend_on_the_step():
    held = noise_at(USED)
    chex.assert_trees_all_equal(draw(held, 5), draw(held, 5, step=100), draw(held))


def test_gates_and_batch_are_drawn_apart_or_shared():
    each = draw(noise_at(USED, gates="each"))
    for mask in (each.inputs, each.recurrent):
        assert mask.shape == (BATCH, 4, UNITS)
        rows = np.asarray(mask).reshape(-1, UNITS)
        assert len({row.tobytes() for row in rows}) == BATCH * 4
    shared = draw(noise_at(USED, batch="shared"))
    assert [mask.shape for mask in jax.tree.leaves(shared)] == [(1, 1, UNITS)] * 4


def test_expected_has_a_factor_only_for_the_expectation_scale():
    noise = Bernoulli(0.25, scale="expectation")
    factors = Dropout(inputs=Bernoulli(0.5), update=noise).expected()
    expected = Masks(update=np.full((1, 1, 1), 0.75, np.float32))
    chex.assert_trees_all_equal(factors, expected)


def test_schedules_are_resolved_by_a_traced_step():
    ramp = Dropout(inputs=Bernoulli(optax.linear_schedule(0.0, 1.0, 2)))
    program = traced_once(lambda dropout, step: draw(dropout.at(step)).inputs)
    plain = jax.jit(lambda rate: draw(Dropout(inputs=Bernoulli(rate))).inputs)
    for step, rate in ((0, 0.0), (1, 0.5), (2, 1.0)):
        np.testing.assert_array_equal(program(ramp, step), plain(rate))
    with pytest.raises(ValueError, match=r"`rate` is a schedule.*`dropout.at\(step\)`"):
        draw(ramp)


def test_keys_are_checked_once_per_call(monkeypatch):
    checked = []
    monkeypatch.setattr(rdrop.dropout, "check_keys", checked.append)
    for call in (rdrop.draw, resolve):
        call(Dropout(), KEYS, SIZES, BATCH)
    assert checked == [KEYS, KEYS]


# Wrong noise

MULTIPLIER = "Bernoulli(rate) or Gaussian(rate) or Concrete(rate)"
STATE = f"Zoneout(rate) or {MULTIPLIER} or Additive(rate)"
WEIGHTS = "DropConnect(rate) or WeightNoise(rate)"
TAKES = {  # each site, the kinds in its message, and some that it does not take
    "inputs": (MULTIPLIER, Zoneout(0.5)),
    "outputs": (MULTIPLIER, DropConnect(0.5)),
    "input_weights": (WEIGHTS, Bernoulli(0.5), Concrete(0.5)),
    "recurrent": (MULTIPLIER, Zoneout(0.5)),
    "update": (MULTIPLIER, DropConnect(0.5)),
    "gates": (MULTIPLIER, Zoneout(0.5)),
    "cell_state": (STATE, DropConnect(0.5)),
    "hidden_state": (STATE, DropConnect(0.5)),
    "recurrent_weights": (WEIGHTS, Gaussian(0.5), Concrete(0.5)),
}


def message_of(error, function, *args, **kwargs):
    with pytest.raises(error) as raised:
        function(*args, **kwargs)
    return str(raised.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", TAKES)
def test_noise_that_a_site_does_not_take_is_rejected(name):
    """Bare numbers, text, modules, classes, functions, and kinds without a meaning."""
    takes, *other_kinds = TAKES[name]
    usual = takes.split("(")[0]
    module = flax.linen.Dropout(0.5)
    values = [
        (value, repr(value) + ".") for value in (True, np.ones(3), "0.5", *other_kinds)
    ]
    values += [(jnp.ones(3), repr(jnp.ones(3)) + ".")]
    values += [(rate, f"{rate}. Write {name}={usual}({rate}).") for rate in (0.5, 0)]
    values += [
        (module, "flax.linen.stochastic.Dropout."),
        (Bernoulli, "the class Bernoulli."),
        (optax.constant_schedule(0.5), "a function."),
    ]
    for value, got in values:
        message = message_of(TypeError, Dropout, **{name: value})
        assert message == f"Site `{name}` takes {takes}, got {got}"


@pytest.mark.usefixtures("unchecked")
def test_names_that_are_not_sites_are_rejected_with_advice():
    noise = Bernoulli(0.5)
    names = f"The sites are {', '.join(SITES)}."
    for name, advice in {
        "recurrent_dropout": "is the site `recurrent`: Dropout(recurrent=Bernoulli(",
        "dropout": "is the site `inputs`: Dropout(inputs=Bernoulli(rate)).",
        "recurent": f"Did you mean `recurrent`? {names}",
        "zzz": f"`Dropout` does not have a site `zzz`. {names}",
    }.items():
        message = message_of(TypeError, Dropout, **{name: 0.5})
        assert advice in message
        assert message == message_of(TypeError, Dropout().replace, **{name: noise})
    assert "presets.keras(" in message_of(TypeError, Dropout, recurrent_dropout=0.5)
    assert "`Masks` does not have a site" in message_of(TypeError, Masks, zzz=None)
    for kind in (Dropout, Masks):
        message = message_of(TypeError, kind, 0.5)
        assert f"by name, for example {kind.__name__}(inputs=...), got 0.5" in message


CELLS = {
    "SimpleCell": {"update", "gates", "cell_state"},
    "GRUCell": {"cell_state"},
    "MinGRUCell": {"recurrent", "cell_state", "recurrent_weights"},
    "MinLSTMCell": {"recurrent", "cell_state", "recurrent_weights"},
    "RGLRUCell": {"recurrent", "cell_state", "recurrent_weights"},
    "LRUCell": {"recurrent", "gates", "hidden_state", "recurrent_weights"},
    "S5Cell": {"recurrent", "gates", "hidden_state", "recurrent_weights"},
    "SLSTMCell": set(),
    "LSTMCell": set(),
    "LayerNormLSTMCell": set(),
}


@pytest.mark.parametrize("name", CELLS)
def test_sites_that_a_cell_lacks_are_rejected_by_name(name):
    sites = getattr(rdrop, name)(3).sites(2)
    assert set(SITES) - set(sites) == CELLS[name]
    for site in CELLS[name]:
        kind = DropConnect if SITES[site].on_weights else Bernoulli
        message = f"Site `{site}` does not exist in this cell; it has inputs, outputs, "
        for keys in (KEYS, None):
            with pytest.raises(ValueError, match=message):
                resolve(Dropout(**{site: kind(0.5)}), keys, sites, 4)
        with pytest.raises(ValueError, match=message):
            resolve(Masks(**{site: jnp.ones((4, 1, 3))}), None, sites, 4)


@pytest.mark.parametrize("name", [n for n, site in SITES.items() if not site.per_gate])
def test_gates_cannot_differ_at_a_site_that_no_two_gates_read(name):
    message = f'Site `{name}`: `gates` must be "shared".*, got "each"'
    with pytest.raises(ValueError, match=message):
        draw(Dropout(**{name: Bernoulli(0.5, gates="each")}))


@pytest.mark.parametrize("name", USED)
def test_rates_that_do_not_fit_the_site_are_rejected(name):
    message = (
        rf"Site `{name}`: `rate` must broadcast to the mask's axes \(4, 1, 50\), "
        r"got shape \(7,\)"
    )
    with pytest.raises(ValueError, match=message):
        draw(Dropout(**{name: Bernoulli(jnp.zeros(7))}))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("keys", "got"),
    [(jax.random.key(0), r"jax\.\S+"), (3, "3"), (None, "None")],
)
def test_keys_that_are_not_stream_keys_are_rejected(keys, got):
    message = rf"`keys` must be StreamKeys, made by rdrop.stream_keys\(key\), got {got}"
    with pytest.raises(TypeError, match=message):
        rdrop.draw(Dropout(inputs=Bernoulli(0.5)), keys, SIZES, 4)


# Masks in place of a Dropout


@pytest.mark.parametrize("name", SITES)
def test_masks_of_a_wrong_shape_are_rejected_with_the_right_one(name):
    shape, weights = SHAPES[name], SITES[name].on_weights
    axes = "(R, G, U)" if weights else "(B, G, U)"
    steps = "" if weights else f", or (T, B, G, U) = {(5, *shape)}"
    expected = f"`masks.{name}` must have shape {axes} = {shape}{steps}, got "
    wrong = [(7, *shape[1:]), shape[1:], (*shape[:2], 7), (6, *shape), (1, *shape)]
    for got in (*wrong, *([(5, *shape)] if weights else [])):
        with pytest.raises(ValueError, match=re.escape(f"{expected}{got}. Each of ")):
            resolve(masks_at(name, got), None, SIZES, BATCH, 5)
    if not weights:
        assert resolve(masks_at(name, (5, *shape)), None, SIZES, BATCH, 5)
        with pytest.raises(ValueError, match=re.escape(f"{shape}, got (5, ")):
            resolve(masks_at(name, (5, *shape)), None, SIZES, BATCH)
    for right in (shape, (1, *shape[1:]), (1, 1, 1)):
        assert resolve(masks_at(name, right), None, SIZES, BATCH, 5)


def masks_at(name, shape):
    mask = np.ones(shape, np.float32)
    return Masks(**{name: Mix(mask) if "zoneout" in SITES[name].kinds else mask})


def test_masks_with_keys_and_a_mix_at_a_multiplied_site_are_rejected():
    with pytest.raises(ValueError, match="`keys` must be None if `dropout` is Masks"):
        resolve(Masks(), KEYS, SIZES, BATCH)
    mix = Masks(inputs=Mix(np.ones((1, 1, 1), np.float32)))
    with pytest.raises(TypeError, match=r"`masks.inputs` must be an array, got a Mix"):
        resolve(mix, None, SIZES, BATCH)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (0.5, "0.5"),
        (flax.linen.Dropout(0.5), "flax.linen.stochastic.Dropout"),
        (Bernoulli(0.5), "rdrop.noise.kinds.Bernoulli"),
    ],
)
def test_values_that_are_neither_dropout_nor_masks_are_rejected(value, got):
    message = f"`dropout` must be an rdrop.Dropout, rdrop.Masks or None, got {got}."
    assert message_of(TypeError, resolve, value, KEYS, SIZES, BATCH) == message
