"""Each preset is the value that its docstring describes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import traced_once

import rdrop
from rdrop import Bernoulli, DropConnect, Dropout, Zoneout, presets


def held(rate, **options):
    return Bernoulli(rate, per="sequence", **options)


def per_step(rate, **options):
    return Bernoulli(rate, per="step", **options)


CHENG = Bernoulli(
    0.1, per="step", gates="each", batch="each", units="shared", scale="expectation"
)
EXPECTED = [  # each preset, and the value written out
    (presets.pham(0.1), Dropout(outputs=per_step(0.1, scale="expectation"))),
    (presets.zaremba(0.1), Dropout(inputs=per_step(0.1), outputs=per_step(0.1))),
    (
        presets.zaremba(0.1, layers=2),
        (
            Dropout(inputs=per_step(0.1)),
            Dropout(inputs=per_step(0.1), outputs=per_step(0.1)),
        ),
    ),
    (presets.gal(0.1, 0.2), Dropout(inputs=held(0.1), recurrent=held(0.2))),
    (
        presets.gal(0.1, 0.2, 0.3, tied=False),
        Dropout(
            inputs=held(0.1, gates="each"),
            outputs=held(0.3),
            recurrent=held(0.2, gates="each"),
        ),
    ),
    (
        presets.gal(0.1, 0.2, 0.3, layers=2),
        (
            Dropout(inputs=held(0.1), recurrent=held(0.2)),
            Dropout(inputs=held(0.1), outputs=held(0.3), recurrent=held(0.2)),
        ),
    ),
    (presets.semeniuta(0.1), Dropout(update=per_step(0.1, scale="expectation"))),
    (
        presets.semeniuta(0.1, per="sequence"),
        Dropout(update=held(0.1, scale="expectation")),
    ),
    (presets.moon(0.1), Dropout(cell_state=held(0.1, scale="expectation"))),
    (
        presets.zoneout(0.1, 0.2),
        Dropout(
            cell_state=Zoneout(0.1, per="step"), hidden_state=Zoneout(0.2, per="step")
        ),
    ),
    (
        presets.awd(0.1, 0.2, 0.3, 0.4),
        Dropout(
            inputs=held(0.2), outputs=held(0.4), recurrent_weights=DropConnect(0.1)
        ),
    ),
    (
        presets.awd(0.1, 0.2, 0.3, 0.4, layers=3),
        (
            Dropout(inputs=held(0.2), recurrent_weights=DropConnect(0.1, by="weight")),
            Dropout(inputs=held(0.3), recurrent_weights=DropConnect(0.1, by="weight")),
            Dropout(
                inputs=held(0.3),
                outputs=held(0.4),
                recurrent_weights=DropConnect(0.1, by="weight"),
            ),
        ),
    ),
    (presets.cheng(0.1), Dropout(gates=CHENG)),
    (
        presets.melis(0.1, 0.2, 0.3, 0.4),
        Dropout(inputs=per_step(0.1), outputs=per_step(0.4), recurrent=held(0.2)),
    ),
    (
        presets.melis(0.1, 0.2, 0.3, 0.4, layers=3),
        (
            Dropout(inputs=per_step(0.1), recurrent=held(0.2)),
            Dropout(inputs=per_step(0.3), recurrent=held(0.2)),
            Dropout(inputs=per_step(0.3), outputs=per_step(0.4), recurrent=held(0.2)),
        ),
    ),
    (presets.keras(0.1), Dropout(inputs=held(0.1))),
    (presets.keras(0.1, 0), Dropout(inputs=held(0.1))),
    (
        presets.keras(0.1, 0.2),
        Dropout(inputs=held(0.1, gates="each"), recurrent=held(0.2, gates="each")),
    ),
    (
        presets.keras3_0(0.1, 0.2),
        Dropout(inputs=held(0.1), hidden_state=held(0.2)),
    ),
    (presets.keras2_fused(0.1), Dropout(inputs=per_step(0.1))),
    (
        presets.keras2(0.1, 0.2),
        Dropout(inputs=held(0.1, gates="each"), recurrent=held(0.2, gates="each")),
    ),
    (
        presets.tf1_variational(0.1, 0.2, 0.3),
        Dropout(
            inputs=held(0.1, batch="shared"),
            outputs=held(0.3, batch="shared"),
            hidden_state=held(0.2, batch="shared"),
        ),
    ),
    (presets.tf1_layernorm(0.1), Dropout(update=per_step(0.1))),
    (presets.torch(0.1), (Dropout(), Dropout(inputs=per_step(0.1)))),
    (presets.torch(0.1, layers=1), Dropout()),
    (
        presets.torch(0.1, layers=3),
        (Dropout(), Dropout(inputs=per_step(0.1)), Dropout(inputs=per_step(0.1))),
    ),
    (presets.allennlp(0.1), Dropout(recurrent=held(0.1))),
    (
        presets.haste(0.1, 0.2),
        Dropout(
            recurrent_weights=DropConnect(0.1, by="weight"),
            hidden_state=Zoneout(0.2, per="step"),
        ),
    ),
    (
        presets.lamb(0.1, 0.2, 0.3, 0.4, layers=2),
        (
            Dropout(inputs=per_step(0.1), recurrent=held(0.2)),
            Dropout(inputs=per_step(0.3), outputs=per_step(0.4), recurrent=held(0.2)),
        ),
    ),
    (
        presets.lamb(0.1, 0.2, 0.3, 0.4, shared_mask=True, layers=2),
        (
            Dropout(inputs=held(0.1), recurrent=held(0.2)),
            Dropout(inputs=held(0.3), outputs=held(0.4), recurrent=held(0.2)),
        ),
    ),
]
RATES = {  # every preset, and how many rates it takes
    "pham": 1, "zaremba": 1, "gal": 3, "semeniuta": 1, "moon": 1, "zoneout": 2,
    "awd": 4, "cheng": 1, "melis": 4, "keras": 2, "keras2_fused": 1, "keras2": 2,
    "keras3_0": 2, "tf1_variational": 3, "tf1_layernorm": 1, "torch": 1,
    "allennlp": 1, "haste": 2, "lamb": 4,
}  # fmt: skip
STACKED = ("zaremba", "gal", "awd", "melis", "torch", "lamb")


@pytest.mark.parametrize(("actual", "expected"), EXPECTED)
def test_preset_is_the_value_written_out(actual, expected):
    assert actual == expected


@pytest.mark.parametrize("name", RATES)
def test_defaults_of_the_kinds_are_as_the_table_above_assumes(name):
    for noise in noises(getattr(presets, name)(*[0.5] * RATES[name])):
        if isinstance(noise, (Bernoulli, Zoneout)):
            assert noise.batch == ("shared" if name == "tf1_variational" else "each")
            assert noise.units == ("shared" if name == "cheng" else "each")
        if isinstance(noise, Bernoulli):
            expectation = name in ("pham", "semeniuta", "moon", "cheng")
            assert noise.scale == ("expectation" if expectation else "inverted")


def layers_of(preset):
    return preset if isinstance(preset, tuple) else (preset,)


def noises(preset):
    return [noise for layer in layers_of(preset) for _, noise in layer.sites()]


@pytest.mark.parametrize("name", RATES)
def test_rates_may_be_arrays_tracers_or_schedules(name):
    preset, count = getattr(presets, name), RATES[name]
    structure = jax.tree.structure(preset(*[jnp.float32(0.5)] * count))
    program = traced_once(lambda rates: preset(*rates))
    for rate in (0.0, 0.3, 1.0):
        traced = program([rate] * count)
        assert jax.tree.structure(traced) == structure
        assert all(leaf == np.float32(rate) for leaf in jax.tree.leaves(traced))
    ramps = layers_of(preset(*[optax.linear_schedule(0.0, 0.5, 10)] * count))
    assert jax.tree.leaves(ramps) == []
    resolved = jax.tree.leaves([layer.at(5) for layer in ramps])
    assert all(rate == 0.25 for rate in resolved)


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("layers", [0, -1])
def test_stack_of_no_layers_is_rejected(name, layers):
    message = f"`layers` must be at least 1, got {layers}"
    with pytest.raises(ValueError, match=message):
        getattr(presets, name)(*[0.5] * RATES[name], layers=layers)


@pytest.mark.parametrize("name", STACKED)
def test_layers_above_one_give_one_dropout_each(name):
    assert isinstance(getattr(presets, name)(*[0.5] * RATES[name], layers=1), Dropout)
    for layers in (2, 4):
        stack = getattr(presets, name)(*[0.5] * RATES[name], layers=layers)
        assert isinstance(stack, tuple)
        assert [type(layer) for layer in stack] == [Dropout] * layers


@pytest.mark.parametrize("zero", [0, 0.0, False])
def test_keras_shares_the_gates_if_recurrent_dropout_is_a_python_zero(zero):
    assert presets.keras(0.5, zero) == Dropout(inputs=Bernoulli(0.5))


@pytest.mark.parametrize(
    "rate", [1e-9, 1.0, np.zeros(()), jnp.zeros(()), optax.constant_schedule(0.0)]
)
def test_keras_gives_each_gate_its_mask_otherwise(rate):
    """The structure of a rate that is data must not depend on its value."""
    dropout = presets.keras(0.5, rate)
    assert (dropout.inputs.gates, dropout.recurrent.gates) == ("each", "each")


def test_keras_traced_zero_is_data():
    traced = jax.jit(lambda rate: presets.keras(0.5, rate))(0.0)
    assert traced.recurrent.gates == "each"


def gru_of_keras_3_7(params, xs, mask_x, mask_h):
    """The outputs of `GRUCell.call` of Keras 3.7.0, in NumPy."""
    ys = []
    h = np.zeros_like(mask_h)
    for x in np.moveaxis(xs, 1, 0):
        h = h * mask_h
        x_z, x_r, x_n = np.split(
            (x * mask_x) @ params["kernel"] + params["bias"], 3, -1
        )
        h_z, h_r, h_n = np.split(h @ params["recurrent_kernel"], 3, -1)
        z, r = (1 / (1 + np.exp(-a)) for a in (x_z + h_z, x_r + h_r))
        n = np.tanh(x_n + r * (h_n + params["recurrent_bias"]))
        h = z * h + (1 - z) * n
        ys.append(h)
    return np.stack(ys, 1)


def test_keras3_0_is_the_gru_of_keras_3_7(rng):
    batch, time, features, units = 4, 6, 3, 5
    gru = rdrop.RNN(rdrop.GRUCell(units, param_dtype=jnp.float64))
    xs = rng.normal(size=(batch, time, features))
    shapes = jax.eval_shape(gru.init, jax.random.key(0), jnp.asarray(xs))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)
    masks = rdrop.draw(
        presets.keras3_0(0.3, 0.4),
        rdrop.stream_keys(jax.random.key(0)),
        gru.cell.sites(features),
        batch,
    )
    mask_x, mask_h = (np.float64(m[:, 0]) for m in (masks.inputs, masks.hidden_state))
    assert set(mask_h.ravel()) == {0, np.float32(1 / 0.6)}
    _, actual = gru.apply(params, jnp.asarray(xs), masks)
    weights = jax.tree.map(np.asarray, params["params"])
    expected = gru_of_keras_3_7(weights, xs, mask_x, mask_h)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_rate_outside_the_unit_interval_is_rejected():
    for name, count in RATES.items():
        with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\], got 1.5"):
            getattr(presets, name)(*[1.5] * count)


def test_table_has_one_row_for_each_site_of_each_preset():
    expected = [
        (name, site)
        for name, example in presets.EXAMPLES.items()
        for site in sites_of(example())
    ]
    rows = [(row.preset, row.site.split("`")[1]) for row in presets.rows()]
    assert sorted(rows) == sorted(expected)
    assert len(set(rows)) == len(rows)
    lines = presets.table().splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {len(presets.Row._fields) + 1}


def sites_of(preset):
    return {site for layer in layers_of(preset) for site, _ in layer.sites()}


def test_table_shows_every_preset():
    assert {name.split(" ")[0] for name in presets.EXAMPLES} == set(RATES)


@pytest.mark.parametrize(
    "row",
    [
        "| zaremba | ↑ y | `outputs`, last layer | 0 or 1 / (1 - rate) | step | - "
        "| each | nothing |",
        "| gal (untied) | → h into U | `recurrent` | 0 or 1 / (1 - rate) | sequence "
        "| each | each | nothing |",
        "| semeniuta | → g into c | `update` | 0 or 1 | step | - | each "
        "| times 1 - rate |",
        "| zoneout | → c | `cell_state` | old or new | step | - | each "
        "| mixes with the rate |",
        "| cheng | → i, f, o | `gates` | 0 or 1 | step | one number each | each "
        "| times 1 - rate |",
        "| haste | → U | `recurrent_weights` | 0 or 1 / (1 - rate) | sequence | - "
        "| shared | nothing |",
        "| tf1_variational | → h carried over | `hidden_state` | 0 or 1 / (1 - rate) "
        "| sequence | - | shared | nothing |",
        "| torch | ↑ x into W | `inputs`, above the first | 0 or 1 / (1 - rate) "
        "| step | shared | each | nothing |",
    ],
)
def test_table_says_what_each_kind_of_noise_does(row):
    assert row in presets.table().splitlines()


def test_presets_draw_for_an_lstm():
    sites, keys = rdrop.LSTMCell(4).sites(4), rdrop.stream_keys(jax.random.key(0))

    def masks():
        presets_ = (example() for example in presets.EXAMPLES.values())
        layers = [layer for preset in presets_ for layer in layers_of(preset)]
        return [rdrop.draw(layer, keys, sites, 2, 3) for layer in layers]

    assert jax.tree.leaves(jax.eval_shape(masks))


def test_a_stack_takes_one_dropout_per_layer():
    xs = jnp.ones((2, 3, 4), jnp.float32)
    stack = rdrop.Stack([rdrop.RNN(rdrop.LSTMCell(4)) for _ in range(3)])
    params = jax.eval_shape(stack.init, jax.random.key(0), xs)
    dropout, keys = presets.zaremba(0.5, layers=3), rdrop.stream_keys(jax.random.key(0))
    _, ys = jax.eval_shape(stack.apply, params, xs, dropout, keys)
    assert ys.shape == (2, 3, 4)


def test_public_names_are_the_presets_and_their_table():
    others = {"EXAMPLES", "Row", "rows", "table"}
    assert set(presets.__all__) == set(RATES) | others
