"""Grow a live model: the grown weights go into a new model of the same class."""

import copy
import os
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import ModelMap
from hf_warmscale.checkpoints import ModelWeights, content_hash, open_checkpoint, refuse_non_finite, source_identity
from hf_warmscale.resize.growing.growth import plan_target
from hf_warmscale.resize.growing.receipt import RECEIPT_ATTRIBUTE, finish_receipt, receipt_of, with_entry
from hf_warmscale.resize.growing.verify import probe_tokens, verify_growth
from hf_warmscale.resize.planning.request import Growth, GrowthRequest
from hf_warmscale.resize.planning.target import EMBEDDING_BUFFER, embedding_buffer


def grow_model(
    model: PreTrainedModel, request: GrowthRequest, *, name: str, verify: bool, target_tokens: int | None
) -> PreTrainedModel:
    """Return a grown copy of a live model, which a receipt calls `name`; see [`grow_from_pretrained`]."""
    factor = embedding_buffer(model)
    growth = plan_target(
        model.config, request, request.dtype or model.dtype, None if factor is None else float(factor)
    )
    weights = live_weights(model, growth.source)
    tensors = {key: growth.tensor(key, weights.__getitem__) for key in growth.target.parameters}
    receipt = receipt_of(growth, name, content_hash(weights))
    model_class = type(model) if isinstance(growth, Growth) else stock_class(growth.config)
    grown = load_weights(model_class, with_entry(growth.config, receipt), tensors, request.dtype or model.dtype)
    match_source(grown, model)
    grown.generation_config = copy.deepcopy(model.generation_config)
    if verify:
        tokens = probe_tokens(model, model.config.vocab_size)
        receipt.verification = verify_growth(model, grown, growth.source.layer_path, tokens)
    finish_receipt(receipt, target_tokens)
    setattr(grown, RECEIPT_ATTRIBUTE, receipt.to_dict())
    return grown


def load_source(source: str | os.PathLike[str] | PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return the model that a folder or a Hub id, `id@revision` too, names, and what a receipt calls it.

    It has the dtype it is stored in, whatever its config says. A live model is returned as it is.

    Raises:
        ValueError: if the stored model is quantized, or incomplete, or holds what its config does not say.
        FileNotFoundError: if there is none.
    """
    if isinstance(source, PreTrainedModel):
        path = source.config.name_or_path
        return source, source_identity(path) if path else type(source).__name__
    weights = ModelWeights(open_checkpoint(source))  # from_pretrained would fill with random numbers what is missing
    found, dtype = weights.checkpoint.source, next(iter(weights.specs.values())).dtype
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(found.folder, dtype=dtype, trust_remote_code=False)
    return model, found.identity


def live_weights(model: PreTrainedModel, described: ModelMap) -> dict[str, Tensor]:
    """Return the weights of a live model by name, on the CPU.

    Raises:
        ValueError: if one is missing, packed, of another shape than the config says, or not finite.
    """
    state = model.state_dict()
    weights = {}
    for name, parameter in described.parameters.items():
        if name not in state:
            raise ValueError(f"The live model has no {name}; merge and unload its adapters, or name its folder.")
        weight, shape = state[name].cpu(), parameter.shape(described.sizes)
        if tuple(weight.shape) != shape or not weight.is_floating_point():
            raise ValueError(
                f"{name} of the live model is {weight.dtype} of shape {tuple(weight.shape)}, not floating point of "
                f"shape {shape}; dequantize or gather the model first, or name its folder."
            )
        refuse_non_finite(name, weight)
        weights[name] = weight
    return weights


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

    A model that was cast as a whole has cast rotary frequencies too. Gemma's factor of the embedding belongs to the
    new size and dtype. The model comes from no file, which transformers would call "None".
    """
    model.name_or_path = model.config.name_or_path = ""
    model.set_attn_implementation(source.config._attn_implementation)
    model.set_experts_implementation(source.config._experts_implementation)
    buffers = dict(model.named_buffers())
    for name, buffer in source.named_buffers():
        if name in buffers and buffer.is_floating_point() and not name.endswith(EMBEDDING_BUFFER):
            buffers[name].data = buffers[name].data.to(buffer.dtype)
