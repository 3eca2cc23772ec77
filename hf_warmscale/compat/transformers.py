"""What this package needs of transformers beyond its public API; a test of each function says what broke."""

import inspect
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
import transformers.trainer
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)
from transformers.loss.loss_utils import LOSS_MAPPING

LossFunction = Callable[..., Tensor]

# ---- Weight conversion: how `from_pretrained` and `save_pretrained` rename, split and fuse tensors ----


@dataclass(frozen=True)
class WeightConversions:
    """The conversions of a model's family, in one direction.

    Args:
        renamings (`list`): transforms that change one name; all that match are applied in turn.
        converters (`list`): transforms that split or fuse tensors; at most one applies to a tensor.
    """

    renamings: list[WeightRenaming]
    converters: list[WeightConverter]

    @cached_property
    def by_pattern(self) -> Mapping[str, WeightConverter]:
        """The converter of each pattern that a name may match."""
        return {pattern: each for each in self.converters for pattern in each.source_patterns}


def loading_conversions(model: PreTrainedModel) -> WeightConversions:
    """Return the conversions from the names in files to those of `model`."""
    return _split(get_model_conversion_mapping(model))


def saving_conversions(model: PreTrainedModel) -> WeightConversions:
    """Return the conversions from the names of `model` to those that `save_pretrained` writes."""
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    # A prefix is dropped on loading wherever it occurs; whether the files had it is not known, so none is added.
    return _split(each.reverse_transform() for each in transforms[::-1] if not isinstance(each, PrefixChange))


def loaded_name(
    name: str, conversions: WeightConversions, model: PreTrainedModel, names: Mapping[str, torch.Tensor]
) -> tuple[str, str | None]:
    """Return the name in `model` of a stored tensor, and the pattern of the converter that it goes through."""
    key, pattern = rename_source_key(
        name, conversions.renamings, conversions.converters, model.base_model_prefix, dict(names)
    )
    return key, pattern


def saved_name(name: str, conversions: WeightConversions) -> tuple[str, str | None]:
    """Return the name that a tensor of the model is saved under, and the pattern of the converter it goes through.

    Where there is a converter, the name is that of its first result before `renamed`.
    """
    for converter in conversions.converters:
        key, pattern = converter.rename_source_key(name)
        if pattern is not None:
            return key, pattern
    return renamed(name, conversions.renamings), None


def renamed(name: str, renamings: Iterable[WeightRenaming]) -> str:
    """Return a name after all renamings."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def convert(
    converter: WeightConverter, key: str, tensors: Iterable[tuple[str, str, torch.Tensor]], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """Return what a converter makes of some tensors, by name.

    Args:
        converter (`WeightConverter`): is left as it is.
        key (`str`): the name of the first result.
        tensors (`Iterable[tuple[str, str, Tensor]]`): name, matched pattern and value of each.
        model (`PreTrainedModel`): the model whose config the operations read.
    """
    fresh = deepcopy(converter)
    for name, pattern, tensor in tensors:
        # Annotated as a future; on saving transformers passes tensors, as here.
        fresh.add_tensor(key, name, pattern, tensor)  # type: ignore[arg-type]
    results = fresh.convert(key, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in results.items()}


def in_natural_order(names: Iterable[str]) -> Iterator[str]:
    """Yield names in the order of transformers, `layers.2` before `layers.10`; fused tensors depend on it."""
    yield from sorted(names, key=dot_natural_key)


def _split(transforms: Iterable[WeightTransform]) -> WeightConversions:
    found = list(transforms)
    return WeightConversions(
        [each for each in found if isinstance(each, WeightRenaming)],
        [each for each in found if isinstance(each, WeightConverter)],
    )


# ---- The trainer and the loss ----

TRAINER_HOOKS: Mapping[str, Sequence[str]] = {
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
    "_get_collator_with_removed_columns": ("data_collator", "description"),
    "_get_output_dir": ("trial",),
    "_hp_search_setup": ("trial",),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_run_epoch": (
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_save_checkpoint": ("model", "trial"),
}
"""The methods of `Trainer` that `ContinualMixin` overrides although they are private, with their parameters."""


def dict_arguments(*names: str) -> list[str]:
    """Return the `_VALID_DICT_FIELDS` of training arguments that also read the fields `names` from JSON."""
    return [*TrainingArguments._VALID_DICT_FIELDS, *names]


@contextmanager
def replaced_uploads(copied: Callable[[Path], Path]) -> Iterator[None]:
    """Let `Trainer` upload a copy in place of each folder that it uploads within the block.

    `Trainer` offers no filter: it names the patterns to leave out itself, and sends every other file as it is.

    Args:
        copied (`Callable`): returns the copy of a folder; it is deleted once the upload has ended.
    """
    trainer: Any = transformers.trainer
    given = trainer.hf_api

    class Uploads:
        def __getattr__(self, name: str) -> Any:
            return getattr(given(), name)

        def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
            copy = copied(Path(folder_path))
            try:
                sent = given().upload_folder(folder_path=copy, **options)
            except BaseException:
                shutil.rmtree(copy)
                raise
            if isinstance(sent, Future):
                sent.add_done_callback(lambda _: shutil.rmtree(copy))
            else:
                shutil.rmtree(copy)
            return sent

    trainer.hf_api = Uploads
    try:
        yield
    finally:
        trainer.hf_api = given


def loss_shifts_labels(trainer: Trainer) -> bool:
    """Tell whether the loss of a trainer's model predicts the next label, so that the first one is never predicted.

    Trainer does not know it of classes whose name does not end in `ForCausalLM`, such as GPT-2's.
    """
    assert trainer.model is not None
    return trainer._loss_shifts_labels or bool(models_with_causal_lm_loss(trainer.model))


def causal_lm_loss() -> LossFunction:
    """Return the loss of causal language models, which a model calls as `self.loss_function`."""
    return cast(LossFunction, LOSS_MAPPING["ForCausalLM"])


def models_with_causal_lm_loss(model: nn.Module) -> list[PreTrainedModel]:
    """Return the models in a module, itself included, whose `loss_function` is that of causal language models."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    # A model without a loss type has that of causal models too, but one without a head never calls it.
    callers = [each for each in models if getattr(each, "loss_type", None) or each.get_output_embeddings() is not None]
    return [each for each in callers if each.loss_function is causal_lm_loss()]


@contextmanager
def replaced_loss(models: Sequence[PreTrainedModel], function: LossFunction) -> Iterator[None]:
    """Let models call another `loss_function` inside the block."""
    for model in models:
        model.loss_function = function
    try:
        yield
    finally:
        for model in models:
            del model._loss_function


# ---- A model from tensors ----


def model_from_tensors(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Return a model with exactly these weights, named as in `state_dict()`, that saves as its family does.

    Args:
        model_class (`type[PreTrainedModel]`): the class.
        config (`PreTrainedConfig`): of the model.
        tensors (`Mapping[str, torch.Tensor]`): every weight but the tied names.
        dtype (`torch.dtype`): of every weight.

    Raises:
        AssertionError: if a weight is missing or left over.
    """
    loaded: tuple[PreTrainedModel, dict[str, object]] = model_class.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
    )  # type: ignore[assignment]  # a pair because of output_loading_info
    model, info = loaded
    problems = {kind: names for kind, names in info.items() if names}
    assert not problems, problems
    # transformers saves a model under the names that it was loaded from, here those of the live model. Without this
    # attribute it takes the names of the family.
    vars(model).pop("_weight_conversions", None)
    model.name_or_path = model.config.name_or_path = ""  # transformers would call it "None"
    return model


# ---- DeepSpeed: whether a model that is built now would be partitioned ----


@contextmanager
def without_partitioning() -> Iterator[None]:
    """Build models whole while DeepSpeed's ZeRO-3 is configured: names and shapes on the meta device need no ranks."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


# ---- Recurrent mixers ----


@contextmanager
def short_scans(config: PreTrainedConfig, chunk: int = 4) -> Iterator[None]:
    """Let the recurrent mixers of a family scan in chunks of a few tokens, for proofs on a dozen tokens.

    The scans in plain torch pad to 64 tokens, the default of an argument that no config sets, and solve for each chunk
    row by row: 15 times the work, for the same result.
    """
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    functions = vars(sys.modules[family.__module__]).values() if family is not None else ()
    scans = {inspect.unwrap(each): None for each in functions if inspect.isfunction(each)}
    before = {scan: scan.__defaults__ for scan in scans if "chunk_size" in _defaults(scan)}
    for scan in before:
        scan.__defaults__ = tuple({**_defaults(scan), "chunk_size": chunk}.values())
    try:
        yield
    finally:
        for scan, defaults in before.items():
            scan.__defaults__ = defaults


def _defaults(function: FunctionType) -> dict[str, object]:
    """Return the positional parameters that have a default, in order."""
    parameters = inspect.signature(function).parameters.values()
    return {
        each.name: each.default
        for each in parameters
        if each.default is not each.empty and each.kind is not each.KEYWORD_ONLY
    }


# ---- Generation ----

GENERATION_HOOKS: Mapping[str, Sequence[str]] = {
    "_get_candidate_generator": ("generation_config", "logits_processor", "model_kwargs", "assistant_model"),
    "_prepare_cache_for_generation": ("model_kwargs",),
}
"""The methods of `GenerationMixin` that decoding overrides although they are private, with the parameters it reads."""


# ---- The cache ----

CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
"""What a model calls the cache that it takes and returns: `past_key_values` before transformers 5.24."""


def croppable_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache that can be cropped after several passes, for a model without recurrent states."""
    cache = DynamicCache(config=config)
    if not _recorded_states_fit_their_mask():
        # All tokens are kept, and the masks alone make the windows.
        cache.layers = [
            DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer for layer in cache.layers
        ]
    cache.activate_past_recording()
    return cache


@lru_cache
def _recorded_states_fit_their_mask() -> bool:
    """Tell whether a recording layer with a window hands out no more states than it tells the mask.

    In transformers 5.17 it does from the second pass without a `crop` on.
    """
    layer, token = DynamicSlidingWindowLayer(sliding_window=2), torch.zeros(1, 1, 1, 1)
    layer.activate_past_recording()
    handed_out = [layer.update(token, token)[0].shape[-2] for _ in range(3)]
    return handed_out == [1, 2, 2]
