"""The rows of every optimizer step of a stage whose total batch was changed on the way, as pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class BatchChange:
    """A change point: from the zero-based `step` on, which begins at `sample`, a step has `samples_per_step` rows."""

    step: int
    sample: int
    samples_per_step: int


@dataclass(frozen=True)
class BatchSizes:
    """The total batch of every step: the rows over all ranks, micro-batches included.

    Args:
        first (`int`): rows in the first step.
        changes (`tuple[BatchChange, ...]`): in their order.

    Example:

    ```python
    >>> sizes = BatchSizes(4).changed(step=10, samples_per_step=8)
    >>> [sizes.samples(step) for step in (0, 10, 11)], sizes.num_steps(80), sizes.position(11, ahead=1)
    ([0, 40, 48], 15, 13.0)

    ```
    """

    first: int
    changes: tuple[BatchChange, ...] = ()

    @classmethod
    def read(cls, first: int, changes: Sequence[Mapping[str, Any]]) -> Self:
        """Return the sizes that `stage.json` records."""
        return cls(first, tuple(BatchChange(**change) for change in changes))

    @property
    def last(self) -> int:
        """The rows in the last step."""
        return self.changes[-1].samples_per_step if self.changes else self.first

    def at(self, step: int) -> int:
        """Return the rows of the zero-based `step`."""
        return self._period(step).samples_per_step

    def samples(self, step: int) -> int:
        """Return the rows of all steps before the zero-based `step`."""
        period = self._period(step)
        return period.sample + (step - period.step) * period.samples_per_step

    def num_steps(self, samples: int) -> int:
        """Return how many steps it takes to reach a number of rows; the last step may go beyond it."""
        period = max((one for one in self._periods() if one.sample <= samples), key=lambda one: one.sample)
        return period.step + -(-(samples - period.sample) // period.samples_per_step)

    def position(self, step: int, *, ahead: int) -> float:
        """Return where a step stands in a schedule that counts steps of the first size.

        So the learning rate is a function of the rows that were read: a change of the total batch neither stretches
        the schedule nor lets the rate jump.

        Args:
            step (`int`): zero-based.
            ahead (`int`): the `step_offset` of the schedule: with 1, a step has the rate of its end.

        Returns:
            `float`: the zero-based step, which need not be a whole number.
        """
        return (self.samples(step) + ahead * self.at(step)) / self.first - ahead

    def changed(self, *, step: int, samples_per_step: int) -> "BatchSizes":
        """Return the sizes with another total batch from the zero-based `step` on."""
        earlier = BatchSizes(self.first, tuple(change for change in self.changes if change.step < step))
        if step == 0:
            return BatchSizes(samples_per_step)
        if earlier.last == samples_per_step:
            return earlier
        change = BatchChange(step, earlier.samples(step), samples_per_step)
        return BatchSizes(self.first, (*earlier.changes, change))

    def _periods(self) -> tuple[BatchChange, ...]:
        return (BatchChange(0, 0, self.first), *self.changes)

    def _period(self, step: int) -> BatchChange:
        return next(one for one in reversed(self._periods()) if one.step <= step)
