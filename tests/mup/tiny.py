"""The model that the tests of groups and features share."""

from typing import Any

import torch
from transformers import LlamaConfig

from hf_warmscale.mup import MupConfig, MupForCausalLM, mup_param_groups

ROW = torch.arange(24) % 48
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8}


def tiny_mup(**changes: Any) -> MupForCausalLM:
    """A model of four times the base width and twice its depth, with grouped queries."""
    fields: dict[str, Any] = {
        "vocab_size": 48,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mup": {"base_hidden_size": 16, "base_num_hidden_layers": 2},
    }
    torch.manual_seed(0)
    return MupForCausalLM(MupConfig(**{**fields, **changes}))


def tiny_llama_config(width: int, layers: int) -> LlamaConfig:
    """A Llama of some width, with heads of one size."""
    return LlamaConfig(
        vocab_size=48,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 8,
        num_key_value_heads=width // 16,
        max_position_embeddings=64,
    )


def described_groups(model: torch.nn.Module, names: dict[int, str], **base: Any) -> list[dict[str, Any]]:
    """Return the groups of a model as plain values, the parameters by name."""
    groups = mup_param_groups(model, lr=1e-2, weight_decay=0.1, eps=1e-8, **base)
    return [{**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in groups]
