"""Anneal branches: a decay that starts from a trunk at a constant rate, in a run folder of its own."""

import os
from dataclasses import replace
from pathlib import Path

from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.training.data.batch_sizes import BatchPlan
from hf_warmscale.training.data.mixture import ReplayMixture, same_sequence
from hf_warmscale.training.schedules.rates import Shape
from hf_warmscale.training.schedules.schedule import Schedule
from hf_warmscale.training.stage import Stage, StageRecord


def anneal_stage(
    checkpoint: str | os.PathLike[str],
    mixture: ReplayMixture | None = None,
    *,
    max_steps: int | None = None,
    max_tokens: int | None = None,
    until_tokens: int | None = None,
    total_batch_size: int | BatchPlan | None = None,
    shape: Shape | None = None,
    min_lr: float | None = None,
    name: str | None = None,
) -> Stage:
    """Return the stage that anneals a checkpoint of a constant phase, with its moments, from its rate to a floor.

    The trunk is only read. Train the stage in another `output_dir`; the trunk itself can be continued later.

    Args:
        checkpoint (`str` or `PathLike`): a checkpoint of the trunk; load the model from it too.
        mixture (`ReplayMixture`, *optional*): the data to anneal on. If it is the mixture of the trunk, it continues
            where the checkpoint stands, so that the branch sees the rows that the trunk would see next; any other
            mixture starts at its beginning.
        max_steps, max_tokens (`int`, *optional*): the length of the branch.
        until_tokens (`int`, *optional*): instead, the tokens of trunk and branch together; the branch ends with the
            first step that reaches them.
        total_batch_size (`int` or `Mapping[int, int]`, *optional*): of the branch, see `Stage`; by default that of
            the training arguments, also where the trunk declared another one.
        shape (`str`, *optional*): the shape of the decay, one of `Shape`; by default the exponential anneal of the
            infinite schedules if the trunk has one (2403.08763), else `"1-sqrt"` (2405.18392).
        min_lr (`float`, *optional*): the final rate; by default the floor of the trunk's schedule.
        name (`str`, *optional*): the name of the stage; by default that of the trunk followed by `-anneal`.

    Raises:
        ValueError: if the checkpoint is not of a constant phase, or has the tokens asked for already.

    Example:

    ```python
    >>> trunk = "runs/trunk/checkpoint-8000"
    >>> stage = anneal_stage(trunk, mixture, until_tokens=1_000_000_000)
    >>> ContinualTrainer(AutoModelForCausalLM.from_pretrained(trunk), args, stage=stage).train()
    ```
    """
    record = StageRecord.load(checkpoint)
    trunk = Schedule(**record.schedule)
    if not in_constant_phase(record):
        raise ValueError(
            f"The rate of {checkpoint} is not constant (step {record.progress.step} of {trunk.name}); anneal from a "
            "checkpoint of a constant phase."
        )
    if mixture is not None and (trunks := _of_trunk(mixture, record)) is not None:
        mixture = trunks.after(record.progress.samples)
    return Stage(
        name or f"{record.name}-anneal",
        # The rate of the last step that the trunk made, so that the branch begins without a jump.
        _anneal(
            trunk, trunk(record.position(record.progress.step - 1)), shape, trunk.floor if min_lr is None else min_lr
        ),
        mixture,
        max_steps=max_steps,
        max_tokens=max_tokens if until_tokens is None else _missing_tokens(record, until_tokens, checkpoint),
        total_batch_size=total_batch_size,
        optimizer="keep",
        parent=checkpoint,
    )


def in_constant_phase(record: StageRecord) -> bool:
    """Tell whether the last step before a checkpoint was made at the constant rate of its schedule."""
    schedule = Schedule(**record.schedule)
    phase = schedule.constant_phase()
    # The last step made, in the t of the formulas, in which `constant_phase` counts.
    last = record.position(record.progress.step - 1) + schedule.step_offset
    return phase is not None and record.progress.step > 0 and phase[0] <= last <= phase[1]


def constant_checkpoints(run: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints of a run that were saved in the constant phase of its schedule, the oldest first.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a checkpoint was not written by a stage.

    Example:

    ```python
    >>> constant_checkpoints("run")[-1].name
    'checkpoint-1000'
    ```
    """
    return [path for path in run_checkpoints(run) if in_constant_phase(StageRecord.load(path))]


def _of_trunk(mixture: ReplayMixture, record: StageRecord) -> ReplayMixture | None:
    """Return the mixture with the change points of the trunk, or `None` if it is another one."""
    if set(record.mixture["sources"]) <= set(mixture.names):
        mixture = mixture.continuing(record.mixture, record.progress.samples)
    return mixture if same_sequence(mixture.describe(), record.mixture) else None


def _anneal(trunk: Schedule, rate: float, shape: Shape | None, floor: float) -> Schedule:
    """Return the schedule of the branch: nothing but its last phase."""
    if shape is None and trunk.name.startswith("infinite"):
        # With all other phases at 0, the whole stage is the exponential anneal of the infinite schedules.
        anneal = Schedule("infinite_cosine", constant_lr=rate, warmup=0, cooldown=0, constant=0)
    else:
        anneal = Schedule("wsd", warmup=0, cooldown=1.0, cooldown_shape=shape or "1-sqrt")
    return replace(anneal, learning_rate=rate, min_lr=floor, step_offset=trunk.step_offset)


def _missing_tokens(record: StageRecord, until_tokens: int, checkpoint: str | os.PathLike[str]) -> int:
    missing = until_tokens - record.total_tokens()
    if missing <= 0:
        raise ValueError(
            f"{checkpoint} has already seen {record.total_tokens()} tokens, but the anneal should end at "
            f"{until_tokens}; raise until_tokens, or anneal from an earlier checkpoint."
        )
    return missing
