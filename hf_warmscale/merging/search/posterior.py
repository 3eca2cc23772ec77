"""A small exact Gaussian process, fitted to the losses that were measured.

Optuna's sampler has its own, which is private. This one answers two questions: how much better can the next point be,
and which of the measured points is best once the noise is averaged out?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

from hf_warmscale.evaluation.scores import FloatArray

JITTER = 1e-9
START = np.log([1.0, 1.0, 1e-4])
"""Length scale (in sides of the cube), signal variance and noise variance (of the standardised losses): the optimiser
of the hyperparameters starts here, and log-normal priors of width `SPREAD` are centred here. The loss is smooth in the
merge weights, and almost free of noise."""
SPREAD = np.array([1.0, 2.0, 3.0])


@dataclass(frozen=True, eq=False)
class Posterior:
    """A Gaussian process with a Matern-5/2 kernel, one length scale for each dimension, and a constant mean.

    The hyperparameters maximise the posterior density (Rasmussen and Williams 2006, equations 5.8 and 2.25).
    Build it with [`Posterior.fit`].

    Args:
        points (`FloatArray`): `[n, d]`, in the unit cube.
        offset (`float`): mean of the losses.
        scale (`float`): their standard deviation.
        parameters (`FloatArray`): `[d + 2]`, logs of the length scales, the signal and the noise variance.
        factor (`FloatArray`): `[n, n]`, lower Cholesky factor of the covariance.
        solved (`FloatArray`): `[n]`, the covariance solved for the standardised losses.
    """

    points: FloatArray
    offset: float
    scale: float
    parameters: FloatArray
    factor: FloatArray
    solved: FloatArray

    @classmethod
    def fit(cls, points: ArrayLike, losses: Sequence[float]) -> Self:
        """Fit to losses (nats, lower is better) measured at points of the unit cube, `[n, d]`, `n >= 2`."""
        x = np.asarray(points, dtype=np.float64)
        # Standardised, so that the priors hold whatever the unit of the loss; a scale of 0 (all losses equal) becomes
        # 1.
        offset, scale = float(np.mean(losses)), float(np.std(losses)) or 1.0
        y = (np.asarray(losses, dtype=np.float64) - offset) / scale
        start, spread = (_per_dimension(values, x.shape[1]) for values in (START, SPREAD))

        def objective(parameters: FloatArray) -> float:
            # Minus the log posterior, up to a constant: the prior is normal in the logs, the evidence the likelihood.
            # A handful of trials does not determine the length scales; without the prior they run to the bounds.
            _, _, evidence = _factorise(x, y, parameters)
            return float(0.5 * np.sum(((parameters - start) / spread) ** 2) - evidence)

        # In logs: length scales, signal variance, noise variance; the noise is at most the variance of the losses.
        bounds = [(-3.0, 3.0)] * x.shape[1] + [(-4.0, 6.0), (np.log(1e-8), 0.0)]
        found = minimize(objective, start, method="L-BFGS-B", bounds=bounds)
        factor, solved, _ = _factorise(x, y, found.x)
        return cls(x, offset, scale, found.x, factor, solved)

    def predict(self, points: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation (nats) of the noise-free loss at `points`, `[m, d]`."""
        x = np.asarray(points, dtype=np.float64)
        cross = _kernel(x, self.points, self.parameters)
        mean = cross @ self.solved
        # L^-1 k: its squared norm is k' K^-1 k, without a second solve.
        half = solve_triangular(self.factor, cross.T, lower=True)
        # The variance of the noise is left out: the loss itself is asked for, not a new measurement of it.
        variance = np.exp(self.parameters[-2]) - np.sum(half**2, axis=0)
        return self.offset + self.scale * mean, self.scale * np.sqrt(np.maximum(variance, 0.0))

    def expected_improvement(self, points: ArrayLike, incumbent: float) -> FloatArray:
        """Return `E[max(incumbent - loss, 0)]` at `points`, in nats (Jones et al. 1998, equation 15)."""
        mean, deviation = self.predict(points)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (incumbent - mean) / deviation
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        # At a point that was measured without noise the deviation is 0 and z is not defined.
        certain = np.maximum(incumbent - mean, 0.0)
        return np.where(deviation > 0, (incumbent - mean) * ndtr(z) + deviation * density, certain)


def _per_dimension(values: FloatArray, dimensions: int) -> FloatArray:
    return np.concatenate([np.repeat(values[0], dimensions), values[1:]])


def _kernel(a: FloatArray, b: FloatArray, parameters: FloatArray) -> FloatArray:
    """Matern-5/2: `s (1 + r + r^2 / 3) exp(-r)` with `r = sqrt(5) |a - b| / l`."""
    # `[n, m, d]`: the length scales come before the last two parameters, signal and noise.
    scaled = (a[:, None, :] - b[None, :, :]) / np.exp(parameters[:-2])
    r = np.sqrt(5.0 * np.sum(scaled**2, axis=-1))
    result: FloatArray = np.exp(parameters[-2]) * (1 + r + r**2 / 3) * np.exp(-r)
    return result


def _factorise(x: FloatArray, y: FloatArray, parameters: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """Return the Cholesky factor, the solved losses and the log evidence without its constant."""
    covariance = _kernel(x, x, parameters)
    # The jitter keeps the matrix positive definite where two points nearly coincide.
    covariance[np.diag_indices_from(covariance)] += np.exp(parameters[-1]) + JITTER * np.exp(parameters[-2])
    # The log determinant is twice the sum of the logs on the diagonal of L; the evidence has half of it.
    factor: FloatArray = cholesky(covariance, lower=True)
    solved: FloatArray = cho_solve((factor, True), y)
    return factor, solved, float(-0.5 * y @ solved - np.sum(np.log(np.diag(factor))))
