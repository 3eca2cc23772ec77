"""Tiny models of families that differ in how their weights are named, packed and computed."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.conftest import perturb
from tests.training.tiny import VOCAB

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

ROUTED = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": {},
    "gemma2": {"head_dim": 8},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "exaone": {},
    "bart": {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
    "mixtral": {"num_local_experts": 4, **ROUTED},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 8, **ROUTED},
    "phimoe": {"num_local_experts": 4, **ROUTED},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4, "v_head_dim": 8,
    },
}  # fmt: skip


def configuration(name: str) -> dict[str, Any]:
    """Return the fields of a tiny config of a family."""
    return {**SIZES, **FAMILIES[name]}


def family(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a tiny, perturbed model of a family."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **configuration(name))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    perturb(model, std=0.02, seed=seed)
    return model
