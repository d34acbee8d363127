"""A `Dropout` survives a round trip through text."""

import json
import sys
import tomllib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rdrop
from rdrop import Bernoulli, Concrete, DropConnect, Dropout, Gaussian, Zoneout, presets
from rdrop import serialisation as written
from rdrop.noise import KINDS_BY_NAME, Block, Drift
from rdrop.sites import SITES

WORDS = {
    "per": ("sequence", "step", Drift(0.1), Block(3)),
    "gates": ("shared", "each"),
    "batch": ("each", "shared"),
    "units": ("each", "shared"),
    "scale": ("inverted", "expectation"),
    "by": ("weight", "row"),
}
EVERYTHING = Dropout(
    inputs=Bernoulli(0.1, gates="each"),
    outputs=Gaussian(0.2, per=Drift(0.25)),
    input_weights=DropConnect(0.3, by="row"),
    recurrent=Concrete(0.4, temperature=0.5),
    update=Bernoulli(1, per="step", scale="expectation"),
    gates=Bernoulli(0, units="shared"),
    cell_state=Zoneout(0.5),
    hidden_state=Zoneout(0.6, per="sequence", batch="shared"),
    recurrent_weights=DropConnect(0.7),
)
SHARED = {"gates": "shared", "batch": "each"}
AS_DATA = {
    "inputs": {
        "kind": "bernoulli", "rate": 0.1, "per": "sequence", "gates": "each",
        "batch": "each", "scale": "inverted",
    },
    "outputs": {"kind": "gaussian", "rate": 0.2, "per": {"drift": 0.25}} | SHARED,
    "input_weights": {"kind": "dropconnect", "rate": 0.3, "by": "row"},
    "recurrent": {
        "kind": "concrete", "rate": 0.4, "per": "sequence", "temperature": 0.5,
    } | SHARED,
    "update": {
        "kind": "bernoulli", "rate": 1, "per": "step", "scale": "expectation",
    } | SHARED,
    "gates": {
        "kind": "bernoulli", "rate": 0, "per": "sequence", "units": "shared",
        "scale": "inverted",
    } | SHARED,
    "cell_state": {"kind": "zoneout", "rate": 0.5, "per": "step"} | SHARED,
    "hidden_state": {
        "kind": "zoneout", "rate": 0.6, "per": "sequence", "gates": "shared",
        "batch": "shared",
    },
    "recurrent_weights": {"kind": "dropconnect", "rate": 0.7, "by": "weight"},
}  # fmt: skip
PRESETS = (
    presets.keras(0.1, 0.2),
    presets.zoneout(0.1, 0.2),
    presets.moon(0.3),
    presets.cheng(0.3),
    presets.awd(0.1, 0.2, 0.3, 0.4, layers=2),
    presets.torch(0.5, layers=3),
)


def through_toml(dropout):
    pytest.importorskip("tomli_w")
    return written.from_toml(written.to_toml(dropout))


def through_json(dropout):
    return written.from_json(written.to_json(dropout))


through = pytest.mark.parametrize("back", [through_json, through_toml])


@through
@pytest.mark.parametrize("dropout", PRESETS)
def test_presets_come_back(back, dropout):
    assert back(dropout) == dropout


@through
@pytest.mark.parametrize(
    ("site", "name"), [(site, kind) for site in SITES for kind in SITES[site].kinds]
)
def test_every_option_of_every_kind_comes_back(back, site, name):
    kind = KINDS_BY_NAME[name]
    for option in WORDS.keys() & kind.__dataclass_fields__.keys():
        for word in WORDS[option]:
            dropout = Dropout(**{site: kind(0.1, **{option: word})})
            assert back(dropout) == dropout


def test_plain_data_are_those_written_out():
    """Every site and kind, in the order of the fields that docstrings give."""
    assert written.to_dict(EVERYTHING) == AS_DATA
    assert json.loads(written.to_json(EVERYTHING)) == AS_DATA
    assert written.from_dict(AS_DATA) == EVERYTHING
    assert set(AS_DATA) == set(SITES)


def test_toml_is_that_of_another_reader():
    pytest.importorskip("tomli_w")
    assert tomllib.loads(written.to_toml(EVERYTHING)) == AS_DATA


def test_a_drift_is_a_table_in_a_line():
    assert written.from_toml("inputs = {rate = 0.5, per = {drift = 0.1}}") == Dropout(
        inputs=Bernoulli(0.5, per=Drift(0.1))
    )


def test_layers_are_an_array_of_tables():
    pytest.importorskip("tomli_w")
    text = written.to_toml(presets.awd(0.1, 0.2, 0.3, 0.4, layers=2))
    assert text.count("[[layers]]") == 2
    assert written.from_toml("[[layers]]\n[[layers]]") == (Dropout(), Dropout())
    assert written.from_json('{"layers": []}') == ()


@pytest.mark.parametrize("site", SITES)
def test_a_kind_left_out_is_the_usual_one_of_its_site(site):
    usual = KINDS_BY_NAME[SITES[site].kinds[0]]
    expected = Dropout(**{site: usual(0.5)})
    assert written.from_dict({site: {"rate": 0.5}}) == expected
    named = {"kind": SITES[site].kinds[0], "rate": 0.5}
    assert written.from_dict({site: named}) == expected


@through
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_arrays_come_back_bitwise(rng, back, kind):
    rates = rng.uniform(size=(2, 3, 5)).astype(np.float32)
    rates[0, 0] = 0, 1, 1e-30, 1e-45, np.nextafter(np.float32(1), np.float32(0))
    dropout = Dropout(
        inputs=Bernoulli(kind(rates), per=Drift(kind(rates[0]))),
        recurrent=Concrete(kind(rates[0, 1]), temperature=kind(rates[1] + 1)),
        recurrent_weights=DropConnect(kind(rates[:, :1])),
    )
    again = back(dropout)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(again))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: leaf.view(np.int32), again),
        jax.tree.map(lambda leaf: np.asarray(leaf).view(np.int32), dropout),
    )


@through
@pytest.mark.parametrize(
    "rate",
    [
        np.float32(0.3), np.float64(0.3), jnp.float32(0.3), jnp.bfloat16(0.3),
        np.array(0.3), np.array([0.1, 0.7]), np.array([0, 1]), True,
    ],
    ids=repr,
)  # fmt: skip
def test_other_rates_come_back_as_masks_are_drawn(back, rate):
    again = back(Dropout(recurrent=Bernoulli(rate))).recurrent.rate
    assert np.asarray(again, np.float32).tobytes() == np.float32(rate).tobytes()
    assert np.shape(again) == np.shape(rate)
    assert isinstance(again, np.ndarray if np.ndim(rate) else float)


def test_python_numbers_are_kept():
    for rate in (0, 1, 0.1, 1 / 3, 5e-324):
        again = through_json(Dropout(recurrent=Bernoulli(rate))).recurrent.rate
        assert (type(again), again) == (type(rate), rate)


def test_a_schedule_is_rejected_until_its_step_is_known():
    dropout = Dropout(cell_state=Zoneout(optax.linear_schedule(0.0, 0.5, 10)))
    message = r"Site `cell_state`: `rate` is a schedule; resolve it with `dropout.at"
    with pytest.raises(ValueError, match=message):
        written.to_json(dropout)
    assert through_json(dropout.at(5)) == Dropout(cell_state=Zoneout(0.25))


def test_a_tracer_is_rejected():
    trace = jax.jit(lambda rate: written.to_json(Dropout(inputs=Bernoulli(rate))))
    with pytest.raises(ValueError, match=r"Site `inputs`: `rate` is a tracer"):
        trace(0.5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (jnp.float32(jnp.nan), ValueError, "`inputs`: `rate` must be finite, got nan"),
        (None, TypeError, "`rate` must be a number or an array, got None"),
    ],
)
def test_a_rate_that_is_not_a_number_is_rejected(rate, error, message):
    """As it may be in a pytree that JAX rebuilt, which is not checked."""
    with pytest.raises(error, match=message):
        written.to_dict(jax.tree.map(lambda _: rate, Dropout(inputs=Bernoulli(0.5))))


@pytest.mark.usefixtures("unchecked")
def test_another_object_is_rejected():
    with pytest.raises(TypeError, match=r"`dropout` must be a Dropout, or .* got None"):
        written.to_dict(None)
    with pytest.raises(TypeError, match=r"layers\[1\]: must be a Dropout, got None"):
        written.to_dict((Dropout(), None))
    with pytest.raises(TypeError, match=r"`inputs`: the noise must be .* got object"):
        written.to_dict(Dropout(inputs=object()))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "`text` must be JSON: "),
        ("[]", TypeError, r"`data` must be a table, got \[\]"),
        ('{"memory": {}}', ValueError, "unknown site 'memory'; expected .* inputs, ou"),
        ('{"inputs": null}', TypeError, "Site `inputs`: the noise must be a table"),
        ('{"inputs": {"per": "step"}}', ValueError, "`inputs`: `rate` is missing"),
        (
            '{"inputs": {"kind": ["x"], "rate": 0}}', ValueError,
            r"Site `inputs`: `kind` must be one of bernoulli, .*, got \['x'\]",
        ),
        (
            '{"inputs": {"kind": "gaussian", "rate": 0, "scale": "inverted"}}',
            ValueError,
            'unknown option `scale` of kind "gaussian"; expected one of rate, per, ga',
        ),
        ('{"inputs": {"rate": 0, "per": ["step"]}}', TypeError, "`inputs`: `per` must"),
        ('{"inputs": {"rate": 0, "per": "year"}}', ValueError, "`per` must .*'year'"),
        ('{"inputs": {"rate": 0, "per": {"drift": 2}}}', ValueError, r"in \[0, 1\]"),
        ('{"inputs": {"rate": 0, "per": {"drit": 1}}}', TypeError, "`per` must be"),
        ('{"inputs": {"rate": 0, "drift": 0}}', ValueError, "unknown option `drift`"),
        ('{"inputs": {"rate": 2}}', ValueError, r"`inputs`: `rate` must lie in \[0, 1"),
        ('{"inputs": {"rate": [2]}}', ValueError, r"`rate` must lie in \[0, 1\]"),
        ('{"inputs": {"rate": NaN}}', ValueError, r"`rate` must lie in \[0, 1\]"),
        ('{"inputs": {"rate": "0.5"}}', TypeError, "`rate` must be a number, "),
        ('{"inputs": {"rate": ["0"]}}', TypeError, "`rate` must be a word, a number,"),
        ('{"inputs": {"rate": [0, [1]]}}', TypeError, "must be .* form an array"),
        ('{"inputs": {"rate": true}}', TypeError, "`rate` must be .*, got True"),
        ('{"inputs": {"kind": "zoneout", "rate": 0}}', TypeError, "`inputs` takes"),
        ('{"layers": [], "gates": {}}', ValueError, "`layers` must stand alone"),
        ('{"layers": {}}', TypeError, r"`layers` must be a list of tables"),
        ('{"layers": [{}, 1]}', TypeError, r"layers\[1\]: a layer must be a table"),
        (
            '{"layers": [{"inputs": {"rate": 2}}]}', ValueError,
            r"layers\[0\]: Site `inputs`: `rate` must lie in",
        ),
    ],
)  # fmt: skip
def test_other_text_is_rejected(text, error, message):
    with pytest.raises(error, match=message):
        written.from_json(text)


def test_text_that_is_not_toml_is_rejected():
    with pytest.raises(ValueError, match=r"`text` must be TOML: Invalid value"):
        written.from_toml("recurrent = ")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    with pytest.raises(ImportError, match=r"tomli-w .* pip install '\.\[interop\]'"):
        written.to_toml(rdrop.Dropout())
