"""Monte Carlo dropout: one prediction from K passes with the noise on.

Each pass draws its masks from separate keys, so K passes are K members of the family of
models that dropout trains. The power mean combines their distributions p_1, ..., p_K
over C classes, and their disagreement measures uncertainty. Everything is computed in
log space, in float32 or wider.

References:
    [1] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287. (Text unchecked.)
    [2] Melis et al. Pushing the bounds of dropout. 2018. arXiv:1805.09208. (Abstract;
        the equations are from lamb/evaluation.py and README.md of their code.)
    [3] Houlsby et al. Bayesian active learning for classification and preference
        learning. 2011. arXiv:1112.5745. (Abstract; the equation is from code that uses
        it, such as small-text's bayesian.py.)
    [4] Kendall, Gal. What uncertainties do we need in Bayesian deep learning for
        computer vision? NeurIPS 2017. arXiv:1703.04977, section 3. (Text unchecked.)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from rdrop.arguments import check_count, check_number
from rdrop.keys import StreamKeys, stream_keys
from rdrop.noise.plan import Design, Plan
from rdrop.noise.threefry import fold_in

__all__ = ["Moments", "Prediction", "entropy", "moments", "pass_keys", "predict"]

Arrays: TypeAlias = jax.Array | np.ndarray


class Moments(struct.PyTreeNode):
    """Mean and variance of a mixture of K predicted distributions of numbers [4].

    Attributes:
        mean: of the mixture, [...].
        within: mean of the variances of the passes, [...]: the noise of the data.
        between: variance of the means of the passes, [...], divided by K: what the
            masks do not agree on.
    """

    mean: Float[Array, "..."]
    within: Float[Array, "..."]
    between: Float[Array, "..."]

    @property
    def variance(self) -> Float[Array, "..."]:
        """The variance of the mixture, [...]: the sum of both."""
        return self.within + self.between


class Prediction(struct.PyTreeNode):
    """The joint prediction of K passes.

    Attributes:
        log_probs: log of the mean distribution, [..., C], normalised.
        expected_entropy: mean of the entropies of the passes, [...], in nats: the
            uncertainty that remains if the masks are known.
    """

    log_probs: Float[Array, "..."]
    expected_entropy: Float[Array, "..."]

    @property
    def entropy(self) -> Float[Array, "..."]:
        """Entropy of the mean distribution, [...], in nats."""
        return entropy(self.log_probs)

    @property
    def mutual_information(self) -> Float[Array, "..."]:
        """Mutual information of class and masks, [...], in nats; BALD [3].

            I = H(mean_k p_k) - mean_k H(p_k)

        It is 0 if all passes agree, and otherwise above 0, up to rounding. Only the
        arithmetic mean (power 1) makes it mutual information; for other powers it is a
        mere difference, which may be negative.
        """
        return self.entropy - self.expected_entropy


def pass_keys(
    key: Key[Array, ""], passes: int, design: Design = "independent"
) -> StreamKeys:
    """Returns the keys of K passes: pass k has `stream_keys(fold_in(key, k))`.

    With other designs than "independent", passes are drawn together, so that the mean
    of K passes varies less. Each pass alone is as random as before, so that the mean
    has the same expectation.

    Args:
        key: a typed key, `jax.random.key(seed)`.
        passes: K, an integer of 1 or more. If passes are independent or antithetic, a
            larger K keeps the keys of the first passes.
        design: "antithetic": passes 2 j and 2 j + 1 mirror each other, and the units
            that drop at a low number in one drop at a high number in the other.
            "balanced": each unit of rate p is dropped in K p of the K passes. See
            `rdrop.noise.Plan`.

    Returns:
        `StreamKeys` with a leading axis K on its keys and step, for `predict`.

    Raises:
        TypeError: `key` is not a typed PRNG key.
        ValueError: `key` is an array of keys; `passes` is not an integer, or below 1;
            `design` is another word.
    """
    if design not in (words := get_args(Design)):
        raise ValueError(f"`design` must be one of {words}, got {design!r}.")
    keys = stream_keys(key)
    count = check_count("passes", passes)

    def of_pass(k):
        if design == "independent":
            return stream_keys(fold_in(key, k))
        own = keys if design == "balanced" else stream_keys(fold_in(key, k // 2))
        return own.replace(plan=Plan(k, count, design))

    return jax.vmap(of_pass)(jnp.arange(count, dtype=jnp.int32))


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

    Power 1 is the arithmetic mean, Monte Carlo dropout as in [1]. Power 0 is exactly
    its limit, the geometric mean exp(1/K sum_k log p_k). (The code of [2] does not
    raise the first pass to the power.) If each class has probability 0 in some pass,
    powers of 0 and below have no mean and give nan.

    Passes run under `jax.vmap`, at most `chunk` at a time, and each chunk is added to
    the mean before the next. `jax.jit` a function that calls this one: it then compiles
    once for all keys and powers.

    Args:
        function: maps one pass to its log-probabilities [..., C], normalised over the
            last axis; with `has_aux`, to a pair of these and any pytree.
        passes: pytree whose leaves have a leading axis K, such as `pass_keys`, or a
            pair of these and K carries.
        power: finite; a number or a traced scalar.
        chunk: the most passes to run at once, an integer of 1 or more; None runs all.
            It changes the prediction by rounding only.
        has_aux: whether `function` returns a pair.

    Returns:
        `Prediction`; with `has_aux`, a pair of it and the pytree, stacked to [K].

    Raises:
        ValueError: `passes` does not have a leaf, or its leaves do not have one K of 1
            or more; `chunk` is not an integer, or below 1; `power` is not a finite
            number; `function` returns scalars. Traced powers are not checked.
    """
    count = _count(passes)
    check_number("power", power, "finite", math.isfinite)
    run = function if has_aux else lambda one: (function(one), None)
    rows = _rows(count, count if chunk is None else check_count("chunk", chunk))

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


def moments(
    function: Callable[[Any], Any], passes: Any, *, chunk: int | None = None
) -> Moments:
    """Runs K passes and returns the mean and the variance of their mixture.

    Passes run as in `predict`.

    Args:
        function: maps one pass to a pair: mean and log variance, of one shape [...].
        passes: pytree whose leaves have a leading axis K, such as `pass_keys`.
        chunk: the most passes to run at once, an integer of 1 or more; None runs all.

    Raises:
        ValueError: as `predict`; or `function` does not return two arrays of one shape.
    """
    count = _count(passes)
    rows = _rows(count, count if chunk is None else check_count("chunk", chunk))

    def outputs(row):
        index = jnp.minimum(row, count - 1)
        found = jax.vmap(function)(
            jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], passes)
        )
        if len(pair := jax.tree.leaves(found)) != 2 or pair[0].shape != pair[1].shape:
            shapes = [leaf.shape[1:] for leaf in pair]
            raise ValueError(
                "`function` must return mean and log variance, two arrays of one "
                f"shape, got {shapes}."
            )
        return wide(pair[0]), jnp.exp(wide(pair[1]))

    def step(found, row):
        # Means and variances of chunks, weighted by their counts, are merged.
        seen, mean, within, squares = found
        means, variances = outputs(row)
        valid = (row < count).astype(means.dtype).reshape(-1, *[1] * (means.ndim - 1))
        new = valid.sum()
        own = (valid * means).sum(axis=0) / new
        spread = (valid * (means - own[None]) ** 2).sum(axis=0)
        share = new / (seen + new)
        squares = squares + spread + (own - mean) ** 2 * seen * share
        within = within + ((valid * variances).sum(axis=0) / new - within) * share
        return (seen + new, mean + (own - mean) * share, within, squares), None

    shapes = jax.eval_shape(outputs, rows[0])
    zero = jnp.zeros(shapes[0].shape[1:], shapes[0].dtype)
    start = jnp.zeros((), zero.dtype), zero, jnp.zeros_like(zero, shapes[1].dtype), zero
    (seen, mean, within, squares), _ = jax.lax.scan(step, start, rows)
    return Moments(mean, within, squares / seen)


def entropy(log_probs: Float[Arrays, "*N C"]) -> Float[Array, "*N"]:
    """Returns -sum_c p_c log p_c, in nats.

    At p_c = 0 both p_c log p_c and its gradient are 0.

    Args:
        log_probs: normalised over the last axis; -inf is allowed.
    """
    log_probs = wide(log_probs)
    finite = jnp.where(jnp.isneginf(log_probs), 0, log_probs)
    return -(jnp.exp(log_probs) * finite).sum(axis=-1)


class _Mean(NamedTuple):
    """Running mean: number of passes, log of their power mean, their mean entropy."""

    seen: Any
    log_mean: Any
    entropy: Any

    def add(self, log_probs, valid, power) -> "_Mean":
        """Adds the valid ones of some passes [k, ..., C].

        A power mean of power means, weighted by their counts, is the mean of all.
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
    """The mean of 0 passes, for outputs [k, ..., C] of a shape."""
    if len(shape.shape) < 2:
        raise ValueError(
            "`function` must return log-probabilities [..., C], got a scalar."
        )
    dtype = np.promote_types(shape.dtype, np.float32)
    one = shape.shape[1:]
    shapes = ((), one, one[:-1])
    return _Mean(*(jnp.zeros(s, dtype) for s in shapes))


def _power_mean(log_probs, weights, power):
    """Returns log((sum_k w_k p_k^power / sum_k w_k)^(1/power)) of passes [k, ..., C].

    It shifts by the pass that dominates, d_k = log p_k - m, and inverts the mean of
    Box-Cox transforms:

        m + log1p(power * a) / power        a = mean_k (exp(power * d_k) - 1) / power

    whose limits at power 0, m + a and a = mean_k d_k, are approached without loss.
    """
    power = jnp.asarray(power, log_probs.dtype)
    weights = weights.reshape(-1, *[1] * (log_probs.ndim - 1))
    sign = jnp.where(power < 0, -1, 1).astype(log_probs.dtype)
    towards = jnp.where(weights > 0, sign * log_probs, -jnp.inf)
    shift = jax.lax.stop_gradient(sign * towards.max(axis=0, keepdims=True))
    # Two zero probabilities have the distance 0 and not inf - inf.
    counts = (weights > 0) & ~(jnp.isinf(shift) & (log_probs == shift))
    apart = jnp.where(counts, log_probs, 0) - jnp.where(counts, shift, 0)
    a = (weights * _box_cox(apart, power)).sum(axis=0) / weights.sum()
    return shift[0] + _inverse_box_cox(a, power)


def _box_cox(d, power):
    """(exp(power d) - 1) / power, or d at power 0; power * d is in [-inf, 0]."""
    finite = jnp.where(jnp.isinf(d), 0, d)
    divisor = jnp.where(power == 0, 1, power)
    elsewhere = jnp.where(jnp.isinf(d), -1, jnp.expm1(divisor * finite)) / divisor
    # The second term is 0; its derivative in the power is not.
    return jnp.where(power == 0, d + power * finite**2 / 2, elsewhere)


def _inverse_box_cox(a, power):
    """log(1 + power a) / power, or a at power 0."""
    divisor = jnp.where(power == 0, 1, power)
    elsewhere = jnp.log1p(divisor * jnp.where(power == 0, 0, a)) / divisor
    finite = jnp.where(jnp.isinf(a), 0, a)
    return jnp.where(power == 0, a - power * finite**2 / 2, elsewhere)


def _rows(count: int, chunk: int) -> Int[np.ndarray, "chunks size"]:
    """Indices of the passes in chunks of equal size; those >= `count` are padding."""
    chunks = -(-count // chunk)
    size = -(-count // chunks)
    return np.arange(chunks * size).reshape(chunks, size)


def wide(values: Any) -> Float[Array, "..."]:
    """Returns the values in float32 or wider."""
    values = jnp.asarray(values)
    return values.astype(np.promote_types(values.dtype, np.float32))


def _count(passes) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(passes)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or not all(shape and shape[0] for shape in shapes):
        raise ValueError(
            "`passes` must have leaves with the same leading axis K of 1 or more, got "
            f"shapes {shapes}."
        )
    return shapes[0][0]
