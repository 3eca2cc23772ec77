"""The Gaussian process interpolates, is unsure where it should be, and its improvement is the integral it claims."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from hf_warmscale.evaluation.scores import FloatArray
from hf_warmscale.merging.search.posterior import Posterior


def bowl(points: FloatArray) -> FloatArray:
    loss: FloatArray = 3.0 + 0.2 * np.sum((points - 0.6) ** 2, axis=-1)
    return loss


def test_a_smooth_loss_is_interpolated_and_predicted() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((25, 2))
    posterior = Posterior.fit(points, bowl(points).tolist())
    mean, deviation = posterior.predict(points)
    assert mean == pytest.approx(bowl(points), abs=1e-3)
    new = rng.random((200, 2))
    mean, deviation = posterior.predict(new)
    error = mean - bowl(new)
    assert np.sqrt(np.mean(error**2)) < 0.1 * bowl(new).std()
    assert 0.2 < np.sqrt(np.mean((error / deviation) ** 2)) < 2  # it knows how far off it is


def test_far_from_the_data_the_posterior_is_the_prior() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((6, 1))
    posterior = Posterior.fit(points, bowl(points).tolist())
    mean, deviation = posterior.predict([[1e6]])
    assert mean[0] == pytest.approx(bowl(points).mean())
    assert deviation[0] == pytest.approx(posterior.scale * np.exp(0.5 * posterior.parameters[-2]))


def test_expected_improvement_is_the_integral() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((5, 1))
    posterior = Posterior.fit(points, bowl(points).tolist())
    at = np.array([[0.05], [0.6], [0.99]])
    incumbent = float(bowl(points).min())
    mean, deviation = posterior.predict(at)
    for value, mu, sd in zip(posterior.expected_improvement(at, incumbent), mean, deviation, strict=True):
        integral, _ = quad(lambda loss, m=mu, s=sd: (incumbent - loss) * norm.pdf(loss, m, s), mu - 9 * sd, incumbent)
        assert value == pytest.approx(integral, abs=1e-9)


def test_there_is_nothing_to_gain_at_a_point_that_is_known() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((9, 1))
    losses = bowl(points)
    posterior = Posterior.fit(points, losses.tolist())
    best = points[[losses.argmin()]]
    assert posterior.expected_improvement(best, float(losses.min()))[0] < 1e-4


def test_noise_is_averaged_out() -> None:
    """Two measurements of one point that differ by the noise: the mean lies between them."""
    points = np.linspace(0, 1, 12)[:, None].repeat(2, axis=0)
    losses = bowl(points) + 0.01 * np.tile([-1.0, 1.0], 12)
    mean, _ = Posterior.fit(points, losses.tolist()).predict(points)
    assert np.sqrt(np.mean((mean - bowl(points)) ** 2)) < 0.4 * 0.01


def test_equal_losses_and_equal_points_are_no_error() -> None:
    posterior = Posterior.fit([[0.5], [0.5], [0.1]], [2.0, 2.0, 2.0])
    mean, deviation = posterior.predict([[0.3]])
    assert mean[0] == pytest.approx(2.0) and np.isfinite(deviation[0])
