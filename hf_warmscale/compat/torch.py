"""What this package needs of torch beyond its public API; a test of each function says what broke."""

from torch.optim.lr_scheduler import LRScheduler


def set_scheduler_step(scheduler: LRScheduler, step: int) -> None:
    """Put a scheduler before the zero-based `step` and set the rate of every group to what it gives there.

    The public `step(epoch)` does so too, but it is deprecated and counts as a call.
    """
    scheduler.last_epoch = step - 1
    scheduler._step_count = step
    scheduler._update_lr()
