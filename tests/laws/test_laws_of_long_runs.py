"""Law 7 of DESIGN.md: nothing explodes in a thousand steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly, random_like
from law_cases import CELLS, KEYS, STATES, UNITS, WEIGHTS

import rdrop
from rdrop import Bernoulli, Concrete, DropConnect, Dropout, Gaussian, Masks
from rdrop.cells.masking import drop_weights, project, with_bias


@functools.cache
def long_run(cell):
    """Runs with each of the sites on, one after the other, and all others off."""

    def run(params, xs, masks, on):
        chosen = {
            site: jnp.where(on[n], getattr(masks, site), 1)
            for n, site in enumerate(cell.sites(UNITS))
        }
        return rdrop.RNN(cell).apply(params, xs, Masks(**chosen))

    return jax.jit(jax.vmap(run, in_axes=(None, None, None, 0)))


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


LONG = {
    "held": Bernoulli(0.5),
    "step": Bernoulli(0.5, per="step"),
    "expectation": Bernoulli(0.5, scale="expectation"),
    "gaussian": Gaussian(0.5, per="step"),
    "concrete": Concrete(0.5, per="step"),
}
# Inverted masks here multiply the path from h to h itself, which a gate near 1 leaves
# as it is: they compound, as DESIGN.md says of Keras 3.0 to 3.7.
COMPOUND = {
    "gru": (*STATES, "gates"),
    "gru_reset_before": (*STATES, "gates"),
    "min_gru": (*STATES, "gates"),
    "min_lstm": (*STATES, "gates"),
    "slstm": ("cell_state", "gates"),
}
# Masks here multiply h after its tanh, or the candidate that h is an average of.
SCALES_H = {
    "lstm": ("gates", "hidden_state"),
    "layer_norm_lstm": ("gates", "hidden_state"),
    "gru": ("update",),
    "gru_reset_before": ("update",),
    "simple": ("hidden_state",),
    "min_gru": ("update",),
    "min_lstm": ("update",),
    "slstm": ("gates", "update", "hidden_state"),
}
# Here h is a sum of inputs, which no number bounds in advance.
SUMS = ("rg_lru", "lru", "s5")


def candidate_bound(name, cell, params, xs, masks, site):
    """Minimal cells have no tanh: h is an average of the candidates."""
    if name not in ("min_gru", "min_lstm"):
        return 1.0
    on = Masks(**{site: getattr(masks, site)}) if site in ON_INPUTS else Masks()
    weights = drop_weights(params["params"], on)
    z = with_bias(weights, project(weights, xs.swapaxes(0, 1), on.inputs))
    return float(abs(z[..., -cell.units :]).max())


ON_INPUTS = ("inputs", "input_weights")


@pytest.mark.slow
@pytest.mark.parametrize("noise", LONG)
@pytest.mark.parametrize("name", [name for name in CELLS if name not in SUMS])
def test_nothing_explodes_in_a_thousand_steps(name, noise):
    noise = LONG[noise]
    cell = CELLS[name].clone(units=16, param_dtype=jnp.float32)
    params, xs, masks = *long_inputs(cell), long_masks(cell, noise, 1000, 2)
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
        y_bound = h_bound * (largest if site == "outputs" else 1)
        assert (abs(ys[n]) <= y_bound).all(), site


@pytest.mark.parametrize("name", quickly((*SUMS, "min_gru", "min_lstm"), "lru"))
def test_affine_cells_run_ten_thousand_steps(name):
    """In half precision close to full, as the state is kept in full."""
    full = CELLS[name].clone(units=16, param_dtype=jnp.float32)
    half = full.clone(dtype=jnp.bfloat16)
    xs = jnp.float32(random_like(jnp.zeros((1, 10_000, 16)), 6))
    params = rdrop.RNN(full).init(jax.random.key(0), xs)
    noise = Bernoulli(0.5, scale="expectation")
    sites = [site for site in full.sites(16) if site not in WEIGHTS]
    dropout = Dropout(**dict.fromkeys(sites, noise))

    @jax.jit
    def run(params, xs):
        return [
            rdrop.RNN(cell).apply(params, xs, noise, noise and KEYS)[1]
            for cell in (full, half)
            for noise in (None, dropout)
        ]

    clean, noisy, *halves = run(params, xs)
    assert np.isfinite(clean).all()
    assert np.isfinite(noisy).all()
    for expected, actual in zip((clean, noisy), halves, strict=True):
        assert actual.dtype == jnp.bfloat16
        error = np.float32(actual) - expected
        assert np.sqrt((error**2).mean()) < 0.03 * expected.std()


@functools.cache
def long_inputs(cell):
    xs = jnp.float32(random_like(jnp.zeros((2, 1000, UNITS)), 6))
    return rdrop.RNN(cell).init(jax.random.key(0), xs), xs


@pytest.mark.parametrize("name", quickly(["gru", "gru_reset_before"], "gru"))
def test_a_gru_explodes_only_if_its_leak_path_is_masked(name):
    """Keras 3.0 to 3.7 masked it: h is doubled, and an update gate near 1 keeps it."""
    cell = rdrop.GRUCell(16, reset_after=CELLS[name].reset_after)
    xs = jnp.zeros((2, 1000, 3), jnp.float32)
    params = rdrop.RNN(cell).init(jax.random.key(0), xs)
    params["params"]["bias"] = params["params"]["bias"].at[:16].set(2.0)
    start = jnp.full((2, 16), 0.5, jnp.float32)

    def largest(dropout, steps=1000):
        run = functools.partial(rdrop.RNN(cell).apply, params, xs[:, :steps])
        h, ys = run(dropout, KEYS, initial_carry=start)
        return jnp.maximum(abs(h).max(), abs(ys).max())

    noise = Bernoulli(0.5)
    tame = noise.replace(scale="expectation")
    masked = [Dropout(hidden_state=noise), Dropout(gates=noise)]
    tamed = [Dropout(hidden_state=tame), Dropout(gates=tame)]

    @jax.jit
    def run():
        exploding = [largest(dropout, 60) for dropout in masked]
        bounded = [largest(d) for d in (Dropout(recurrent=noise), *tamed)]
        return jnp.stack(exploding), jnp.stack(bounded)

    exploding, bounded = run()
    assert (bounded <= 1).all()
    assert ((exploding > 1e6) & np.isfinite(exploding)).all()
