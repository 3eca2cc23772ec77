"""How far a prediction may be off: resampling over runs, and the noise of a single run."""

import numpy as np
from scipy.special import stdtrit

from hf_warmscale.scaling.frame import Frame, run_numbers
from hf_warmscale.scaling.laws import Array, log_loss
from hf_warmscale.scaling.solve import Problem, resolve

MIN_SIZES = 3
"""A resample with fewer sizes than this, where there are more, is drawn again: no law can be fitted to it."""


def resample(problem: Problem, frame: Frame, theta: Array, *, draws: int, seed: int) -> Array:
    """Return the vectors fitted to resampled runs, `[draws, coordinates]`.

    Whole runs are drawn with replacement, as the checkpoints of a run are not independent.
    """
    generator = np.random.default_rng(seed)
    runs = run_numbers(frame)
    count = runs.max() + 1
    needed = min(MIN_SIZES, len(np.unique(frame.N)))
    found = np.empty((draws, len(theta)))
    for draw in range(draws):
        weights = np.zeros(len(frame))
        while len(np.unique(frame.N[weights > 0])) < needed:
            # How often each run was drawn, given to all of its points.
            weights = np.bincount(generator.integers(count, size=count), minlength=count)[runs].astype(float)
        found[draw] = resolve(problem, frame, weights, theta)
    return found


def noise(problem: Problem, frame: Frame, theta: Array) -> tuple[float, int]:
    """Return the standard deviation of the log loss of one run about the law, and its degrees of freedom.

    The degrees of freedom are those of the runs: the further checkpoints of a run add hardly any.
    """
    residuals = problem.objective(frame).residuals(theta)
    freedom = len(frame) - problem.num_free()
    # Fewer than by points, which makes the t interval wider; counting points would claim too much.
    of_runs = int(run_numbers(frame).max()) + 1 - problem.num_free()
    if freedom <= 0 or of_runs <= 0:
        return float("nan"), 0
    return float(np.sqrt(np.sum(residuals**2) / freedom)), of_runs


def half_width(
    problem: Problem, frame: Frame, theta: Array, resampled: Array | None, wanted: Frame, level: float
) -> Array:
    """Return half the width of the interval of a new run's log loss, `[points]` of `wanted`.

    The variance of the prediction, over the resampled fits or by the delta method, and that of a run's noise add up.
    """
    deviation, freedom = noise(problem, frame, theta)
    inputs = problem.inputs(wanted)
    if resampled is None:
        variance = deviation**2 * _leverage(problem, frame, theta, log_loss(theta, inputs)[1])
    else:
        predictions = np.stack([log_loss(draw, inputs)[0] for draw in resampled])
        # About the fit to all runs, not about the mean of the draws, so that a bias of the resampled fits counts too.
        variance = np.mean((predictions - log_loss(theta, inputs)[0]) ** 2, axis=0)
    # The quantile of Student's t for a two-sided interval; for a new run its own noise is added.
    width: Array = stdtrit(freedom, 0.5 + level / 2) * np.sqrt(variance + deviation**2)
    return width


def _leverage(problem: Problem, frame: Frame, theta: Array, slopes: Array) -> Array:
    """Return the variance of predictions in units of the noise, with the runs as clusters."""
    free = [place for place, (low, high) in enumerate(problem.bounds) if low < high]
    own = log_loss(theta, problem.inputs(frame))[1][:, free]
    inverse = np.linalg.pinv(own.T @ own, rcond=1e-12)
    runs = run_numbers(frame)
    # The sandwich (X'X)^-1 (sum of x_r x_r') (X'X)^-1, where x_r sums the rows of run r. That treats the points of a
    # run as sharing one error, the cautious extreme.
    summed = np.stack([own[runs == run].sum(axis=0) for run in range(runs.max() + 1)])
    middle = inverse @ (summed.T @ summed) @ inverse
    leverage: Array = np.einsum("pi,ij,pj->p", slopes[:, free], middle, slopes[:, free])
    return leverage
