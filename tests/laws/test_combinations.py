"""Every cell, site, kind and option together: the equations', or refused by name.

What is allowed stands here in two tables that rdrop does not know of. The masks of each
allowed combination are drawn, written out in full and run by one compiled program a
cell, in reverse and with lengths. The first with masks of a given shape runs from its
keys too, forwards and not compiled: how masks are shared depends on their shape alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import random_like

import rdrop
from rdrop import (
    Add,
    Additive,
    Bernoulli,
    Concrete,
    DropConnect,
    Gaussian,
    Masks,
    Mix,
    WeightNoise,
    Zoneout,
)

pytestmark = pytest.mark.slow
TIME, BATCH, FEATURES, UNITS = 3, 2, 3, 3
RATE = 0.625  # exact in binary, and not its own complement
LENGTHS = [(3, 2), (1, 3), (0, 2)]

ON_WEIGHTS = (DropConnect, WeightNoise)
MULTIPLIERS = (Bernoulli, Gaussian, Concrete)
TAKES = {
    "inputs": MULTIPLIERS,
    "outputs": MULTIPLIERS,
    "input_weights": ON_WEIGHTS,
    "recurrent": MULTIPLIERS,
    "update": MULTIPLIERS,
    "gates": MULTIPLIERS,
    "cell_state": (*MULTIPLIERS, Zoneout, Additive),
    "hidden_state": (*MULTIPLIERS, Zoneout, Additive),
    "recurrent_weights": ON_WEIGHTS,
}
READERS = {  # how many gates read each of these sites; 0: the cell has no such site
    "lstm": (4, 1, 4, 4, 1, 3, 1, 1, 4),
    "layer_norm_lstm": (4, 1, 4, 4, 1, 3, 1, 1, 4),
    "gru_after": (3, 1, 3, 3, 1, 2, 0, 1, 3),
    "gru_before": (3, 1, 3, 3, 1, 2, 0, 1, 3),
    "simple": (1, 1, 1, 1, 0, 0, 0, 1, 1),
    "min_gru": (2, 1, 2, 0, 1, 1, 0, 1, 0),
    "min_lstm": (3, 1, 3, 0, 1, 2, 0, 1, 0),
    "rg_lru": (3, 1, 3, 0, 1, 2, 0, 1, 0),
    "lru": (1, 1, 1, 0, 1, 0, 1, 0, 0),
    "s5": (1, 1, 1, 0, 1, 0, 1, 0, 0),
    "slstm": (4, 1, 4, 4, 1, 3, 1, 1, 4),
}
COMPLEX = ("lru", "s5")
CELLS = {
    "lstm": (rdrop.LSTMCell, reference.lstm_step),
    "layer_norm_lstm": (rdrop.LayerNormLSTMCell, reference.layer_norm_lstm_step),
    "gru_after": (rdrop.GRUCell, reference.gru_after_step),
    "gru_before": (rdrop.GRUCell, reference.gru_before_step),
    "simple": (rdrop.SimpleCell, reference.simple_step),
    "min_gru": (rdrop.MinGRUCell, reference.min_gru_step),
    "min_lstm": (rdrop.MinLSTMCell, reference.min_lstm_step),
    "rg_lru": (rdrop.RGLRUCell, reference.rg_lru_step),
    "lru": (rdrop.LRUCell, reference.lru_step),
    "s5": (rdrop.S5Cell, reference.s5_step),
    "slstm": (rdrop.SLSTMCell, reference.slstm_step),
}
SYMBOLS = {"kernel": "W", "recurrent_kernel": "U", "bias": "b", "recurrent_bias": "b_n"}
every_cell = pytest.mark.parametrize("cell", READERS)
PLACES = list(itertools.product(READERS, TAKES))
COUNTS = {
    "built": 4203,
    "a kind": 6039,
    "no such site": 2031,
    "no complex noise": 24,
    "no two gates": 2256,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A cell with random parameters, a batch for it, and the equations of both."""

    cell: rdrop.Cell
    equations: Callable
    params: dict
    xs: jax.Array
    carry: tuple | jax.Array

    def run(self, dropout, keys=None, lengths=None, reverse=False):
        rnn = rdrop.RNN(self.cell, reverse=reverse)
        carry = {"initial_carry": self.carry}
        return rnn.apply(self.params, self.xs, dropout, keys, lengths=lengths, **carry)

    @functools.cached_property
    def compiled(self):
        """Runs masks in reverse and with lengths; one program for each structure."""
        return jax.jit(lambda m, n: self.run(m, lengths=n, reverse=True))

    def draw(self, dropout, keys):
        return rdrop.draw(dropout, keys, self.cell.sites(FEATURES), BATCH, TIME)

    def expect(self, masks, lengths=(TIME,) * BATCH, reverse=False):
        weights = {
            SYMBOLS.get(name, name): np.asarray(weight)
            for name, weight in self.params["params"].items()
        }
        states = [np.asarray(state) for state in jax.tree.leaves(self.carry)]
        results = []
        for n in range(BATCH):
            x, state = np.asarray(self.xs[n]), [s[n] for s in states]
            results.append(
                reference.unroll(
                    self.equations, x, state, weights, masks, n, lengths[n], reverse
                )
            )
        ys, states = zip(*results, strict=True)
        return [*map(np.stack, zip(*states, strict=True)), np.stack(ys)]


@functools.cache
def make(name):
    build, equations = CELLS[name]
    options = {"reset_after": name == "gru_after"} if name.startswith("gru") else {}
    cell = build(UNITS, param_dtype=jnp.float64, **options)
    xs = random_like(jax.ShapeDtypeStruct((BATCH, TIME, FEATURES), np.float64), 1)
    shapes = jax.eval_shape(rdrop.RNN(cell).init, jax.random.key(0), xs)
    zeros = cell.initialize_carry(jax.random.key(0), (BATCH, FEATURES))
    params, carry = random_like((shapes, zeros))
    return Setting(cell, equations, params, xs, carry)


def noises():
    """Every kind with every setting of its options."""
    lifetimes = (
        {"per": "sequence"},
        {"per": "step"},
        {"per": rdrop.Drift(0.5)},
    )
    shared = [("shared", "each")] * 3
    for lifetime, gates, batch, units in itertools.product(lifetimes, *shared):
        options = {**lifetime, "gates": gates, "batch": batch, "units": units}
        yield Bernoulli(RATE, scale="inverted", **options)
        yield Bernoulli(RATE, scale="expectation", **options)
        yield Gaussian(RATE, **options)
        yield Concrete(RATE, **options)
        yield Zoneout(RATE, **options)
        yield Additive(RATE, **options)
    yield DropConnect(RATE, by="weight")
    yield DropConnect(RATE, by="row")
    yield WeightNoise(RATE)


def readers(cell, site):
    return dict(zip(TAKES, READERS[cell], strict=True))[site]


def verdict(cell, site, noise):
    """Whether a combination is "built", or why it is not."""
    if not isinstance(noise, TAKES[site]):
        return "a kind"
    if readers(cell, site) == 0:
        return "no such site"
    several = not isinstance(noise, ON_WEIGHTS) and noise.gates == "each"
    if several and readers(cell, site) == 1:
        return "no two gates"
    if cell in COMPLEX and site == "cell_state" and isinstance(noise, Additive):
        return "no complex noise"
    return "built"


def combinations(cell, site, *verdicts):
    return [noise for noise in noises() if verdict(cell, site, noise) in verdicts]


def test_counts():
    found = {
        word: sum(len(combinations(*place, word)) for place in PLACES)
        for word in COUNTS
    }
    assert found == COUNTS
    assert (
        sum(found.values()) == len(CELLS) * 9 * 147
    )  # cells, sites; kinds with their options


def plain(masks):
    """Masks as the reference reads them, as they were drawn."""
    arrays = {}
    for site in TAKES:
        mask = getattr(masks, site)
        if isinstance(mask, Mix):
            arrays[f"zoned_{site}"] = np.float64(mask.share)
        elif isinstance(mask, Add):
            arrays[f"added_{site}"] = np.float64(mask.noise)
        elif mask is not None:
            arrays[site] = np.float64(mask)
    return arrays


def silent(masks):
    """Whether nothing happens to be masked, so that agreement would show nothing."""
    return all(
        (mask == (0 if site.startswith(("zoned", "added")) else 1)).all()
        for site, mask in plain(masks).items()
    )


def axes(cell, site):
    """The axes of a site: batch (or rows of a kernel), gates, units."""
    firsts = {"input_weights": FEATURES, "recurrent_weights": UNITS}
    units = FEATURES if site == "inputs" else UNITS
    return firsts.get(site, BATCH), readers(cell, site), units


def shape_of(cell, site, noise):
    """The shape of the masks that the options ask for."""
    first, gates, units = axes(cell, site)
    if isinstance(noise, ON_WEIGHTS):
        by = getattr(noise, "by", "weight")
        return (first if by == "weight" else 1, gates, units)
    held = (
        first if noise.batch == "each" else 1,
        gates if noise.gates == "each" else 1,
        units if noise.units == "each" else 1,
    )
    return held if noise.per == "sequence" else (TIME, *held)


def in_full(masks, cell):
    """The same masks with no shared axis, and masks of ones on the cell's other sites.

    One number a step, example, gate and unit: all are arguments of the same program.
    """

    def expand(site, mask):
        shape = axes(cell, site)
        shape = shape if site.endswith("weights") else (TIME, *shape)
        mask = jnp.float32(1) if mask is None else mask
        return jax.tree.map(lambda m: jnp.asarray(np.broadcast_to(m, shape)), mask)

    sites = [site for site in TAKES if readers(cell, site)]
    return Masks(**{site: expand(site, getattr(masks, site)) for site in sites})


@functools.cache
def draw_loudly(site, noise, size):
    """The first of a few keys whose masks are not silent, and its masks.

    Masks depend on the size of a site alone: cells that have the same share them.
    """
    dropout = rdrop.Dropout(**{site: noise})
    for seed in range(20):
        keys = rdrop.stream_keys(jax.random.key(seed)).replace(step=1)
        with jax.disable_jit():  # each noise would be a program of its own
            masks = rdrop.draw(dropout, keys, {site: size}, BATCH, TIME)
        if not silent(masks):
            return keys, masks
    raise AssertionError(f"No key masks anything: {dropout}")


def assert_equal(actual, expected, what):
    for a, b in zip(jax.tree.leaves(actual), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=what)


@every_cell
@pytest.mark.parametrize("site", TAKES)
def test_what_is_allowed_matches_the_equations(cell, site):
    setting = make(cell)
    lengths, met = itertools.cycle(LENGTHS), set()
    for noise in combinations(cell, site, "built"):
        what = f"{cell}, {site}, {noise}"
        dropout = rdrop.Dropout(**{site: noise})
        keys, masks = draw_loudly(site, noise, setting.cell.sites(FEATURES)[site])
        arrays, padded = plain(masks), next(lengths)
        ((name, array),) = arrays.items()
        assert array.shape == shape_of(cell, site, noise), what
        actual = setting.compiled(in_full(masks, cell), np.asarray(padded))
        expected = setting.expect(arrays, padded, reverse=True)
        assert_equal(actual, expected, f"{what}, written out")
        if (name, array.shape) not in met:
            met.add((name, array.shape))
            with jax.disable_jit():
                actual = setting.run(dropout, keys)
            assert_equal(actual, setting.expect(arrays), f"{what}, from keys")


@every_cell
@pytest.mark.parametrize("site", TAKES)
def test_evaluation_of_what_is_allowed_matches_the_equations(cell, site):
    setting = make(cell)
    factor = np.full((1, 1, 1), 1 - RATE)
    share = np.full((1, 1, 1), RATE)
    kinds = {  # lifetime and sharing do not matter in evaluation
        (type(noise), getattr(noise, "scale", None)): noise
        for noise in combinations(cell, site, "built")
    }
    for noise in kinds.values():
        masks = {}
        if isinstance(noise, Zoneout):
            masks = {f"zoned_{site}": share}
        elif getattr(noise, "scale", "inverted") == "expectation":
            masks = {site: factor}
        with jax.disable_jit():
            actual = setting.run(rdrop.Dropout(**{site: noise}))
        what = f"{cell}, {site}, {noise}, evaluated"
        assert_equal(actual, setting.expect(masks), what)


def error_of(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.usefixtures("unchecked")
@every_cell
@pytest.mark.parametrize("site", TAKES)
def test_what_is_not_allowed_is_refused_by_name(cell, site):
    setting = make(cell)
    keys = rdrop.stream_keys(jax.random.key(0))
    errors = {
        "a kind": f"TypeError: Site `{site}` takes ",
        "no such site": f"ValueError: Site `{site}` does not exist in this cell",
        "no complex noise": f"ValueError: Site `{site}`: additive noise is real",
        "no two gates": f'ValueError: Site `{site}`: `gates` must be "shared"',
    }
    for noise in combinations(cell, site, *errors):
        expected = errors[verdict(cell, site, noise)]
        calls = [lambda noise=noise: setting.draw(rdrop.Dropout(**{site: noise}), keys)]
        if noise.per == "sequence":  # evaluation has no lifetime
            calls.append(
                lambda noise=noise: setting.run(rdrop.Dropout(**{site: noise}))
            )
        for call in calls:
            error = error_of(call)
            assert error.startswith(expected), f"{cell}, {site}, {noise}: {error}"


TOGETHER = {  # on every site at once: of weights, of states, of two or more gates, rest
    "held": (
        DropConnect(0.4, by="row"),
        Zoneout(0.4, per="sequence", units="shared"),
        Bernoulli(0.4, gates="each"),
        Gaussian(0.4, batch="shared"),
    ),
    "changing": (
        DropConnect(0.4),
        Bernoulli(0.4, per="step", scale="expectation"),
        Gaussian(0.4, per="step", gates="each", units="shared"),
        Concrete(0.4, per=rdrop.Drift(0.5), temperature=0.7),
    ),
}


def everywhere(cell, weights, states, several, rest):
    def noise(site):
        if site.endswith("weights"):
            return weights
        if site.endswith("state"):
            return states
        return several if readers(cell, site) > 1 else rest

    return rdrop.Dropout(**{s: noise(s) for s in TAKES if readers(cell, s)})


@every_cell
@pytest.mark.parametrize(("lifetime", "reverse"), [("held", True), ("changing", False)])
def test_all_sites_together_match_the_equations(cell, lifetime, reverse):
    setting = make(cell)
    dropout = everywhere(cell, *TOGETHER[lifetime])
    keys = rdrop.stream_keys(jax.random.key(0)).replace(step=2)
    own = keys.replace(direction="backward") if reverse else keys
    with jax.disable_jit():  # compiled masks that are smooth may round otherwise
        masks = plain(setting.draw(dropout, own))
        for lengths in LENGTHS:
            actual = setting.run(dropout, keys, np.asarray(lengths), reverse)
            assert_equal(actual, setting.expect(masks, lengths, reverse), cell)
