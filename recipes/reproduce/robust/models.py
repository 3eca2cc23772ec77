"""The models of the study, as each run finds them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from runs import Run
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hf_warmscale import grow_from_pretrained


def first_model(design: dict[str, Any], run: Run, work: Path) -> Any:
    """Return the model that a run starts from, with what it shall not train frozen."""
    if run.kind == "base" and run.size == "small":
        shape: dict[str, Any] = {**design["models"]["small"], "vocab_size": 1024, "max_position_embeddings": 512}
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
    if run.kind == "base":
        small = plain(work / "models" / f"small-seed{run.seed}")
        return grow_from_pretrained(small, **design["models"]["large"], **design["growth"], seed=run.seed)
    model = plain(work / "models" / f"{run.size}-seed{run.seed}")
    last = range(len(model.model.layers) - design["last_blocks"], len(model.model.layers))
    if run.trains == "adapter":
        config = LoraConfig(**design["lora"], layers_to_transform=list(last), task_type="CAUSAL_LM")
        return get_peft_model(model, config)
    if run.trains == "last":
        model.requires_grad_(False)
        for block in last:
            model.model.layers[block].requires_grad_(True)
    return model


def plain(folder: Path) -> PreTrainedModel:
    """Load a stored model."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def load_tokenizer(work: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the study."""
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    return tokenizer
