"""The best learning rate of a sweep, with its interval: a parabola in log2 of the rate, resampled over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Curve = Mapping[float, Mapping[int, float]]
"""The losses of one size: learning rate -> seed -> loss in nats; infinite where the run diverged."""


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one size.

    Args:
        size (`int`): the width or the depth.
        log2_lr (`float`): log2 of the rate at which the fitted loss is lowest.
        low (`float`): the lower end of the bootstrap interval of `log2_lr` over seeds: 95 % with many of them; with
            three it is little more than their range, which contains the true value about three times in four.
        high (`float`): its upper end.
        drift (`float`): `log2_lr` minus that of the first size, in octaves.
        drift_low (`float`): the lower end of the interval of `drift`.
        drift_high (`float`): its upper end.
        loss (`float`): the lowest mean loss on the grid, in nats.
        at_edge (`bool`): the lowest loss is at an end of the grid or beside a rate at which a run diverged, so the
            optimum may lie elsewhere.

    Example:

    ```python
    >>> curve = {2.0**power: {0: 3.0 + 0.1 * (power + 7) ** 2} for power in (-8, -7, -6)}
    >>> best = find_optima({64: curve}, resamples=10)[0]
    >>> round(best.log2_lr, 6), best.at_edge
    (-7.0, False)
    ```
    """

    size: int
    log2_lr: float
    low: float
    high: float
    drift: float
    drift_low: float
    drift_high: float
    loss: float
    at_edge: bool


def find_optima(curves: Mapping[int, Curve], *, resamples: int = 1000, seed: int = 0) -> list[Optimum]:
    """Fit the best learning rate of every size, and how far it drifts from that of the first one.

    The lowest grid point and its two neighbours define the parabola. The bootstrap draws whole seeds with replacement,
    the same for every rate and size, among the seeds that all three points of each size have.

    Args:
        curves (`Mapping[int, Curve]`): the losses, by size; the first size is the reference.
        resamples (`int`): bootstrap draws.
        seed (`int`): of the bootstrap.

    Raises:
        ValueError: if a curve has no finite loss.

    Example:

    ```python
    >>> def curve(best):
    ...     return {2.0**power: {0: 3.0 + 0.1 * (power - best) ** 2} for power in range(-10, -4)}
    >>> [round(optimum.drift, 6) for optimum in find_optima({64: curve(-7), 128: curve(-8)}, resamples=10)]
    [0.0, -1.0]
    ```
    """
    windows = {size: _window(size, curve) for size, curve in curves.items()}
    seeds = sorted(set.intersection(*(_shared_seeds(curves[size], window) for size, window in windows.items())))
    # `[resamples, seeds]`. Whole seeds, shared by all rates and sizes: a seed's luck (its data order) shifts the whole
    # curve, and cancels in the vertex and in the drift.
    draws = np.random.default_rng(seed).choice(seeds, size=(resamples, len(seeds)))
    centres = {size: _vertex(windows[size], curve, None) for size, curve in curves.items()}
    samples = {
        size: np.array([_vertex(windows[size], curve, draw) for draw in draws]) for size, curve in curves.items()
    }
    first = next(iter(curves))
    return [
        Optimum(
            size,
            centres[size],
            *_interval(samples[size]),
            centres[size] - centres[first],
            # The interval of the difference, draw by draw, not a difference of intervals: the two optima share their
            # seeds.
            *_interval(samples[size] - samples[first]),
            loss=min(_mean(seeds_) for seeds_ in curve.values()),
            at_edge=len(windows[size]) < 3 or not all(math.isfinite(_mean(curve[rate])) for rate in windows[size]),
        )
        for size, curve in curves.items()
    ]


def parabola_vertex(points: Sequence[float], values: Sequence[float]) -> float:
    """Return where the parabola through three points is lowest, within the range of the points.

    Where it has no lowest point inside (not convex, or a value is infinite) this is the lowest of the three.
    """
    lowest = points[int(np.argmin(values))]
    if len(points) < 3 or not all(math.isfinite(value) for value in values):
        return float(lowest)
    # About the middle point, where the fit is best conditioned; the vertex is then an offset from it.
    curvature, slope, _ = np.polyfit(np.array(points) - points[1], values, 2)
    if curvature <= 0:
        return float(lowest)
    # After resampling, the middle need not be the lowest of the three, and the vertex may lie outside them, where
    # nothing was measured.
    return float(np.clip(points[1] - slope / (2 * curvature), points[0], points[-1]))


def _window(size: int, curve: Curve) -> list[float]:
    rates = sorted(curve)
    best = min(range(len(rates)), key=lambda index: _mean(curve[rates[index]]))
    if not math.isfinite(_mean(curve[rates[best]])):
        raise ValueError(f"Every run of size {size} diverged; lower the learning rates.")
    # At an end of the grid there is no parabola; `at_edge` says so by the length of the window.
    if best in (0, len(rates) - 1):
        return [rates[best]]
    return rates[best - 1 : best + 2]


def _shared_seeds(curve: Curve, window: Sequence[float]) -> set[int]:
    return set.intersection(*(set(curve[rate]) for rate in window))


def _vertex(window: Sequence[float], curve: Curve, draw: np.ndarray | None) -> float:
    losses = [
        _mean(curve[rate]) if draw is None else float(np.mean([curve[rate][int(seed)] for seed in draw]))
        for rate in window
    ]
    return parabola_vertex([math.log2(rate) for rate in window], losses)


def _mean(losses: Mapping[int, float]) -> float:
    return float(np.mean(list(losses.values())))


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
