"""How a trainer of stages saves and loads: checkpoints that are whole, and all of their weights."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import TrainOutput

from hf_warmscale.checkpoints import explained_full_disk
from hf_warmscale.checkpoints.hub_errors import explained_writing
from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.checkpoints.saving import unset_unused_sampling
from hf_warmscale.compat.transformers import replaced_uploads
from hf_warmscale.training.resuming import UNREADABLE, advice, load_renamed
from hf_warmscale.training.saving import copy_to_publish, publish_checkpoint, rotate, staging_of
from hf_warmscale.training.stage import Stage
from hf_warmscale.training.stage_run import StageRun

logger = logging.getLogger(__name__)


class CheckpointMixin(Trainer):
    """Save every checkpoint beside its place and rename it; load weights by the names that the files give them.

    Without a stage a checkpoint holds what `Trainer` writes, byte for byte. The innermost mixin; see `trainer.py`.
    """

    stage: Stage | None = None
    stage_run: StageRun | None = None
    _writes_staged = False
    _keeps_cache = False

    def _has_engine(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _run_folder(self) -> str:
        return super()._get_output_dir(getattr(self, "_trial", None))

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
        config = getattr(self.model, "config", None)
        if not self._keeps_cache or config is None:
            yield
            return
        while_training, config.use_cache = config.use_cache, True
        try:
            yield
        finally:
            config.use_cache = while_training

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the model with its own `use_cache` and without unused sampling settings; see `Trainer.save_model`."""
        generation = getattr(self.model, "generation_config", None)
        if generation is not None:  # published with settings that transformers refuses to save, which ended the run
            unset_unused_sampling(generation)
        with self._own_cache_setting():
            super().save_model(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        if self.stage_run is not None:
            self.stage_run.advance(self.state.global_step, self.accelerator.gather)
        # `Trainer` notes the best checkpoint as it saves, in a path under the staging folder. So the right path is
        # found before, and restored after; if it moved meanwhile, the saved state has the wrong one and is written
        # again.
        self._find_best(run, name)
        best = self.state.best_model_checkpoint
        with explained_full_disk(run / name), self._staged():
            super()._save_checkpoint(model, trial, *args, **kwargs)
        self.accelerator.wait_for_everyone()
        # By now all ranks have written their parts, so the main one may move the folder; after the second wait, all
        # ranks find it in its place.
        moved, self.state.best_model_checkpoint = self.state.best_model_checkpoint != best, best
        if self.args.should_save:
            with explained_full_disk(run / name):
                self._publish(run, name, write_state=moved)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _find_best(self, run: Path, name: str | None = None) -> None:
        """Note where the best checkpoint is: the one being written, or an existing one of that step."""
        best = f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == name or (run / best).is_dir()):
            self.state.best_model_checkpoint = str(run / best)

    def _publish(self, run: Path, name: str, *, write_state: bool) -> None:
        staging = staging_of(run) / name
        if write_state:  # Trainer took the staging folder for the place of the best checkpoint
            self.state.save_to_json(str(staging / "trainer_state.json"))
        if self.stage_run is not None:
            self.stage_run.record.save(staging)
        publish_checkpoint(run, name)
        rotate(run_checkpoints(run), self.args.save_total_limit, self.state.best_model_checkpoint)

    def init_hf_repo(self, token: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Make the repository, or say in one sentence why it cannot be pushed to; see `Trainer.init_hf_repo`."""
        with self._explained_push(token):
            super().init_hf_repo(token, *args, **kwargs)

    def _explained_push(self, token: str | None = None) -> AbstractContextManager[None]:
        name = self.args.hub_model_id or Path(self._run_folder()).absolute().name
        return explained_writing(name, token or self.args.hub_token)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writes_staged:
            with self._explained_push(), self._uploads_without_paths():
                super()._push_from_checkpoint(checkpoint_folder)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload the run folder without local paths; see `Trainer.push_to_hub`."""
        with self._explained_push(), self._uploads_without_paths():
            return super().push_to_hub(*args, **kwargs)

    def _uploads_without_paths(self) -> AbstractContextManager[None]:
        """Let `Trainer` upload copies in which no path of this machine is left; without a stage, what it would."""
        if self.stage is None:
            return nullcontext()
        return replaced_uploads(lambda folder: copy_to_publish(folder, self._run_folder()))

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        """End the training; Trainer's own rotation would delete a user's `checkpoint-2-keep`."""
        if self.stage_run is not None:  # the last evaluation may have come after the last save
            self._find_best(Path(super()._get_output_dir(trial)))
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super()._finalize_training(trial, *args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self.args.save_total_limit = limit
        best, run = self.state.best_model_checkpoint, super()._get_output_dir(trial)
        if self.args.should_save and best is not None and limit == 1 and Path(run).is_dir():
            rotate(run_checkpoints(run), limit, best, only_best=True)
        return cast(TrainOutput, output)

    # ---- Loading ----

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Restore the state; a best checkpoint whose run folder was moved is looked for beside the resumed one."""
        begun = super()._init_training_state(*args, **kwargs)
        step = self.state.best_global_step
        if step and self.state.best_model_checkpoint is None:
            resumed = args[3] if len(args) > 3 else kwargs.get("resume_from_checkpoint")
            places = [Path(self._run_folder()), Path(resumed or self._run_folder()).parent]
            found = [place / f"checkpoint-{step}" for place in places if (place / f"checkpoint-{step}").is_dir()]
            if found:
                self.state.best_model_checkpoint = str(found[0])
            elif self.args.load_best_model_at_end:
                logger.warning("checkpoint-%d, the best so far, is gone; it cannot be loaded at the end.", step)
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        live = args[0] if args else kwargs.get("model") or self.model
        if (
            self._has_engine()
            or not isinstance(live, PreTrainedModel)
            or not load_renamed(live, resume_from_checkpoint)
        ):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        live = self.model
        renamed = isinstance(live, PreTrainedModel) and best is not None and not self._has_engine()
        if not renamed or not load_renamed(cast(PreTrainedModel, live), cast(str, best)):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except UNREADABLE as error:
            if self.stage is None or checkpoint is None:
                raise
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ValueError(
                f"The optimizer state of {checkpoint} cannot be loaded ({reason}); {advice(checkpoint)}."
            ) from error
