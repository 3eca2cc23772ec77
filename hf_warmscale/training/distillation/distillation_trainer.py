"""`DistillationTrainer`: train towards a teacher, and on chosen sources towards the student's own start."""

import copy
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import find_tokenizer, require_one_language
from hf_warmscale.training.data.rows import HASHED_ROWS, is_streamed
from hf_warmscale.training.distillation.distillation_loss import DistillationLoss
from hf_warmscale.training.distillation.divergence import Direction
from hf_warmscale.training.distillation.mixed_loss import Pull
from hf_warmscale.training.distillation.row_keys import ROW_KEYS, KeyedCollator
from hf_warmscale.training.distillation.settings import DistillationSettings
from hf_warmscale.training.distillation.teacher import (
    INPUTS,
    AdapterOff,
    LiveTeacher,
    Teacher,
    causal_models,
    num_rows,
    shared_with_student,
)
from hf_warmscale.training.distillation.teacher_cache import TeacherCache
from hf_warmscale.training.distillation.weighted_teacher import WeightedTeacher
from hf_warmscale.training.launch import is_partitioned, partitioned_copy
from hf_warmscale.training.stage import Stage
from hf_warmscale.training.stage_run import StageRun
from hf_warmscale.training.token_loss import captured, next_tokens
from hf_warmscale.training.trainer import ContinualTrainer

logger = logging.getLogger(__name__)


class DistillationTrainer(ContinualTrainer):
    """Train a student on its text and towards a teacher (arXiv:1503.02531), source by source.

    The loss of a token, in nats, with NLL the cross-entropy of the text and T the temperature:

    | source of the token | loss |
    |---|---|
    | in `sources` | (1 - alpha) NLL + alpha T^2 KL(teacher, student) |
    | another one | (1 - alpha) NLL + self_kd KL(start, student), where the start is the student before training |

    Every token of a step has the same weight, however the step is cut into micro-batches and ranks. With `alpha=1` and
    no `sources`, it heals a model that was cut from the teacher (arXiv:2407.14679): `HealingTrainer` is another name.
    With a small robust teacher, a LoRA or a few blocks of a large student, and `self_kd` on replay, it is the training
    of arXiv:2309.07499. Evaluation measures the cross-entropy of the text, as everywhere.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the student. Freeze what shall not be trained.
        args (`TrainingArguments`): of [`ContinualTrainer`].
        arguments: the others of [`ContinualTrainer`], by position.
        teacher (`PreTrainedModel`, `PeftModel` or `TeacherCache`): any causal language model, or an
            [`EmulatedFineTuningForCausalLM`]; it runs without gradients in its own dtype. Or a [`TeacherCache`].
        temperature (`float`): of both softmaxes.
        alpha (`float`): share of the divergence; 1 leaves the text out, 0 the teacher.
        direction (`str`): `"forward"` for KL(teacher, student), `"reverse"` for KL(student, teacher).
        sources (`Sequence[str]`, *optional*): the sources of the mixture that the teacher is heard on; by default all.
        self_kd (`float`): weight of the divergence from the start on the other sources. The start of a `PeftModel` is
            the model with its adapters off; of another student, a frozen copy is kept in memory, partitioned if
            ZeRO-3 partitioned the student as it was loaded.
        settings: the other arguments of [`ContinualTrainer`]: `stage`, `eval_dataset`, ...

    Raises:
        ValueError: if a value is out of range, a source unknown, a weight of the teacher not finite, or if the two do
            not share a vocabulary (the first token on which they disagree is named).

    Example:

    ```python
    >>> small = shrink_from_pretrained(large, num_hidden_layers=24, calibration=texts)
    >>> stage = Stage("heal", "rewarm_cosine", mixture, max_steps=500)
    >>> DistillationTrainer(small, args, teacher=large, alpha=0.5, stage=stage).train()
    ```
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        *arguments: Any,
        teacher: nn.Module | TeacherCache,
        temperature: float = 1.0,
        alpha: float = 1.0,
        direction: Direction = "forward",
        sources: Sequence[str] | None = None,
        self_kd: float = 0.0,
        **settings: Any,
    ) -> None:
        chosen = None if sources is None else (sources,) if isinstance(sources, str) else tuple(sources)
        self.distillation = DistillationSettings(temperature, alpha, direction, chosen, self_kd)
        self._sources: Tensor | None = None
        self._keys: Tensor | None = None
        self._waiting_keys: deque[Tensor | None] = deque()
        super().__init__(model, args, *arguments, **settings)
        self._numbers = self._numbers_of_sources()
        self._refuse_other_losses()
        student = self.accelerator.unwrap_model(self.model)
        self.teacher: LiveTeacher | TeacherCache = (
            self._checked(student, teacher) if isinstance(teacher, TeacherCache) else self._live(student, teacher)
        )
        self.start = self._start_of(student) if self_kd else None

    # ---- Before training ----

    def _numbers_of_sources(self) -> tuple[int, ...] | None:
        if self.distillation.sources is None:
            return None
        if self.stage is None:
            raise ValueError(
                "sources are those of the mixture of a stage; give the trainer a stage, or leave them out."
            )
        names = self.stage.mixture.names if self.stage.mixture is not None else ["train"]
        return self.distillation.numbers(names)

    def _refuse_other_losses(self) -> None:
        if self.args.label_smoothing_factor or self.compute_loss_func is not None:
            name = "label_smoothing_factor" if self.args.label_smoothing_factor else "compute_loss_func"
            raise ValueError(f"{name} replaces the loss that the teacher is mixed into; leave it out.")
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                "A teacher cannot follow context or sequence parallelism; use data or tensor parallelism."
            )

    def _live(self, student: nn.Module, teacher: nn.Module) -> LiveTeacher:
        models = causal_models(teacher) if isinstance(teacher, nn.Module) else {}
        if not models:
            raise ValueError(
                f"The teacher is a {type(teacher).__name__}; pass a causal language model of transformers or peft."
            )
        own = {id(parameter) for parameter in student.parameters()}
        if any(id(parameter) in own for parameter in teacher.parameters()):
            raise ValueError("The teacher shares weights with the student, which will change; pass a copy of it.")
        plain = student.get_base_model() if isinstance(student, PeftModel) else student
        shared = shared_with_student(cast(PreTrainedModel, plain), self._tokenizer(plain), models)
        return LiveTeacher(teacher, shared, self.args.device)

    def _checked(self, student: nn.Module, cache: TeacherCache) -> TeacherCache:
        at, ids = cache.manifest["temperature"], cache.manifest["num_ids"]
        if at != self.distillation.temperature:
            raise ValueError(
                f"temperature is {self.distillation.temperature}, and the teacher cache {cache.folder} holds "
                f"probabilities at {at}; write another one."
            )
        plain = student.get_base_model() if isinstance(student, PeftModel) else student
        rows = num_rows(cast(PreTrainedModel, plain))
        if rows < ids:
            raise ValueError(
                f"The student has {rows} tokens and the teacher of the cache {cache.folder} {ids}; use models that "
                "share a vocabulary."
            )
        names = {"the student": self._tokenizer(plain), f"the teacher of the cache {cache.folder}": cache.tokenizer()}
        for remark in require_one_language({name: each for name, each in names.items() if each is not None}):
            logger.warning(remark)
        return cache

    def _tokenizer(self, student: nn.Module) -> PreTrainedTokenizerBase | None:
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            return self.processing_class
        return find_tokenizer(cast(PreTrainedModel, student).config.name_or_path)

    def _start_of(self, student: nn.Module) -> Teacher:
        if isinstance(student, PeftModel):
            return AdapterOff(student)
        whole = cast(PreTrainedModel, student)
        plain = partitioned_copy(whole) if is_partitioned(student) else copy.deepcopy(whole)
        logger.warning(
            "self_kd keeps a frozen copy of the student, %.0f MB; the start of LoRA adapters needs none.",
            sum(getattr(parameter, "ds_tensor", parameter).nbytes for parameter in plain.parameters()) / 1e6,
        )
        return LiveTeacher(plain, num_rows(plain), self.args.device)

    def _load_weights_of_parent(self, stage: Stage, checkpoint: str) -> None:
        if isinstance(self.start, LiveTeacher):
            raise ValueError(
                f"self_kd has copied the student already, so the weights of {checkpoint} would not be its start; "
                "build the trainer with the model of that checkpoint."
            )
        super()._load_weights_of_parent(stage, checkpoint)

    def _recorded_arguments(self) -> dict[str, Any]:
        start = {} if self.start is None else {"start": self.start.fingerprint()}
        described = {"teacher": self.teacher.fingerprint(), **self.distillation.describe(), **start}
        return {**super()._recorded_arguments(), "distillation": described}

    def _begin(self, stage: Stage, checkpoint: str | None) -> bool:
        continued = super()._begin(stage, checkpoint)
        assert self.stage_run is not None
        if self._numbers is not None:  # a resumed stage has the order of its record
            self._numbers = self.distillation.numbers(self.stage_run.mixture.names)
        if isinstance(self.teacher, TeacherCache):
            require_rows(self.teacher, self.stage_run, self._numbers)
        return continued

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        for each in (self.teacher, self.start):
            if isinstance(each, LiveTeacher):
                each.prepare()
        return prepared

    # ---- Data ----

    def _get_collator_with_removed_columns(self, data_collator: Any, *args: Any, **kwargs: Any) -> Any:
        collator = super()._get_collator_with_removed_columns(data_collator, *args, **kwargs)
        keyed = self._collates_samples and isinstance(self.teacher, TeacherCache)
        return KeyedCollator(collator) if keyed else collator

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of a step, after taking out the keys of their rows."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._waiting_keys = deque(batch.pop(ROW_KEYS, None) for batch in batches)
        return batches, num_items

    # ---- The loss ----

    def _new_token_loss(self, model: nn.Module) -> DistillationLoss:
        return DistillationLoss(model, 1 - self.distillation.alpha)

    def _measures_sources(self, run: StageRun) -> bool:
        return True  # the loss that is logged is the mixture of both terms

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Make a training step on one micro-batch, and note the divergence by source beside the loss."""
        self._sources = self._waiting_sources[0] if self._waiting_sources else None
        self._keys = self._waiting_keys.popleft() if self._waiting_keys else None
        loss = super().training_step(model, inputs, *args, **kwargs)
        measured = cast(DistillationLoss, self._token_loss).divergence
        labels = inputs.get("labels")
        if self.stage_run is not None and self._sources is not None and measured is not None and labels is not None:
            measured = measured[:, -labels.shape[1] :]
            self.stage_run.meter.add_losses(self._sources, measured, labels, kind="distillation")
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mixed loss while training, and the usual loss in evaluation."""
        if not model.training or inputs.get("labels") is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        if self._token_loss is None:
            self._token_loss = self._new_token_loss(self.accelerator.unwrap_model(model))
        mixed = cast(DistillationLoss, self._token_loss)
        mixed.expect(self._pulls(inputs))
        with self._installed(mixed), captured(model) as seen:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        if mixed.divergence is None:  # the model has a loss of its own, or was compiled with it
            loss = loss + self._correction(mixed, seen, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _pulls(self, inputs: Mapping[str, Any]) -> list[Pull]:
        """Return what the teachers say about a micro-batch."""
        given = {name: inputs[name] for name in INPUTS if inputs.get(name) is not None}
        settings = self.distillation
        teacher = WeightedTeacher(self.teacher, settings.alpha, settings.temperature, settings.direction)
        if self._numbers is None or self._sources is None:
            return [teacher.on_all(given, self._keys)] if settings.alpha else []
        heard = torch.isin(self._sources, torch.tensor(self._numbers, device=self._sources.device))
        teachers = [(teacher, heard)] if settings.alpha else []
        if self.start is not None:
            teachers.append((WeightedTeacher(self.start, settings.self_kd), ~heard))
        # With sharded weights every forward pass gathers them from all ranks, so none may skip it.
        whole = self._has_engine()
        pulls = []
        for each, where in teachers:
            # The start computes as the student does, so that the two agree before the first step.
            with self.accelerator.autocast() if each.teacher is self.start else nullcontext():
                pulls += each.where(given, where, self._keys, whole=whole)
        return pulls

    def _correction(
        self,
        mixed: DistillationLoss,
        seen: Sequence[Mapping[str, Any]],
        inputs: Mapping[str, Any],
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """Return what turns the loss that the model computed itself into the mixed one."""
        logits = seen[0].get("logits") if seen else None
        if logits is None:
            name = type(self.accelerator.unwrap_model(self.model)).__name__
            raise ValueError(f"{name} gives no logits while it trains, so it cannot be compared with a teacher.")
        count = num_items_in_batch if self.model_accepts_loss_kwargs else None
        targets = next_tokens(inputs["labels"], None)
        extra = mixed.mixed(logits[:, -targets.shape[1] :], targets, -self.distillation.alpha, count)
        # As Trainer does with the loss of the model: gradients are averaged over ranks, the count is over all of them.
        # The ranks of tensor parallelism share their batch.
        if count is not None and self.args.average_tokens_across_devices:
            extra = extra * (self.accelerator.num_processes // self.get_tp_size())
        return extra


def require_rows(cache: TeacherCache, run: StageRun, numbers: tuple[int, ...] | None) -> None:
    """Refuse a cache that lacks rows of a stage; up to `HASHED_ROWS` samples are looked up.

    Args:
        cache (`TeacherCache`): the teacher.
        run (`StageRun`): the stage.
        numbers (`tuple[int, ...]`, *optional*): of the sources that the teacher is heard on; by default all.

    Raises:
        ValueError: naming the first source with such a row.
    """
    count, mixture = run.num_samples, run.mixture
    # Looking far ahead into a stream would read it up to there.
    looked_at = 1 if any(map(is_streamed, mixture.sources.values())) else min(count, HASHED_ROWS)
    indices = [index * count // looked_at for index in range(looked_at)]
    heard = [(number, row) for number, row in mixture.read(indices) if numbers is None or number in numbers]
    for number, name in enumerate(mixture.names):
        rows = [row for source, row in heard if source == number]
        if rows:
            cache.require(rows, name)


HealingTrainer = DistillationTrainer
"""The name for healing a model that was cut: `alpha` is 1 by default."""
