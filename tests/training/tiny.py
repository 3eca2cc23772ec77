"""A model, rows and arguments so small that a stage takes a second."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from hf_warmscale.training import ContinualTrainingArguments, ReplayMixture
from tests.conftest import perturb

VOCAB, LENGTH = 64, 16


def tiny_model(*, dropout: float = 0.1, seed: int = 0) -> LlamaForCausalLM:
    """Return a perturbed two-layer Llama; its dropout makes the random state part of what a resume must restore."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
    )
    model = LlamaForCausalLM(config)
    perturb(model, std=0.02)
    return model


def rows(count: int, *, seed: int = 1, low: int = 0, high: int = VOCAB) -> list[dict[str, list[int]]]:
    """Return random rows of tokens between `low` and `high`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(low, high, (count, LENGTH), generator=generator).tolist()
    return [{"input_ids": row, "labels": row} for row in tokens]


NEW, OLD = rows(100, seed=1, high=VOCAB // 2), rows(50, seed=2, low=VOCAB // 2)
DOMAINS = {"new": rows(8, seed=3, high=VOCAB // 2), "old": rows(8, seed=4, low=VOCAB // 2)}


def replay(share: float = 0.1, seed: int = 0) -> ReplayMixture:
    """Return the new rows with a share of old ones."""
    return ReplayMixture({"new": NEW, "old": OLD}, {"new": 1 - share, "old": share}, seed)


def arguments(output: Path, **settings: Any) -> ContinualTrainingArguments:
    """Return arguments for steps of four rows, each logged."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 5,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return ContinualTrainingArguments(output_dir=str(output), **{**defaults, **settings})


def losses(trainer: Trainer) -> list[float]:
    """Return the logged training loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rates(trainer: Trainer) -> list[float]:
    """Return the logged learning rate of every step."""
    return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: Trainer) -> torch.Tensor:
    """Return all weights in one vector."""
    assert trainer.model is not None
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


TEXT = {
    "old": "the cat sat on the mat and saw a dog. the dog ran to the cat. ",
    "new": "der hund und die katze sind im haus. das haus ist alt und klein. ",
}


def write_corpus(folder: Path, domain: str, documents: int = 60) -> Path:
    """Write documents of one domain as JSON lines, each of another length."""
    words = TEXT[domain].split()
    path = folder / f"{domain}.jsonl"
    lines = [" ".join(words[(7 * i + j) % len(words)] for j in range(12 + 5 * (i % 9))) for i in range(documents)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def train_tokenizer(texts: Iterable[str] = tuple(TEXT.values()), size: int = 300) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with an end-of-sequence token."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")
