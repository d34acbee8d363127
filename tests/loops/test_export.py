"""A whole training step with noise on every site lowers for each platform."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rdrop

RNN = rdrop.RNN(rdrop.LSTMCell(3))


@pytest.fixture(autouse=True)
def without_compiled_code(monkeypatch):
    """The statements here are about the fused loop."""
    monkeypatch.setattr("rdrop.loops.run.is_installed", lambda: False)


def make_step(dropout):
    def step(params, xs, key_data):
        keys = rdrop.stream_keys(jax.random.wrap_key_data(key_data))

        def loss(params):
            _, ys = RNN.apply(params, xs, dropout, keys, lengths=np.array([4, 2]))
            return (ys**2).mean()

        gradients = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    return jax.jit(step)


@pytest.fixture
def arguments():
    xs = jnp.ones((2, 4, 5), jnp.float32)
    shapes = jax.eval_shape(RNN.init, jax.random.key(0), xs)
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1, s.dtype), shapes)
    key_data = jax.random.key_data(jax.random.key(1))
    return params, xs, key_data


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_training_step_lowers(every_site, arguments, platform):
    step = make_step(every_site(0.5, per="step", gates="each"))
    exported = export.export(step, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    assert all(aval.dtype != jnp.float64 for aval in exported.out_avals)


def test_exported_step_is_the_step(arguments):
    step = make_step(rdrop.Dropout(recurrent=rdrop.Bernoulli(0.5)))
    exported = export.export(step, platforms=[jax.default_backend()])(*arguments)
    chex.assert_trees_all_equal(exported.call(*arguments), step(*arguments))
