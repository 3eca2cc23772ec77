"""Tiny members of several families."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
)

from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from tests.conftest import perturb

VOCAB = 40
TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    **TOKENS,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

FAMILIES: Mapping[str, Callable[[int, int], PreTrainedConfig]] = {
    "llama": lambda width, depth: LlamaConfig(**SIZES, hidden_size=width, num_hidden_layers=depth),
    "mistral": lambda width, depth: MistralConfig(  # a sliding window in every layer
        **SIZES, hidden_size=width, num_hidden_layers=depth, sliding_window=4, head_dim=4
    ),
    "gemma3": lambda width, depth: Gemma3TextConfig(  # one full layer between sliding ones
        **SIZES,
        hidden_size=width,
        num_hidden_layers=depth + 1,
        head_dim=4,
        sliding_window=4,
        layer_types=["sliding_attention"] * depth + ["full_attention"],
    ),
    "gpt2": lambda width, depth: GPT2Config(**TOKENS, n_embd=width, n_layer=depth, n_head=4, n_positions=64),
    "opt": lambda width, depth: OPTConfig(
        **TOKENS,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=24,
        num_hidden_layers=depth,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
}
HYBRIDS: Mapping[str, Callable[[int, int], PreTrainedConfig]] = {
    "qwen3_next": lambda width, depth: Qwen3NextConfig(
        **SIZES,
        hidden_size=width,
        num_hidden_layers=depth + 1,
        head_dim=8,
        layer_types=["linear_attention"] * depth + ["full_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
    "lfm2": lambda width, depth: Lfm2Config(
        **SIZES,
        hidden_size=width,
        num_hidden_layers=depth + 1,
        layer_types=["conv"] * depth + ["full_attention"],
        block_auto_adjust_ff_dim=False,
    ),
}


def tiny(
    family: str = "llama", width: int = 16, depth: int = 1, *, seed: int, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """Return a model in which no gain is 1 and no bias 0, and whose predictions are far from uniform."""
    config = {**FAMILIES, **HYBRIDS}[family](width, depth)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, experts_implementation="eager"
    ).eval()
    perturb(model, std=0.3, seed=seed)
    return model


def members(family: str = "llama") -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    """Return a large base, a small base and a small tuned model."""
    return tiny(family, 32, 2, seed=0), tiny(family, seed=1), tiny(family, seed=2)


def emulated(family: str = "llama", **settings: Any) -> EmulatedFineTuningForCausalLM:
    """Return the combination of `members`."""
    base, reference, tuned = members(family)
    return EmulatedFineTuningForCausalLM(base=base, tuned=tuned, reference=reference, **settings)


def tokens(rows: int = 2, length: int = 9, *, seed: int = 3) -> Tensor:
    """Return token ids `[rows, length]`, none of them the padding."""
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_probs(model: torch.nn.Module, input_ids: Tensor) -> Tensor:
    """Return what a model says without a cache."""
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits.log_softmax(dim=-1)
