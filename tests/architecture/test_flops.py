"""FLOPs per token against torch's counter, to the last one: ten families, forward alone and with the backward pass."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hf_warmscale import describe

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "llama tied": {**SIZES, "tie_word_embeddings": True},
    "qwen3": {**SIZES, "head_dim": 16},
    "gemma3_text": {**SIZES, "head_dim": 16},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": 100, "bos_token_id": None, "eos_token_id": None},
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 80, "word_embed_proj_dim": 48},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 24},
    "deepseek_v3": {
        **SIZES,
        **LATENT,
        "num_key_value_heads": 6,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}
ROWS, LENGTH = 2, 24


def config_of(family: str) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.for_model(family.split()[0], **FAMILIES[family])
    return config


def counted(config: PreTrainedConfig, *, training: bool) -> float:
    """What torch counts; the eager kernels, because it does not know the others."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.set_experts_implementation("eager")
    tokens = torch.randint(0, 100, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        loss = model(tokens, labels=tokens, use_cache=False).loss
        if training:
            loss.backward()
    total: int = counter.get_total_flops()
    return total / (ROWS * LENGTH)


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_that_torch_counts(family: str) -> None:
    config = config_of(family)
    model_map = describe(config)
    for training in (False, True):
        assert model_map.flops_per_token(LENGTH, training=training) == counted(config, training=training)


def test_only_the_active_experts_count() -> None:
    sparse, dense = (describe(config_of("mixtral")), describe(config_of("llama")))
    layers, expert = 3, 3 * 48 * 80
    assert sparse.num_parameters() - sparse.num_active_parameters() == layers * 2 * expert
    assert dense.num_parameters() == dense.num_active_parameters()


def test_the_projections_of_a_large_model_cost_six_flops_per_parameter() -> None:
    """6 N per token (2001.08361), without the lookup of the embedding, where attention is short."""
    model_map = describe(AutoConfig.for_model("llama"))
    in_matrices = model_map.num_parameters() - 32_000 * 4096
    assert model_map.flops_per_token(1) == pytest.approx(6 * in_matrices, rel=1e-3)
