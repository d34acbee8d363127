"""Cells, noise and compiled programs with which the laws are tested.

A mask is a function of noise, key and shape alone, and drawing takes longest to
compile. So each cell runs, its masks given, as two compiled programs: forwards with
states that are multiplied, and backwards with states that are mixed. Other kinds and
rates change the numbers only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_like

import rdrop
from rdrop import (
    Additive,
    Bernoulli,
    Concrete,
    DropConnect,
    Dropout,
    Gaussian,
    Masks,
    Mix,
    WeightNoise,
    Zoneout,
)

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
    "min_lstm": rdrop.MinLSTMCell(**double),
    "rg_lru": rdrop.RGLRUCell(**double),
    "lru": rdrop.LRUCell(**double),
    "s5": rdrop.S5Cell(**double),
    "slstm": rdrop.SLSTMCell(**double),
}
# Of each set of sites one cell; the sizes of its sites are all that masks depend on.
SITES_AS = {"layer_norm_lstm": "lstm", "gru_reset_before": "gru"}
SITES_OF = [name for name in CELLS if name not in SITES_AS]
MULTIPLIERS = {"bernoulli": Bernoulli, "gaussian": Gaussian, "concrete": Concrete}
OF_STATES = {"zoneout": Zoneout, "additive": Additive}
KINDS = (*MULTIPLIERS, "zoneout", "additive")
SMOOTH = ("gaussian", "concrete", "additive")


def each_pair(names, kinds, *quick):
    """Parametrises by cell and kind; all but the quick pairs are slow."""
    return pytest.mark.parametrize(
        ("name", "kind"),
        [
            pytest.param(name, kind, marks=() if (name, kind) in quick else slow)
            for name in names
            for kind in kinds
        ],
    )


slow = pytest.mark.slow
# If states are mixed, the other sites have Bernoulli noise.
every_kind_of_an_lstm = [("lstm", kind) for kind in KINDS if kind != "bernoulli"]
in_each_program = [("lstm", "bernoulli"), ("lstm", "zoneout"), ("gru", "zoneout")]


def noise_of(kind, site, gates, rate):
    """The noise of a site; which are held over time does not depend on the kind."""
    per = "sequence" if site in HELD else "step"
    if site in WEIGHTS:
        return WeightNoise(rate) if kind == "additive" else DropConnect(rate)
    if kind in OF_STATES and site in STATES:
        return OF_STATES[kind](rate, per=per)
    options = {"per": per, "gates": "each" if gates > 1 else "shared"}
    return MULTIPLIERS.get(kind, Bernoulli)(rate, **options)


def every_site(cell, kind, rate):
    """Noise of a kind on each site that the cell has."""
    return Dropout(
        **{
            site: noise_of(
                "bernoulli" if size.is_complex and kind == "additive" else kind,
                site,
                size.gates if site in PER_GATE else 1,
                rate,
            )
            for site, size in cell.sites(UNITS).items()
        }
    )


def draw(cell, dropout, time=TIME, keys=KEYS, batch=BATCH):
    return rdrop.draw(dropout, keys, cell.sites(UNITS), batch, time)


@functools.cache
def _drawing(name, kind, time):
    cell = CELLS[name]
    return jax.jit(
        lambda rate, keys: draw(cell, every_site(cell, kind, rate), time, keys)
    )


def draw_all(name, kind, rate=0.4, keys=KEYS, time=TIME):
    """The masks of `every_site`, from one program for all rates, keys and steps."""
    keys = keys.replace(step=jnp.int32(keys.step))
    return _drawing(SITES_AS.get(name, name), kind, time)(jnp.float32(rate), keys)


def neutral_masks(sites, mixed, each=True, lead=()):
    """Masks of full size on every site, that change nothing."""

    def neutral(site, size):
        if site in WEIGHTS:
            return jnp.ones((size.rows, size.gates, size.units), jnp.float32)
        gates = size.gates if each and site in PER_GATE else 1
        ones = jnp.ones((*lead, BATCH, gates, size.units), jnp.float32)
        return Mix(0 * ones) if mixed and site in STATES else ones

    return Masks(**{site: neutral(site, size) for site, size in sites.items()})


@functools.cache
def problem_of(cell):
    """Random parameters, inputs [B, T, D], and an initial carry."""
    shape = jax.ShapeDtypeStruct((BATCH, TIME, UNITS), np.float64)
    params = jax.eval_shape(rdrop.RNN(cell).init, jax.random.key(0), shape)
    carry = cell.initialize_carry(jax.random.key(0), (BATCH, UNITS))
    with jax.ensure_compile_time_eval():  # the result is kept
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
    """Results and gradients, of one program for each cell and direction."""
    return jax.jit(with_gradients(run(cell, reverse)))


@functools.cache
def forward(cell):
    """The outputs of training, of one program for each cell."""
    return jax.jit(lambda *arguments: by_rnn(cell, False)(*arguments)[1])


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
