"""A stage in progress: its resolved schedule and mixture, its record, and what it reports."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any, Self

from torch import Tensor
from transformers import TrainingArguments

from hf_warmscale.training.arguments import HYPERPARAMETERS, restore_arguments, trajectory_arguments
from hf_warmscale.training.data.batch_sizes import BatchPlan, BatchSizes
from hf_warmscale.training.data.batches import StageSamples, row_length
from hf_warmscale.training.data.mixture import ReplayMixture, same_sequence
from hf_warmscale.training.metering import SourceMeter
from hf_warmscale.training.stage import Stage, StageRecord

logger = logging.getLogger(__name__)

Differences = Mapping[str, tuple[Any, Any]]

TOTAL_BATCH = "samples_per_step"
"""The name of the total batch in a record and among differences."""


class StageRun:
    """Resolve a stage against the arguments of a trainer, and keep its record.

    Args:
        stage (`Stage`): what to train.
        mixture (`ReplayMixture`): the training data.
        args (`TrainingArguments`): give the peak rate where the schedule names none.
        batch_sizes (`BatchSizes` or `int`): rows in an optimizer step, over all ranks.
        recorded (`Mapping`, *optional*): what shapes the trajectory besides, see `trajectory_arguments`.

    Raises:
        ValueError: if the schedule is longer than the stage.
    """

    def __init__(
        self,
        stage: Stage,
        mixture: ReplayMixture,
        args: TrainingArguments,
        batch_sizes: BatchSizes | int,
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        sizes = BatchSizes(batch_sizes) if isinstance(batch_sizes, int) else batch_sizes
        samples_per_step, length = sizes.first, row_length(mixture)
        max_steps = stage.num_steps(samples_per_step=samples_per_step, row_length=length)
        self.stage, self.mixture = stage, mixture
        self.schedule = stage.schedule.resolve(
            total_steps=max_steps,
            learning_rate=args.learning_rate,
            # `None` where rows differ in length; a phase in tokens is then refused.
            tokens_per_step=length and length * samples_per_step,
        )
        self.record = StageRecord(
            name=stage.name,
            schedule=asdict(self.schedule),
            max_steps=max_steps,
            samples_per_step=samples_per_step,
            optimizer=stage.optimizer,
            mixture=mixture.describe(),
            arguments=dict(trajectory_arguments(args) if recorded is None else recorded),
            batch_changes=[asdict(change) for change in sizes.changes],
        )
        self.batch_sizes, num_steps = sizes, self.record.num_steps
        self.num_samples = sizes.samples(num_steps)
        self.meter = SourceMeter(mixture.names, args.device)
        self.moments_of: str | None = None
        self.resumed, self.start_step = False, 0
        self._since, self._tokens_then = time.perf_counter(), 0

    @property
    def samples(self) -> StageSamples:
        """The data of the stage. A resumed loader skips places as if all steps before had had the present size."""
        start = self.start_step
        shift = self.batch_sizes.samples(start) - start * self.batch_sizes.at(start)
        return StageSamples(self.mixture, self.num_samples - shift, shift=shift)

    @property
    def stretches(self) -> list[tuple[range, int]]:
        """The steps that are still to be made, in stretches of one total batch, each with that batch."""
        return self.batch_sizes.between(self.start_step, self.record.num_steps)

    def refuse_dry_sources(self) -> Self:
        """Return the run after seeing that every source lasts.

        Raises:
            ValueError: naming a source that runs dry.
        """
        self.mixture.check_passes(self.num_samples)
        return self

    def inherit(self, parent: str | os.PathLike[str]) -> None:
        """Continue the lineage of a parent's checkpoint, and take over its moments if the stage keeps them."""
        self.record.lineage = StageRecord.load(parent).as_ancestor(parent)
        if self.stage.optimizer == "keep":
            self.moments_of = str(parent)

    def continue_from(
        self,
        checkpoint: str | os.PathLike[str],
        args: TrainingArguments,
        on_mismatch: str,
        plan: BatchPlan,
    ) -> Self:
        """Return the run that continues a checkpoint of this stage: this one, or the checkpoint's own.

        With `"override"`, another total batch and other weights of the mixture begin at the checkpoint: a change
        point. No row is read twice or left out, and the record keeps both.

        Args:
            checkpoint (`str` or `PathLike`): the folder.
            args (`TrainingArguments`): of the trainer.
            on_mismatch (`str`): one of `MISMATCH`.
            plan (`BatchPlan`): rows in an optimizer step by sample; what it says of earlier samples is ignored.

        Raises:
            ValueError: naming every difference between the two, if `on_mismatch` is `"error"`; if a planned total
                batch would begin in the middle of a step.
        """
        saved = StageRecord.load(checkpoint)
        samples, step = saved.progress.samples, saved.progress.step
        sizes = saved.batch_sizes.continued(step=step, plan=plan)
        # What has been made is as the checkpoint has it; the arguments are asked only for what follows.
        mixture = self.mixture.continuing(saved.mixture, samples)
        goes_on = same_sequence(mixture.describe(), saved.mixture)
        run = self._with(mixture if goes_on else self.mixture, saved.batch_sizes, args)
        batches = (_total_batch(saved.batch_sizes, step), _total_batch(sizes, step))
        differences = saved.differences(run.record) | ({} if sizes == saved.batch_sizes else {TOTAL_BATCH: batches})
        if differences:
            listed = "; ".join(f"{name} is {old} there and {new} now" for name, (old, new) in differences.items())
            if on_mismatch == "error":
                raise ValueError(
                    f"{checkpoint} and the arguments differ: {listed}; correct the arguments, or set on_mismatch to "
                    f"'override' or 'use_checkpoint'{_meaning(differences, samples)}."
                )
            logger.warning("%s and the arguments differ, on_mismatch=%s: %s.", checkpoint, on_mismatch, listed)
            if on_mismatch == "use_checkpoint":
                run = self._as_saved(saved, args, differences)
            else:
                run = self._with(mixture, sizes, args)
        run.record.progress, run.record.start_losses = saved.progress, saved.start_losses
        run.record.lineage = saved.lineage
        # Speed is measured from here: an earlier process trained on the tokens before.
        run._tokens_then, run.resumed, run.start_step = saved.progress.num_tokens(), True, step
        return run

    def _as_saved(self, saved: StageRecord, args: TrainingArguments, differences: Differences) -> Self:
        # 10 is the length of "arguments.".
        fixed = [name for name in differences if name.startswith("arguments.") and name[10:] not in HYPERPARAMETERS]
        if fixed:
            raise ValueError(
                f"on_mismatch='use_checkpoint' cannot change {', '.join(fixed)}: the trainer is already made with the "
                "other value; make it with that of the checkpoint."
            )
        if TOTAL_BATCH in differences:
            old, new = differences[TOTAL_BATCH]
            raise ValueError(
                f"on_mismatch='use_checkpoint' cannot change the total batch: the trainer is already made with {new} "
                f"rows in a step; make it with {old} (total_batch_size; or per_device_train_batch_size, "
                f"gradient_accumulation_steps, processes), or set on_mismatch='override' to go on with {new}."
            )
        restore_arguments(args, saved.arguments)
        mixture = self.mixture.like(saved.mixture)
        stage = Stage(
            saved.name,
            saved.schedule,
            mixture,
            max_steps=saved.max_steps,
            total_batch_size=self.stage.total_batch_size,
            optimizer=saved.optimizer,
        )
        return type(self)(stage, mixture, args, saved.batch_sizes, self.record.arguments | saved.arguments)

    def _with(self, mixture: ReplayMixture, sizes: BatchSizes, args: TrainingArguments) -> Self:
        """Return the same run with another mixture and other total batches."""
        if mixture is self.mixture and sizes == self.batch_sizes:
            return self
        return type(self)(self.stage, mixture, args, sizes, self.record.arguments)

    def with_samples_per_step(self, samples_per_step: int, args: TrainingArguments) -> Self:
        """Return the run that starts with another batch size, one that was found to fit into memory.

        Raises:
            ValueError: if the run is a resumed one: its place in the data is counted in steps.
        """
        record = self.record
        if self.resumed:
            raise ValueError(
                f"A batch of {self.batch_sizes.at(self.start_step)} rows does not fit into memory, and inside the "
                f"stage {record.name!r} it cannot become {samples_per_step} unasked; lower "
                "per_device_train_batch_size and raise gradient_accumulation_steps by the same factor."
            )
        run = type(self)(self.stage, self.mixture, args, samples_per_step, record.arguments)
        run.record.lineage, run.moments_of = record.lineage, self.moments_of
        return run.refuse_dry_sources()

    def apply_to(self, args: TrainingArguments) -> None:
        """Set what the stage decides in the arguments of the trainer."""
        args.max_steps, args.learning_rate = self.record.num_steps, self.schedule.peak

    def advance(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Bring the record up to a step, with the counts of all ranks."""
        progress = self.record.progress
        progress.step, progress.samples = step, self.batch_sizes.samples(step)
        # Rows are a function of the step and need no counter; tokens depend on what the rows hold, and are counted.
        progress.rows = self.mixture.counts(progress.samples)
        self.meter.flush_counts(gather, progress)

    def training_metrics(
        self, step: int, groups: Iterable[Mapping[str, Any]], gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Return the rate of every group, and loss, rows and tokens by source, after `step` steps.

        Loss and speed are over the steps since the last call; rows and tokens since the start of the stage.
        """
        self.advance(step, gather)
        progress = self.record.progress
        # After n steps, the last one made is the zero-based step n - 1. The scheduler is already at the next one, so
        # the rates in the groups would be one step ahead.
        factor = self.schedule.factor(self.record.position(step - 1))
        metrics: dict[str, float] = self.meter.flush_losses(gather)
        for number, group in enumerate(groups):
            metrics[f"lr/{group.get('name', number)}"] = float(group["initial_lr"]) * factor
        for what, counts in (
            ("rows", progress.rows),
            ("tokens", progress.tokens),
            ("loss_tokens", progress.loss_tokens),
        ):
            metrics |= {f"{what}/{name}": count for name, count in counts.items()}
        now = time.perf_counter()
        metrics["total_tokens"] = self.record.total_tokens()
        metrics["tokens_per_second"] = (progress.num_tokens() - self._tokens_then) / max(now - self._since, 1e-9)
        progress.seconds += now - self._since
        self._since, self._tokens_then = now, progress.num_tokens()
        return metrics

    def forgetting(self, losses: Mapping[str, float], step: int) -> dict[str, float]:
        """Return the change of each domain's loss since the start of the stage, which step 0 sets.

        A domain whose loss was NaN at the start is recorded as null and has no change.
        """
        if step == 0:
            self.record.start_losses = {name: loss if isfinite(loss) else None for name, loss in losses.items()}
        starts = self.record.start_losses
        return {name: loss - start for name, loss in losses.items() if (start := starts.get(name)) is not None}


def _total_batch(sizes: BatchSizes, step: int) -> int | dict[int, int]:
    """Return the rows of a step from a zero-based `step` on; by sample, if they change."""
    plan = sizes.upcoming(step)
    return plan if len(plan) > 1 else sizes.at(step)


def _meaning(differences: Iterable[str], samples: int) -> str:
    """Return what 'override' makes of differences that begin at the place of the checkpoint."""
    names = {"the total batch": TOTAL_BATCH in differences, "the mixture": any(map(_is_weight, differences))}
    changed = " and ".join(name for name, is_changed in names.items() if is_changed)
    return f" ('override' changes {changed} from sample {samples} on)" if changed else ""


def _is_weight(name: str) -> bool:
    return name.startswith("mixture.weights.")
