"""The gradients of the laws against finite differences, and their parameters in and out of the fitted units."""

import numpy as np
import pytest

from hf_warmscale.options import LAWS, LawForm
from hf_warmscale.scaling.laws import (
    COORDINATES,
    Reference,
    log_loss,
    to_coordinates,
    to_parameters,
)
from hf_warmscale.scaling.objective import Objective

PARAMETERS: dict[LawForm, dict[str, float]] = {
    "power": {"a": 900.0, "b": -0.34, "c": 1.8},
    "chinchilla": {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37},
    "grown": {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "k": 5.0, "p": 0.9, "q": 1.5},
}
N = np.array([1e7, 1e8, 3e8, 1e9])
D = np.array([1e9, 5e9, 2e9, 2e10])
D0 = np.array([0.0, 4e9, 0.0, 1e11])
N0 = np.array([0.0, 3e7, 0.0, 2.5e8])
REFERENCE = Reference(2e8, 4e9)


def formula(form: LawForm, values: dict[str, float]) -> np.ndarray:
    """The laws as they are written in the papers."""
    if form == "power":
        return values["a"] * N ** values["b"] + values["c"]
    tokens = D.copy()
    if form == "grown":
        grown = D0 > 0
        tokens[grown] += values["k"] * D0[grown] ** values["p"] * (N[grown] / N0[grown]) ** -values["q"]
    return values["E"] + values["A"] / N ** values["alpha"] + values["B"] / tokens ** values["beta"]


@pytest.mark.parametrize("form", LAWS)
def test_a_law_is_its_formula(form: LawForm) -> None:
    theta = to_coordinates(form, PARAMETERS[form], REFERENCE)
    value, _ = log_loss(theta, REFERENCE.inputs(N, D, D0, N0))
    np.testing.assert_allclose(np.exp(value), formula(form, PARAMETERS[form]), rtol=1e-13)


@pytest.mark.parametrize("form", LAWS)
def test_parameters_come_back(form: LawForm) -> None:
    theta = to_coordinates(form, PARAMETERS[form], REFERENCE)
    assert to_parameters(form, theta, REFERENCE) == pytest.approx(PARAMETERS[form], rel=1e-12)


@pytest.mark.parametrize("form", LAWS)
def test_the_gradient_is_the_one_of_finite_differences(form: LawForm) -> None:
    inputs = REFERENCE.inputs(N, D, D0, N0)
    theta = to_coordinates(form, PARAMETERS[form], REFERENCE)
    _, gradient = log_loss(theta, inputs)
    for number, name in enumerate(COORDINATES[form]):
        step = np.zeros_like(theta)
        step[number] = 1e-6
        difference = (log_loss(theta + step, inputs)[0] - log_loss(theta - step, inputs)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, number], difference, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("delta", [1e-3, 0.05, np.inf])
@pytest.mark.parametrize("form", LAWS)
def test_the_gradient_of_the_objective_is_the_one_of_finite_differences(form: LawForm, delta: float) -> None:
    theta = to_coordinates(form, PARAMETERS[form], REFERENCE)
    inputs = REFERENCE.inputs(N, D, D0, N0)
    target = log_loss(theta, inputs)[0] + np.array([0.02, -0.01, 0.0004, 0.1])  # on both sides of delta
    objective = Objective(inputs, target, delta, weights=np.array([1.0, 2.0, 0.0, 3.0]))
    value, gradient = objective(theta)
    numeric = [(objective(theta + step)[0] - objective(theta - step)[0]) / 2e-6 for step in 1e-6 * np.eye(len(theta))]
    np.testing.assert_allclose(gradient, numeric, atol=1e-9)
    assert value > 0


def test_huber_is_squares_near_zero_and_absolute_values_far_away() -> None:
    inputs = REFERENCE.inputs(N[:2], D[:2], D0[:2], N0[:2])
    theta = to_coordinates("chinchilla", PARAMETERS["chinchilla"], REFERENCE)
    exact = log_loss(theta, inputs)[0]
    near = Objective(inputs, exact + np.array([0.0005, 0.0]), 1e-3)(theta)[0]
    far = Objective(inputs, exact + np.array([0.1, 0.0]), 1e-3)(theta)[0]
    assert near == pytest.approx(0.5 * 0.0005**2)
    assert far == pytest.approx(1e-3 * (0.1 - 0.5e-3))
