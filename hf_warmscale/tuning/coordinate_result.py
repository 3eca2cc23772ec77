"""How the change of every activation scales with size: the fit of a coordinate check and its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_warmscale.tuning.ladder import Axis, refuse_one_size

TOLERANCE = 0.1
SMALLEST = 1e-30

Changes = Mapping[str, Sequence[float]]
"""For each activation, the RMS of its change since step 0 after every step."""


@dataclass(frozen=True)
class CoordinateResult:
    """How the change of every activation scales with size.

    Args:
        label (`str`): of the parametrization.
        axis (`"width"` or `"depth"`): what grew.
        tolerance (`float`): the largest |slope| that passes.
        changes (`Mapping[str, Mapping[int, list[float]]]`): activation -> size -> median over seeds, by step.
        slopes (`Mapping[str, float]`): d log(last change) / d log(size), for each activation that moves.

    Example:

    ```python
    >>> changes = {"attention": {64: [0.1, 0.2], 128: [0.1, 0.4]}}
    >>> CoordinateResult("standard", "width", tolerance=0.1, changes=changes, slopes={"attention": 1.0}).failures
    {'attention': 1.0}
    ```
    """

    label: str
    axis: Axis
    tolerance: float
    changes: Mapping[str, Mapping[int, list[float]]]
    slopes: Mapping[str, float]

    @property
    def failures(self) -> dict[str, float]:
        """The activations whose slope is out of tolerance, the worst first."""
        # `not ... <=` and not `>`: a NaN slope fails.
        failing = {name: slope for name, slope in self.slopes.items() if not abs(slope) <= self.tolerance}
        return dict(sorted(failing.items(), key=lambda item: -abs(item[1])))

    @property
    def passed(self) -> bool:
        """Every activation moves as far at every size."""
        return bool(self.slopes) and not self.failures

    def rows(self) -> list[dict[str, object]]:
        """Return one row of a table for each activation."""
        return [
            {"rule": self.label, "activation": name, "slope": round(slope, 3), "ok": abs(slope) <= self.tolerance}
            for name, slope in self.slopes.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "passed": self.passed}


def fit_slopes(
    runs: Mapping[int, Sequence[Changes]], *, label: str, axis: Axis, tolerance: float = TOLERANCE
) -> CoordinateResult:
    """Fit d log(change) / d log(size) of every activation that all sizes have, on medians over seeds.

    What never changes (the rotary angles) has no slope and is left out.

    Args:
        runs (`Mapping[int, Sequence[Changes]]`): for each size, what every seed gave.
        label (`str`): of the parametrization.
        axis (`"width"` or `"depth"`): what the sizes are.
        tolerance (`float`): the largest |slope| that passes.

    Raises:
        ValueError: if there are fewer than two sizes.
    """
    refuse_one_size(list(runs))
    # Over depths a small model may lack a name: with one block there is no stream after half of the blocks.
    names = set.intersection(*(set(changes) for seeds in runs.values() for changes in seeds))
    order = [name for name in next(iter(runs.values()))[0] if name in names]
    medians = {
        name: {size: np.median([run[name] for run in seeds], axis=0).tolist() for size, seeds in runs.items()}
        for name in order
    }
    slopes = {
        name: _slope({size: steps[-1] for size, steps in by_size.items()})
        for name, by_size in medians.items()
        if any(steps[-1] != 0 for steps in by_size.values())
    }
    return CoordinateResult(label, axis, tolerance, medians, slopes)


def _slope(values: Mapping[int, float]) -> float:
    # A log-log fit; `SMALLEST` keeps a change of exactly 0 at one size from becoming -inf.
    slope, _ = np.polyfit(np.log(list(values)), np.log([max(value, SMALLEST) for value in values.values()]), 1)
    return float(slope)
