"""Can two checkpoints be averaged at all? The loss along the straight line between them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite, log10
from typing import Any, Self

INTERIOR = (0.25, 0.5, 0.75)
NOTICEABLE = 0.01
"""Nats: a smaller barrier deserves no advice."""
FAR = 0.5
"""Decades of training steps: within them, checkpoints of one run mostly merge without a barrier."""


@dataclass(frozen=True)
class Mergeability:
    """The loss between two checkpoints.

    Args:
        barrier (`float`): nats per token; the largest excess of the loss over linear interpolation between the two
            ends, which are included, so that it is never negative (arXiv 2110.06296).
        gain (`float`): nats per token by which the best interior point is better than the better end; negative if
            it is worse.
        decades (`float` or `None`): log10 of the ratio of their training progress, if both are known.
        advice (`str`): one sentence.

    Example:

    ```python
    >>> look = Mergeability(barrier=0.2, gain=-0.1, decades=1.0, advice="Leave the early checkpoints out.")
    >>> look.to_dict()["barrier"]
    0.2
    ```
    """

    barrier: float
    gain: float
    decades: float | None
    advice: str

    def to_dict(self) -> dict[str, float | str | None]:
        """Return the fields, ready for JSON: `None` for infinity."""
        fields = asdict(self)
        return {
            name: None if isinstance(value, float) and not isfinite(value) else value for name, value in fields.items()
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        barrier, gain = content["barrier"], content["gain"]
        return cls(
            barrier=inf if barrier is None else barrier,
            gain=-inf if gain is None else gain,
            decades=content["decades"],
            advice=content["advice"],
        )


def look_along(loss: Callable[[float], float], span: tuple[int | None, int | None]) -> Mergeability:
    """Measure the loss at both ends and at three points in between.

    Args:
        loss (`Callable[[float], float]`): maps the weight of the later checkpoint to nats per token; infinity where a
            merge has no finite loss.
        span (`tuple[int | None, int | None]`): training progress of the earlier and the later checkpoint, in one unit.
    """
    losses = {fraction: loss(fraction) for fraction in (0.0, *INTERIOR, 1.0)}
    earlier, later = span
    # Not at step 0, which has no logarithm.
    decades = log10(later / earlier) if earlier and later else None
    barrier = barrier_of(losses)
    best = min(losses[fraction] for fraction in INTERIOR)
    gain = min(losses[0.0], losses[1.0]) - best if isfinite(best) else -inf
    return Mergeability(barrier, gain, decades, _advice(barrier, gain, decades))


def barrier_of(losses: Mapping[float, float]) -> float:
    """Return the largest excess over the straight line from `losses[0]` to `losses[1]`, at least 0."""
    if not all(isfinite(loss) for loss in losses.values()):
        return inf
    start, end = losses[0.0], losses[1.0]
    return max(loss - ((1 - fraction) * start + fraction * end) for fraction, loss in losses.items())


def _advice(barrier: float, gain: float, decades: float | None) -> str:
    far = f", {decades:.2g} decades of steps apart," if decades is not None and decades > FAR else ""
    if not isfinite(barrier):
        return f"On the line from the first to the last checkpoint{far} some merges have no finite loss."
    if barrier > NOTICEABLE:
        return (
            f"The first and the last checkpoint{far} are separated by a barrier of {barrier:.3g} nats: leave the "
            "early checkpoints out."
        )
    if gain > 0:
        return f"The line from the first to the last checkpoint{far} has no barrier and gains {gain:.3g} nats inside."
    return f"The line from the first to the last checkpoint{far} has no barrier, but its interior gains nothing."
