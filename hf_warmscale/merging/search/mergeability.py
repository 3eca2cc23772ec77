"""Can two checkpoints be averaged at all? A look along the line between them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import log10

INTERIOR = (0.25, 0.5, 0.75)
NOTICEABLE = 0.01
"""Nats: a smaller barrier is no reason for advice."""
FAR = 0.5
"""Decades of training steps: within them checkpoints of one run mostly merge without a barrier."""


@dataclass(frozen=True)
class Mergeability:
    """What lies between two checkpoints.

    Args:
        barrier (`float`): nats per token; the largest excess of the loss over the straight line between the two ends,
            which are included, so that it is never negative (arXiv 2110.06296).
        gain (`float`): nats per token by which the best point inside is better than the better end; negative if worse.
        decades (`float` or `None`): log10 of the ratio of their training steps, if these are known.
        advice (`str`): one sentence.
    """

    barrier: float
    gain: float
    decades: float | None
    advice: str

    def to_dict(self) -> dict[str, float | str | None]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def look_along(loss: Callable[[float], float], steps: tuple[int | None, int | None]) -> Mergeability:
    """Measure the loss at the ends and at three points between them.

    Args:
        loss (`Callable[[float], float]`): nats per token of the merge that gives the later checkpoint this weight.
        steps (`tuple[int | None, int | None]`): training steps of the earlier and the later checkpoint.
    """
    losses = {fraction: loss(fraction) for fraction in (0.0, *INTERIOR, 1.0)}
    barrier = barrier_of(losses)
    gain = min(losses[0.0], losses[1.0]) - min(losses[fraction] for fraction in INTERIOR)
    earlier, later = steps
    decades = log10(later / earlier) if earlier and later else None
    return Mergeability(barrier, gain, decades, _advice(barrier, gain, decades))


def barrier_of(losses: Mapping[float, float]) -> float:
    """Return the largest excess over the straight line from `losses[0]` to `losses[1]`, at least 0."""
    start, end = losses[0.0], losses[1.0]
    return max(loss - ((1 - fraction) * start + fraction * end) for fraction, loss in losses.items())


def _advice(barrier: float, gain: float, decades: float | None) -> str:
    far = f", {decades:.2g} decades of steps apart," if decades is not None and decades > FAR else ""
    if barrier > NOTICEABLE:
        return (
            f"The first and the last checkpoint{far} are separated by a barrier of {barrier:.3g} nats: leave the "
            "early checkpoints out."
        )
    if gain > 0:
        return f"The line from the first to the last checkpoint{far} has no barrier and gains {gain:.3g} nats inside."
    return f"The line from the first to the last checkpoint{far} has no barrier, but nothing is gained inside it."
