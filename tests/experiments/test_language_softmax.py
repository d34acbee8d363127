"""The loss of a softmax over a vocabulary, and its gradient in parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language.softmax import Softmax, summed_loss, token_losses

V = 11


def test_an_offset_is_added_to_each_probability(rng):
    logits = rng.normal(size=(2, 3, V)) * 20
    targets = rng.integers(0, V, (2, 3))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = np.take_along_axis(p / p.sum(-1, keepdims=True), targets[..., None], -1)[..., 0]
    found = token_losses(jnp.asarray(logits), jnp.asarray(targets), 1e-6)
    np.testing.assert_allclose(found, -np.log(p + 1e-6), rtol=1e-6)
    assert p.min() < 1e-7


@pytest.mark.parametrize("offset", [0.0, 1e-2])
@pytest.mark.parametrize("cached", [10**6, 4 * V, 1])
def test_a_loss_in_parts_has_the_gradients_of_the_whole(
    rng, monkeypatch, cached, offset
):
    """Of 15 predictions: in one part, in four with a row of padding, and in 15."""
    monkeypatch.setattr("experiments.language.softmax.CACHED", cached)
    shapes = ((3, 5, 6), (6, V), (V,))
    values = Softmax(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))
    targets = jnp.asarray(rng.integers(0, V, (3, 5)), jnp.int32)
    weights = jnp.asarray(rng.uniform(size=(3, 5)), jnp.float32).at[:, 4].set(0)

    def whole(values):
        return (weights * token_losses(values.logits, targets, offset)).sum() / 7

    def in_parts(values):
        return summed_loss(values, targets, weights, offset) / 7

    expected, found = (
        jax.jit(jax.value_and_grad(loss))(values) for loss in (whole, in_parts)
    )
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(in_parts(values), expected[0], rtol=1e-6)


def test_large_logits_do_not_overflow():
    values = Softmax(*(jnp.float32(v) for v in ([[[1.0]]], [[0.0, 200.0]], [0.0, 0.0])))
    target, weight = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.float32)
    loss, slopes = jax.value_and_grad(summed_loss)(values, target, weight)
    assert float(loss) == 200.0
    np.testing.assert_array_equal(slopes.bias, [-1.0, 1.0])


def test_products_of_bfloat16_are_summed_in_float32(rng):
    vectors = jnp.asarray(rng.normal(size=(1, 8, 64)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(64, V)), jnp.float32)
    softmax = Softmax(vectors, kernel, jnp.zeros(V, jnp.float32))
    exact = np.asarray(vectors, float) @ np.asarray(kernel.astype(jnp.bfloat16), float)
    np.testing.assert_allclose(softmax.logits, exact, rtol=1e-5, atol=1e-5)
