"""What a fit minimises: the Huber loss of the error in log loss; and how it is minimised without stopping early."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from hf_warmscale.scaling.laws import Array, Inputs, log_loss

DELTA = 1e-3
"""Where the Huber loss turns from squares to absolute values (2203.15556)."""

STOP_TOLERANCE = 1e-3
"""A fit stopped early if continuing it lowers its objective by more than this share."""

Bounds = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tolerances:
    """When L-BFGS stops.

    The objective of a good fit is near 1e-3, so the default tolerances of scipy, which are absolute or relative to 1,
    end it at once: that is the fault that 2404.10102 found in the published fit of Chinchilla.

    Args:
        scale (`float`): by which the objective is multiplied.
        ftol, gtol (`float`): as in `scipy.optimize.minimize`.

    Example:

    ```python
    >>> tight = fit_scaling_law("losses.csv").objective
    >>> tight <= fit_scaling_law("losses.csv", tolerances=Tolerances(scale=1.0, ftol=2.2e-9)).objective
    True
    ```
    """

    scale: float = 1e3
    ftol: float = 1e-15
    gtol: float = 1e-11


TIGHT = Tolerances()
SCIPY_DEFAULT = Tolerances(scale=1.0, ftol=2.220446049250313e-09, gtol=1e-5)
FAST = Tolerances(scale=1e3, ftol=1e-10, gtol=1e-7)
"""For the resampled fits: they differ from one another by far more than the error that these leave."""


@dataclass(frozen=True)
class Objective:
    """The sum over points of the Huber loss of predicted minus true log loss.

    Args:
        inputs (`Inputs`): of the points.
        log_target (`[points]`): the log of the measured losses.
        delta (`float`): see `DELTA`; infinity gives least squares.
        weights (`[points]`, *optional*): how often each point counts.
    """

    inputs: Inputs
    log_target: Array
    delta: float = DELTA
    weights: Array | None = None

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Return the objective and its gradient."""
        value, slope = log_loss(theta, self.inputs)
        error = value - self.log_target
        clipped = np.clip(error, -self.delta, self.delta)
        # Within delta this is error^2 / 2, beyond it delta (|error| - delta / 2). The derivative is `clipped`.
        losses = clipped * (error - 0.5 * clipped)
        if self.weights is not None:
            losses, clipped = losses * self.weights, clipped * self.weights
        return float(losses.sum()), clipped @ slope

    def residuals(self, theta: Array) -> Array:
        """Return measured minus predicted log loss."""
        residuals: Array = self.log_target - log_loss(theta, self.inputs)[0]
        return residuals


def minimise(
    objective: Objective, start: Array, bounds: Bounds, tolerances: Tolerances = TIGHT
) -> tuple[Array, float]:
    """Return the minimiser that L-BFGS finds from a start, and the objective there, unscaled.

    Coordinates whose two bounds are equal stay where they are.
    """
    free = np.array([low < high for low, high in bounds])
    low, high = np.array(bounds).T
    full = np.clip(start, low, high)
    if not free.any():
        return full, objective(full)[0]

    def scaled(part: Array) -> tuple[float, Array]:
        theta = full.copy()
        theta[free] = part
        value, gradient = objective(theta)
        return tolerances.scale * value, tolerances.scale * gradient[free]

    result = minimize(
        scaled,
        full[free],
        jac=True,
        method="L-BFGS-B",
        bounds=[bound for bound, is_free in zip(bounds, free, strict=True) if is_free],
        options={"ftol": tolerances.ftol, "gtol": tolerances.gtol, "maxiter": 20_000, "maxfun": 40_000, "maxcor": 20},
    )
    full[free] = result.x
    return full, objective(full)[0]


def stopped_early(objective: Objective, theta: Array, bounds: Bounds) -> bool:
    """Tell whether a fit ended before its minimum: continuing with tight tolerances lowers the objective clearly."""
    before = objective(theta)[0]
    # With the tight tolerances, whatever those of the fit were.
    after = minimise(objective, theta, bounds)[1]
    return bool(before - after > STOP_TOLERANCE * before) and not math.isclose(before, 0.0, abs_tol=1e-15)
