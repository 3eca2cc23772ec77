"""The rows of every optimizer step of a stage whose total batch changes on the way, as pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

BatchPlan = Mapping[int, int]
"""Total batches by the sample at which they begin, as in `{0: 16, 640: 32}`."""


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

    @classmethod
    def planned(cls, plan: BatchPlan) -> "BatchSizes":
        """Return the sizes of a plan.

        Raises:
            ValueError: if a total batch would begin in the middle of a step.

        Example:

        ```python
        >>> BatchSizes.planned({0: 16, 640: 32}).changes
        (BatchChange(step=40, sample=640, samples_per_step=32),)

        ```
        """
        return cls(plan[0]).continued(step=0, plan=plan)

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

    def between(self, start: int, stop: int) -> list[tuple[range, int]]:
        """Return the steps from `start` to `stop` in stretches of one size, each with that size.

        Example:

        ```python
        >>> BatchSizes.planned({0: 16, 640: 32}).between(30, 50)
        [(range(30, 40), 16), (range(40, 50), 32)]

        ```
        """
        inside = [change.step for change in self.changes if start < change.step < stop]
        edges = [start, *inside, stop]
        return [(range(*pair), self.at(pair[0])) for pair in pairwise(edges)]

    def upcoming(self, step: int) -> dict[int, int]:
        """Return the plan from a zero-based `step` on, beginning with the sample at which that step begins."""
        later = {change.sample: change.samples_per_step for change in self.changes if change.step > step}
        return {self.samples(step): self.at(step), **later}

    def continued(self, *, step: int, plan: BatchPlan) -> "BatchSizes":
        """Return the sizes that are those of a plan from the zero-based `step` on.

        Raises:
            ValueError: if a total batch would begin in the middle of a step.
        """
        sample = self.samples(step)
        sizes = self.changed(step=step, samples_per_step=plan[max(start for start in plan if start <= sample)])
        for start in sorted(start for start in plan if start > sample):
            sizes = sizes.changed(step=sizes._step_at(start, plan[start]), samples_per_step=plan[start])
        return sizes

    def changed(self, *, step: int, samples_per_step: int) -> "BatchSizes":
        """Return the sizes with another total batch from the zero-based `step` on."""
        earlier = BatchSizes(self.first, tuple(change for change in self.changes if change.step < step))
        if step == 0:
            return BatchSizes(samples_per_step)
        if earlier._periods()[-1].samples_per_step == samples_per_step:
            return earlier
        change = BatchChange(step, earlier.samples(step), samples_per_step)
        return BatchSizes(self.first, (*earlier.changes, change))

    def _step_at(self, sample: int, samples_per_step: int) -> int:
        """Return the step that begins at a sample behind all changes."""
        period = self._periods()[-1]
        steps, inside = divmod(sample - period.sample, period.samples_per_step)
        if inside:
            earlier = sample - inside
            # The whole plan: a resumed run may have other batches behind it than the plan that is refused here.
            plan = {one.sample: one.samples_per_step for one in self._periods()} | {earlier: samples_per_step}
            raise ValueError(
                f"total_batch_size becomes {samples_per_step} at sample {sample}, in the middle of a step of "
                f"{period.samples_per_step} rows; let it begin at sample {earlier} or "
                f"{earlier + period.samples_per_step}, as in {plan}."
            )
        return period.step + steps

    def _periods(self) -> tuple[BatchChange, ...]:
        return (BatchChange(0, 0, self.first), *self.changes)

    def _period(self, step: int) -> BatchChange:
        return next(one for one in reversed(self._periods()) if one.step <= step)


def batch_plan(total_batch_size: int | BatchPlan) -> dict[int, int]:
    """Return a plan of total batches after checking its numbers.

    Args:
        total_batch_size (`int` or `Mapping[int, int]`): rows in a step, or rows by the sample at which they begin.

    Raises:
        ValueError: if a number is no positive integer, the first plan does not begin at sample 0, the samples do not
            ascend, or a total batch would begin in the middle of a step.

    Example:

    ```python
    >>> batch_plan(64), batch_plan({0: 16, 640: 32})
    ({0: 64}, {0: 16, 640: 32})

    ```
    """
    plan = dict(total_batch_size) if isinstance(total_batch_size, Mapping) else {0: total_batch_size}
    if not plan or any(type(number) is not int for pair in plan.items() for number in pair):
        raise ValueError(
            f"total_batch_size is {total_batch_size!r}; give the rows of a step, or the rows by sample, as in "
            "{0: 16, 640: 32}."
        )
    for start, size in plan.items():
        if size < 1:
            raise ValueError(f"total_batch_size is {size} from sample {start} on; it must be at least 1.")
    if next(iter(plan)) != 0 or list(plan) != sorted(plan):
        raise ValueError(
            f"total_batch_size begins at the samples {list(plan)}; begin with sample 0 and let the others ascend."
        )
    BatchSizes.planned(plan)
    return plan
