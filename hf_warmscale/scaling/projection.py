"""Where a fit starts: variable projection. At given exponents a law is linear in its coefficients.

So the search is over two exponents instead of five parameters, and its condition number falls from 1e11 to about 10;
of blind starts only a third arrive at the optimum.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.optimize import minimize, nnls

from hf_warmscale.scaling.laws import DATA_TERM, SIZE_TERM, Array, Inputs, log_data
from hf_warmscale.scaling.objective import Bounds

GRID = np.geomspace(0.05, 1.2, 24)
"""Exponents that are tried."""

TRANSFERS = tuple(product((-2.0, 0.0, 2.0), (0.5, 1.0), (0.0, 1.0, 2.0)))
"""(ln k, p, q) that are tried; ln k in units of the reference number of tokens."""

SPREAD = (0.6, 1.6)
"""Factors on the exponents of the best start that give the further starts."""

ALPHA, BETA = 2, 4
"""Where the exponents stand among the coordinates."""


def starts(inputs: Inputs, loss: Array, bounds: Bounds, weights: Array | None = None) -> list[Array]:
    """Return the vectors from which a fit starts, the best one first: the least squares solution of relative errors.

    Args:
        inputs (`Inputs`): of the points.
        loss (`[points]`): the measured losses.
        bounds (`list`): of every coordinate; equal bounds hold it fixed.
        weights (`[points]`, *optional*): how often each point counts.
    """
    # An error divided by the loss is, to first order, the error of the log loss, which the fit minimises.
    scale = np.sqrt(np.ones(len(loss)) if weights is None else weights) / loss
    best = min((_search(inputs, loss, scale, bounds, transfer) for transfer in _transfers(bounds)), key=_error)
    found = [_refined(inputs, loss, scale, bounds, best[0])]
    for factor in SPREAD:
        moved = found[0].copy()
        for exponent in _free_exponents(bounds):
            moved[exponent] = np.clip(moved[exponent] * factor, *bounds[exponent])
        found.append(project(inputs, loss, scale, bounds, moved)[0])
    return found


def project(inputs: Inputs, loss: Array, scale: Array, bounds: Bounds, theta: Array) -> tuple[Array, float]:
    """Return the vector with the best coefficients at its exponents, and the sum of squared errors.

    Args:
        inputs, loss, bounds: as for `starts`.
        scale (`[points]`): by which an error in the loss is multiplied.
        theta (`[coordinates]`): its exponents are used, its fixed coefficients too.
    """
    z, _ = log_data(theta, inputs)
    logs = {0: np.zeros(len(inputs)), 1: -theta[ALPHA] * inputs.log_n}
    if len(theta) > len(SIZE_TERM):
        logs[3] = -theta[BETA] * z
    target, free = loss.copy(), []
    for place, log in logs.items():
        if bounds[place][0] == bounds[place][1]:
            # A fixed term is known, so it is taken off the losses.
            target -= np.exp(bounds[place][0] + log)
        else:
            free.append(place)
    result = theta.copy()
    if not free:
        return result, float(np.sum((scale * target) ** 2))
    # [points, free coefficients]: each column is a term of the law with the coefficient 1.
    matrix = np.stack([np.exp(logs[place]) for place in free], axis=1)
    # Non-negative, since coefficients are fitted by their logarithm. `error` is the norm of the residual, not its
    # square.
    solution, error = nnls(matrix * scale[:, None], target * scale)
    for place, value in zip(free, solution, strict=True):
        result[place] = np.clip(np.log(max(value, 1e-300)), *bounds[place])
    return result, float(error**2)


def _search(inputs: Inputs, loss: Array, scale: Array, bounds: Bounds, transfer: Array) -> tuple[Array, float]:
    """Return the best of a grid of exponents."""
    exponents = _free_exponents(bounds)
    theta = np.array([low if low == high else 0.0 for low, high in bounds])
    theta[len(SIZE_TERM) + len(DATA_TERM) :] = transfer
    # The grid is searched once per transfer that is tried, so it is coarser then.
    grid = GRID if transfer.size == 0 else GRID[::3]
    found = []
    for values in product(grid, repeat=len(exponents)):
        theta[exponents] = values
        found.append(project(inputs, loss, scale, bounds, theta))
    return min(found, key=_error)


def _refined(inputs: Inputs, loss: Array, scale: Array, bounds: Bounds, theta: Array) -> Array:
    """Return the vector with its exponents moved to the nearest least squares optimum."""
    exponents = _free_exponents(bounds)
    if not exponents:
        return theta
    low, high = np.array([bounds[exponent] for exponent in exponents]).T

    def error(values: Array) -> float:
        moved = theta.copy()
        moved[exponents] = np.clip(values, low, high)
        return project(inputs, loss, scale, bounds, moved)[1]

    # Nelder-Mead needs no gradient through the projection, and there are at most two exponents.
    options = {"xatol": 1e-8, "fatol": 1e-14, "maxiter": 500}
    result = minimize(error, theta[exponents], method="Nelder-Mead", options=options)
    moved = theta.copy()
    moved[exponents] = np.clip(result.x, low, high)
    return project(inputs, loss, scale, bounds, moved)[0]


def _free_exponents(bounds: Bounds) -> list[int]:
    return [place for place in (ALPHA, BETA) if place < len(bounds) and bounds[place][0] < bounds[place][1]]


def _transfers(bounds: Bounds) -> Iterator[Array]:
    """Yield the values of (ln k, p, q) to try, fixed ones at their value; nothing for a law without transfer."""
    rest = bounds[len(SIZE_TERM) + len(DATA_TERM) :]
    if not rest:
        yield np.empty(0)
        return
    tried = {
        tuple(
            low if low == high else float(np.clip(v, low, high)) for v, (low, high) in zip(values, rest, strict=True)
        )
        for values in TRANSFERS
    }
    yield from (np.array(values) for values in sorted(tried))


def _error(found: tuple[Array, float]) -> float:
    return found[1]
