"""Calibration is as by hand, example by example, and temperatures as SciPy's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from rdrop import calibration, montecarlo

CLASSES = 4


@pytest.fixture
def judged(rng):
    """Logits of 300 examples, and their classes: overconfident, and often right."""
    logits = 4 * rng.normal(size=(300, CLASSES))
    tempered = special.softmax(logits / 2.5, axis=1)
    return logits, np.array([rng.choice(CLASSES, p=p) for p in tempered])


def by_hand(log_probs, labels, bins):
    """The bins, example by example."""
    counts, confidence, accuracy = np.zeros((3, bins))
    for row, label in zip(np.exp(log_probs), labels, strict=True):
        place = max(0, math.ceil(row.max() * bins) - 1)
        counts[place] += 1
        confidence[place] += row.max()
        accuracy[place] += row.argmax() == label
    some = np.maximum(counts, 1)
    return counts, confidence / some, accuracy / some


@pytest.mark.parametrize("bins", [1, 15])
def test_reliability_is_that_of_a_loop(judged, bins):
    logits, labels = judged
    log_probs = special.log_softmax(logits, axis=1)
    actual = calibration.reliability(log_probs, labels, bins)
    counts, confidence, accuracy = expected = by_hand(log_probs, labels, bins)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    error = (counts * np.abs(confidence - accuracy)).sum() / len(labels)
    actual = calibration.calibration_error(log_probs, labels, bins)
    np.testing.assert_allclose(actual, error, rtol=1e-12)


def test_calibration_error_of_four_predictions():
    """Two of confidence 0.9, one right; 0.6, wrong; 0.7, right: in thirds of [0, 1]."""
    probs = jnp.asarray([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    labels = jnp.asarray([0, 1, 0, 1])
    measured = calibration.reliability(jnp.log(probs), labels, bins=3)
    assert measured.counts.tolist() == [0, 1, 3]
    np.testing.assert_allclose(measured.confidence, [0, 0.6, 2.5 / 3])
    np.testing.assert_allclose(measured.accuracy, [0, 0, 2 / 3])
    error = calibration.calibration_error(jnp.log(probs), labels, bins=3)
    np.testing.assert_allclose(error, (0.6 + 3 * (2.5 / 3 - 2 / 3)) / 4)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    probs = jnp.asarray([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    measured = calibration.reliability(jnp.log(probs), jnp.zeros(3, int), bins=4)
    assert measured.counts.tolist() == [0, 1, 1, 1]


def test_calibration_error_of_calibrated_predictions_is_that_of_chance(rng):
    """A gap is |normal| with the binomial's deviation: mean sqrt(2 / pi) of it."""
    count = 40_000
    confidence = rng.uniform(0.5, 1, count)
    labels = (rng.random(count) > confidence).astype(int)
    log_probs = np.log(np.stack([confidence, 1 - confidence], axis=1))
    counts, mean, _ = map(np.asarray, calibration.reliability(log_probs, labels))
    sd = np.sqrt(counts * mean * (1 - mean)) / count
    expected = math.sqrt(2 / math.pi) * sd.sum()
    spread = math.sqrt((1 - 2 / math.pi) * (sd**2).sum())
    error = calibration.calibration_error(log_probs, labels)
    assert abs(error - expected) < 5 * spread
    sharper = calibration.temper(log_probs, 0.5)
    assert calibration.calibration_error(sharper, labels) > 10 * error


def test_coverage_keeps_the_most_certain_first():
    share, accuracy = calibration.coverage(
        jnp.asarray([0.3, 0.1, 0.4, 0.2]), jnp.asarray([False, True, True, True])
    )
    assert share.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 3 / 4])


def test_ties_are_kept_in_random_order(rng):
    """The accuracy is the mean over orders, and the same for all of them."""
    uncertainty = np.array([0.0, 1.0, 1.0, 1.0, np.inf, np.inf])
    correct = np.array([True, True, False, False, True, False])
    orders = [rng.permutation(6) for _ in range(10)]
    curves = np.array(
        [calibration.coverage(uncertainty[o], correct[o]).accuracy for o in orders]
    )
    assert (curves == curves[0]).all()
    np.testing.assert_allclose(
        curves[0], [1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 2 / 4, 2.5 / 5, 3 / 6]
    )


def test_temperature_is_that_of_a_root_finder(judged):
    """Logits and log-probabilities have the same."""
    logits, labels = judged

    def slope(beta):
        p = special.softmax(beta * logits, axis=1)
        return ((p * logits).sum(axis=1) - logits[range(len(labels)), labels]).mean()

    expected = 1 / optimize.brentq(slope, 0.01, 10, xtol=1e-15, rtol=1e-14)
    actual = calibration.fit_temperature(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    normalised = calibration.fit_temperature(jax.nn.log_softmax(logits), labels)
    np.testing.assert_allclose(normalised, expected, rtol=1e-9)
    narrow = calibration.fit_temperature(logits.astype(np.float32), labels)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=1e-5)
    assert 1.5 < expected < 4


def test_temperature_minimises_the_likelihood_and_the_calibration_error(judged):
    logits, labels = judged

    def nll(temperature):
        log_probs = calibration.temper(logits, temperature)
        return -float(log_probs[jnp.arange(len(labels)), labels].mean())

    fitted = float(calibration.fit_temperature(logits, labels))
    found = optimize.minimize_scalar(nll, bounds=(0.1, 10), options={"xatol": 1e-9})
    np.testing.assert_allclose(fitted, found.x, rtol=1e-5)
    before, after = (
        calibration.calibration_error(calibration.temper(logits, t), labels)
        for t in (1.0, fitted)
    )
    assert after < before / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_temperature_without_a_minimum_is_an_end_of_the_range(dtype):
    logits = np.array([[1.0, 0.0, -np.inf], [2.0, 3.0, 0.0]], dtype)
    for labels, end in (([0, 1], 1e-3), ([1, 2], 1e3), ([2, 1], 1e3)):
        fitted = calibration.fit_temperature(logits, np.array(labels))
        np.testing.assert_allclose(fitted, end, rtol=1e-5)


def test_temper_divides_the_logits(judged):
    logits, _ = judged
    for temperature in (0.5, 1, 3.0):
        actual = np.exp(calibration.temper(logits, temperature))
        expected = special.softmax(logits / temperature, axis=1)
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    impossible = calibration.temper(jnp.asarray([0.0, -jnp.inf]), 2.0)
    assert impossible.tolist() == [0, -jnp.inf]


def test_calibration_is_compiled_once(judged):
    logits, labels = map(jnp.asarray, judged)

    @jax.jit
    def program(logits, labels, temperature):
        log_probs = calibration.temper(logits, temperature)
        right = log_probs.argmax(axis=1) == labels
        return (
            calibration.calibration_error(log_probs, labels),
            calibration.coverage(montecarlo.entropy(log_probs), right),
            calibration.fit_temperature(log_probs, labels),
        )

    fitted = [program(logits, labels, t)[2] * t for t in (0.5, 1.0, 2.0)]
    assert program._cache_size() == 1
    np.testing.assert_allclose(fitted, fitted[0], rtol=1e-8)


def test_reliability_diagram_has_a_dot_for_each_bin_that_is_not_empty(judged):
    plot = pytest.importorskip("rdrop.plot")
    log_probs, labels = jax.nn.log_softmax(judged[0]), judged[1]
    measured = calibration.reliability(log_probs, labels, bins=10)
    axes = plot.reliability(measured, "LSTM")
    plot.reliability(measured, "again", title="Vowels", axes=axes)
    assert axes.get_title() == "Vowels"
    some = np.asarray(measured.counts) > 0
    assert 0 < some.sum() < 10
    dots, _ = axes.collections
    drawn = np.stack([measured.confidence, measured.accuracy], axis=1)[some]
    np.testing.assert_allclose(dots.get_offsets(), drawn)
    areas = dots.get_sizes() / np.asarray(measured.counts)[some]
    np.testing.assert_allclose(areas, areas[0])
    assert axes.get_legend_handles_labels()[1] == ["LSTM", "again"]


def test_coverage_curve_is_what_was_measured(judged):
    plot = pytest.importorskip("rdrop.plot")
    log_probs, labels = jax.nn.log_softmax(judged[0]), judged[1]
    right = np.asarray(log_probs.argmax(axis=1)) == labels
    measured = calibration.coverage(montecarlo.entropy(log_probs), right)
    axes = plot.coverage(measured, "LSTM", title="Vowels")
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_data(), measured)
    assert axes.get_title() == "Vowels"


PAIR = jnp.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: calibration.reliability(PAIR, jnp.zeros(2, int)),
            r"`labels` \[N\], got shapes \(3, 2\) and \(2,\)",
        ),
        (
            lambda: calibration.reliability(PAIR, jnp.zeros(3, int), bins=0),
            "`bins` must be 1 or more, got 0",
        ),
        (
            lambda: calibration.fit_temperature(PAIR[0], jnp.zeros(2, int)),
            "`log_probs` must be",
        ),
        (
            lambda: calibration.coverage(jnp.zeros(3), jnp.zeros(2, bool)),
            r"`correct` must have the shape of `uncertainty`, \(3,\), got \(2,\)",
        ),
        (
            lambda: calibration.temper(PAIR, 0.0),
            "`temperature` must be above 0, got 0.0",
        ),
    ],
)
def test_mistakes_are_named(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
