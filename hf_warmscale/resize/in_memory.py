"""Grow a live model: the grown weights go into a new model of the same class."""

import copy
import os
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.checkpoints import content_hash, open_checkpoint, refuse_non_finite
from hf_warmscale.resize.experts import plan_target, receipt_of
from hf_warmscale.resize.receipt import RECEIPT_ATTRIBUTE, finish_receipt, with_entry
from hf_warmscale.resize.request import Growth, GrowthRequest
from hf_warmscale.resize.target import embedding_buffer
from hf_warmscale.resize.verify import probe_tokens, verify_growth


def grow_model(
    model: PreTrainedModel, request: GrowthRequest, *, verify: bool, target_tokens: int | None
) -> PreTrainedModel:
    """Return a grown copy of a live model; see [`grow_from_pretrained`]."""
    factor = embedding_buffer(model)
    growth = plan_target(
        model.config, request, request.dtype or model.dtype, None if factor is None else float(factor)
    )
    state = model.state_dict()
    weights = {name: state[name].cpu() for name in growth.source.parameters}
    for name, tensor in weights.items():
        refuse_non_finite(name, tensor)
    tensors = {name: growth.tensor(name, weights.__getitem__) for name in growth.target.parameters}
    receipt = receipt_of(growth, model.config.name_or_path or type(model).__name__, content_hash(weights))
    model_class = type(model) if isinstance(growth, Growth) else stock_class(growth.config)
    grown = load_weights(model_class, with_entry(growth.config, receipt), tensors, request.dtype or model.dtype)
    match_source(grown, model)
    grown.generation_config = copy.deepcopy(model.generation_config)
    if verify:
        tokens = probe_tokens(model)
        receipt.verification = verify_growth(model, grown, growth.source.layer_path, tokens)
    finish_receipt(receipt, target_tokens)
    setattr(grown, RECEIPT_ATTRIBUTE, receipt.to_dict())
    return grown


def load_source(source: str | os.PathLike[str] | PreTrainedModel) -> PreTrainedModel:
    """Return a live model as it is, and what a folder or a Hub id, `id@revision` too, names."""
    if isinstance(source, PreTrainedModel):
        return source
    found = open_checkpoint(source).source
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(found.folder, trust_remote_code=False)
    if found.repo_id is not None:
        model.config.name_or_path = found.repo_id  # not its place in the cache, which a receipt would tell
    return model


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that `AutoModelForCausalLM` would take."""
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config))


def load_weights(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Return a model with exactly these weights; nothing may be missing or left over."""
    loaded: tuple[PreTrainedModel, dict[str, object]] = model_class.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
    )  # type: ignore[assignment]  # a pair because of output_loading_info
    model, info = loaded
    problems = {kind: names for kind, names in info.items() if names}
    assert not problems, problems
    return model


def match_source(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Run attention and experts with the source's implementations, and give the buffers the dtypes they have there.

    A model that was cast as a whole has cast rotary frequencies too. The tokenizer is found where the
    source's is.
    """
    model.config.name_or_path = source.config.name_or_path
    model.set_attn_implementation(source.config._attn_implementation)
    model.set_experts_implementation(source.config._experts_implementation)
    buffers = dict(model.named_buffers())
    for name, buffer in source.named_buffers():
        if name in buffers and buffer.is_floating_point():
            buffers[name].data = buffers[name].data.to(buffer.dtype)
