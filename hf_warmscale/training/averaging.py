"""Averages of the constant phase, which replace a decay of the learning rate that was never trained."""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_warmscale.merging import (
    MergeReceipt,
    decay_weights,
    ema_weights,
    lawa_weights,
    merge_checkpoints,
    uniform_weights,
)
from hf_warmscale.options import AVERAGES, Average
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.branching import constant_checkpoints
from hf_warmscale.training.schedules.rates import COOLDOWNS, Shape

EMA_DECAY = 0.8
"""The factor by which the weights of all earlier checkpoints shrink when one is added."""


def average_weights(average: Average, count: int) -> tuple[float, ...]:
    """Return the weight of each of `count` checkpoints, the oldest first.

    `"swa"` is the mean of all checkpoints (arXiv:1803.05407), `"lawa"` the mean of the latest five (arXiv:2306.03241)
    and `"ema"` an exponential moving average. `"wsm-<shape>"` merges the checkpoints so that the updates between them
    are weighted as by a decay of that shape (arXiv:2507.17634): update i = 1, ..., `count` - 1 has the factor
    `f(i / count)`.

    Args:
        average (`str`): the average.
        count (`int`): number of checkpoints.

    Example:

    ```python
    >>> average_weights("swa", 4), average_weights("wsm-linear", 4)
    ((0.25, 0.25, 0.25, 0.25), (0.25, 0.25, 0.25, 0.25))
    ```
    """
    refuse_unknown("average", average, AVERAGES)
    if average == "swa":
        return uniform_weights(count)
    if average == "lawa":
        return lawa_weights(count)
    if average == "ema":
        return ema_weights(count, EMA_DECAY)
    shape: Shape = average.removeprefix("wsm-")  # type: ignore[assignment]  # of the names above
    # `count` checkpoints have `count` - 1 updates between them. f(0) = 1 and f(1) = 0 are the ends that
    # `decay_weights` adds by itself.
    return decay_weights([COOLDOWNS[shape](update / count) for update in range(1, count)])


def average_run(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    average: Average = "lawa",
    last: int | None = None,
) -> MergeReceipt:
    """Average the checkpoints of the constant phase of a run into a new model folder.

    Args:
        run (`str` or `PathLike`): the run folder.
        output (`str` or `PathLike`): a new folder.
        average (`str`): one of `Average`.
        last (`int`, *optional*): average only this many of the latest checkpoints.

    Raises:
        ValueError: if the constant phase has fewer than two checkpoints.

    Example:

    ```python
    >>> average_run("runs/base", "averaged", average="lawa")
    ```
    """
    refuse_unknown("average", average, AVERAGES)
    folders = constant_checkpoints(run)
    if last is not None and not 2 <= last <= len(folders):
        raise ValueError(f"last is {last}, and {run} has {len(folders)} checkpoints in its constant phase.")
    folders = folders[-last:] if last else folders
    if len(folders) < 2:
        raise ValueError(
            f"{run} has {len(folders)} checkpoints in its constant phase; an average needs two (lower save_steps, or "
            "raise save_total_limit)."
        )
    return merge_checkpoints(folders, output, weights=average_weights(average, len(folders)))


class AverageCheckpoints(TrainerCallback):
    """Write the average of the constant phase to `<output_dir>/average-<average>` at the end of a stage.

    Args:
        average (`str`): one of `Average`.
        last (`int`, *optional*): average only this many of the latest checkpoints.

    Example:

    ```python
    >>> ContinualTrainer(model, args, stage=stage, callbacks=[AverageCheckpoints("wsm-1-sqrt")])
    ```
    """

    def __init__(self, average: Average = "lawa", *, last: int | None = None) -> None:
        refuse_unknown("average", average, AVERAGES)
        self.average, self.last = average, last

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Average, on the first process alone."""
        if not state.is_world_process_zero:
            return
        assert args.output_dir is not None
        output = Path(args.output_dir) / f"average-{self.average}"
        shutil.rmtree(output, ignore_errors=True)  # of an earlier end of the same run
        average_run(args.output_dir, output, average=self.average, last=self.last)
