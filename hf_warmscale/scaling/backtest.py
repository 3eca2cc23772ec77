"""Would the law have predicted what was then measured? Fit the small sizes, predict the next, beside two baselines."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_warmscale.options import LawForm
from hf_warmscale.scaling.frame import Frame
from hf_warmscale.scaling.laws import Array
from hf_warmscale.scaling.objective import DELTA
from hf_warmscale.scaling.solve import make_problem, solve

NEXT_SIZE = 1.25
"""Sizes that differ by less than this factor count as one rung."""

MIN_RUNGS, MAX_STEPS = 3, 4
"""Rungs that the first fit of a rollout needs, and the steps of a rollout."""

PREDICTORS = ("law", "last_value", "log_linear")
"""What predicts the points that were left out: the law and two baselines."""


@dataclass(frozen=True)
class Errors:
    """How far predictions are off.

    Args:
        mare (`float`): mean of |error| / loss.
        largest (`float`): the largest |error| / loss.
        mean (`float`): mean of |error|, in the unit of the loss.

    Example:

    ```python
    >>> Errors(mare=0.01, largest=0.02, mean=0.035).mare
    0.01
    ```
    """

    mare: float
    largest: float
    mean: float

    @classmethod
    def of(cls, predicted: Array, measured: Array) -> "Errors":
        """Return the errors of predictions."""
        off = np.abs(predicted - measured)
        return cls(float(np.mean(off / measured)), float(np.max(off / measured)), float(np.mean(off)))


@dataclass(frozen=True)
class Step:
    """One prediction of points that a law was not fitted to.

    Args:
        num_train, num_test (`int`): points.
        largest_train (`float`): parameters of the largest model fitted.
        N, D, predicted, measured (`tuple[float, ...]`): of every point predicted.
        law (`Errors`): of the law.
        last_value (`Errors`): of the baseline that repeats the loss of the largest model at the nearest D.
        log_linear (`Errors`): of the baseline ln L = c + a ln N + b ln D.

    Example:

    ```python
    >>> step = fit_scaling_law("losses.csv").backtest.steps[-1]
    >>> step.num_train, step.num_test, step.law.mare < 0.01
    (12, 3, True)
    ```
    """

    num_train: int
    num_test: int
    largest_train: float
    N: tuple[float, ...]
    D: tuple[float, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    law: Errors
    last_value: Errors
    log_linear: Errors


@dataclass(frozen=True)
class Backtest:
    """A rollout by size.

    Args:
        steps (`tuple[Step, ...]`): from small to large; empty if there are too few sizes.
        law, last_value, log_linear (`Errors` or `None`): over all points predicted; see `Step`.

    Example:

    ```python
    >>> backtest = fit_scaling_law("losses.csv").backtest
    >>> backtest.law.mare < backtest.log_linear.mare
    True
    ```
    """

    steps: tuple[Step, ...]
    law: Errors | None
    last_value: Errors | None
    log_linear: Errors | None

    def to_dict(self) -> dict[str, Any]:
        """Return the backtest, ready for JSON."""
        return asdict(self)

    def table(self) -> list[dict[str, object]]:
        """Return one row per step, and one of all: the mean relative errors in percent."""
        rows = [_row(f"N above {step.largest_train:.3g}", step.num_test, step) for step in self.steps]
        return [*rows, _row("all", sum(step.num_test for step in self.steps), self)] if rows else []


def roll_out(
    frame: Frame, form: LawForm, *, fixed: Mapping[str, float] | None = None, delta: float = DELTA
) -> Backtest:
    """Fit the small sizes and predict the next one, for the last sizes of a frame.

    Args:
        frame (`Frame`): of the points.
        form, fixed, delta: as for [`fit_scaling_law`].

    Example:

    ```python
    >>> for row in roll_out(make_frame("losses.csv", "chinchilla"), "chinchilla").table():
    ...     print(row["predicted"], row["points"])
    N above 4e+07 3
    N above 8e+07 3
    all 6
    ```
    """
    rungs = rung_numbers(frame.N)
    steps = []
    # Only the next rung is predicted each time: the question is one step up, as in use.
    for rung in range(max(MIN_RUNGS, rungs.max() + 1 - MAX_STEPS), rungs.max() + 1):
        train = rungs < rung
        # With as many parameters as points, a fit goes through all of them and predicts nothing.
        if train.sum() > make_problem(frame, form, fixed=fixed, delta=delta).num_free():
            steps.append(hold_out(frame, train, rungs == rung, form, fixed=fixed, delta=delta))
    if not steps:
        return Backtest((), None, None, None)
    return Backtest(tuple(steps), *(_pooled([getattr(step, name) for step in steps], steps) for name in PREDICTORS))


def hold_out(
    frame: Frame,
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
    form: LawForm,
    *,
    fixed: Mapping[str, float] | None = None,
    delta: float = DELTA,
) -> Step:
    """Fit some points of a frame and predict others.

    Args:
        frame (`Frame`): of all points.
        train, test (`[points]` of `bool`): which to fit, which to predict.
        form, fixed, delta: as for [`fit_scaling_law`].

    Raises:
        ValueError: if one of the two is empty.

    Example:

    ```python
    >>> frame = make_frame("losses.csv", "chinchilla")
    >>> step = hold_out(frame, frame.N < 1e8, frame.N >= 1e8, "chinchilla")
    >>> step.law.mare < step.last_value.mare
    True
    ```
    """
    if not train.any() or not test.any():
        raise ValueError(
            f"A backtest needs points on both sides, not {train.sum()} to fit and {test.sum()} to predict."
        )
    known, wanted = frame.where(train), frame.where(test)
    problem = make_problem(known, form, fixed=fixed, delta=delta)
    predicted = np.exp(problem.log_loss(solve(problem, known)[0], wanted))
    return Step(
        num_train=len(known),
        num_test=len(wanted),
        largest_train=float(known.N.max()),
        N=tuple(map(float, wanted.N)),
        D=tuple(map(float, wanted.D)),
        predicted=tuple(map(float, predicted)),
        measured=tuple(map(float, wanted.loss)),
        law=Errors.of(predicted, wanted.loss),
        last_value=Errors.of(last_value(known, wanted), wanted.loss),
        log_linear=Errors.of(log_linear(known, wanted), wanted.loss),
    )


def rung_numbers(sizes: Array) -> NDArray[np.int64]:
    """Return the rung of each size, from 0: a rung ends where a size is `NEXT_SIZE` times its smallest."""
    numbers, first, rung = np.zeros(len(sizes), dtype=np.int64), 0.0, -1
    for place in np.argsort(sizes, kind="stable"):
        if sizes[place] > NEXT_SIZE * first:
            first, rung = sizes[place], rung + 1
        numbers[place] = rung
    return numbers


def last_value(known: Frame, wanted: Frame) -> Array:
    """Return the loss of the largest known model at the nearest number of tokens."""
    largest = known.where(rung_numbers(known.N) == rung_numbers(known.N).max())
    nearest = np.abs(np.log(wanted.D)[:, None] - np.log(largest.D)[None]).argmin(axis=1)
    values: Array = largest.loss[nearest]
    return values


def log_linear(known: Frame, wanted: Frame) -> Array:
    """Return the least squares prediction of ln L from ln N and ln D."""

    def features(frame: Frame) -> Array:
        return np.stack([np.ones(len(frame)), np.log(frame.N), np.log(frame.D)], axis=1)

    slopes = np.linalg.lstsq(features(known), np.log(known.loss), rcond=None)[0]
    values: Array = np.exp(features(wanted) @ slopes)
    return values


def _pooled(errors: list[Errors], steps: list[Step]) -> Errors:
    counts = np.array([step.num_test for step in steps])
    mare, mean = (float(np.average([getattr(e, name) for e in errors], weights=counts)) for name in ("mare", "mean"))
    return Errors(mare, max(error.largest for error in errors), mean)


def _row(name: str, points: int, found: Step | Backtest) -> dict[str, object]:
    row: dict[str, object] = {"predicted": name, "points": points}
    for label in PREDICTORS:
        errors = getattr(found, label)
        row[f"{label.replace('_', ' ')}, %"] = None if errors is None else 100 * errors.mare
    return row
