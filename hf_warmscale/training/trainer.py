"""A `Trainer` that runs stages: a new stage re-warms once, a crashed one continues exactly."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import TrainOutput, get_last_checkpoint, rotate_checkpoints

from hf_warmscale.checkpoints import explained_full_disk
from hf_warmscale.training.arguments import ContinualArguments
from hf_warmscale.training.data.batches import SourceCollator, collate_packed, is_packed, refuse_contamination
from hf_warmscale.training.data.mixture import SOURCE, ReplayMixture, Rows
from hf_warmscale.training.launch import check_engine, refuse_engine_blocks
from hf_warmscale.training.metering import captured
from hf_warmscale.training.parameter_groups import mup_groups
from hf_warmscale.training.saving import publish, staging_of, sweep
from hf_warmscale.training.schedules.lr_scheduler import StageLR
from hf_warmscale.training.stage import Stage, StageRecord
from hf_warmscale.training.stage_report import write_stage_report
from hf_warmscale.training.stage_run import StageRun, bits_per_byte, summarise

STAGE_DECIDES = ("max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")


class ContinualMixin(Trainer):
    """Give any `Trainer` stages; without a stage it trains exactly as before.

    `train()` starts the stage. `train(resume_from_checkpoint=...)` continues it if the checkpoint is of this stage,
    and starts it from the checkpoint's weights if it is of another. Every checkpoint holds a `stage.json`, and
    appears under its name only when it is complete.

    Args:
        stage (`Stage`, *optional*): what to train; all other arguments are those of the trainer it is mixed into.

    ```python
    class ContinualSFTTrainer(ContinualMixin, SFTTrainer): ...
    ```
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        *rest: Any,
        stage: Stage | None = None,
        **kwargs: Any,
    ) -> None:
        self.stage = stage
        self.stage_run: StageRun | None = None
        self._writes_staged = False
        self._created_optimizer = False
        self._keeps_cache = stage is not None and bool(getattr(getattr(model, "config", None), "use_cache", False))
        if stage is not None:
            args = _own_arguments(stage, args)
            if data_collator is None and stage.mixture is not None and is_packed(stage.mixture):
                data_collator = collate_packed
        super().__init__(model, args, data_collator, *rest, **kwargs)
        if stage is not None and self.lr_scheduler is not None:
            raise ValueError("A stage brings its own schedule; pass optimizers=(optimizer, None).")
        if stage is not None and self.is_deepspeed_enabled:
            refuse_engine_blocks(self.accelerator.state.deepspeed_plugin.deepspeed_config)

    def train(self, resume_from_checkpoint: str | bool | None = None, *rest: Any, **kwargs: Any) -> TrainOutput:
        """Train the stage, from its start or from a checkpoint; see `Trainer.train`.

        Raises:
            ValueError: if the output folder holds checkpoints and none is resumed, if the checkpoint has no stage, or
                if it differs from the arguments and `on_mismatch` is `"error"`.
        """
        if self.stage is None:
            return super().train(resume_from_checkpoint, *rest, **kwargs)
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        if self.args.should_save:
            sweep(self._run_folder())
        continued = self._begin(self.stage, checkpoint)
        output = super().train(checkpoint if continued else None, *rest, **kwargs)
        self._report()
        return output

    def _report(self) -> None:
        """Write the report of the stage."""
        assert self.stage_run is not None
        self.stage_run.advance(self.state.global_step, self.accelerator.gather)
        if self.is_world_process_zero():
            write_stage_report(self._run_folder(), self.stage_run.record, self.state.log_history)

    # ---- Beginning a stage ----

    def _run_folder(self) -> str:
        assert self.args.output_dir is not None
        return self.args.output_dir

    def _checkpoint_to_resume(self, resume_from_checkpoint: str | bool | None) -> str | None:
        run = self._run_folder()
        if isinstance(resume_from_checkpoint, str | os.PathLike):
            return os.fspath(resume_from_checkpoint)
        last: str | None = get_last_checkpoint(run) if Path(run).is_dir() else None
        if resume_from_checkpoint and last is None:
            raise ValueError(f"{run} holds no checkpoint to resume; start without resume_from_checkpoint.")
        if not resume_from_checkpoint and last is not None:
            raise ValueError(
                f"{run} already holds {Path(last).name}; resume it with resume_from_checkpoint=True, or name another "
                "output_dir."
            )
        return last

    def _begin(self, stage: Stage, checkpoint: str | None) -> bool:
        """Set up the stage and say whether it continues the checkpoint."""
        mixture = stage.mixture or self._train_dataset_alone(stage)
        run = StageRun(stage, mixture, self.args, self.get_total_train_batch_size(self.args))
        continued = checkpoint is not None and StageRecord.load(checkpoint).name == stage.name
        if checkpoint is not None and continued:
            run = run.continue_from(checkpoint, self.args, self._continual_arguments().on_mismatch)
        else:
            self._start(run, checkpoint)
        run.apply_to(self.args)
        self.stage_run, self.train_dataset = run, run.samples
        evaluates = self.eval_dataset is not None and self.args.eval_strategy != "no"
        self.args.eval_on_start = evaluates and not continued
        return continued

    def _train_dataset_alone(self, stage: Stage) -> ReplayMixture:
        if self.train_dataset is None:
            raise ValueError(
                f"The stage {stage.name!r} has no data; give it a mixture, or the trainer a train_dataset."
            )
        return ReplayMixture({"train": cast(Rows, self.train_dataset)}, {"train": 1.0}, seed=self.args.seed)

    def _start(self, run: StageRun, checkpoint: str | None) -> None:
        """Start from the parent, if there is one: weights, lineage, and moments if they are kept."""
        if self._created_optimizer:
            self.optimizer = None
        if checkpoint is not None:
            self._load_weights_of_parent(run.stage, checkpoint)
        parent = checkpoint or run.stage.parent
        if parent is not None:
            run.inherit(parent)
        elif run.stage.optimizer == "keep":
            raise ValueError(f"The stage {run.stage.name!r} keeps the optimizer state of a parent; name the parent.")

    def _load_weights_of_parent(self, stage: Stage, checkpoint: str) -> None:
        if Path(checkpoint).resolve().parent == Path(self._run_folder()).resolve():
            raise ValueError(f"{checkpoint} is not of the stage {stage.name!r}; give that stage its own output_dir.")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(f"Under DeepSpeed and FSDP load {checkpoint} with from_pretrained and name it as parent.")
        self._load_from_checkpoint(checkpoint)

    def _continual_arguments(self) -> ContinualArguments:
        return self.args if isinstance(self.args, ContinualArguments) else ContinualArguments()

    # ---- Optimizer and schedule ----

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimizer: on muP groups if the model carries muP metadata, else as the trainer does."""
        if self.optimizer is None:
            self._created_optimizer = True
            target = cast(PreTrainedModel, self.model if model is None else model)
            groups = mup_groups(target, self.args)
            if groups is not None:
                chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, target)
                self.optimizer = chosen[0](groups, **chosen[1])
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create the schedule of the stage, if there is one."""
        if self.stage_run is None:
            return super().create_scheduler(num_training_steps, optimizer)
        prepared = optimizer or self.optimizer
        assert prepared is not None
        self._group_settings = [_settings(group) for group in prepared.param_groups]
        scheduler = StageLR(prepared, self.stage_run.schedule)
        self.lr_scheduler = scheduler  # type: ignore[assignment]  # annotated as a LambdaLR, used as any scheduler
        self._created_lr_scheduler = True
        return scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.stage_run is not None:
            check_engine(prepared[0], self.args, deepspeed=self.is_deepspeed_enabled, fsdp=self.is_fsdp_enabled)
            if self.stage_run.moments_of is not None:
                self._take_over_moments(prepared[0], self.stage_run.moments_of)
            self._settle_groups()
        return prepared

    def _take_over_moments(self, model: nn.Module, parent: str) -> None:
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(model, parent)
        elif not any(Path(parent).glob("optimizer*")):
            raise ValueError(f"{parent} holds no optimizer state; use optimizer='reset'.")
        self._load_optimizer_and_scheduler(parent)

    def _settle_groups(self) -> None:
        """Undo what a loaded optimizer state did to the groups: moments stay, settings are those of the arguments."""
        scheduler = cast(StageLR, self.lr_scheduler)
        for group, settings in zip(scheduler.optimizer.param_groups, self._group_settings, strict=True):
            group.update(settings)
        scheduler.rebase([settings["lr"] for settings in self._group_settings])
        scheduler.go_to(self.state.global_step)

    # ---- Data ----

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[Any] | None:
        if self.stage_run is None:
            return super()._get_train_sampler(train_dataset)
        return SequentialSampler(self.stage_run.samples)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        collator = super()._get_collator_with_removed_columns(data_collator, description)
        if self.stage_run is None or description != "Training":
            return collator
        return SourceCollator(collator, self.stage_run.mixture.names)

    # ---- Loss and metrics ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the loss as the trainer does, and note it by source."""
        sources = inputs.pop(SOURCE, None)
        if sources is None or self.stage_run is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.state.global_step == self._initial_global_step:
            refuse_contamination(inputs)
        batch = dict(inputs)
        with captured(model) as seen:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        by_source = len(self.stage_run.mixture.names) > 1 and self._loss_shifts_labels
        self.stage_run.meter.add(sources, batch, seen[0] if by_source and seen else None)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; beside a training loss also what `StageRun.training_metrics` returns."""
        if self.stage_run is not None and self.is_in_train and "loss" in logs:
            groups = cast(StageLR, self.lr_scheduler).optimizer.param_groups
            logs |= self.stage_run.training_metrics(self.state.global_step, groups, self.accelerator.gather)
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate; of several domains also give the mean, the weighted mean and the forgetting.

        With `eval_tokens_per_byte`, there is `eval_<domain>_bits_per_byte` too.
        `eval_loss` is the mean over the domains, `eval_weighted_loss` the mean under `eval_weights`, and
        `eval_<domain>_forgetting` the change of a loss since the start of the stage. Each can be
        `metric_for_best_model`.
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        domains = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.stage_run is None or not isinstance(domains, Mapping):
            return metrics
        losses = {name: metrics[f"{metric_key_prefix}_{name}_loss"] for name in domains}
        arguments = self._continual_arguments()
        weights, densities = arguments.eval_weights, arguments.eval_tokens_per_byte
        summary = summarise(losses, weights if isinstance(weights, dict) else None)
        if isinstance(densities, dict):
            shared = losses.keys() & densities.keys()
            summary |= {f"{name}_bits_per_byte": bits_per_byte(losses[name], densities[name]) for name in shared}
        if self.is_in_train:
            changes = self.stage_run.forgetting(losses, self.state.global_step)
            summary |= {f"{name}_forgetting": change for name, change in changes.items()}
        summary = {f"{metric_key_prefix}_{name}": value for name, value in summary.items()}
        self.log(dict(summary))
        return {**metrics, **summary}

    # ---- Saving ----

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(staging_of(folder)) if self._writes_staged else folder

    @contextmanager
    def _staged(self) -> Iterator[None]:
        self._writes_staged = True
        try:
            yield
        finally:
            self._writes_staged = False

    @contextmanager
    def _own_cache_setting(self) -> Iterator[None]:
        """Save the model as it came: `Trainer` turns `use_cache` off to train, and generation is slow without it."""
        if not self._keeps_cache:
            yield
            return
        config = cast(PreTrainedModel, self.model).config
        while_training = config.use_cache
        config.use_cache = True
        try:
            yield
        finally:
            config.use_cache = while_training

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(run / name)
        best = self.state.best_model_checkpoint
        if self.stage_run is not None:
            self.stage_run.advance(self.state.global_step, self.accelerator.gather)
        with explained_full_disk(run / name), self._staged(), self._own_cache_setting():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        self.state.best_model_checkpoint = best
        if self.args.should_save:
            with explained_full_disk(run / name):
                self._publish(run, name)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _publish(self, run: Path, name: str) -> None:
        staging = staging_of(run) / name
        self.state.save_to_json(str(staging / "trainer_state.json"))
        if self.stage_run is not None:
            self.stage_run.record.save(staging)
        publish(run, name)
        best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
        rotate_checkpoints(str(run), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writes_staged:
            super()._push_from_checkpoint(checkpoint_folder)


class ContinualTrainer(ContinualMixin, Trainer):
    """`Trainer` with stages; see `ContinualMixin`.

    Example:

    ```python
    from hf_warmscale import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage
    from hf_warmscale.training import seen_rows

    # english, german: packed `datasets.Dataset`s with `input_ids` and `labels`
    parent = "runs/english/checkpoint-1000"
    replay = seen_rows(parent, {"english": english})
    mixture = ReplayMixture({"german": german, **replay}, {"german": 0.95, "english": 0.05}, seed=0)
    stage = Stage("german", "rewarm_cosine", mixture, max_tokens=10_000_000, parent=parent)
    args = ContinualTrainingArguments(output_dir="runs/german", learning_rate=3e-4, per_device_train_batch_size=16,
                                      save_steps=100, eval_strategy="steps", eval_steps=100)
    model = AutoModelForCausalLM.from_pretrained(parent, trust_remote_code=False)
    domains = {"german": german_validation, "english": english_validation}
    trainer = ContinualTrainer(model, args, stage=stage, eval_dataset=domains)
    trainer.train()                                # after a crash: trainer.train(resume_from_checkpoint=True)
    ```
    """


def _own_arguments(stage: Stage, args: TrainingArguments | None) -> TrainingArguments:
    """Return a copy of the arguments for the stage to fill in, after refusing what it would ignore."""
    args = TrainingArguments() if args is None else copy.copy(args)
    for name in STAGE_DECIDES:
        value, default = getattr(args, name), type(args).__dataclass_fields__[name].default
        if value != default and value not in (None, -1):
            raise ValueError(f"{name} is {value}, but the stage {stage.name!r} decides it; leave {name} out.")
    return args


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group, with its peak rate where a schedule has already changed it."""
    settings = {key: value for key, value in group.items() if key != "params"}
    return {**settings, "lr": settings.get("initial_lr", settings["lr"])}
