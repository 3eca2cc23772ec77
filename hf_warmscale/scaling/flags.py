"""Reasons not to trust a fit, one sentence each."""

from collections.abc import Sequence

import numpy as np

from hf_warmscale.scaling.frame import Frame
from hf_warmscale.scaling.laws import COORDINATES, Array, to_parameters
from hf_warmscale.scaling.objective import stopped_early
from hf_warmscale.scaling.solve import Problem
from hf_warmscale.scaling.uncertainty import noise

MIN_NUM_SIZES, MIN_SPAN = 5, 8.0
SAME_SIZE = 1.02
"""Sizes that differ by less than this factor count as one."""

NEARLY_EQUAL, DISAGREE = 1.1, 0.2
"""Two fits are nearly equal if their mean errors differ by less than the first, and disagree if a parameter does by
more than the second."""

NAMES = {"lnE": "E", "lnA": "A", "lnB": "B", "lnk": "k"}


def num_sizes(frame: Frame) -> int:
    """Return the number of different sizes."""
    return _num_different(frame.N)


def _num_different(values: Array) -> int:
    distinct = np.unique(values)
    return 1 + int(np.sum(distinct[1:] > SAME_SIZE * distinct[:-1]))


def frame_flags(frame: Frame) -> list[str]:
    """Return the flags of the points themselves."""
    flags = []
    count, span = num_sizes(frame), float(frame.N.max() / frame.N.min())
    if count < MIN_NUM_SIZES:
        flags.append(f"few sizes: {count}, fewer than {MIN_NUM_SIZES}")
    if span < MIN_SPAN:
        flags.append(f"narrow span: the largest model is {span:.3g} times the smallest, less than {MIN_SPAN:g} times")
    recipes = sorted({recipe for recipe in frame.recipe if recipe})
    if len(recipes) > 1:
        flags.append(f"mixed recipes: {', '.join(recipes[:4])}{', ...' if len(recipes) > 4 else ''}")
    if "cooled" in frame.part and len(set(frame.part)) > 1:
        flags.append("cooled and uncooled points are mixed")
    return flags


def fit_flags(problem: Problem, frame: Frame, theta: Array, least_squares: Array) -> list[str]:
    """Return the flags of the fit.

    Args:
        problem (`Problem`): that was solved.
        frame (`Frame`): that it was fitted to.
        theta (`[coordinates]`): the solution.
        least_squares (`[coordinates]`): the start, the solution by another criterion.
    """
    flags = []
    if stopped_early(problem.objective(frame), theta, problem.bounds):
        flags.append("premature stop: the optimizer ended before the minimum; use the default tolerances")
    bound = at_bounds(problem, theta)
    if bound:
        flags.append(f"at a bound: {', '.join(bound)}")
    ambiguous = disagreement(problem, frame, theta, least_squares)
    if ambiguous:
        flags.append(f"not identified: {ambiguous}; use predictions inside the range, not the parameters")
    two = problem.form == "chinchilla" and _num_different(frame.D) == 2
    if two and {"lnE", "lnB", "beta"} <= set(_free(problem)):
        flags.append("not identified: two numbers of tokens cannot fix E, B and beta; add a third")
    if noise(problem, frame, theta)[1] == 0:
        runs = len(set(frame.run))
        flags.append(f"no interval: {problem.num_free()} parameters were fitted to {runs} runs; add sizes or seeds")
    return flags


def _free(problem: Problem) -> list[str]:
    """Return the coordinates that are fitted."""
    pairs = zip(COORDINATES[problem.form], problem.bounds, strict=True)
    return [name for name, (low, high) in pairs if low < high]


def at_bounds(problem: Problem, theta: Array) -> list[str]:
    """Return the parameters that lie at an end of their range; a term that vanished is one at 0."""
    found = []
    for name, value, (low, high) in zip(COORDINATES[problem.form], theta, problem.bounds, strict=True):
        margin = 1e-6 * (high - low)
        if low < high and (value <= low + margin or value >= high - margin):
            end = "0" if name in NAMES and value <= low + margin else f"{value:.3g}"
            found.append(f"{NAMES.get(name, name)} = {end}")
    return found


def disagreement(problem: Problem, frame: Frame, theta: Array, other: Array) -> str:
    """Return how another fit of nearly the same error differs in its parameters; nothing if it does not."""
    errors = [_mean_error(problem, frame, each) for each in (theta, other)]
    if max(errors) > NEARLY_EQUAL * min(errors) + 1e-9:
        return ""
    mine, theirs = (to_parameters(problem.form, each, problem.reference) for each in (theta, other))
    # A and B follow their exponents, so comparing them would say the same twice.
    compared = [name for name in mine if name in ("E", "c", "alpha", "b", "beta")]
    apart = [name for name in compared if abs(theirs[name] / mine[name] - 1) > DISAGREE]
    listed = ", ".join(f"{name} {mine[name]:.3g} or {theirs[name]:.3g}" for name in apart)
    return f"two fits of nearly equal error have {listed}" if apart else ""


def _mean_error(problem: Problem, frame: Frame, theta: Array) -> float:
    return float(np.mean(np.abs(problem.objective(frame).residuals(theta))))


def selection_flags(dropped: Sequence[tuple[str, int]]) -> list[str]:
    """Return what was left out of a frame, with the number of points."""
    return [f"left out: {count} {what}" for what, count in dropped if count]
