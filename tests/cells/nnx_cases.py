"""Cells with noise of their own, with which the tests of the nnx face run."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdrop import Bernoulli, Dropout, Zoneout
from rdrop import nnx as rnnx

BATCH, TIME, FEATURES, UNITS = 3, 4, 2, 5
XS = jnp.asarray(
    np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)), jnp.float32
)
OUTPUTS = Dropout(outputs=Bernoulli(0.5))  # a dropped unit is zero at all steps
LIVES = Dropout(inputs=Bernoulli(0.4), hidden_state=Zoneout(0.3))  # held, and per step


def noisy(dropout=LIVES, **streams):
    """A cell with noise of its own, and with streams of these seeds."""
    rngs = nnx.Rngs(**(streams or {"default": 0}))
    return rnnx.SimpleCell(FEATURES, UNITS, dropout=dropout, rngs=rngs)
