"""A `Schedule` as a torch scheduler, and its picture."""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_warmscale.compat.torch import set_scheduler_step
from hf_warmscale.report import figure
from hf_warmscale.training.schedules.schedule import Schedule


class StageLR(LRScheduler):
    """Multiply the peak rate of every parameter group by one factor per step.

    The state is plain JSON: the step and, for a human reader, the schedule. A checkpoint restores the step only; the
    shape and the rates come from the arguments. (`LambdaLR` also restores its base rates, and so ignores new ones.)

    Args:
        optimizer (`Optimizer`): its groups hold their peak rate in `lr`.
        schedule (`Schedule`): resolved, see `Schedule.resolve`.
        position (`Callable`): where a zero-based step stands in the schedule, see `BatchSizes.position`.

    Example:

    ```python
    >>> schedule = get_schedule("rewarm_cosine", warmup=10).resolve(total_steps=100, learning_rate=1e-3)
    >>> scheduler = StageLR(torch.optim.AdamW(model.parameters(), lr=1e-3), schedule)
    >>> scheduler.get_last_lr()
    [0.0001]
    ```
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, position: Callable[[int], float] = float) -> None:
        self.schedule, self.position = schedule, position
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of every group for the next step."""
        # From the peaks in closed form. Chained from the current rates, rounding would add up, and a jump to a step
        # would need all steps before it.
        factor = self.schedule.factor(self.position(self.last_epoch))
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the position and a description of the schedule."""
        return {"step": self.last_epoch, "schedule": asdict(self.schedule)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of a saved state."""
        self.go_to(state_dict["step"])

    def go_to(self, step: int) -> None:
        """Set the rate of every group to that of the zero-based `step`."""
        set_scheduler_step(self, step)

    def rebase(self, peaks: list[float]) -> None:
        """Set the peak rate of every group; a loaded optimizer state has overwritten it with its own."""
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak
        self.base_lrs = list(peaks)
        self.go_to(self.last_epoch)


def plot_schedule(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Plot the rate of every step of a resolved schedule into a PNG.

    Example:

    ```python
    >>> schedule = get_schedule("wsd", total_steps=1_000, learning_rate=1e-3, cooldown=0.2)
    >>> plot_schedule(schedule, "schedule.png")
    ```
    """
    steps = range(schedule.total_steps or 0)
    with figure(path) as drawing:
        axes = drawing.subplots()
        axes.plot(steps, [schedule(step) for step in steps])
        axes.set(xlabel="step", ylabel="learning rate", title=schedule.name, ylim=(0, None))
