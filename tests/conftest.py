"""Strict numerics for every test, and one small LSTM that the tests share."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import rdrop

# Compilation takes a quarter of its time; nearly all programs run once. Processes that
# a test starts inherit this. With `XLA_FLAGS=` programs are optimised, as users' are.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # an unknown flag ends the process
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


class Problem(NamedTuple):
    """A cell with random float64 parameters, and a batch for it to run over."""

    cell: rdrop.LSTMCell
    params: dict
    xs: jax.Array  # [B, T, D]
    carry: tuple[jax.Array, jax.Array]
    lengths: np.ndarray  # of whole, shorter and empty sequences
    keys: rdrop.StreamKeys

    @property
    def sites(self):
        return self.cell.sites(self.xs.shape[-1])

    def draw(self, dropout, time=None, **place):
        keys = self.keys.replace(**place)
        return rdrop.draw(dropout, keys, self.sites, self.xs.shape[0], time)


@pytest.fixture(autouse=True, scope="session")
def programs_on_disk(tmp_path_factory):
    """What one module has compiled, the next one reads: an eighth of the time."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def fresh_caches():
    """Each module counts what it traces from nothing: JAX's cache has its bounds."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def as_users_run_it():
    """In float32 and with JAX's usual promotion, which optax needs."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def problem(rng):
    batch, time, features, units = 4, 5, 2, 3
    cell = rdrop.LSTMCell(units, param_dtype=jnp.float64)
    xs = jnp.asarray(rng.normal(size=(batch, time, features)))
    carry = tuple(jnp.asarray(rng.normal(size=(2, batch, units))))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, xs[:, 0])
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)
    keys = rdrop.stream_keys(jax.random.key(0)).replace(step=7)
    return Problem(cell, params, xs, carry, np.array([5, 3, 1, 0]), keys)


@pytest.fixture
def every_site():
    """The same noise on all sites; only two of them can have a mask for each gate."""

    def build(rate, gates="shared", **options):
        unit = rdrop.Bernoulli(rate, **options)
        gate = rdrop.Bernoulli(rate, gates=gates, **options)
        return rdrop.Dropout(inputs=gate, outputs=unit, recurrent=gate, update=unit)

    return build


@pytest.fixture
def unchecked():
    """Runs without the checker of annotations, as users do: rdrop's own errors show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
