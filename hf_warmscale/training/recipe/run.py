"""Train the stage that a YAML file describes, as `warmscale train` does."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from hf_warmscale.checkpoints import load_model, load_tokenizer, require_model
from hf_warmscale.checkpoints.run_folder import STAGE_FILE
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.data.batch_sizes import BatchSizes
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.data.packing import read_manifest
from hf_warmscale.training.distillation import DistillationTrainer
from hf_warmscale.training.recipe.configuration import TrainingConfiguration, read_configuration
from hf_warmscale.training.recipe.distillation_plan import DistillationPlan, plan_distillation
from hf_warmscale.training.recipe.fields import ModelArguments
from hf_warmscale.training.recipe.sources import load_evaluation, load_mixture
from hf_warmscale.training.recipe.stage_plan import plan_stage
from hf_warmscale.training.recipe.yaml_file import as_mapping
from hf_warmscale.training.schedules.lr_scheduler import plot_schedule
from hf_warmscale.training.schedules.schedule import Schedule
from hf_warmscale.training.stage import Stage
from hf_warmscale.training.stage_run import StageRun
from hf_warmscale.training.trainer import ContinualTrainer

if TYPE_CHECKING:
    from peft import LoraConfig


def train(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ContinualTrainer:
    """Train the stage of a YAML file, or continue it if its output folder holds a checkpoint.

    Args:
        path (`str` or `PathLike`): see `read_configuration`.
        overrides (`Sequence[str]`): command line options that win over the file.

    Returns:
        `ContinualTrainer`: after training.

    Raises:
        ValueError, FileNotFoundError: for a mistake in the file; nothing has been written then.

    Example:

    ```python
    >>> train("recipes/llama/continue/config_german.yaml", ["--output_dir", "runs/german"])
    ```
    """
    return train_configuration(read_configuration(path, overrides))


def train_configuration(configuration: TrainingConfiguration) -> ContinualTrainer:
    """Train the stage of a configuration that has been read, or continue it; see [`train`]."""
    trainer = build_trainer(configuration)
    training = configuration.training
    output = str(training.output_dir)
    last = get_last_checkpoint(output) if Path(output).is_dir() else None
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or last)
    return trainer


@dataclass(frozen=True)
class PreparedStage:
    """All that a configuration names except its model, loaded and checked.

    Args:
        stage (`Stage`): with its mixture.
        mixture (`ReplayMixture`): the sources.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the model.
        evaluation (`dict[str, Dataset]`, *optional*): packed rows by domain.
        distillation (`DistillationPlan`, *optional*): which teacher.
    """

    stage: Stage
    mixture: ReplayMixture
    tokenizer: PreTrainedTokenizerBase | None
    evaluation: dict[str, Dataset] | None
    distillation: DistillationPlan | None


def prepare_stage(configuration: TrainingConfiguration) -> PreparedStage:
    """Load the tokenizer and the data of a configuration, and refuse its mistakes before a model is loaded."""
    model_arguments, stage_arguments = configuration.model, configuration.stage
    # The file describes the trunk, so the checkpoint replaces the model that it names.
    if stage_arguments.anneal_from is not None:
        model_arguments.model_name_or_path, model_arguments.model_config = stage_arguments.anneal_from, None
    if model_arguments.model_name_or_path is not None:  # refused before its data are read
        require_model(model_arguments.model_name_or_path)
    _adapter_config(model_arguments)
    tokenizer = tokenizer_of(model_arguments)
    mixture = load_mixture(stage_arguments, tokenizer)
    if stage_arguments.parent is None and _is_stage_checkpoint(model_arguments.model_name_or_path):
        stage_arguments.parent = model_arguments.model_name_or_path
    plan = None
    if stage_arguments.distillation is not None:
        plan = plan_distillation(stage_arguments.distillation, mixture)
    stage = plan_stage(stage_arguments, configuration.training, mixture=mixture)
    evaluation = load_evaluation(stage_arguments, tokenizer)
    if evaluation is not None and configuration.training.eval_tokens_per_byte is None:
        paths = as_mapping("evaluation", stage_arguments.evaluation)
        densities = {name: read_manifest(path).tokens_per_byte for name, path in paths.items()}
        configuration.training.eval_tokens_per_byte = densities
    return PreparedStage(stage, mixture, tokenizer, evaluation, plan)


def build_trainer(configuration: TrainingConfiguration) -> ContinualTrainer:
    """Load the model, the tokenizer and the data of a configuration."""
    prepared = prepare_stage(configuration)
    plan = prepared.distillation
    # `Trainer` sets the seed when it is made, which is after a new model or new adapters have drawn their weights.
    set_seed(configuration.training.seed)
    model = model_of(configuration.model)
    rest: dict[str, Any] = {"eval_dataset": prepared.evaluation, "processing_class": prepared.tokenizer}
    heard = {} if plan is None else plan.load(prepared.mixture, prepared.tokenizer, configuration.training)
    kind = ContinualTrainer if plan is None else DistillationTrainer
    with explained_missing_package():
        trainer = kind(model, configuration.training, stage=prepared.stage, **heard, **rest)
        trainer.get_optimizer_cls_and_kwargs(trainer.args, model)  # some optimizers are packages of their own
    return trainer


@contextmanager
def explained_missing_package() -> Iterator[None]:
    """Turn the complaint of transformers that an optional package is missing into a user error."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        # The callbacks of reporting tools raise RuntimeError.
        if isinstance(error, RuntimeError) and "to be installed" not in str(error):
            raise
        raise ValueError(str(error)) from error


def show_schedule(
    path: str | os.PathLike[str], picture: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> Schedule:
    """Draw the learning rates of a YAML file without loading its model.

    Args:
        path, overrides: see `train`.
        picture (`str` or `PathLike`): the PNG to write.

    Returns:
        `Schedule`: resolved.
    """
    configuration = read_configuration(path, overrides)
    training = configuration.training
    mixture = load_mixture(configuration.stage, tokenizer_of(configuration.model))
    stage = plan_stage(configuration.stage, training, mixture=mixture)
    samples_per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    sizes = BatchSizes.planned(stage.total_batch_size or {0: samples_per_step})
    schedule = StageRun(stage, mixture, training, sizes).refuse_dry_sources().schedule
    plot_schedule(schedule, picture)
    return schedule


def model_of(arguments: ModelArguments) -> PreTrainedModel:
    """Load the model, or build it from `model_config`. With `lora`, add adapters."""
    name, dtype = arguments.model_name_or_path, getattr(torch, arguments.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is {arguments.dtype!r}; it must be float32, bfloat16 or float16.")
    if (name is None) == (arguments.model_config is None):
        raise ValueError("The configuration must name one model; give either model_name_or_path or model_config.")
    if name is not None:
        model = load_model(name, dtype=dtype, finite=False)
    else:
        model = _new_model(as_mapping("model_config", arguments.model_config), dtype)
    adapters = _adapter_config(arguments)
    return model if adapters is None else _with_adapters(model, adapters)


def tokenizer_of(arguments: ModelArguments) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that is named, or that of the model. A local checkpoint without one gives `None`."""
    name = arguments.tokenizer_name_or_path or arguments.model_name_or_path
    if name is None or (name == arguments.model_name_or_path and _lacks_tokenizer(name)):
        return None
    return load_tokenizer(name)


def _new_model(fields: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    if "mup" in fields:
        return MupForCausalLM(MupConfig(**fields, dtype=dtype))
    if "model_type" not in fields:
        raise ValueError("model_config has no model_type; add model_type: llama, or another family.")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=dtype)
    return model


def _adapter_config(arguments: ModelArguments) -> "LoraConfig | None":
    """Return the config of the adapters, if there are to be any."""
    if arguments.lora is None:
        return None
    from peft import LoraConfig

    given = as_mapping("lora", arguments.lora)
    for name in given:
        refuse_unknown("LoRA field", name, (field.name for field in fields(LoraConfig) if field.init))
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **given}
    try:
        return LoraConfig(**settings)
    except TypeError as error:
        raise ValueError(f"lora cannot be used: {error}") from error


def _with_adapters(model: PreTrainedModel, config: "LoraConfig") -> PreTrainedModel:
    from peft import get_peft_model

    try:
        adapted = get_peft_model(model, config)
    except TypeError as error:  # a value of another type than peft computes with
        raise ValueError(f"lora cannot be used: {error}") from error
    if config.use_dora:
        _refuse_rows_of_zeros(adapted)
    return cast(PreTrainedModel, adapted)


def _refuse_rows_of_zeros(adapted: nn.Module) -> None:
    """Refuse DoRA on a zero-initialised block of a growth: it divides by the norm of each row, and gives NaN."""
    for name, module in adapted.named_modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Linear) and not bool(base.weight.any(dim=1).all()):
            raise ValueError(
                f"use_dora divides by the norm of each row, and {name.removeprefix('base_model.model.')} has "
                "rows of zeros, as a growth leaves them in new blocks; leave "
                "use_dora out, or name the other blocks in layers_to_transform."
            )


def _lacks_tokenizer(folder: str) -> bool:
    return Path(folder).is_dir() and not (Path(folder) / "tokenizer_config.json").is_file()


def _is_stage_checkpoint(name: str | None) -> bool:
    return name is not None and (Path(name) / STAGE_FILE).is_file()
