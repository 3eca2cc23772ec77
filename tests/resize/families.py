"""Tiny configs of the families that growth must cover."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from tests.conftest import perturb

VOCAB = 64
TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    **TOKENS,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
HEADED: dict[str, Any] = {**GROUPED, "head_dim": 8}

FAMILIES: Mapping[str, Callable[[bool], PreTrainedConfig]] = {
    "llama": lambda tied: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=tied),
    "mistral": lambda tied: MistralConfig(**HEADED, tie_word_embeddings=tied),
    "mixtral": lambda tied: MixtralConfig(**HEADED, num_local_experts=4, tie_word_embeddings=tied),
    "qwen2": lambda tied: Qwen2Config(**GROUPED, tie_word_embeddings=tied),
    "qwen3": lambda tied: Qwen3Config(**HEADED, tie_word_embeddings=tied),
    "gemma2": lambda tied: Gemma2Config(**HEADED, tie_word_embeddings=tied),
    "gemma3": lambda tied: Gemma3TextConfig(**HEADED, sliding_window=4, tie_word_embeddings=tied),
    "phi3": lambda tied: Phi3Config(**GROUPED, tie_word_embeddings=tied),
    "olmo2": lambda tied: Olmo2Config(**GROUPED, tie_word_embeddings=tied),
    "granite": lambda tied: GraniteConfig(
        **GROUPED, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, tie_word_embeddings=tied
    ),
    "smollm3": lambda tied: SmolLM3Config(**GROUPED, no_rope_layers=[1, 0], tie_word_embeddings=tied),
    "stablelm": lambda tied: StableLmConfig(**GROUPED, tie_word_embeddings=tied),
    "cohere": lambda tied: CohereConfig(**GROUPED, use_qk_norm=True, tie_word_embeddings=tied),
    "opt": lambda tied: OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        tie_word_embeddings=tied,
        **TOKENS,
    ),
    "gpt_neox": lambda tied: GPTNeoXConfig(**SIZES, tie_word_embeddings=tied),
    "gpt2": lambda tied: GPT2Config(
        n_embd=32,
        n_inner=48,
        n_head=4,
        n_layer=2,
        n_positions=64,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
        **TOKENS,
    ),
}


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a model of `config` in which no gain is 1 and no bias 0."""
    # The fast kernel for experts knows no float64.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, experts_implementation="eager"
    ).eval()
    perturb(model)
    return model


def tokens() -> torch.Tensor:
    """Return token ids `[2, 12]`."""
    return torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))
