"""The learning rate after t steps, as formulas: 2403.08763, 2404.06395 and 2405.18392.

The phases are given in steps, which need not be whole numbers.
"""

import math
from collections.abc import Callable
from typing import Literal

Shape = Literal["linear", "1-sqrt", "cosine", "exponential"]
"""The shape of a cooldown, which falls from 1 to 0."""


def rewarm_cosine(t: float, *, total: float, warmup: float, peak: float, floor: float) -> float:
    """Return the rate after `t` steps of a linear re-warming and a cosine re-decay (2403.08763, eq. 1-2)."""
    if t < warmup:
        return peak * t / warmup
    return floor + (peak - floor) * cosine(_progress(t - warmup, total - warmup))


def infinite_cosine(
    t: float,
    *,
    total: float,
    warmup: float,
    cooldown: float,
    constant: float,
    peak: float,
    plateau: float,
    floor: float,
) -> float:
    """Return the rate after `t` steps of the infinite schedule with a cosine cooldown (2403.08763, section 7.4)."""
    if t < warmup:
        return peak * t / warmup
    if t - warmup <= cooldown:
        return plateau + (peak - plateau) * cosine(_progress(t - warmup, cooldown))
    return _plateau_and_anneal(t - warmup - cooldown, total - warmup - cooldown, constant, plateau, floor)


def infinite_inv_sqrt(
    t: float,
    *,
    total: float,
    warmup: float,
    cooldown: float,
    constant: float,
    peak: float,
    plateau: float,
    floor: float,
    timescale: float,
) -> float:
    """Return the rate after `t` steps of the infinite schedule with an inverse square root cooldown."""

    def fall(x: float) -> float:
        return 1 / math.sqrt(1 + timescale * x) - 1

    if t < warmup:
        return peak * t / warmup
    if t - warmup <= cooldown:
        # `fall` is 0 at 0; divided by its value at 1, it brings the rate to the plateau exactly.
        return peak + (plateau - peak) * fall(_progress(t - warmup, cooldown)) / fall(1)
    return _plateau_and_anneal(t - warmup - cooldown, total - warmup - cooldown, constant, plateau, floor)


def wsd(t: float, *, total: float, warmup: float, cooldown: float, peak: float, floor: float, shape: Shape) -> float:
    """Return the rate after `t` steps of warmup, a stable phase and a cooldown (2404.06395, 2405.18392)."""
    if t < warmup:
        return peak * t / warmup
    stable = total - cooldown
    if t <= stable:
        return peak
    return floor + (peak - floor) * COOLDOWNS[shape](_progress(t - stable, cooldown))


def constant(t: float, *, warmup: float, peak: float) -> float:
    """Return the rate after `t` steps of a warmup and a constant rate."""
    return peak * t / warmup if t < warmup else peak


def cosine(p: float) -> float:
    """Return the half cosine that falls from 1 to 0."""
    return (1 + math.cos(math.pi * p)) / 2


def exponential(p: float) -> float:
    """Return 2 * 0.5^p - 1, which falls from 1 to 0: an exponential whose asymptote is -1."""
    return float(2 * 0.5**p - 1)


COOLDOWNS: dict[Shape, Callable[[float], float]] = {
    "linear": lambda p: 1 - p,
    "1-sqrt": lambda p: 1 - math.sqrt(p),
    "cosine": cosine,
    "exponential": exponential,
}


def _plateau_and_anneal(t: float, total: float, constant: float, plateau: float, floor: float) -> float:
    if t <= constant:
        return plateau
    ratio: float = (floor / plateau) ** _progress(t - constant, total - constant)
    # plateau (floor / plateau)^p, an exponential anneal; rounding may put its end a little below the floor.
    return max(plateau * ratio, floor)


def _progress(elapsed: float, length: float) -> float:
    return min(elapsed / length, 1.0) if length > 0 else 1.0
