"""A user's own cell has every loop, all gradients, and noise at each of its sites."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_all_matter, assert_close, quickly
from loop_cases import (
    BATCH,
    FEATURES,
    LENGTHS,
    LOOPS,
    SETTINGS,
    TIME,
    UNITS,
    double,
    masks_of,
    problem_of,
    with_gradients,
)

import rdrop
import rdrop.nnx
from rdrop import Masks, Site
from rdrop.cells import LSTM, Recurrence, Tape, mask_gates, mask_units, next_hidden


@dataclasses.dataclass(frozen=True)
class MGU(Recurrence):
    """Minimal gated unit, Zhou et al. 2016: a GRU of one gate."""

    GATES: ClassVar[int] = 2

    def sites(self, features):
        own = {name: Site(1, self.units) for name in ("recurrent", "update", "gates")}
        return super().sites(features) | own

    def step(self, weights, carry, z, masks, tape):
        h = carry
        a_f, a_n = jnp.split(z, 2, axis=-1)
        u_f, u_n = jnp.split(weights["recurrent_kernel"], 2, axis=-1)
        f = tape.sigmoid(a_f + tape.matmul(h, u_f, masks.recurrent))
        (f,) = mask_gates((f,), masks.gates)
        n = tape.tanh(a_n + tape.matmul(f * h, u_n, masks.recurrent))
        h_new = (1 - f) * h + f * mask_units(n, masks.update)
        return next_hidden(h_new, h, masks.hidden_state)


class MGUCell(rdrop.Cell):
    EQUATIONS = MGU


class NNXMGUCell(rdrop.nnx.Cell):
    EQUATIONS = MGU


@dataclasses.dataclass(frozen=True)
class Careless(MGU):
    """Uses little of the tape: JAX's tanh, and weights outside of `tape.matmul`."""

    def parameters(self, features):
        normal = jax.nn.initializers.normal()
        square, row = (self.units, self.units), (self.units,)
        own = {"peephole": (normal, row), "second": (normal, square)}
        return super().parameters(features) | own | {"third": (normal, square)}

    def step(self, weights, carry, z, masks, tape):
        h = carry
        a_f, a_n = jnp.split(z, 2, axis=-1)
        peephole = weights["peephole"].reshape((1,) * (h.ndim - 1) + (-1,))
        f = jax.nn.sigmoid(a_f + tape.matmul(h, weights["second"]) + peephole * h)
        (f,) = mask_gates((f,), masks.gates)
        u_n = weights["recurrent_kernel"][:, self.units :] + weights["second"]
        a_n = a_n + tape.matmul(f * h, u_n, masks.recurrent)
        n = jnp.tanh(a_n + jnp.sin(h) @ weights["third"])
        h_new = (1 - f) * h + f * mask_units(n, masks.update)
        return next_hidden(h_new, h, masks.hidden_state)


class CarelessCell(rdrop.Cell):
    EQUATIONS = Careless


@dataclasses.dataclass(frozen=True)
class Doubled(LSTM):
    """An LSTM that returns twice its h."""

    def step(self, weights, carry, z, masks, tape):
        carry, y = super().step(weights, carry, z, masks, tape)
        return carry, 2 * y


class DoubledCell(rdrop.Cell):
    EQUATIONS = Doubled


OWN = {"mgu": MGUCell, "careless": CarelessCell, "doubled": DoubledCell}
NOISES = ("mixed_states", "multiplied_states")


@pytest.mark.parametrize(
    ("name", "setting"),
    quickly(
        [(name, setting) for name in OWN for setting in NOISES],
        ("mgu", "mixed_states"),
        ("careless", "multiplied_states"),
    ),
)
def test_loops_agree_in_values_and_all_gradients(name, setting):
    """With noise at every site, as the scan of the cell does."""
    cell = OWN[name](**double)
    dropout, time_major, reverse, lengths = SETTINGS[setting]
    masks = masks_of(cell, dropout)
    rnns = [rdrop.RNN(cell, time_major, reverse, loop) for loop in LOOPS]

    @jax.jit
    def run(*arguments):
        return [with_gradients(rnn, lengths)(*arguments) for rnn in rnns]

    fused, recompute, plain = run(masks, *problem_of(rnns[0]))
    assert_close(fused, plain, tolerance=1e-10)
    assert_close(recompute, plain, tolerance=1e-10)
    (in_masks, in_params, *rest), results = plain[1], plain[0]
    if name == "careless":  # half of it is not used
        in_params["params"]["recurrent_kernel"] += 1
    assert_all_matter((results, in_masks, in_params, rest))


def test_a_module_may_lack_options_of_its_equations():
    """They are at their defaults; here those of an LSTM."""
    cell = DoubledCell(3)
    assert cell.equations == Doubled(3)
    assert cell.equations.forget_bias == 1


def test_every_site_it_declares_is_live():
    cell = MGUCell(**double)
    rnn = rdrop.RNN(cell)
    params, xs, carry = problem_of(rnn)
    sites = cell.sites(FEATURES)

    def neutral(name, size):
        if size.rows:
            return jnp.ones((size.rows, size.gates, size.units))
        return jnp.ones((BATCH, 1, size.units))

    masks = Masks(**{name: neutral(name, size) for name, size in sites.items()})

    @jax.jit
    @jax.vmap
    def run(on):
        chosen = {
            site: jnp.where(on[n], 0.5 * mask, mask)
            for n, (site, mask) in enumerate(masks.sites())
        }
        return rnn.apply(params, xs, Masks(**chosen), initial_carry=carry)[1]

    *each, quiet = run(jnp.eye(len(sites) + 1, len(sites), dtype=bool))
    for name, ys in zip(dict(masks.sites()), each, strict=True):
        assert (ys != quiet).any(), name


def test_both_faces_and_the_cell_step_by_step_agree():
    linen = MGUCell(**double)
    twin = NNXMGUCell(FEATURES, UNITS, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    params, xs, carry = problem_of(rdrop.RNN(linen))
    assert set(params["params"]) == set(twin.parameters())
    for name, value in params["params"].items():
        setattr(twin, name, nnx.Param(value))
    masks = masks_of(linen, SETTINGS["mixed_states"].dropout)

    @jax.jit
    def run(xs, carry):
        options = {"initial_carry": carry, "lengths": LENGTHS}
        by_nnx = rdrop.nnx.RNN(twin)(xs, masks, **options)
        by_linen = rdrop.RNN(linen).apply(params, xs, masks, **options)
        state, steps = carry, []
        for t in range(TIME):
            now = jax.tree.map(lambda m, t=t: m[t] if m.ndim == 4 else m, masks)
            new, y = linen.apply(params, state, xs[:, t], now)
            valid = (t < LENGTHS)[:, None]
            state, y = jnp.where(valid, new, state), jnp.where(valid, y, 0)
            steps.append(y)
        return by_nnx, by_linen, (state, jnp.stack(steps, axis=1))

    by_nnx, by_linen, by_steps = run(xs, carry)
    assert_close(by_nnx, by_linen)
    assert_close(by_linen, by_steps)


def test_the_equations_are_the_papers():
    """One step without noise, unit by unit."""
    cell = MGU(**double)
    rng = np.random.default_rng(7)
    w, u = rng.normal(size=(FEATURES, 2 * UNITS)), rng.normal(size=(UNITS, 2 * UNITS))
    x, h = rng.normal(size=(1, FEATURES)), rng.normal(size=(1, UNITS))
    weights = {"recurrent_kernel": jnp.asarray(u)}
    _, y = cell.step(weights, jnp.asarray(h), jnp.asarray(x @ w), Masks(), Tape())
    f = 1 / (1 + np.exp(-(x @ w + h @ u)[:, :UNITS]))
    n = np.tanh((x @ w)[:, UNITS:] + (f * h) @ u[:, UNITS:])
    assert_close(y, (1 - f) * h + f * n)
