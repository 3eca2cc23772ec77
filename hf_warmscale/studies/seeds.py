"""The mean over the seeds of a study, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedMean:
    """A mean with its interval.

    Args:
        mean, low, high (`float`): in the unit of the values.
        seeds (`int`): how many values.

    Example:

    ```python
    >>> mean_over_seeds([3.0, 3.1, 3.2]).seeds
    3
    ```
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}] ({self.seeds} seeds)"


def mean_over_seeds(values: Sequence[float]) -> SeedMean | None:
    """Return the mean of a value for each seed with its 95 % t interval; `None` for fewer than two seeds.

    For two arms, pass the differences of the runs that share a seed: what the seed does to both cancels.

    Example:

    ```python
    >>> print(mean_over_seeds([-0.02, -0.01, -0.03]))
    -0.0200 [-0.0448, +0.0048] (3 seeds)

    ```
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    middle = mean(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return SeedMean(middle, middle - half, middle + half, len(values))
