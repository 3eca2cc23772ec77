"""Turn a dense model into a mixture of experts, every expert a copy of its MLP (sparse upcycling, arXiv:2212.05055).

The weights of the chosen experts sum to 1, so that equal experts give what the one MLP gave. The router is random:
experts come apart as they see other tokens.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from hf_warmscale.architecture import Axis, ModelMap, describe
from hf_warmscale.checkpoints import content_hash, refuse_non_finite
from hf_warmscale.resize.engine import generator
from hf_warmscale.resize.in_memory import load_weights, match_source
from hf_warmscale.resize.init_std import DEFAULT_RANGE
from hf_warmscale.resize.receipt import RECEIPT_ATTRIBUTE, GrowthReceipt, finish_receipt, with_entry
from hf_warmscale.resize.verify import probe_tokens, verify_growth

TARGETS: Mapping[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (MixtralConfig, {"sliding_window": None}),
    "mistral": (MixtralConfig, {}),
    "qwen2": (Qwen2MoeConfig, {"norm_topk_prob": True, "qkv_bias": True}),
    "qwen3": (Qwen3MoeConfig, {"norm_topk_prob": True}),
}
"""For each dense family the mixture whose blocks differ in the MLP alone, and what makes it exact."""

OF_THE_FAMILY = ("model_type", "architectures", "auto_map", "transformers_version")
"""Entries of a config that do not go over."""


def upcycle_model(
    model: PreTrainedModel,
    num_experts: int,
    *,
    num_experts_per_tok: int = 2,
    seed: int = 0,
    verify: bool = True,
    target_tokens: int | None = None,
) -> PreTrainedModel:
    """Return a mixture of experts that computes what the dense model computes.

    Args:
        model (`PreTrainedModel`): a dense Llama or Mistral (it becomes a Mixtral), Qwen2 or Qwen3 (Qwen-MoE).
        num_experts (`int`): experts in each block.
        num_experts_per_tok (`int`): experts that a token goes to.
        seed (`int`): of the router.
        verify (`bool`): run both models on a short probe and keep the difference in the receipt.
        target_tokens (`int`, *optional*): the planned training length, in tokens.

    Raises:
        ValueError: if the family has no mixture of its form, has biases that the mixture has not, or there are fewer
            experts than a token goes to.
    """
    source = describe(model.config)
    config = experts_config(model.config, num_experts, num_experts_per_tok)
    weights = {name: model.state_dict()[name] for name in source.parameters}
    for name, tensor in weights.items():
        refuse_non_finite(name, tensor)
    target = describe(config)
    random = generator(f"{seed}:experts")
    std = float(model.config.to_dict().get("initializer_range") or DEFAULT_RANGE)
    tensors = {
        name: _weight(name, parameter.shape(target.sizes), weights, std, random, model.dtype)
        for name, parameter in target.parameters.items()
    }
    lost = weights.keys() - tensors.keys() - {name for name in weights if ".mlp." in name and name.endswith("weight")}
    if lost:
        raise ValueError(
            f"A {config.model_type} model has no {min(lost)}, which the {model.config.model_type} model has."
        )
    receipt = _receipt(model, source, target, weights, seed)
    grown = load_weights(_class_of(config), with_entry(config, receipt), tensors, model.dtype)
    match_source(grown, model)
    grown.generation_config = copy.deepcopy(model.generation_config)
    if verify:
        receipt.verification = verify_growth(model, grown, source.layer_path, probe_tokens(model))
    finish_receipt(receipt, target_tokens)
    setattr(grown, RECEIPT_ATTRIBUTE, receipt.to_dict())
    return grown


def experts_config(config: PreTrainedConfig, num_experts: int, num_experts_per_tok: int) -> PreTrainedConfig:
    """Return the config of the mixture.

    Raises:
        ValueError: as for [`upcycle_model`].
    """
    if config.model_type not in TARGETS:
        raise ValueError(
            f"A {config.model_type} model cannot become a mixture of experts; {', '.join(TARGETS)} models can."
        )
    if not 1 <= num_experts_per_tok <= num_experts:
        raise ValueError(f"A token cannot go to {num_experts_per_tok} of {num_experts} experts; take more experts.")
    family, own = TARGETS[config.model_type]
    values = {name: value for name, value in config.to_dict().items() if name not in OF_THE_FAMILY}
    inner = values["intermediate_size"]
    sizes = {
        "num_local_experts": num_experts,
        "num_experts": num_experts,
        "num_experts_per_tok": num_experts_per_tok,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }
    known = family().to_dict()
    return family.from_dict({**values, **{name: size for name, size in sizes.items() if name in known}, **own})


def _weight(
    name: str,
    shape: tuple[int, ...],
    weights: Mapping[str, Tensor],
    std: float,
    random: torch.Generator,
    dtype: torch.dtype,
) -> Tensor:
    """Return one weight of the mixture."""
    if name in weights:
        return weights[name]
    block, _, part = name.rpartition(".mlp.")
    mlp = {kind: weights[f"{block}.mlp.{kind}_proj.weight"] for kind in ("gate", "up", "down")}
    if part == "experts.gate_up_proj":
        return torch.cat([mlp["gate"], mlp["up"]]).expand(shape).clone()
    if part == "experts.down_proj":
        return mlp["down"].expand(shape).clone()
    if part == "shared_expert.down_proj.weight":  # an expert for all tokens that says nothing at first
        return torch.zeros(shape, dtype=dtype)
    return (std * torch.randn(shape, generator=random)).to(dtype)


def _class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config))


def _receipt(
    model: PreTrainedModel, source: ModelMap, target: ModelMap, weights: Mapping[str, Tensor], seed: int
) -> GrowthReceipt:
    experts = target.sizes[Axis.EXPERTS]
    repeated = sum(w.numel() for name, w in weights.items() if ".mlp." in name) * (experts - 1)
    return GrowthReceipt(
        source=model.config.name_or_path or type(model).__name__,
        source_hash=content_hash(weights),
        width="experts",
        depth="stack",
        snr_db=None,
        shrink=None,
        seed=seed,
        source_sizes={str(axis): size for axis, size in source.sizes.items()},
        sizes={str(axis): size for axis, size in target.sizes.items()},
        layers=list(range(source.sizes[Axis.LAYERS])),
        new_layers=[],
        source_parameters=source.num_parameters(),
        parameters=target.num_parameters(),
        growth_factor=target.num_parameters() / source.num_parameters(),
        duplicate_fraction=repeated / target.num_parameters(),
        exact=True,
    )
