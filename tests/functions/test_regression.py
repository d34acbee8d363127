"""Scores of predicted numbers agree with integrals, with loops and with each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from rdrop import calibration, montecarlo, regression

PASSES, COUNT = 5, 7
# Of scoringrules 0.10: crps_normal, crps_ensemble with estimator "fair", crps_mixnorm.
NORMAL, FAIR, MIXED = [0.74631176, 0.63145211], [0.03333333, 1.5], [0.92983389]


@pytest.fixture
def mixture(rng):
    means = rng.normal(size=(PASSES, COUNT))
    deviations = rng.uniform(0.3, 2, size=(PASSES, COUNT))
    return means, deviations, rng.normal(size=COUNT)


def integrated(distribution, observed):
    """The integral of (F(x) - [x >= y])^2."""
    below = scipy.integrate.quad(lambda x: distribution(x) ** 2, -30, observed)[0]
    above = scipy.integrate.quad(lambda x: (1 - distribution(x)) ** 2, observed, 30)[0]
    return below + above


def test_the_score_of_normal_distributions_is_its_integral(mixture):
    means, deviations, observed = mixture
    actual = regression.crps_normal(means[0], deviations[0], observed)
    for n in range(COUNT):
        normal = scipy.stats.norm(means[0, n], deviations[0, n])
        assert actual[n] == pytest.approx(integrated(normal.cdf, observed[n]), abs=1e-7)
    exact = regression.crps_normal(np.zeros(2), np.zeros(2), np.array([-2.0, 3.0]))
    np.testing.assert_array_equal(exact, [2, 3])


def test_the_score_of_mixtures_is_its_integral(mixture):
    means, deviations, observed = mixture
    actual = regression.crps_mixture(*mixture)
    pit = regression.pit_mixture(*mixture)
    for n in range(COUNT):

        def below(x, n=n):
            return scipy.stats.norm.cdf(x, means[:, n], deviations[:, n]).mean()

        assert actual[n] == pytest.approx(integrated(below, observed[n]), abs=1e-6)
        assert pit[n] == pytest.approx(below(observed[n]), abs=1e-12)
    one = regression.crps_mixture(means[:1], deviations[:1], observed)
    single = regression.crps_normal(means[0], deviations[0], observed)
    np.testing.assert_allclose(one, single, atol=1e-12)


def test_the_score_of_samples_is_a_double_loop(rng):
    samples, observed = rng.normal(size=(6, COUNT)), rng.normal(size=COUNT)
    actual = regression.crps_samples(samples, observed)
    for n in range(COUNT):
        apart = np.abs(samples[:, None, n] - samples[None, :, n]).sum() / (2 * 6 * 5)
        expected = np.abs(samples[:, n] - observed[n]).mean() - apart
        assert actual[n] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="`samples` must be at least 2, got 1"):
        regression.crps_samples(samples[:1], observed)


def test_the_score_of_few_samples_is_fair(rng):
    """Its mean is the score of the distribution for 2 samples as for many."""
    samples = rng.normal(size=(2, 200_000))
    found = regression.crps_samples(samples, np.full(200_000, 0.7)).mean()
    exact = regression.crps_normal(np.zeros(1), np.ones(1), np.full(1, 0.7))[0]
    assert found == pytest.approx(float(exact), abs=0.005)


def test_scores_are_those_of_scoringrules():
    normal = regression.crps_normal(
        np.array([0.5, -1.0]), np.array([2.0, 0.3]), np.array([1.7, -0.2])
    )
    np.testing.assert_allclose(normal, NORMAL, rtol=1e-6)
    samples = np.array([[0.1, 2.0], [0.4, -1.0], [-0.7, 0.5]])
    fair = regression.crps_samples(samples, np.array([0.2, 3.0]))
    np.testing.assert_allclose(fair, FAIR, rtol=1e-6)
    mixed = regression.crps_mixture(
        np.array([[0.5], [-1.0]]), np.array([[2.0], [0.3]]), np.array([0.9])
    )
    np.testing.assert_allclose(mixed, MIXED, rtol=1e-6)


def test_pinball_losses_average_to_half_the_score(rng):
    """CRPS = 2 integral of the pinball losses of all quantiles."""
    levels = (np.arange(4000) + 0.5) / 4000
    losses = [
        regression.pinball_loss(scipy.stats.norm.ppf(p) * np.ones(1), p, np.ones(1))[0]
        for p in levels[::40]
    ]
    score = regression.crps_normal(np.zeros(1), np.ones(1), np.ones(1))[0]
    assert 2 * np.mean(losses) == pytest.approx(float(score), abs=0.01)
    with pytest.raises(ValueError, match=r"`level` must be in \(0, 1\)"):
        regression.pinball_loss(np.zeros(1), 1.0, np.zeros(1))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_conformal_intervals_cover_though_the_model_is_wrong(rng, level):
    """Deviations are predicted three times too small."""
    scores = np.abs(rng.normal(size=(2, 5000))) * 3
    threshold = calibration.conformal_quantile(scores[0], level)
    quality = regression.interval_quality(
        np.full(5000, -threshold), np.full(5000, threshold), scores[1]
    )
    assert quality.coverage == pytest.approx(level, abs=0.02)
    assert quality.width == pytest.approx(2 * float(threshold))
    raw = regression.interval_quality(
        *(
            np.full(5000, end * scipy.stats.norm.isf((1 - level) / 2))
            for end in (-1, 1)
        ),
        scores[1],
    )
    assert raw.coverage < level - 0.1


def test_moments_are_those_of_the_mixture(mixture):
    means, deviations, _ = mixture
    logs = 2 * np.log(deviations)
    passes = {"mean": means, "log": logs}
    for chunk in (None, 1, 2, 3):
        found = montecarlo.moments(
            lambda one: (one["mean"], one["log"]), passes, chunk=chunk
        )
        np.testing.assert_allclose(found.mean, means.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.within, (deviations**2).mean(axis=0))
        np.testing.assert_allclose(found.between, means.var(axis=0), atol=1e-12)
        square = (deviations**2 + means**2).mean(axis=0)
        np.testing.assert_allclose(found.variance, square - found.mean**2)
    with pytest.raises(ValueError, match="must return mean and log variance"):
        montecarlo.moments(lambda one: one["mean"], passes)


def test_scores_are_jitted_and_have_gradients():
    slope = jax.jit(jax.grad(lambda m: regression.crps_normal(m, jnp.ones(1), m)[0]))
    assert np.isfinite(slope(jnp.zeros(1))).all()
    still = jax.grad(
        lambda s: regression.crps_normal(jnp.zeros(1), s, jnp.ones(1)).sum()
    )(jnp.zeros(1))
    assert np.isfinite(still).all()
