"""The algebra of merge weights, against its formulas."""

import itertools
import math

import numpy as np
import pytest

from hf_warmscale.merging.weights import (
    decay_weights,
    ema_weights,
    greedy_soup,
    lawa_weights,
    one_hot_weights,
    pair_weights,
    power_weights,
    simplex_point,
    subset_weights,
    trajectory_weights,
    uniform_weights,
    unit_point,
)

TABLE = {
    "pair": (pair_weights(0.7), (0.3, 0.7)),
    "pair, beyond": (pair_weights(1.2), (-0.2, 1.2)),
    "uniform": (uniform_weights(4), (0.25, 0.25, 0.25, 0.25)),
    "one_hot_weights": (one_hot_weights(3, 1), (0, 1, 0)),
    "soup": (subset_weights(4, frozenset({0, 3})), (0.5, 0, 0, 0.5)),
    "lawa": (lawa_weights(7), (0, 0, 0.2, 0.2, 0.2, 0.2, 0.2)),
    "lawa of few": (lawa_weights(2), (0.5, 0.5)),
    "ema": (ema_weights(3, 0.9), (0.81, 0.09, 0.1)),
    "power 1": (power_weights(4, 1.0), (0.25, 0.25, 0.25, 0.25)),
    "power 2": (power_weights(4, 2.0), (1 / 16, 3 / 16, 5 / 16, 7 / 16)),
    "power 1/2": (power_weights(4, 0.5), (0.5, (2**0.5 - 1) / 2, (3**0.5 - 2**0.5) / 2, (2 - 3**0.5) / 2)),
    "window": (trajectory_weights(5, 2.0, 2.0), (0, 0, 0, 0.25, 0.75)),
    "part of a window": (trajectory_weights(3, 1.5, 1.0), (0, 1 / 3, 2 / 3)),
    "last": (trajectory_weights(3, 1.0, 3.0), (0, 0, 1)),
    "sticks": (simplex_point([0.0, 1.0]), (0, 1, 0)),
}


@pytest.mark.parametrize("case", TABLE)
def test_table(case: str) -> None:
    weights, expected = TABLE[case]
    assert weights == pytest.approx(expected, abs=1e-12)
    assert math.fsum(weights) == pytest.approx(1.0, abs=1e-12)


def test_the_1_sqrt_decay_of_eight_intervals() -> None:
    """A published vector: `w_i = 1 - sqrt(i / 9)`, the oldest first."""
    weights = decay_weights([1 - math.sqrt(i / 9) for i in range(1, 9)])
    assert weights == pytest.approx([0.333, 0.138, 0.106, 0.089, 0.079, 0.071, 0.065, 0.061, 0.057], abs=6e-4)
    assert weights == pytest.approx(power_weights(9, 0.5), abs=1e-12)


@pytest.mark.parametrize("factors", [[0.9, 0.5, 0.2], [1.0, 1.0], [0.0]])
def test_a_merge_is_a_decay_of_the_updates(factors: list[float]) -> None:
    """`sum_j c_j theta_j = theta_0 - sum_i w_i g_i` for the updates `g_i = theta_(i-1) - theta_i`."""
    theta = np.random.default_rng(0).normal(size=len(factors) + 1)
    updates = theta[:-1] - theta[1:]
    merged = np.dot(decay_weights(factors), theta)
    assert merged == pytest.approx(theta[0] - np.dot(factors, updates))


@pytest.mark.parametrize("exponent", [0.3, 1.0, 4.0])
def test_a_whole_window_is_the_power_family(exponent: float) -> None:
    assert trajectory_weights(6, 4.0, exponent)[2:] == pytest.approx(power_weights(4, exponent), abs=1e-12)


def test_trajectory_weights_change_smoothly() -> None:
    for window in np.linspace(1.0, 4.99, 80):
        near, far = trajectory_weights(5, window, 2.0), trajectory_weights(5, window + 0.01, 2.0)
        assert max(abs(a - b) for a, b in zip(near, far, strict=True)) < 0.02


def test_uniform_sticks_are_uniform_on_the_simplex() -> None:
    """Dirichlet(1, 1, 1, 1): every weight has mean 1/4, variance 3/80 and exceeds x with probability (1 - x)^3."""
    unit = np.random.default_rng(0).random((40_000, 3))
    points = np.array([simplex_point(row.tolist()) for row in unit])
    assert points.mean(axis=0) == pytest.approx(0.25, abs=0.004)
    assert points.var(axis=0) == pytest.approx(3 / 80, rel=0.03)
    assert (points > 0.5).mean(axis=0) == pytest.approx(1 / 8, abs=0.006)
    assert np.cov(points.T)[0, 3] == pytest.approx(-1 / 80, rel=0.1)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_every_point_of_the_simplex_comes_back(count: int) -> None:
    rng = np.random.default_rng(count)
    corners = [one_hot_weights(count, index) for index in range(count)]
    for weights in [uniform_weights(count), *corners, *rng.dirichlet(np.ones(count), size=20).tolist()]:
        unit = unit_point(weights)
        assert all(0 <= u <= 1 for u in unit)
        assert simplex_point(unit) == pytest.approx(weights, abs=1e-9)


def test_the_greedy_soup_is_the_recipe() -> None:
    """Ask for one average at a time until done; the same as the recipe run on the true losses."""
    points = np.array([0.9, -0.5, 0.2, 2.0])

    def loss(members: frozenset[int]) -> float:
        return float(points[list(members)].mean() ** 2)

    singles = [loss(frozenset([index])) for index in range(4)]
    known: dict[frozenset[int], float] = {}
    asked = []
    for _ in itertools.count():
        soup, done = greedy_soup(singles, known)
        if done:
            break
        asked.append(soup)
        known[soup] = loss(soup)
    # From the best, 2 (0.2), with 1 (-0.5): mean -0.15, better; 0 (0.9): mean 0.2, worse; 3 (2.0): mean 0.57, worse.
    assert asked == [{2, 1}, {2, 1, 0}, {2, 1, 3}]
    assert soup == {2, 1}
