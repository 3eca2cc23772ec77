"""How a trainer of stages makes steps of different sizes: the micro-batch stays, and the accumulation steps change."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_warmscale.training.checkpointing import CheckpointMixin
from hf_warmscale.training.data.batch_sizes import BatchPlan
from hf_warmscale.training.stage import Stage
from hf_warmscale.training.stage_run import StageRun


class EpochBySteps(TrainerCallback):
    """Count the epoch in steps: `Trainer` counts micro-batches of one stretch of steps alone."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch of the state, which is logged and saved behind this."""
        state.epoch = state.global_step / state.max_steps


class AccumulationMixin(CheckpointMixin):
    """Accumulate over as many micro-batches as a step has rows for. See `trainer.py`."""

    _micro_batches: Iterator[Any] | None = None

    def _samples_per_step(self) -> int:
        """Return the rows of one optimizer step at the present accumulation steps, over all ranks."""
        if self.accelerator.split_batches:  # the batch size is already that of all ranks together
            return int(self._train_batch_size) * self.args.gradient_accumulation_steps
        return self.get_total_train_batch_size(self.args)

    def _rows_at_once(self) -> int:
        """Return the rows of one micro-batch, over all ranks."""
        return self._samples_per_step() // self.args.gradient_accumulation_steps

    def _batch_plan(self, stage: Stage) -> BatchPlan:
        """Return the total batches that the stage declares, or the one of the arguments."""
        return stage.total_batch_size or {0: self._samples_per_step()}

    def _check_total_batch(self, stage: Stage) -> None:
        """Refuse arguments that decide the total batch a second time.

        Raises:
            ValueError: naming the argument.
        """
        steps = self.args.gradient_accumulation_steps
        if stage.total_batch_size is None:
            return
        if steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps is {steps}, but it follows from the total_batch_size of the stage "
                f"{stage.name!r}; leave it out."
            )
        if self.args.auto_find_batch_size:
            raise ValueError(
                f"auto_find_batch_size changes the total batch, and the stage {stage.name!r} has a total_batch_size; "
                "choose per_device_train_batch_size yourself, for it changes the memory alone."
            )

    def _prepare_accumulation(self, run: StageRun) -> None:
        """Set the accumulation steps of the first stretch, after seeing that every total batch can be made."""
        sizes = [size for _, size in run.stretches]
        for size in sizes:
            self._refuse_parts(size)
        self._set_accumulation(sizes[0])
        if self.is_deepspeed_enabled and run.stage.total_batch_size is not None:
            # With offloading, ZeRO keeps gradients between micro-batches only if it knows that there will be several.
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            config["gradient_accumulation_steps"] = max(sizes) // self._rows_at_once()
            config["train_batch_size"] = max(sizes)
        if len(sizes) > 1 and not any(isinstance(each, EpochBySteps) for each in self.callback_handler.callbacks):
            self.add_callback(EpochBySteps())

    def _refuse_parts(self, size: int) -> None:
        rows = self._rows_at_once()
        if size % rows:
            raise ValueError(
                f"total_batch_size is {size}, which is not a multiple of the {rows} rows of one micro-batch on "
                f"{self.args.world_size} process(es); lower per_device_train_batch_size, or take "
                f"{max(size // rows, 1) * rows}."
            )

    def _set_accumulation(self, samples_per_step: int) -> None:
        self.args.gradient_accumulation_steps = samples_per_step // self._rows_at_once()

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """Return what `Trainer` counts steps, epochs and rows with; in a stage of several total batches, its own."""
        values = super().set_initial_training_values(args, dataloader)
        run = self.stage_run
        if run is None or len(run.stretches) < 2:
            return values
        steps, (_, _, num_examples, _, total_batch, _, _) = run.record.num_steps, values
        # One epoch. The micro-batches in it are set by stretch.
        return 1, steps, num_examples, run.num_samples, total_batch, steps * args.gradient_accumulation_steps, steps

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of a step, and keep the place in the data for the next stretch of steps."""
        self._micro_batches = epoch_iterator
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train one stretch of steps of one size after another, on the micro-batches of one loader.

        `Trainer` ends a step where the number of micro-batches so far is a multiple of the accumulation steps, so each
        stretch has to count from its own start, as a resumed run does.
        """
        stretches = [] if self.stage_run is None else self.stage_run.stretches
        if len(stretches) < 2:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]
            return
        (steps, size), *others = stretches
        # A resumed stretch counts the steps and micro-batches before it too.
        super()._run_epoch(*args, **kwargs | self._counts(steps.stop))  # type: ignore[no-untyped-call]
        for steps, size in others:
            if self.control.should_training_stop or self.control.should_epoch_stop:
                break
            self._set_accumulation(size)
            self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
            settings = {
                **kwargs,
                **self._counts(len(steps)),
                "train_dataloader": self._micro_batches,  # one iterator: no new workers, nothing drawn from the seed
                "resume_from_checkpoint": None,
                "steps_trained_in_current_epoch": 0,
            }
            super()._run_epoch(*args, **settings)  # type: ignore[no-untyped-call]
        self._micro_batches = None

    def _counts(self, num_steps: int) -> dict[str, int]:
        micro_batches = num_steps * self.args.gradient_accumulation_steps
        return {"num_update_steps_per_epoch": num_steps, "steps_in_epoch": micro_batches}
