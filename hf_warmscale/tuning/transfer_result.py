"""The learning-rate curves of one parametrization over sizes, and how far the best rate drifts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_warmscale.options import RuleName
from hf_warmscale.tuning.ladder import Axis
from hf_warmscale.tuning.optimum import Curve, Optimum


@dataclass(frozen=True)
class TransferResult:
    """The learning-rate curves and best rates of one parametrization.

    Args:
        rule (`str`): `"mup"`, `"completep"` or `"standard"`.
        axis (`"width"` or `"depth"`): what grew.
        curves (`Mapping[int, Curve]`): the losses, by size.
        optima (`list[Optimum]`): the best rate of every size, the reference first.

    Example:

    ```python
    >>> curve = {2.0**power: {0: 3.0 + 0.1 * (power + 7) ** 2} for power in range(-10, -4)}
    >>> curves = {64: curve, 128: curve}
    >>> result = TransferResult("completep", "width", curves, find_optima(curves, resamples=10))
    >>> [round(optimum.drift, 6) for optimum in result.optima]
    [0.0, 0.0]
    ```
    """

    rule: RuleName
    axis: Axis
    curves: Mapping[int, Curve]
    optima: list[Optimum]

    @property
    def drift(self) -> float:
        """How far the best rate moves from that of the first size, in octaves, at the size where it moves most."""
        return max((optimum.drift for optimum in self.optima), key=abs)

    def rows(self) -> list[dict[str, object]]:
        """Return one row of a table for each size."""
        return [
            {
                "rule": self.rule,
                self.axis: optimum.size,
                "log2 best lr": round(optimum.log2_lr, 2),
                "bootstrap": interval(optimum.low, optimum.high),
                "drift (octaves)": round(optimum.drift, 2),
                "bootstrap of the drift": interval(optimum.drift_low, optimum.drift_high),
                "lowest loss": round(optimum.loss, 4),
                "at edge": optimum.at_edge,
            }
            for optimum in self.optima
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        points = [
            {"size": size, "lr": lr, "seed": seed, "loss": loss if loss < float("inf") else None}
            for size, curve in self.curves.items()
            for lr, losses in sorted(curve.items())
            for seed, loss in sorted(losses.items())
        ]
        optima = [asdict(optimum) for optimum in self.optima]
        return {"rule": self.rule, "axis": self.axis, "drift": self.drift, "optima": optima, "points": points}


def interval(low: float, high: float) -> str:
    """Return an interval as text; none where one seed left nothing to resample."""
    return f"{low:.2f} .. {high:.2f}" if low < high else "-"
