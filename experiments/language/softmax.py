"""Softmax over a vocabulary, and its cross-entropy."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from experiments.task import Arrays

CACHED = 3_000_000
"""Logits that stay in the cache of a CPU, 12 MB; beyond, training is slower."""


class Softmax(NamedTuple):
    """A softmax before its product.

    Attributes:
        vectors: one per prediction.
        kernel: one column per token type, float32.
        bias: one number per token type, float32.
    """

    vectors: Float[Array, "*batch H"]
    kernel: Float[Array, "H V"]
    bias: Float[Array, "V"]

    @property
    def logits(self) -> Float[Array, "*batch V"]:
        """Unnormalised logarithms of probabilities, float32."""
        bias = jnp.expand_dims(self.bias, range(self.vectors.ndim - 1))
        return product(self.vectors, self.kernel, -1, 0) + bias


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Arrays, "B T"], offset: float = 0.0
) -> Float[Array, "B T"]:
    """Returns the negative log-likelihood of each token, in nats.

    Args:
        logits: unnormalised logarithms of probabilities.
        targets: the tokens.
        offset: added to each probability before its logarithm.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return -_with_offset(-losses, offset)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def summed_loss(
    softmax: Softmax,
    targets: Int[Arrays, "B T"],
    weights: Float[Array, "B T"],
    offset: float = 0.0,
) -> Float[Array, ""]:
    """Returns the weighted sum of `token_losses`, and its gradient in less memory.

    The gradient is computed with the loss, for a few predictions at a time, so that all
    logits are never in memory together. Targets, weights and offset are constants.
    """
    return _loss_and_slopes(softmax, targets, weights, offset)[0]


def _loss_and_slopes(softmax, targets, weights, offset):
    vectors, kernel, bias = softmax
    rows, types = weights.size, len(bias)
    chunks = 1
    if jax.default_backend() == "cpu":
        chunks = min(rows, math.ceil(rows * types / CACHED))

    def chunked(values, *axes):
        values = values.reshape(rows, *axes)
        missing = -rows % chunks
        values = jnp.pad(values, [(0, missing)] + [(0, 0)] * len(axes))
        return values.reshape(chunks, -1, *axes)

    def add(sums, chunk):
        some, wanted, weight = chunk
        logits = Softmax(some, kernel, bias).logits
        shifted = logits - logits.max(-1, keepdims=True)
        exponentials = jnp.exp(shifted)
        total = exponentials.sum(-1, keepdims=True)
        hit = jnp.arange(types, dtype=wanted.dtype)[None] == wanted[:, None]
        log_p = jnp.where(hit, shifted, 0).sum(-1) - jnp.log(total[:, 0])
        gain = _with_offset(log_p, offset)
        scale = weight * jnp.exp(log_p - gain)  # of p in p + offset
        slope = scale[:, None] * (exponentials / total - hit.astype(jnp.float32))
        flat = slope.astype(some.dtype)
        parts = -(weight * gain).sum(), product(some, flat, 0, 0), slope.sum(0)
        sums = jax.tree.map(jnp.add, sums, parts)
        return sums, product(flat, kernel, 1, 1)

    zeros = jnp.float32(0), jnp.zeros_like(kernel), jnp.zeros_like(bias)
    every = chunked(vectors, vectors.shape[-1]), chunked(targets), chunked(weights)
    (loss, of_kernel, of_bias), of_vectors = jax.lax.scan(add, zeros, every)
    of_vectors = of_vectors.reshape(-1, vectors.shape[-1])[:rows]
    of_vectors = of_vectors.reshape(vectors.shape).astype(vectors.dtype)
    return loss, Softmax(of_vectors, of_kernel, of_bias)


def _scaled(offset, slopes, by):
    def scaled(slope):
        return (by * slope.astype(by.dtype)).astype(slope.dtype)

    return jax.tree.map(scaled, slopes), None, None


summed_loss.defvjp(_loss_and_slopes, _scaled)


def _with_offset(log_p: Any, offset: float) -> Any:
    return jnp.logaddexp(log_p, jnp.log(offset)) if offset else log_p


def product(a: Any, b: Any, of_a: int, of_b: int) -> Any:
    """Multiplies along an axis of each, in the dtype of a; accumulates in float32."""
    contracted = (((of_a % a.ndim,), (of_b,)), ((), ()))
    b = b.astype(a.dtype)
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)
