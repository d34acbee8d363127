"""K passes make the mean that NumPy makes of them."""

import itertools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import optimised_jit, traced_once
from scipy import special, stats

import rdrop
from rdrop import montecarlo
from rdrop.arguments import check_count

KEY = jax.random.key(0)
POWERS = [-2.0, -0.5, 0.0, 0.3, 1.0, 3.0]
PASSES, EXAMPLES, CLASSES = 7, 5, 4


def power_mean(probs, power):
    """The renormalised power mean of distributions [K, ..., C]."""
    with np.errstate(divide="ignore"):
        if power == 0:
            mean = np.exp(np.log(probs).mean(axis=0))
        else:
            mean = (probs**power).mean(axis=0) ** (1 / power)
    return mean / mean.sum(axis=-1, keepdims=True)


def itself(log_probs):
    return log_probs


@partial(jax.jit, static_argnames="chunk")
def predict(log_probs, power=1.0, chunk=None):
    return montecarlo.predict(itself, log_probs, power=power, chunk=chunk)


@pytest.fixture
def probs(rng):
    return rng.dirichlet(np.full(CLASSES, 0.5), (PASSES, EXAMPLES))


def test_pass_has_the_keys_of_its_number():
    """However many passes there are, the first have the same keys."""

    @jax.jit
    def run():
        few, many = montecarlo.pass_keys(KEY, 3), montecarlo.pass_keys(KEY, 8)
        one = [rdrop.stream_keys(jax.random.fold_in(KEY, k)) for k in range(3)]
        return few, many, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one)

    found = run()
    for name in ("inputs", "recurrent"):
        numbers = [np.asarray(jax.random.key_data(getattr(k, name))) for k in found]
        np.testing.assert_array_equal(numbers[0], numbers[1][:3])
        np.testing.assert_array_equal(numbers[0], numbers[2])
        assert len({each.tobytes() for each in numbers[1]}) == 8
    assert found[0].step.tolist() == [0] * 3


@pytest.mark.parametrize("power", POWERS)
def test_mean_is_that_of_the_equation(probs, power):
    prediction = predict(np.log(probs), power)
    np.testing.assert_allclose(
        np.exp(prediction.log_probs), power_mean(probs, power), rtol=1e-12
    )
    entropies = stats.entropy(probs, axis=-1)
    np.testing.assert_allclose(
        prediction.expected_entropy, entropies.mean(axis=0), rtol=1e-12
    )
    whole = stats.entropy(power_mean(probs, power), axis=-1)
    np.testing.assert_allclose(prediction.entropy, whole, rtol=1e-12)
    np.testing.assert_allclose(
        prediction.mutual_information, whole - entropies.mean(axis=0), atol=1e-13
    )


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing(probs, chunk):
    """Also those that do not divide the passes."""
    for power in POWERS:
        whole = predict(np.log(probs), power)
        parts = predict(np.log(probs), power, chunk)
        chex.assert_trees_all_close(parts, whole, rtol=1e-12)


def test_chunk_is_the_most_that_is_run_at_once():
    sizes = []

    def function(x):
        return jnp.log(jnp.stack([x, 1 - x]))

    def spy(xs):
        sizes.append(len(xs))
        return jax.vmap(function)(xs)

    watched = jax.custom_batching.custom_vmap(function)
    watched.def_vmap(lambda size, batched, xs: (spy(xs), True))
    montecarlo.predict(watched, jnp.linspace(0.1, 0.9, 10), chunk=4)
    assert set(sizes) == {4}  # three chunks of which the last has two passes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mean_in_narrow_types_is_made_in_float32(probs, dtype):
    log_probs = np.log(probs).astype(dtype)
    for power in (-2.0, 0.0, 1e-9, 0.5, 1.0):
        prediction = predict(log_probs, power, chunk=2)
        assert prediction.log_probs.dtype == jnp.float32
        assert prediction.expected_entropy.dtype == jnp.float32
        expected = power_mean(np.exp(np.float64(log_probs)), round(power, 6))
        np.testing.assert_allclose(np.exp(prediction.log_probs), expected, atol=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
def test_geometric_mean_is_the_limit(probs, sign):
    """The distance falls with the power, down to its rounding."""
    geometric = np.asarray(predict(np.log(probs), 0.0).log_probs)
    for power, near in ((1e-2, 0.05), (1e-4, 5e-4), (1e-8, 5e-8), (1e-15, 1e-13)):
        close = predict(np.log(probs), sign * power).log_probs
        assert 0 <= np.abs(close - geometric).max() < near


@pytest.mark.slow
def test_gradients_are_those_of_differences(probs):
    log_probs, step = jnp.asarray(np.log(probs)), 1e-5
    direction = jnp.cos(jnp.arange(log_probs.size)).reshape(log_probs.shape)

    def loss(log_probs, power):
        return predict(log_probs, power, chunk=3).log_probs[1, 2]

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for power in (-0.7, 0.0, 1.0):
        in_probs, in_power = slopes(log_probs, power)
        there, back = (loss(log_probs, power + s) for s in (step, -step))
        np.testing.assert_allclose(in_power, (there - back) / (2 * step), rtol=1e-6)
        there, back = (loss(log_probs + s * direction, power) for s in (step, -step))
        along = (in_probs * direction).sum()
        np.testing.assert_allclose(along, (there - back) / (2 * step), rtol=1e-6)


def test_classes_without_probability_are_allowed():
    """Values are exact, gradients finite."""

    def loss(log_probs, power):
        prediction = montecarlo.predict(itself, log_probs, power=power, chunk=2)
        entropies = prediction.entropy + prediction.expected_entropy
        return prediction.log_probs[0] + entropies, prediction.log_probs

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    probs = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.4, 0.6, 0.0]])
    for power, order in itertools.product(POWERS, ([0, 1, 2], [1, 2, 0], [0, 2, 0])):
        rows = probs[order]
        with np.errstate(divide="ignore"):
            gradients, found = slopes(np.log(rows), power)
            expected = np.log(power_mean(rows, power))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        chex.assert_tree_all_finite(gradients)


def test_far_tails_do_not_underflow():
    """Probabilities of e^-3000, of which float32 and float64 know nothing."""
    log_probs = jnp.asarray([[0.0, -3000.0], [0.0, -3001.0]], jnp.float32)
    for power in POWERS:
        tail = predict(log_probs, power).log_probs[1]
        mean = special.logsumexp([0, -power], b=0.5) / power if power else -0.5
        np.testing.assert_allclose(tail, -3000 + mean, rtol=1e-6)


def test_mutual_information_is_that_of_passes_that_agree_or_are_certain(probs):
    """0 if all are the same; the entropy of the mean if each is sure of another."""
    prediction = predict(np.log(np.stack([probs[0]] * PASSES)))
    np.testing.assert_allclose(np.exp(prediction.log_probs), probs[0], rtol=1e-12)
    np.testing.assert_allclose(prediction.mutual_information, 0, atol=1e-12)
    with np.errstate(divide="ignore"):
        prediction = predict(np.log(np.eye(3)))
    np.testing.assert_allclose(prediction.mutual_information, math.log(3), rtol=1e-12)


def test_one_program_serves_all_powers_and_passes(probs):
    log_probs = np.log(probs)

    @traced_once
    def program(passes, power):
        return montecarlo.predict(itself, passes, power=power, chunk=3)

    looped = [program(log_probs, power).log_probs for power in POWERS]
    program(log_probs[::-1], 1.0)
    together = jax.jit(
        jax.vmap(lambda power: montecarlo.predict(itself, log_probs, power=power))
    )
    np.testing.assert_allclose(together(jnp.array(POWERS)).log_probs, looped)


def test_more_passes_do_not_trace_the_function_more_often():
    def traces(passes, chunk):
        traced = []
        jax.eval_shape(
            lambda log_probs: (
                montecarlo.predict(
                    lambda one: traced.append(0) or one, log_probs, chunk=chunk
                ).log_probs
            ),
            jax.ShapeDtypeStruct((passes, 3), jnp.float32),
        )
        return len(traced)

    assert traces(2, 1) == traces(9, 1) == traces(9, 4) == traces(9, None)


def test_aux_is_stacked_in_the_order_of_passes(probs):
    def function(one):
        k, log_probs = one
        return log_probs, {"k": k, "pair": (2 * k, log_probs[0])}

    @jax.jit
    def run(passes):
        return [
            montecarlo.predict(function, passes, chunk=chunk, has_aux=True)
            for chunk in (None, 3)
        ]

    for prediction, aux in run((np.arange(PASSES), np.log(probs))):
        assert aux["k"].tolist() == [*range(PASSES)]
        assert aux["pair"][0].tolist() == [*range(0, 2 * PASSES, 2)]
        np.testing.assert_allclose(aux["pair"][1], np.log(probs[:, 0]))
        np.testing.assert_allclose(
            np.exp(prediction.log_probs), power_mean(probs, 1), rtol=1e-12
        )


@pytest.mark.slow
def test_passes_of_a_layer_are_those_of_a_loop(problem):
    dropout = rdrop.Dropout(recurrent=rdrop.Bernoulli(0.5))
    rnn = rdrop.RNN(problem.cell)

    def noisy(keys):
        (_, h), _ = rnn.apply(problem.params, problem.xs, dropout, keys)
        return jax.nn.log_softmax(4 * h)

    keys = montecarlo.pass_keys(KEY, 6)
    prediction = montecarlo.predict(noisy, keys, chunk=4)
    once = jax.jit(noisy)
    loop = [once(rdrop.stream_keys(jax.random.fold_in(KEY, k))) for k in range(6)]
    expected = np.exp(loop).mean(axis=0)
    np.testing.assert_allclose(np.exp(prediction.log_probs), expected, rtol=1e-10)
    assert (prediction.mutual_information > 1e-3).all()


def test_each_pass_continues_its_own_carry(problem):
    """Passes over two halves of a sequence, carries carried over, equal the whole."""
    dropout = rdrop.Dropout(recurrent=rdrop.Bernoulli(0.5, per="step"))

    def run(keys, carry, steps):
        def function(one):
            keys, carry = one
            for n, x in enumerate(steps):
                later = keys.replace(step=keys.step + n)
                carry, y = problem.cell.apply(problem.params, carry, x, dropout, later)
            return jax.nn.log_softmax(y), carry

        return montecarlo.predict(function, (keys, carry), chunk=2, has_aux=True)

    @jax.jit
    def both(keys):
        first, second = problem.xs[:, 0], problem.xs[:, 1]
        start = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), problem.carry)
        whole, _ = run(keys, start, [first, second])
        _, carry = run(keys, start, [first])
        return whole, run(keys.replace(step=keys.step + 1), carry, [second])[0]

    chex.assert_trees_all_close(*both(montecarlo.pass_keys(KEY, 3)), rtol=1e-10)


@pytest.mark.slow
def test_error_falls_with_the_root_of_the_number_of_passes(problem):
    """The mean square error of n estimates of K passes is the variance of one over K.

    The expectation is that of 4096 other passes, whose own error counts. The mean of n
    squares varies by sqrt((kurtosis - 1) / n), and that of a sum over K by less.
    """
    dropout = rdrop.Dropout(recurrent=rdrop.Bernoulli(0.5))

    def noisy(keys):
        carry, x = problem.carry, problem.xs[:, 0]
        _, h = problem.cell.apply(problem.params, carry, x, dropout, keys)
        return jax.nn.log_softmax(4 * h)

    total, keys = 4096, montecarlo.pass_keys(KEY, 8192)
    _, passes = jax.jit(
        lambda keys: montecarlo.predict(
            lambda one: (noisy(one),) * 2, keys, chunk=512, has_aux=True
        )
    )(keys)
    few, many = jnp.split(passes[:, 0], 2)
    truth = np.exp(predict(many).log_probs[0])
    p = np.exp(few[:, 0])
    variance, kurtosis = p.var(ddof=1), stats.kurtosis(p, fisher=False)
    for size in (1, 4, 16, 64):
        groups = few.reshape(-1, size, 3)
        estimates = np.exp(jax.vmap(predict)(groups).log_probs[:, 0])
        square = ((estimates - truth) ** 2).mean()
        expected = variance * (1 / size + 1 / total)
        spread = math.sqrt((2 + (kurtosis - 3) / size) * size / total)
        assert abs(square / expected - 1) < 5 * spread


@pytest.mark.slow
def test_memory_grows_with_the_chunk_and_not_with_the_passes():
    """Outputs of a pass are 0.4 MB."""
    xs = jnp.linspace(0, 9, 50_000).reshape(1000, 50)

    def function(number):
        return jax.nn.log_softmax(jnp.sin(number * xs))

    def needed(passes, chunk):
        run = optimised_jit(lambda xs: montecarlo.predict(function, xs, chunk=chunk))
        lowered = run.lower(jnp.arange(passes, dtype=float))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many, wide = needed(8, 2), needed(64, 2), needed(64, 16)
    assert abs(many - few) < 0.05 * few
    assert wide > 4 * few


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_entropy_is_that_of_scipy(rng, shape):
    probs = rng.dirichlet(np.ones(CLASSES), shape)
    actual = montecarlo.entropy(np.log(probs))
    np.testing.assert_allclose(actual, stats.entropy(probs, axis=-1), rtol=1e-12)


def test_entropy_of_impossible_classes_is_zero_and_so_is_its_gradient():
    log_probs = jnp.asarray([0.0, -jnp.inf])
    value, gradient = jax.value_and_grad(montecarlo.entropy)(log_probs)
    assert value == 0
    assert gradient.tolist() == [-1, 0]


PAIR = np.zeros((3, 2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: montecarlo.pass_keys(np.zeros(2, np.uint32), 3), TypeError, "`key`"),
        (lambda: montecarlo.pass_keys(jax.random.split(KEY), 3), ValueError, "`key`"),
        (
            lambda: montecarlo.pass_keys(KEY, 0),
            ValueError,
            "`passes` must be an integer of 1 or more, got 0",
        ),
        (
            lambda: montecarlo.pass_keys(KEY, 2.5),
            ValueError,
            "`passes` must be an integer of 1 or more, got 2.5",
        ),
        (
            lambda: montecarlo.predict(itself, PAIR, chunk=0),
            ValueError,
            "`chunk` must be an integer of 1 or more, got 0",
        ),
        (
            lambda: montecarlo.predict(itself, PAIR, chunk=1.5),
            ValueError,
            "`chunk` must be an integer of 1 or more, got 1.5",
        ),
        (
            lambda: montecarlo.predict(itself, PAIR, power=math.inf),
            ValueError,
            "`power` must be finite, got inf",
        ),
        (
            lambda: montecarlo.predict(itself, PAIR, power=np.float32("nan")),
            ValueError,
            "`power` must be finite, got nan",
        ),
        (
            lambda: montecarlo.predict(itself, PAIR, power=np.ones(2)),
            ValueError,
            r"`power` must be a single number, got shape \(2,\)",
        ),
        (lambda: predict(()), ValueError, "`passes` must have leaves"),
        (lambda: predict(np.zeros(())), ValueError, "`passes` must have leaves"),
        (lambda: predict(np.zeros((0, 2))), ValueError, "`passes` must have leaves"),
        (
            lambda: predict((np.zeros(2), np.zeros(3))),
            ValueError,
            r"`passes` .* same leading axis K .* got shapes \[\(2,\), \(3,\)\]",
        ),
        (lambda: predict(np.zeros(3)), ValueError, "`function` must return"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("count", [3, np.int64(3), jnp.array(3, jnp.int32)])
def test_a_count_may_be_any_integer(count):
    assert check_count("passes", count) == 3
