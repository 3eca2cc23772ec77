"""A `Trainer` that runs stages: a new stage re-warms once, a crashed one continues exactly.

Five mixins make it, each with one task in a file of its own. A method that several override runs from the outermost to
`Trainer`, by `super()`:

    ContinualMixin      here               begins a stage; its optimizer, schedule, data and log
    MeasuringMixin      measuring.py       losses and tokens by source
    EvaluationMixin     evaluating.py      losses by domain
    AccumulationMixin   accumulating.py    steps of different sizes
    CheckpointMixin     checkpointing.py   saving and loading
"""

import logging
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments, default_data_collator
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import TrainOutput

from hf_warmscale.checkpoints.run_folder import read_trainer_state
from hf_warmscale.mup import is_mup
from hf_warmscale.refusals import refuse_deepspeed_blocks
from hf_warmscale.training.arguments import stage_arguments, trajectory_arguments
from hf_warmscale.training.balance import check_balance
from hf_warmscale.training.data.batch_sizes import BatchSizes
from hf_warmscale.training.data.collators import (
    RowCollator,
    SourceCollator,
    packed_collator,
    packed_sources,
    refuse_contamination,
)
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.data.rows import Rows
from hf_warmscale.training.data.separation import separation_of
from hf_warmscale.training.launch import check_engine
from hf_warmscale.training.measuring import MeasuringMixin
from hf_warmscale.training.optimizer import group_settings, mup_groups
from hf_warmscale.training.resuming import (
    advice,
    checkpoint_to_resume,
    missing_files,
    refuse_lost_callbacks,
    resumed_record,
)
from hf_warmscale.training.saving import sweep
from hf_warmscale.training.schedules.lr_scheduler import StageLR
from hf_warmscale.training.stage import Stage
from hf_warmscale.training.stage_report import write_stage_report
from hf_warmscale.training.stage_run import StageRun
from hf_warmscale.training.token_loss import at_least_one

logger = logging.getLogger(__name__)


class ContinualMixin(MeasuringMixin):
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

    _collates_samples = False
    _created_optimizer = False
    _weights_of: str | None = None

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
        packed: dict[str, Rows] = {}
        self._note_cache_setting(model)
        if stage is not None:
            # Before `super().__init__`, which reads both the arguments and the collator.
            args = stage_arguments(stage.name, args)
            given = dict(zip(("train_dataset", "eval_dataset"), rest, strict=False)) | kwargs
            if data_collator in (None, default_data_collator):
                packed = packed_sources(stage.mixture or given.get("train_dataset"), given.get("eval_dataset"))
            if packed:
                data_collator = packed_collator(packed, model)
        super().__init__(model, args, data_collator, *rest, **kwargs)
        coefficient = self._continual_arguments().router_aux_loss_coef
        if stage is not None or coefficient is not None:
            check_balance(self.accelerator.unwrap_model(self.model), coefficient)
        if stage is None:
            return
        if model is None and packed:  # of `model_init`, there is one only now
            self.data_collator = packed_collator(packed, self.model)
        if self.data_collator is default_data_collator or type(self.data_collator) is DataCollatorWithPadding:
            self.data_collator = RowCollator(self.data_collator)
        if self.lr_scheduler is not None:
            raise ValueError("A stage brings its own schedule; pass optimizers=(optimizer, None).")
        if stage.mixture is not None and self.args.data_seed is not None:
            raise ValueError(
                f"data_seed is {self.args.data_seed}, but the mixture has a seed of its own; give it there."
            )
        if self.is_deepspeed_enabled:
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            refuse_deepspeed_blocks(config, "optimizer", "scheduler")
        self._check_total_batch(stage)
        self._asked_eval_on_start = self.args.eval_on_start

    def _note_cache_setting(self, model: nn.Module | None) -> None:
        """Note the `use_cache` of a model, before `Trainer` turns it off for the training."""
        config = getattr(model, "config", None)
        self._keeps_cache = self.stage is not None and bool(getattr(config, "use_cache", False))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make the model anew; in a stage that starts from a checkpoint, with its weights."""
        model = super().call_model_init(trial)
        self._note_cache_setting(model)
        if self._weights_of is not None:  # `Trainer.train` replaces the model that already has them
            self._load_from_checkpoint(self._weights_of, model)
        return model

    def train(self, resume_from_checkpoint: str | bool | None = None, *rest: Any, **kwargs: Any) -> TrainOutput:
        """Train the stage, from its start or from a checkpoint; see `Trainer.train`.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if the output folder holds checkpoints and none is resumed, if the checkpoint has no stage, is
                damaged or incomplete, or if it differs from the arguments and `on_mismatch` is `"error"`.
        """
        if self.stage is None:
            return super().train(resume_from_checkpoint, *rest, **kwargs)
        self._weights_of = None
        if kwargs.get("trial", rest[0] if rest else None) is not None:  # begins in _hp_search_setup
            output = super().train(None, *rest, **kwargs)
        else:
            checkpoint = checkpoint_to_resume(self._run_folder(), resume_from_checkpoint)
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

    def _hp_search_setup(self, trial: Any) -> None:
        """Begin the stage of a trial only now: until here the arguments are those of the trial before."""
        super()._hp_search_setup(trial)
        if self.stage is not None and trial is not None:
            self._begin(self.stage, None)

    def _begin(self, stage: Stage, checkpoint: str | None) -> bool:
        """Set up the stage and say whether it continues the checkpoint."""
        if self.args.should_save:
            sweep(self._run_folder())
        # `Trainer` reuses an existing optimizer, with its moments. Only one that the caller passed in may stay.
        if self._created_optimizer:  # of an earlier call of train
            self.optimizer = None
        saved = None if checkpoint is None else resumed_record(checkpoint)
        continued = saved is not None and saved.name == stage.name
        if checkpoint is not None and saved is not None and continued:
            self._adopt_batch_size(checkpoint)
            on_mismatch = self._continual_arguments().on_mismatch
            run = self._new_run(stage, saved.batch_sizes)
            run = run.continue_from(checkpoint, self.args, on_mismatch, self._batch_plan(stage)).refuse_dry_sources()
            self._refuse_lost_files(checkpoint)
            refuse_lost_callbacks(checkpoint, [type(each).__name__ for each in self.callback_handler.callbacks])
        else:
            run = self._new_run(stage, BatchSizes.planned(self._batch_plan(stage))).refuse_dry_sources()
            self._start(run, checkpoint)
        run.apply_to(self.args)
        self._prepare_accumulation(run)
        self.stage_run, self._is_first_batch = run, True
        evaluates = self.eval_dataset is not None and self.args.eval_strategy != "no"
        # Forgetting is measured against the losses at step 0, so a new stage evaluates before its first step.
        self.args.eval_on_start = self._asked_eval_on_start or (evaluates and not continued)
        return continued

    def _new_run(self, stage: Stage, batch_sizes: BatchSizes) -> StageRun:
        recorded = self._recorded_arguments()
        chosen = self.optimizer or (self.optimizer_cls_and_kwargs or (None,))[0]
        # An optimizer that was passed in overrides `optim`, so its class is what the record must hold.
        if chosen is not None:
            recorded["optim"] = getattr(chosen, "__name__", type(chosen).__name__)
        mixture = stage.mixture or self._train_dataset_alone(stage)
        return StageRun(stage, mixture, self.args, batch_sizes, recorded)

    def _recorded_arguments(self) -> dict[str, Any]:
        """Return what shapes the trajectory besides the stage, as plain values."""
        return trajectory_arguments(self.args, self.model)

    def _train_dataset_alone(self, stage: Stage) -> ReplayMixture:
        rows = self.train_dataset
        if rows is None:
            raise ValueError(
                f"The stage {stage.name!r} has no data; give it a mixture, or the trainer a train_dataset."
            )
        if not hasattr(rows, "__len__"):
            raise ValueError(
                "The train_dataset has no length; wrap it in StreamedRows, which says how many rows to read."
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ReplayMixture({"train": cast(Rows, rows)}, {"train": 1.0}, seed=seed)

    def _start(self, run: StageRun, checkpoint: str | None) -> None:
        """Start from the parent, if there is one: weights, lineage, and moments if they are kept."""
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
        if self._has_engine():
            raise ValueError(f"Under DeepSpeed and FSDP load {checkpoint} with from_pretrained and name it as parent.")
        self._load_from_checkpoint(checkpoint)
        self._weights_of = checkpoint

    def _adopt_batch_size(self, checkpoint: str) -> None:
        """Take the batch size that `auto_find_batch_size` found before the checkpoint, as Trainer will."""
        state = read_trainer_state(checkpoint) or {}
        if self.args.auto_find_batch_size and state.get("train_batch_size"):
            self._train_batch_size = state["train_batch_size"]

    def _refuse_lost_files(self, checkpoint: str) -> None:
        """Refuse to continue without moments, place in the schedule or random state, unless that was asked for."""
        process, processes = self.args.process_index, self.args.world_size
        lost = missing_files(checkpoint, process=process, processes=processes, engine=self._has_engine())
        if not lost:
            return
        found = f"{checkpoint} lacks {', '.join(lost)}, so the stage cannot continue exactly"
        if not self.args.save_only_model and self._continual_arguments().on_mismatch != "override":
            raise ValueError(
                f"{found}; {advice(checkpoint)}, or set on_mismatch='override' to continue with what is there."
            )
        logger.warning("%s; it continues with what is there.", found)

    # ---- Optimizer and schedule ----

    def create_optimizer(self, *arguments: Any, **kwargs: Any) -> Optimizer:
        """Create the optimizer: on muP groups if the model carries muP metadata, else as the trainer does."""
        if self.optimizer is None:
            self._created_optimizer = True
            given = arguments[0] if arguments else kwargs.get("model")
            target = cast(PreTrainedModel, self.model if given is None else given)
            if is_mup(getattr(target, "config", None)):
                chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, target)
                groups = mup_groups(target, self.args, chosen)
                if groups is not None:
                    self.optimizer = chosen[0](groups, **chosen[1])
        return super().create_optimizer(*arguments, **kwargs)

    def create_scheduler(self, num_training_steps: int, *arguments: Any, **kwargs: Any) -> LRScheduler:
        """Create the schedule of the stage, if there is one."""
        if self.stage_run is None:
            return super().create_scheduler(num_training_steps, *arguments, **kwargs)
        prepared = arguments[0] if arguments else kwargs.get("optimizer")
        prepared = prepared or self.optimizer
        assert prepared is not None
        self._group_settings = group_settings(prepared)
        scheduler = StageLR(prepared, self.stage_run.schedule, self.stage_run.record.position)
        self.lr_scheduler = scheduler  # type: ignore[assignment]  # annotated as a LambdaLR, used as any scheduler
        return scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.stage_run is not None:
            check_engine(prepared[0], self.args, deepspeed=self.is_deepspeed_enabled, fsdp=self.is_fsdp_enabled)
            if self.stage_run.moments_of is not None:
                self._take_over_moments(prepared[0], self.stage_run.moments_of)
            self._settle_groups()
            self._prepare_measuring(prepared[0])
        return prepared

    def _take_over_moments(self, model: nn.Module, parent: str) -> None:
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(model, parent)
        elif not any(Path(parent).glob("optimizer*")):
            raise ValueError(f"{parent} holds no optimizer state; use optimizer='reset'.")
        # This brings the parent's rate, decay and betas along with its moments; `_settle_groups` puts them right.
        self._load_optimizer_and_scheduler(parent)

    def _settle_groups(self) -> None:
        """Undo what a loaded optimizer state did to the groups: moments stay, settings are those of the arguments."""
        scheduler = cast(StageLR, self.lr_scheduler)
        for group, settings in zip(scheduler.optimizer.param_groups, self._group_settings, strict=True):
            group.update(settings)
        scheduler.rebase([settings["lr"] for settings in self._group_settings])
        scheduler.go_to(self.state.global_step)

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the samples of the stage in their order, each batch with the sources of its rows."""
        if self.stage_run is None:
            return super().get_train_dataloader()
        run = self.stage_run
        if self._samples_per_step() != run.batch_sizes.at(run.start_step):  # found by auto_find_batch_size
            self.stage_run = self.stage_run.with_samples_per_step(self._samples_per_step(), self.args)
            self.stage_run.apply_to(self.args)
        # `Trainer` builds the loader from `self.train_dataset`, and wraps its collator in the hook below. So both are
        # exchanged for the time of this call alone: evaluation loaders pass through the same hook.
        given, self.train_dataset, self._collates_samples = self.train_dataset, self.stage_run.samples, True
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self._collates_samples = given, False

    def _get_collator_with_removed_columns(self, data_collator: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the sources out of the samples of a stage before unused columns, theirs among them, are removed."""
        if isinstance(data_collator, RowCollator):  # packed rows need their positions, whatever the model takes
            other = super()._get_collator_with_removed_columns(data_collator.collator, *args, **kwargs)
            collator: Any = RowCollator(other, data_collator.separation)
        else:
            collator = super()._get_collator_with_removed_columns(data_collator, *args, **kwargs)
        return SourceCollator(collator) if self._collates_samples else collator

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of a step, after taking their sources out and counting their tokens."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.stage_run is None:
            return batches, num_items
        self._take_sources(self.stage_run, batches)
        # A collator of the caller's can only be judged by what it makes.
        if self._is_first_batch and batches:
            refuse_contamination(batches[0], lambda: separation_of(self.model))
            self._is_first_batch = False
        return batches, num_items if num_items is None else at_least_one(num_items)

    # ---- Logging ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; beside a training loss also what `StageRun.training_metrics` returns."""
        if self.stage_run is not None and self.is_in_train and "loss" in logs:
            groups = cast(StageLR, self.lr_scheduler).optimizer.param_groups
            logs |= self.stage_run.training_metrics(self.state.global_step, groups, self.accelerator.gather)
        super().log(logs, *args, **kwargs)


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
