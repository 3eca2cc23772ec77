"""The sink in memory: a new model with the resized weights."""

import copy
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.checkpoints.saving import unset_unused_sampling
from hf_warmscale.compat.transformers import model_from_tensors
from hf_warmscale.resize.model_source import LiveModel, ModelSource
from hf_warmscale.resize.planning.target import EMBEDDING_BUFFER


def make_model(config: PreTrainedConfig, tensors: Mapping[str, Tensor], source: ModelSource) -> PreTrainedModel:
    """Return a model with exactly these weights, in the widest of their dtypes, that runs as its source does.

    A live source passes on its class, device, generation config and the implementations of attention and experts.
    Call `restore_dtypes` when it has run: where dtypes are mixed, a model need not run.

    Args:
        config (`PreTrainedConfig`): of the model.
        tensors (`Mapping[str, Tensor]`): its weights by name.
        source (`ModelSource`): the model that was resized.
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    model = model_from_tensors(_model_class(config, source), config, tensors, dtype)
    if source.generation_config is not None:
        model.generation_config = copy.deepcopy(source.generation_config)
        unset_unused_sampling(model.generation_config)
    if isinstance(source, LiveModel):
        _match(model, source.model)
    return model


def restore_dtypes(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give every weight its own dtype and its own bits, where that is not the model's dtype."""
    state = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if state[name].dtype != tensor.dtype:
            state[name].data = tensor.to(state[name].device)
    model.config.dtype = model.dtype


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that `AutoModelForCausalLM` would take."""
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config))


def _model_class(config: PreTrainedConfig, source: ModelSource) -> type[PreTrainedModel]:
    live = isinstance(source, LiveModel) and source.config.model_type == config.model_type
    return type(source.model) if live else stock_class(config)


def _match(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Move to the source's device, take its implementations, and give buffers the dtypes that they have there.

    A model that was cast as a whole has cast rotary frequencies too. Gemma's factor on the embedding is left alone,
    because it belongs to the new size and dtype.
    """
    model.set_attn_implementation(source.config._attn_implementation)
    model.set_experts_implementation(source.config._experts_implementation)
    buffers = dict(model.named_buffers())
    for name, buffer in source.named_buffers():
        if name in buffers and buffer.is_floating_point() and not name.endswith(EMBEDDING_BUFFER):
            buffers[name].data = buffers[name].data.to(buffer.dtype)
    model.to(source.device)  # type: ignore[arg-type]  # transformers' wrapper hides its arguments
