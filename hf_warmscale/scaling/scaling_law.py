"""A fitted law: what it predicts, how far that may be off, and how it did on sizes that it had not seen."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_warmscale.checkpoints import write_json
from hf_warmscale.options import LawForm, LossUnit
from hf_warmscale.scaling.backtest import Backtest, roll_out
from hf_warmscale.scaling.frame import Frame, make_frame
from hf_warmscale.scaling.laws import PARAMETERS, Array, Reference, log_loss, to_coordinates
from hf_warmscale.scaling.objective import DELTA
from hf_warmscale.scaling.solve import Problem, make_problem
from hf_warmscale.scaling.uncertainty import half_width, noise


@dataclass(frozen=True)
class ScalingLaw:
    """A scaling law, from [`fit_scaling_law`], or from `published`.

    Args:
        form (`str`): see `LawForm`.
        parameters (`dict`): by name, in the units of the frame (N in parameters, D in tokens).
        objective (`float`): the sum of the Huber losses at the fit; NaN without points.
        flags (`list[str]`): reasons not to trust it.
        frame (`Frame`, *optional*): the points that it was fitted to.
        fixed (`dict`): the parameters that were not fitted.
        delta (`float`): of the Huber loss.
        unit (`str`): of the loss.
        embeddings (`bool` or `None`): whether N counts the embeddings; `None` if unknown.
        resampled (`[draws, coordinates]`, *optional*): the vectors fitted to resampled runs.
        source (`str`): where published constants are from; empty for a law of one's own.

    Example:

    ```python
    >>> law = ScalingLaw("chinchilla", {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37})
    >>> round(law.predict(N=1e9, D=2e10), 4)
    2.464

    ```
    """

    form: LawForm
    parameters: dict[str, float]
    objective: float = math.nan
    flags: list[str] = field(default_factory=list)
    frame: Frame | None = None
    fixed: dict[str, float] = field(default_factory=dict)
    delta: float = DELTA
    unit: LossUnit = "nats"
    embeddings: bool | None = None
    resampled: Array | None = None
    source: str = ""

    def predict(self, **columns: ArrayLike) -> Any:
        """Return the loss at a size and tokens: a float for numbers, an array for arrays.

        Args:
            columns (`float` or array): `N`, `D` (not for the form `power`), and `D0` and `N0` of a grown model.

        Raises:
            ValueError: if a column is missing, or not positive.
        """
        wanted = self._wanted(columns)
        # Prediction needs no fit, so the units of the parameters will do; published laws have no points to take others
        # from.
        reference = Reference(1.0, 1.0)
        inputs = reference.inputs(wanted.N, wanted.D, wanted.D0, wanted.N0)
        losses = np.exp(log_loss(to_coordinates(self.form, self.parameters, reference), inputs)[0])
        return _shaped(losses, columns)

    def interval(self, *, level: float = 0.95, **columns: ArrayLike) -> tuple[Any, Any]:
        """Return the ends of the interval in which the loss of a new run lies, not only the mean of many.

        With `bootstrap` it is from the resampled fits; else by the delta method, which is too narrow far outside
        the range of the points.

        Args:
            level (`float`): the probability.
            columns (`float` or array): as for `predict`.

        Raises:
            ValueError: if the law has no points, or as many parameters as runs.
        """
        if self.frame is None:
            raise ValueError(f"The law has no points ({self.source or 'given parameters'}), so no interval; fit one.")
        problem, theta = self._problem(), self.theta
        if noise(problem, self.frame, theta)[1] == 0:
            raise ValueError(
                f"{problem.num_free()} parameters were fitted to so few runs that nothing tells their noise; "
                "add runs, or fix parameters."
            )
        wanted = self._wanted(columns)
        middle = problem.log_loss(theta, wanted)
        width = half_width(problem, self.frame, theta, self.resampled, wanted, level)
        return _shaped(np.exp(middle - width), columns), _shaped(np.exp(middle + width), columns)

    @property
    def theta(self) -> Array:
        """The vector of the law in the units of its fit."""
        return to_coordinates(self.form, self.parameters, self._problem().reference)

    @cached_property
    def backtest(self) -> Backtest:
        """The rollout by size: fit the small ones, predict the next, beside two naive baselines.

        Raises:
            ValueError: if the law has no points.
        """
        if self.frame is None:
            raise ValueError(f"The law has no points ({self.source or 'given parameters'}) to be tested on; fit one.")
        return roll_out(self.frame, self.form, fixed=self.fixed, delta=self.delta)

    def residuals(self) -> Array:
        """Return measured minus predicted log loss of its points.

        Raises:
            ValueError: if the law has no points.
        """
        if self.frame is None:
            raise ValueError("The law has no points, so no residuals; fit one.")
        return self._problem().objective(self.frame).residuals(self.theta)

    def to_dict(self) -> dict[str, Any]:
        """Return the law and its points, ready for JSON."""
        return {
            "form": self.form,
            "parameters": self.parameters,
            "objective": None if math.isnan(self.objective) else self.objective,
            "flags": self.flags,
            "fixed": self.fixed,
            "delta": None if math.isinf(self.delta) else self.delta,
            "unit": self.unit,
            "embeddings": self.embeddings,
            "source": self.source,
            "resampled": None if self.resampled is None else self.resampled.tolist(),
            "points": [] if self.frame is None else self.frame.rows(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the law and its points as JSON."""
        write_json(path, self.to_dict())

    def _problem(self) -> Problem:
        assert self.frame is not None
        return make_problem(self.frame, self.form, fixed=self.fixed, delta=self.delta)

    def _wanted(self, columns: Mapping[str, ArrayLike]) -> Frame:
        arrays = np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in columns.values()))
        table: dict[str, Any] = dict(zip(columns, (array.ravel() for array in arrays), strict=True))
        count = arrays[0].size if arrays else 0
        # A grown law without a base is Chinchilla's: no tokens are transferred.
        form: LawForm = "chinchilla" if self.form == "grown" and "D0" not in table else self.form
        return make_frame({**table, "loss": [1.0] * count, "run": [str(i) for i in range(count)]}, form)


def load_scaling_law(path: str | os.PathLike[str]) -> ScalingLaw:
    """Read a law that `ScalingLaw.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a law.

    Args:
        path (`str` or `PathLike`): of the JSON.

    Example:

    ```python
    >>> published().save("law.json")
    >>> load_scaling_law("law.json").predict(N=1e9, D=2e10) == published().predict(N=1e9, D=2e10)
    True
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no law {path}; make one with warmscale scaling fit.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        points, resampled = content.pop("points"), content.pop("resampled")
        objective, delta = content.pop("objective"), content.pop("delta")
        law = ScalingLaw(
            **content,
            objective=math.nan if objective is None else objective,
            delta=math.inf if delta is None else delta,
            frame=make_frame(points, content["form"], embeddings=content["embeddings"]) if points else None,
            resampled=None if resampled is None else np.array(resampled),
        )
        missing = set(PARAMETERS[law.form]) - set(law.parameters)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a scaling law ({error}); make one with warmscale scaling fit.") from error
    if missing:
        raise ValueError(f"{path} lacks the parameters {', '.join(sorted(missing))}; fit the law again.")
    return law


def _shaped(values: Array, columns: Mapping[str, ArrayLike]) -> Any:
    shape = np.broadcast_shapes(*(np.shape(value) for value in columns.values()))
    return float(values[0]) if shape == () else values.reshape(shape)
