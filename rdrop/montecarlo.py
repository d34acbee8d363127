"""Montecarlo: K passes with the noise on, made into one prediction.

A pass draws its masks from keys of its own, so K passes are K members of the family of
models that dropout trains. Their distributions p_1, ..., p_K over C classes become one,
the power mean, and what they disagree about is a measure of uncertainty. Everything is
computed in log space, in float32 or wider.

References:
    [1] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287. (Text unchecked.)
    [2] Melis et al. Pushing the bounds of dropout. 2018. arXiv:1805.09208. (Abstract;
        the equations are those of lamb/evaluation.py, README.md of their code.)
    [3] Houlsby et al. Bayesian active learning for classification and preference
        learning. 2011. arXiv:1112.5745. (Abstract; the equation is that of users' code,
        such as small-text's bayesian.py.)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from rdrop.keys import StreamKeys, stream_keys
from rdrop.threefry import fold_in

Arrays: TypeAlias = jax.Array | np.ndarray


class Prediction(struct.PyTreeNode):
    """What K passes predict together.

    Attributes:
        log_probs: log of the mean distribution, [..., C], normalised.
        expected_entropy: mean of the entropies of the passes, [...], in nats: what is
            uncertain even where the masks are known.
    """

    log_probs: Float[Array, "..."]
    expected_entropy: Float[Array, "..."]

    @property
    def entropy(self) -> Float[Array, "..."]:
        """The entropy of the mean distribution, [...], in nats."""
        return entropy(self.log_probs)

    @property
    def mutual_information(self) -> Float[Array, "..."]:
        """What the class tells about the masks, [...], in nats; BALD [3].

            I = H(mean_k p_k) - mean_k H(p_k)

        It is 0 where all passes agree, and otherwise above 0, but for rounding. Only
        the arithmetic mean (power 1) makes it mutual information; for other powers it
        is a mere difference, which may be negative.
        """
        return self.entropy - self.expected_entropy


def pass_keys(key: Key[Array, ""], passes: int) -> StreamKeys:
    """Returns the keys of K passes: pass k has `stream_keys(fold_in(key, k))`.

    More passes of the same key begin with the same ones.

    Args:
        key: a typed key, `jax.random.key(seed)`.
        passes: K, at least 1.

    Returns:
        `StreamKeys` with a leading axis K on its keys and step, for `predict`.

    Raises:
        TypeError: `key` is not a typed PRNG key.
        ValueError: `key` is an array of keys, or `passes` is below 1.
    """
    stream_keys(key)  # raises where it is no key
    if not passes >= 1:
        raise ValueError(f"`passes` must be 1 or more, got {passes}.")
    return jax.vmap(lambda k: stream_keys(fold_in(key, k)))(jnp.arange(passes))


def predict(
    function: Callable[[Any], Any],
    passes: Any,
    *,
    power: Any = 1.0,
    chunk: int | None = None,
    has_aux: bool = False,
) -> Any:
    """Runs K passes and returns the power mean of their distributions [1, 2].

        p = M / sum_c M_c        M_c = (1/K sum_k p_kc^power)^(1/power)

    Power 1 is the arithmetic mean, Monte Carlo dropout as in [1]; power 0 stands for
    its limit, the geometric mean exp(1/K sum_k log p_k), exactly. (The code of [2] does
    not raise the first pass to the power.) Powers of 0 and below have no mean, and give
    nan, where each class has probability 0 in some pass.

    Passes run under `jax.vmap`, `chunk` or fewer at a time, and each chunk is added to
    the mean before the next. `jax.jit` a function that calls this one: it then compiles
    once for all keys and powers.

    Args:
        function: of one pass, to its log-probabilities [..., C], normalised over the
            last axis; with `has_aux`, to a pair of those and any pytree.
        passes: pytree whose leaves have a leading axis K, such as `pass_keys`, or a
            pair of those and K carries.
        power: finite; a number or a traced scalar.
        chunk: the most passes to run at once; None runs all. The prediction depends on
            it by rounding alone.
        has_aux: whether `function` returns a pair.

    Returns:
        `Prediction`; with `has_aux`, a pair of that and the pytree, stacked to [K].

    Raises:
        ValueError: `passes` has no leaf, or its leaves no common K of 1 or more;
            `chunk` is below 1, `power` is not finite, or `function` returns no axis of
            classes. Traced powers are not checked.
    """
    count = _count(passes)
    _check(power, chunk)
    run = function if has_aux else lambda one: (function(one), None)
    rows = _rows(count, count if chunk is None else chunk)

    def outputs(row):
        index = jnp.minimum(row, count - 1)
        return jax.vmap(run)(
            jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], passes)
        )

    def step(mean, row):
        log_probs, aux = outputs(row)
        return mean.add(log_probs, row < count, power), aux

    shape = jax.eval_shape(outputs, rows[0])[0]
    mean, aux = jax.lax.scan(step, _start(shape), rows)
    prediction = Prediction(jax.nn.log_softmax(mean.log_mean), mean.entropy)
    if not has_aux:
        return prediction
    return prediction, jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], aux
    )


def entropy(log_probs: Float[Arrays, "*N C"]) -> Float[Array, "*N"]:
    """Returns -sum_c p_c log p_c, in nats, with 0 log 0 = 0 and a gradient of 0 there.

    Args:
        log_probs: normalised over the last axis; -inf is allowed.
    """
    log_probs = wide(log_probs)
    finite = jnp.where(jnp.isneginf(log_probs), 0, log_probs)
    return -(jnp.exp(log_probs) * finite).sum(axis=-1)


class _Mean(NamedTuple):
    """Passes so far: how many, the log of their power mean, their mean entropy."""

    seen: Any
    log_mean: Any
    entropy: Any

    def add(self, log_probs, valid, power) -> "_Mean":
        """Adds the valid ones of some passes [k, ..., C].

        A power mean of power means, weighted by their counts, is that of all.
        """
        log_probs = wide(log_probs)
        weight = valid.astype(log_probs.dtype)
        seen = self.seen + weight.sum()
        old, new = self.seen / seen, weight.sum() / seen
        log_mean = _power_mean(log_probs, weight, power)
        entropies = jnp.tensordot(weight / weight.sum(), entropy(log_probs), axes=1)
        return _Mean(
            seen,
            _power_mean(
                jnp.stack([self.log_mean, log_mean]), jnp.stack([old, new]), power
            ),
            old * self.entropy + new * entropies,
        )


def _start(shape) -> _Mean:
    """The mean of no pass, for outputs [k, ..., C] of a shape."""
    if len(shape.shape) < 2:
        raise ValueError(
            "`function` must return log-probabilities [..., C], got a scalar."
        )
    dtype = np.promote_types(shape.dtype, np.float32)
    of = shape.shape[1:]
    return _Mean(jnp.zeros((), dtype), jnp.zeros(of, dtype), jnp.zeros(of[:-1], dtype))


def _power_mean(log_probs, weights, power):
    """Returns log((sum_k w_k p_k^power / sum_k w_k)^(1/power)) of passes [k, ..., C].

    Shifted by the pass that dominates, d_k = log p_k - m, it is the inverse of a
    Box-Cox transform of the mean of the transforms:

        m + log1p(power * a) / power        a = mean_k (exp(power * d_k) - 1) / power

    whose limits at power 0, m + a and a = mean_k d_k, are approached without loss.
    """
    power = jnp.asarray(power, log_probs.dtype)
    weights = weights.reshape(-1, *[1] * (log_probs.ndim - 1))
    sign = jnp.where(power < 0, -1, 1).astype(log_probs.dtype)
    towards = jnp.where(weights > 0, sign * log_probs, -jnp.inf)
    shift = jax.lax.stop_gradient(sign * towards.max(axis=0, keepdims=True))
    # Elsewhere the distance is 0, and not the inf - inf of two zero probabilities.
    counts = (weights > 0) & ~(jnp.isinf(shift) & (log_probs == shift))
    apart = jnp.where(counts, log_probs, 0) - jnp.where(counts, shift, 0)
    a = (weights * _box_cox(apart, power)).sum(axis=0) / weights.sum()
    return shift[0] + _inverse_box_cox(a, power)


def _box_cox(d, power):
    """(exp(power d) - 1) / power, or d at power 0; power * d is at most 0, or -inf."""
    finite = jnp.where(jnp.isinf(d), 0, d)
    divisor = jnp.where(power == 0, 1, power)
    elsewhere = jnp.where(jnp.isinf(d), -1, jnp.expm1(divisor * finite)) / divisor
    # The second term is 0, but not its derivative in the power.
    return jnp.where(power == 0, d + power * finite**2 / 2, elsewhere)


def _inverse_box_cox(a, power):
    """log(1 + power a) / power, or a at power 0."""
    divisor = jnp.where(power == 0, 1, power)
    elsewhere = jnp.log1p(divisor * jnp.where(power == 0, 0, a)) / divisor
    finite = jnp.where(jnp.isinf(a), 0, a)
    return jnp.where(power == 0, a - power * finite**2 / 2, elsewhere)


def _rows(count: int, chunk: int) -> Int[np.ndarray, "chunks size"]:
    """Indices of the passes in chunks of even size; those from `count` on fill up."""
    chunks = -(-count // chunk)
    size = -(-count // chunks)
    return np.arange(chunks * size).reshape(chunks, size)


def wide(values: Any) -> Float[Array, "..."]:
    """Returns the same values, in float32 or wider."""
    values = jnp.asarray(values)
    return values.astype(np.promote_types(values.dtype, np.float32))


def _count(passes) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(passes)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or not all(shape and shape[0] for shape in shapes):
        raise ValueError(
            "`passes` must have leaves with one leading axis K of 1 or more, got "
            f"shapes {shapes}."
        )
    return shapes[0][0]


def _check(power, chunk) -> None:
    if isinstance(power, (int, float)) and not math.isfinite(power):
        raise ValueError(f"`power` must be finite, got {power}.")
    if chunk is not None and not chunk >= 1:
        raise ValueError(f"`chunk` must be 1 or more, got {chunk}.")
