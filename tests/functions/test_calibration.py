"""Calibration is as by hand, example by example; temperatures are as SciPy's."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import traced_once
from scipy import optimize, special

from rdrop import calibration, montecarlo

CLASSES = 4


@pytest.fixture
def judged(rng):
    """Logits of 300 examples, and their classes: overconfident, and often right."""
    logits = 4 * rng.normal(size=(300, CLASSES))
    tempered = special.softmax(logits / 2.5, axis=1)
    return logits, np.array([rng.choice(CLASSES, p=p) for p in tempered])


def compiled(function, *arguments, **options):
    """Calls a function as one program, which knows the options."""
    return jax.jit(partial(function, **options))(*arguments)


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
def test_reliability_and_its_error_are_those_of_a_loop(judged, bins):
    logits, labels = judged
    log_probs = special.log_softmax(logits, axis=1)
    counts, confidence, accuracy = expected = by_hand(log_probs, labels, bins)
    found, error = compiled(
        lambda *judged: (
            calibration.reliability(*judged, bins),
            calibration.calibration_error(*judged, bins),
        ),
        log_probs,
        labels,
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    by_bin = counts * np.abs(confidence - accuracy)
    np.testing.assert_allclose(error, by_bin.sum() / len(labels), rtol=1e-12)


def test_calibration_error_of_four_predictions():
    """Two of confidence 0.9, one right; 0.6, wrong; 0.7, right: in thirds of [0, 1]."""
    log_probs = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])
    measured = calibration.reliability(log_probs, labels, bins=3)
    assert measured.counts.tolist() == [0, 1, 3]
    np.testing.assert_allclose(measured.confidence, [0, 0.6, 2.5 / 3])
    np.testing.assert_allclose(measured.accuracy, [0, 0, 2 / 3])
    error = compiled(calibration.calibration_error, log_probs, labels, bins=3)
    np.testing.assert_allclose(error, (0.6 + 3 * (2.5 / 3 - 2 / 3)) / 4)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    with np.errstate(divide="ignore"):
        log_probs = np.log([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    labels = np.zeros(3, int)
    measured = compiled(calibration.reliability, log_probs, labels, bins=4)
    assert measured.counts.tolist() == [0, 1, 1, 1]


def test_labels_of_any_width_count_more_classes_than_their_type():
    """300 classes, of which the last are predicted; 43 is 299 in eight bits."""
    log_probs = np.full((2, 300), -9.0)
    log_probs[:, 299] = 0
    labels = [np.array([43, 1], dtype) for dtype in (np.uint8, np.int8, np.int32)]

    @jax.jit
    def run(log_probs, many):
        errors = [calibration.calibration_error(log_probs, each) for each in many]
        return errors, [calibration.fit_temperature(log_probs, each) for each in many]

    errors, temperatures = run(log_probs, labels)
    assert errors[0] == errors[1] == errors[2] > 0.5
    assert temperatures[0] == temperatures[1] == temperatures[2]


def test_traced_labels_are_not_checked():
    jax.jit(calibration.calibration_error)(np.zeros((2, 3)), np.array([-1, 3]))


def test_calibration_error_of_calibrated_predictions_is_that_of_chance(rng):
    """A gap is |normal| with the binomial's deviation: mean sqrt(2 / pi) of it."""
    count = 40_000
    confidence = rng.uniform(0.5, 1, count)
    labels = (rng.random(count) > confidence).astype(int)
    log_probs = np.log(np.stack([confidence, 1 - confidence], axis=1))
    measured, error, of_sharper = compiled(
        lambda log_probs, labels: (
            calibration.reliability(log_probs, labels),
            calibration.calibration_error(log_probs, labels),
            calibration.calibration_error(calibration.temper(log_probs, 0.5), labels),
        ),
        log_probs,
        labels,
    )
    counts, mean, _ = map(np.asarray, measured)
    sd = np.sqrt(counts * mean * (1 - mean)) / count
    expected = math.sqrt(2 / math.pi) * sd.sum()
    spread = math.sqrt((1 - 2 / math.pi) * (sd**2).sum())
    assert abs(error - expected) < 5 * spread
    assert of_sharper > 10 * error


def test_coverage_keeps_the_most_certain_first():
    share, accuracy = calibration.coverage(
        np.array([0.3, 0.1, 0.4, 0.2]), np.array([False, True, True, True])
    )
    assert share.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 3 / 4])


def test_ties_are_kept_in_random_order(rng):
    """The accuracy is the mean over orders, and the same for all of them."""
    uncertainty = np.array([0.0, 1.0, 1.0, 1.0, np.inf, np.inf])
    correct = np.array([True, True, False, False, True, False])
    measure = jax.jit(calibration.coverage)
    orders = [rng.permutation(6) for _ in range(10)]
    curves = np.array([measure(uncertainty[o], correct[o]).accuracy for o in orders])
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
    many = [np.float32(logits), logits, special.log_softmax(logits, axis=1)]
    narrow, wide, normalised = compiled(
        lambda many: [calibration.fit_temperature(z, labels) for z in many], many
    )
    np.testing.assert_allclose([wide, normalised], expected, rtol=1e-9)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=1e-5)
    assert 1.5 < expected < 4


def test_temperature_minimises_the_likelihood_and_the_calibration_error(judged):
    @jax.jit
    def measure(logits, labels, temperature):
        log_probs = calibration.temper(logits, temperature)
        nll = -log_probs[jnp.arange(len(labels)), labels].mean()
        return nll, calibration.calibration_error(log_probs, labels)

    fitted = float(calibration.fit_temperature(*judged))
    found = optimize.minimize_scalar(
        lambda temperature: float(measure(*judged, temperature)[0]),
        bounds=(0.1, 10),
        options={"xatol": 1e-9},
    )
    np.testing.assert_allclose(fitted, found.x, rtol=1e-5)
    assert measure(*judged, fitted)[1] < measure(*judged, 1.0)[1] / 2


def test_temperature_without_a_minimum_is_an_end_of_the_range():
    logits = np.array([[1.0, 0.0, -np.inf], [2.0, 3.0, 0.0]])
    cases = [([0, 1], 1e-3), ([1, 2], 1e3), ([2, 1], 1e3)]

    @jax.jit
    def fit(labels):
        return [
            calibration.fit_temperature(logits.astype(dtype), labels)
            for dtype in (np.float32, np.float64)
        ]

    for labels, end in cases:
        np.testing.assert_allclose(fit(np.array(labels)), end, rtol=1e-5)


def test_temper_divides_the_logits(judged):
    logits, _ = judged
    temper = jax.jit(calibration.temper)
    for temperature in (0.5, 1.0, 3.0):
        expected = special.softmax(logits / temperature, axis=1)
        actual = np.exp(temper(logits, temperature))
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    impossible = calibration.temper(jnp.asarray([0.0, -jnp.inf]), 2.0)
    assert impossible.tolist() == [0, -jnp.inf]


def test_calibration_is_compiled_once(judged):
    @traced_once
    def program(logits, labels, temperature):
        log_probs = calibration.temper(logits, temperature)
        right = log_probs.argmax(axis=1) == labels
        return (
            calibration.calibration_error(log_probs, labels),
            calibration.coverage(montecarlo.entropy(log_probs), right),
            calibration.fit_temperature(log_probs, labels),
        )

    fitted = [program(*judged, t)[2] * t for t in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(fitted, fitted[0], rtol=1e-8)


def test_plots_show_the_measured_figures(judged):
    """A dot for each bin that is not empty, by its size; a curve of coverage."""
    plot = pytest.importorskip("rdrop.plot")
    log_probs, labels = special.log_softmax(judged[0], axis=1), judged[1]
    right = log_probs.argmax(axis=1) == labels
    measured, kept = compiled(
        lambda log_probs, labels, right: (
            calibration.reliability(log_probs, labels, bins=10),
            calibration.coverage(montecarlo.entropy(log_probs), right),
        ),
        log_probs,
        labels,
        right,
    )
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
    axes = plot.coverage(kept, "LSTM", title="Vowels")
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_data(), kept)
    assert axes.get_title() == "Vowels"


PAIR = np.zeros((3, 2))
ONE = np.zeros(3, int)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "function",
    [
        calibration.reliability,
        calibration.calibration_error,
        calibration.fit_temperature,
    ],
)
@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (PAIR, ONE[:2], r"`labels` \[N\], .* got \(3, 2\) and \(2,\)"),
        (PAIR[0], ONE[:2], r"`log_probs` must .* got \(2,\) and \(2,\)"),
        (PAIR[:0], ONE[:0], r"N of 1 or more, got \(0, 2\) and \(0,\)"),
        (PAIR, ONE.astype(float), "`labels` must be integers, got float64"),
        (PAIR, ONE.astype(bool), "`labels` must be integers, got bool"),
        (PAIR, ONE - 1, r"`labels` must lie in \[0, C\) = \[0, 2\), got -1"),
        (PAIR, ONE - 100, r"`labels` must lie in \[0, C\) .*, got -100"),
        (PAIR, jnp.array([1, 2, 1]), r"`labels` must lie in \[0, C\) .*, got 2"),
    ],
)
def test_wrong_labels_are_refused(function, log_probs, labels, message):
    with pytest.raises(ValueError, match=message):
        function(log_probs, labels)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: calibration.reliability(PAIR, ONE, bins=0),
            "`bins` must be an integer of 1 or more, got 0",
        ),
        (
            lambda: calibration.calibration_error(PAIR, ONE, bins=2.5),
            "`bins` must be an integer of 1 or more, got 2.5",
        ),
        (
            lambda: calibration.coverage(np.zeros(3), np.zeros(2, bool)),
            r"`correct` must .* `uncertainty`, \(3,\), got bool\[2\]",
        ),
        (
            lambda: calibration.coverage(np.zeros(3), ONE),
            r"`correct` must be booleans .* got int64\[3\]",
        ),
        (
            lambda: calibration.coverage(np.zeros(0), np.zeros(0, bool)),
            r"`uncertainty` must have the shape \[N\], N of 1 or more, got \(0,\)",
        ),
        (
            lambda: calibration.temper(PAIR, 0.0),
            "`temperature` must be above 0, got 0.0",
        ),
        (
            lambda: calibration.temper(PAIR, jnp.zeros(())),
            "`temperature` must be above 0, got 0.0",
        ),
        (
            lambda: calibration.temper(PAIR, np.ones(2)),
            r"`temperature` must be a single number, got shape \(2,\)",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_brier_score_is_that_of_scikit_learn():
    """Computed by brier_score_loss of scikit-learn 1.9, scale_by_half=False."""
    probs = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    found = calibration.brier_score(np.log(probs), np.array([0, 2, 1]))
    assert found == pytest.approx(0.32666666666666666, rel=1e-6)


@pytest.mark.parametrize("bins", [1, 7, 300])
def test_adaptive_calibration_error_is_that_of_a_loop(judged, bins):
    logits, labels = judged
    probs = special.softmax(logits, axis=1)
    gaps = []
    for c in range(CLASSES):
        order = np.argsort(probs[:, c], kind="stable")
        places = np.arange(300) * bins // 300
        for b in range(bins):
            some = order[places == b]
            gaps.append(abs((labels[some] == c).mean() - probs[some, c].mean()))
    found = calibration.adaptive_calibration_error(np.log(probs), labels, bins)
    assert found == pytest.approx(np.mean(gaps), rel=1e-5)
    with pytest.raises(ValueError, match="`bins` must be at most N = 300, got 301"):
        calibration.adaptive_calibration_error(np.log(probs), labels, 301)


def test_area_under_the_risk_coverage_curve_is_that_of_a_loop(rng):
    uncertainty, correct = rng.normal(size=50), rng.uniform(size=50) < 0.7
    order = np.argsort(uncertainty)
    risks = [1 - correct[order[: k + 1]].mean() for k in range(50)]
    found = calibration.area_under_risk_coverage(uncertainty, correct)
    assert found == pytest.approx(np.mean(risks), rel=1e-5)


@pytest.mark.parametrize(
    ("coverage", "place"), [(0.5, 5), (0.8, 8), (0.9, 9), (0.91, None)]
)
def test_conformal_thresholds_are_order_statistics(coverage, place):
    """Of 9 scores the ceil(10 coverage)-th; infinite if there is none."""
    scores = np.random.default_rng(0).permutation(9) + 1.0
    found = calibration.conformal_quantile(scores, coverage)
    assert found == (np.inf if place is None else place)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_conformal_sets_hold_the_class_as_often_as_asked(rng, coverage):
    logits = 4 * rng.normal(size=(4000, CLASSES))
    tempered = special.softmax(logits / 2.5, axis=1)
    labels = np.array([rng.choice(CLASSES, p=p) for p in tempered])
    log_probs = special.log_softmax(logits, axis=1)
    right = np.exp(log_probs[np.arange(4000), labels])
    threshold = calibration.conformal_quantile(1 - right[:2000], coverage)
    sets = calibration.conformal_sets(log_probs[2000:], threshold)
    inside = np.asarray(sets)[np.arange(2000), labels[2000:]].mean()
    assert inside == pytest.approx(coverage, abs=0.035)


@pytest.mark.parametrize("coverage", [0, 1, 1.5, np.nan])
def test_impossible_coverages_are_refused(coverage):
    with pytest.raises(ValueError, match=r"`coverage` must be in \(0, 1\)"):
        calibration.conformal_quantile(np.ones(5), coverage)
    with pytest.raises(ValueError, match=r"`scores` must have the shape \[N\]"):
        calibration.conformal_quantile(np.ones((0,)), 0.5)
