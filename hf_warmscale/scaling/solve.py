"""Fit the vector of a law to a frame: variable projection, then L-BFGS from several starts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_warmscale.options import LawForm
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.scaling.frame import Frame
from hf_warmscale.scaling.laws import (
    COORDINATES,
    PARAMETERS,
    Array,
    Inputs,
    Reference,
    log_loss,
    to_coordinates,
)
from hf_warmscale.scaling.objective import DELTA, FAST, TIGHT, Bounds, Objective, Tolerances, minimise
from hf_warmscale.scaling.projection import starts

EXPONENT = (1e-3, 3.0)
SMALLEST_SHARE = 1e-6
"""The lower bound of E as a share of the smallest loss: at so small a value E counts as absent."""

PARTNERS = {"A": ("lnA", "alpha"), "a": ("lnA", "b"), "B": ("lnB", "beta"), "k": ("lnk", "p")}
"""A coefficient with a unit: its coordinate, and the exponent that it depends on."""


@dataclass(frozen=True)
class Problem:
    """What is fitted: the form, the units, and the bounds of every coordinate.

    Args:
        form (`str`): of the law.
        reference (`Reference`): the units of the fit.
        bounds (`list`): of every coordinate; equal bounds hold it fixed.
        delta (`float`): of the Huber loss.
        tolerances (`Tolerances`): of L-BFGS.
    """

    form: LawForm
    reference: Reference
    bounds: Bounds
    delta: float = DELTA
    tolerances: Tolerances = TIGHT

    def inputs(self, frame: Frame) -> Inputs:
        """Return the points of a frame in the units of the fit."""
        return self.reference.inputs(frame.N, frame.D, frame.D0, frame.N0)

    def objective(self, frame: Frame, weights: Array | None = None, *, delta: float | None = None) -> Objective:
        """Return what is minimised."""
        return Objective(self.inputs(frame), np.log(frame.loss), self.delta if delta is None else delta, weights)

    def num_free(self) -> int:
        """Return the number of fitted coordinates."""
        return sum(low < high for low, high in self.bounds)

    def log_loss(self, theta: Array, frame: Frame) -> Array:
        """Return the predicted log losses of a frame."""
        return log_loss(theta, self.inputs(frame))[0]


def make_problem(
    frame: Frame,
    form: LawForm,
    *,
    fixed: Mapping[str, float] | None = None,
    delta: float = DELTA,
    tolerances: Tolerances = TIGHT,
) -> Problem:
    """Return the problem of fitting a form to a frame.

    Raises:
        ValueError: if a fixed parameter is not of the form, or not a possible value.
    """
    fixed = dict(fixed or {})
    for name, value in fixed.items():
        refuse_unknown(f"parameter of the form {form}", name, PARAMETERS[form])
        if not math.isfinite(value) or (name != "b" and value < 0) or (name == "b" and value >= 0):
            raise ValueError(f"The fixed {name} is {value:g}; give the value that it has in the law, with its sign.")
    reference = _reference(frame, fixed)
    smallest = float(np.log(frame.loss.min()))
    # E is at most the smallest loss. The bounds of A and B are wide: they only keep the search finite.
    low, high = smallest + math.log(SMALLEST_SHARE), smallest + 30.0
    by_name = {"lnE": (low, smallest), "lnA": (low - 30, high), "lnB": (low - 30, high), "alpha": EXPONENT}
    by_name |= {"beta": EXPONENT, "lnk": (-25.0, 25.0), "p": (0.0, 3.0), "q": (0.0, 6.0)}
    by_name |= _fixed_bounds(form, fixed, reference)
    return Problem(form, reference, [by_name[name] for name in COORDINATES[form]], delta, tolerances)


def solve(problem: Problem, frame: Frame, weights: Array | None = None) -> tuple[Array, list[Array]]:
    """Return the best vector, and the starts, the least squares solution first."""
    objective = problem.objective(frame, weights)
    begun = starts(objective.inputs, frame.loss, problem.bounds, weights)
    ends = [minimise(objective, start, problem.bounds, problem.tolerances) for start in begun]
    # The objective is not convex, so the lowest of several ends is taken.
    return min(ends, key=lambda end: end[1])[0], begun


def resolve(problem: Problem, frame: Frame, weights: Array, near: Array) -> Array:
    """Return the vector for other weights of the points, from the solution of the usual ones."""
    return minimise(problem.objective(frame, weights), near, problem.bounds, FAST)[0]


def _reference(frame: Frame, fixed: Mapping[str, float]) -> Reference:
    """Return the geometric means; 1 where a coefficient is fixed and its exponent is not, so that it is a bound."""
    mean_n, mean_d = (float(np.exp(np.log(values).mean())) for values in (frame.N, frame.D))
    # In other units the coordinate, such as ln A - alpha ln n, mixes the fixed coefficient with a free exponent. To
    # fix A would then be a constraint on two coordinates; with n = 1 it is a bound on one.
    loose = {name for name, (_, exponent) in PARTNERS.items() if name in fixed and exponent not in fixed}
    return Reference(1.0 if loose & {"A", "a"} else mean_n, 1.0 if loose & {"B", "k"} else mean_d)


def _fixed_bounds(form: LawForm, fixed: Mapping[str, float], reference: Reference) -> dict[str, tuple[float, float]]:
    values = dict.fromkeys(PARAMETERS[form], 1.0) | ({"b": -1.0} if form == "power" else {}) | dict(fixed)
    theta = dict(zip(COORDINATES[form], to_coordinates(form, values, reference), strict=True))
    coordinate = {"E": "lnE", "c": "lnE", "A": "lnA", "a": "lnA", "b": "alpha", "B": "lnB", "k": "lnk"}
    held = {coordinate.get(name, name) for name in fixed}
    return {name: (float(theta[name]), float(theta[name])) for name in held}
