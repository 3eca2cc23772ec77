"""Tiny models of several families, saved, and ways to damage what was saved."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tests.conftest import perturb

SIZES: dict[str, object] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS: dict[str, object] = {"num_experts": 3, "moe_intermediate_size": 12}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {**SIZES, "intermediate_size": 24},
    "llama tied": {**SIZES, "intermediate_size": 24, "tie_word_embeddings": True},
    "gemma3_text": {**SIZES, "intermediate_size": 24, "head_dim": 4},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40, "bos_token_id": None, "eos_token_id": None},
    "gpt_neox": {**SIZES, "intermediate_size": 24},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    # The files of these hold one matrix for each expert, their models one tensor for all experts of a layer.
    "mixtral": {**SIZES, "intermediate_size": 24, "num_local_experts": 3},
    "qwen2_moe": {**SIZES, **EXPERTS, "intermediate_size": 24, "shared_expert_intermediate_size": 20},
    "qwen3_moe": {**SIZES, **EXPERTS, "intermediate_size": 24},
}


def tiny_config(family: str = "llama tied") -> PreTrainedConfig:
    """Return the config of a family, two layers of hidden size 16."""
    config: PreTrainedConfig = AutoConfig.for_model(family.split()[0], **FAMILIES[family])
    return config


def tiny_model(family: str = "llama tied", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """Return a perturbed model of a family."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family))
    perturb(model, seed=seed)
    torch.nn.Module.to(model, dtype)
    return model


def tiny_folder(folder: Path, *, sharded: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tied Llama with transformers itself, in one file or in several."""
    tiny_model(dtype=dtype).save_pretrained(folder, max_shard_size="4KB" if sharded else "5GB")
    return folder


def load_completely(folder: Path) -> PreTrainedModel:
    """Load with transformers in the dtype of the files; nothing may be missing, left over or of another shape."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert isinstance(model, PreTrainedModel)
    return model


def stored_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a model, tied ones once: what a checkpoint of a Llama holds."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}


def header(path: Path) -> dict[str, dict[str, object]]:
    """Return the header of a safetensors file."""
    raw = path.read_bytes()
    content: dict[str, dict[str, object]] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return content


def replace_header(path: Path, content: object) -> None:
    """Write another header before the same data."""
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    encoded = json.dumps(content).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
