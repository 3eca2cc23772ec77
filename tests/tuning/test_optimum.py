"""The fitted best learning rate: exact on parabolas, honest about seeds, edges and runs that diverge."""

import math

import pytest

from hf_warmscale.tuning import find_optima
from hf_warmscale.tuning.optimum import parabola_vertex

RATES = [2.0**exponent for exponent in range(-9, -3)]


def curve(best: float, noise: dict[int, float] | None = None) -> dict[float, dict[int, float]]:
    """A parabola in log2 of the rate; a seed moves its lowest point."""
    shifts = noise or {0: 0.0, 1: 0.0, 2: 0.0}
    return {rate: {seed: (math.log2(rate) - best - shift) ** 2 for seed, shift in shifts.items()} for rate in RATES}


@pytest.mark.parametrize("best", [-7.0, -6.7, -6.49, -5.25])
def test_the_vertex_of_a_parabola_is_found(best: float) -> None:
    (optimum,) = find_optima({64: curve(best)})
    assert optimum.log2_lr == pytest.approx(best, abs=1e-9)
    assert (optimum.low, optimum.high) == pytest.approx((best, best), abs=1e-9)
    assert not optimum.at_edge


def test_drift_is_relative_to_the_first_size_and_seeds_that_move_together_cancel() -> None:
    """A seed that shifts both sizes alike widens the interval of each rate, not that of the drift."""
    noise = {0: -0.2, 1: 0.0, 2: 0.2}
    first, second = find_optima({32: curve(-6.0, noise), 64: curve(-6.4, noise)})
    assert (first.drift, second.drift) == pytest.approx((0, -0.4), abs=1e-9)
    assert second.low < second.log2_lr - 0.1
    assert (second.drift_low, second.drift_high) == pytest.approx((-0.4, -0.4), abs=1e-9)


def test_other_rates_may_have_one_seed() -> None:
    full = curve(-6.3)
    partial = {rate: seeds if -8 < math.log2(rate) < -4 else {0: seeds[0]} for rate, seeds in full.items()}
    assert find_optima({64: partial})[0].log2_lr == pytest.approx(-6.3, abs=1e-9)


def test_an_optimum_at_the_end_of_the_grid_is_said_to_be() -> None:
    (optimum,) = find_optima({64: curve(-2.0)})
    assert optimum.at_edge
    assert optimum.log2_lr == -4


def test_a_diverged_neighbour_leaves_the_grid_point() -> None:
    diverged = {rate: seeds if rate < 2**-5 else {0: math.inf} for rate, seeds in curve(-6.3).items()}
    (optimum,) = find_optima({64: diverged})
    assert optimum.log2_lr == pytest.approx(-6.0)
    assert optimum.at_edge
    with pytest.raises(ValueError, match="Every run of size 64 diverged"):
        find_optima({64: {rate: {0: math.inf} for rate in RATES}})


def test_vertex_stays_within_its_points() -> None:
    assert parabola_vertex([-8, -7, -6], [1.0, 0.9, 0.9]) == pytest.approx(-6.5)
    assert parabola_vertex([-8, -7, -6], [1.0, 0.6, 0.3]) == -6
    assert parabola_vertex([-8, -7, -6], [0.0, 1.0, 0.5]) == -8
