"""The forms of scaling laws, with their gradients. Pure functions of arrays.

All forms are one: log L = LSE(ln E, ln A - alpha n, ln B - beta z), where n = ln N and z = ln D. The power law has no
data term. In the law of grown models z = ln(D + k D0^p g^-q): what the base was worth is a number of tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_warmscale.options import LawForm

Array = NDArray[np.float64]

SIZE_TERM = ("lnE", "lnA", "alpha")
DATA_TERM = ("lnB", "beta")
TRANSFER = ("lnk", "p", "q")

COORDINATES: dict[LawForm, tuple[str, ...]] = {
    "power": SIZE_TERM,
    "chinchilla": (*SIZE_TERM, *DATA_TERM),
    "grown": (*SIZE_TERM, *DATA_TERM, *TRANSFER),
}
"""What is fitted, in the order of the vector: coefficients by their logarithm."""

PARAMETERS: dict[LawForm, tuple[str, ...]] = {
    "power": ("a", "b", "c"),
    "chinchilla": ("E", "A", "alpha", "B", "beta"),
    "grown": ("E", "A", "alpha", "B", "beta", "k", "p", "q"),
}
"""What is reported."""


@dataclass(frozen=True)
class Inputs:
    """What a law is evaluated on, as logarithms relative to a reference size and a reference number of tokens.

    Args:
        log_n (`[points]`): ln(N / reference N).
        log_d (`[points]`): ln(D / reference D).
        log_d0 (`[points]`): ln(D0 / reference D), 0 where there is no base.
        log_g (`[points]`): ln(N / N0), 0 where there is no base.
        grown (`[points]` of `bool`): whether there is a base.
    """

    log_n: Array
    log_d: Array
    log_d0: Array
    log_g: Array
    grown: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.log_n)


@dataclass(frozen=True)
class Reference:
    """The units in which a law is fitted: a size and a number of tokens in the middle of the data.

    Without them ln A and alpha are almost collinear, and an optimizer stops before it arrives.
    """

    n: float
    d: float

    def inputs(self, n: Array, d: Array, d0: Array, n0: Array) -> Inputs:
        """Return the inputs of a law; `d0` and `n0` are 0 where there is no base."""
        grown = d0 > 0
        return Inputs(
            np.log(n / self.n),
            np.log(d / self.d),
            np.log(np.where(grown, d0, self.d) / self.d),
            # `np.where` evaluates both of its branches, so the division needs a harmless divisor too.
            np.log(np.where(grown, n / np.where(grown, n0, 1.0), 1.0)),
            grown,
        )


def log_loss(theta: Array, inputs: Inputs) -> tuple[Array, Array]:
    """Return the log of the loss and its gradient.

    Args:
        theta (`[coordinates]`): in the order of `COORDINATES`; its length tells the form.
        inputs (`Inputs`): of so many points.

    Returns:
        `tuple`: `[points]` and `[points, coordinates]`.
    """
    columns = [np.full(len(inputs), theta[0]), theta[1] - theta[2] * inputs.log_n]
    z, share = log_data(theta, inputs)
    if len(theta) > len(SIZE_TERM):
        columns.append(theta[3] - theta[4] * z)
    terms = np.stack(columns)
    # The largest term is taken out first, or large terms would overflow.
    top = terms.max(axis=0)
    scaled = np.exp(terms - top)
    total = scaled.sum(axis=0)
    value, weights = top + np.log(total), scaled / total
    gradient = np.empty((len(inputs), len(theta)))
    # The gradient of a log-sum-exp is the softmax of its terms, times the slope of each term.
    gradient[:, 0], gradient[:, 1], gradient[:, 2] = weights[0], weights[1], -weights[1] * inputs.log_n
    if len(theta) > len(SIZE_TERM):
        gradient[:, 3], gradient[:, 4] = weights[2], -weights[2] * z
    if len(theta) > len(SIZE_TERM) + len(DATA_TERM):
        # Chain rule through z: dz / d ln(transferred tokens) is their share of all effective tokens.
        slope = -theta[4] * weights[2] * share
        gradient[:, 5], gradient[:, 6], gradient[:, 7] = slope, slope * inputs.log_d0, -slope * inputs.log_g
    return value, gradient


def log_data(theta: Array, inputs: Inputs) -> tuple[Array, Array]:
    """Return the log of the effective number of tokens, and the share of it that was transferred; both `[points]`."""
    if len(theta) <= len(SIZE_TERM) + len(DATA_TERM):
        return inputs.log_d, np.zeros(len(inputs))
    # ln(k D0^p g^-q); without a base there are no transferred tokens, and exp(-inf) is 0.
    transferred = np.where(inputs.grown, theta[5] + theta[6] * inputs.log_d0 - theta[7] * inputs.log_g, -np.inf)
    z = np.logaddexp(inputs.log_d, transferred)
    return z, np.exp(transferred - z)


def to_parameters(form: LawForm, theta: Array, reference: Reference) -> dict[str, float]:
    """Return the parameters of a law in its own units: N in parameters, D in tokens, the loss as it was given."""
    by_name = dict(zip(COORDINATES[form], (float(value) for value in theta), strict=True))
    # From A' (N / n)^-alpha to A N^-alpha: A = A' n^alpha.
    e, a = np.exp(by_name["lnE"]), np.exp(by_name["lnA"] + by_name["alpha"] * np.log(reference.n))
    if form == "power":
        return {"a": float(a), "b": -by_name["alpha"], "c": float(e)}
    b = np.exp(by_name["lnB"] + by_name["beta"] * np.log(reference.d))
    found = {"E": e, "A": a, "alpha": by_name["alpha"], "B": b, "beta": by_name["beta"]}
    if form == "grown":
        # k' counts transferred tokens in units of d, as a function of D0 in units of d: k = k' d / d^p.
        k = np.exp(by_name["lnk"] + (1 - by_name["p"]) * np.log(reference.d))
        found |= {"k": k, "p": by_name["p"], "q": by_name["q"]}
    return {name: float(value) for name, value in found.items()}


def to_coordinates(form: LawForm, parameters: dict[str, float], reference: Reference) -> Array:
    """Return the vector of a law from its parameters: the inverse of `to_parameters`."""
    if form == "power":
        alpha = -parameters["b"]
        return np.array([_log(parameters["c"]), _log(parameters["a"]) - alpha * np.log(reference.n), alpha])
    alpha, beta = parameters["alpha"], parameters["beta"]
    theta = [_log(parameters["E"]), _log(parameters["A"]) - alpha * np.log(reference.n), alpha]
    theta += [_log(parameters["B"]) - beta * np.log(reference.d), beta]
    if form == "grown":
        p = parameters["p"]
        theta += [_log(parameters["k"]) - (1 - p) * np.log(reference.d), p, parameters["q"]]
    return np.array(theta)


def _log(value: float) -> float:
    # A term that vanished has the coefficient 0; its logarithm must stay finite.
    return float(np.log(max(value, 1e-300)))
