"""Shares that were changed in the middle of a run, so that no row that was drawn is drawn again or left out.

`Apportionment` finds every sample from the start of the sequence. With other weights it would also place the samples
otherwise that a run has already drawn. So at a change point a new apportionment begins, and each source goes on with
the row after its last one.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from hf_warmscale.training.data.apportionment import Apportionment, Floats, Integers

T = TypeVar("T", int, float)

WeightsByStart = Mapping[int, Mapping[str, float]]
"""The shares of the sources by the sample at which they begin."""


class ChangedApportionment:
    """One apportionment after another, with the interface of a single one.

    Args:
        parts (`Mapping[int, WeightsByStart]`): by change point, 0 among them, the weights that hold from there on. The
            first of them begin at that sample. They may plan further than to the next change point: what was planned
            has a say in how counts are rounded.
        num_sources (`int`): in all. A part that names fewer of them knows the first ones only.
    """

    def __init__(self, parts: Mapping[int, WeightsByStart], num_sources: int) -> None:
        self._starts, self._width = list(parts), num_sources
        self._parts = [apportioned(weights, start) for start, weights in parts.items()]
        drawn: Integers = np.zeros(num_sources, dtype=np.int64)
        self._drawn = [drawn]
        for start, stop, part in zip(self._starts, self._starts[1:], self._parts, strict=False):
            drawn = drawn + np.asarray(_filled(part.counts(stop - start), num_sources))
            self._drawn.append(drawn)

    @property
    def deviation(self) -> float:
        """The bound on |count - expected count| of a source: every part has its own, and they add up."""
        return sum(part.deviation for part in self._parts)

    def assign(self, samples: Integers) -> tuple[Integers, Integers]:
        """Return the source of each sample and how many samples that source gave before it."""
        sources, ordinals = np.empty_like(samples), np.empty_like(samples)
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        for number in np.unique(numbers):
            mine = numbers == number
            found, counts = self._parts[number].assign(samples[mine] - self._starts[number])
            sources[mine], ordinals[mine] = found, counts + self._drawn[number][found]
        return sources, ordinals

    def counts(self, num_samples: int) -> list[int]:
        """Return how many of the first `num_samples` samples come from each source."""
        number = bisect_right(self._starts, num_samples) - 1
        counts = _filled(self._parts[number].counts(num_samples - self._starts[number]), self._width)
        return [int(before) + count for before, count in zip(self._drawn[number], counts, strict=True)]

    def expected(self, num_samples: int) -> list[float]:
        """Return the expected counts: the weights summed over the first `num_samples` samples."""
        total = np.zeros(self._width)
        for start, stop, part in zip(self._starts, [*self._starts[1:], num_samples], self._parts, strict=True):
            length = min(stop, num_samples) - start
            total += np.asarray(_filled(part.expected(max(length, 0)), self._width))
        return [float(value) for value in total]


def apportioned(weights: WeightsByStart, start: int = 0) -> Apportionment:
    """Return the apportionment of weights that begin at `start`; it counts from there."""
    table: Floats = np.asarray([list(shares.values()) for shares in weights.values()])
    return Apportionment([begin - start for begin in weights], table)


def _filled(counts: list[T], width: int) -> list[T]:
    """Return counts by source, with zeros for the sources that are not known yet."""
    return counts + [type(counts[0])(0)] * (width - len(counts))


def upcoming(weights: WeightsByStart, sample: int) -> dict[int, dict[str, float]]:
    """Return the weights from a sample on: those in force there, as beginning there, and all later ones.

    Example:

    ```python
    >>> upcoming({0: {"a": 1.0}, 8: {"a": 0.5, "b": 0.5}}, 3)
    {3: {'a': 1.0}, 8: {'a': 0.5, 'b': 0.5}}

    ```
    """
    current = max(start for start in weights if start <= sample)
    later = {start: dict(shares) for start, shares in weights.items() if start > sample}
    return {sample: dict(weights[current]), **later}


def same_weights(first: WeightsByStart, second: WeightsByStart) -> bool:
    """Tell whether weights are equal, if a source that is not named has the share 0."""
    drawn = [
        {start: {name: share for name, share in shares.items() if share} for start, shares in weights.items()}
        for weights in (first, second)
    ]
    return drawn[0] == drawn[1]
