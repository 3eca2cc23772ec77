"""A folder as a user has it: a small muP model with its tokenizer, text, packed rows, a recipe."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.training.data.packing import pack
from tests.conftest import perturb

VOCAB = 300
END = "<|endoftext|>"
SENTENCES = [
    "To err is human; to forgive, divine.",
    "A rose by any other name would smell as sweet.",
    "All that glitters is not gold.",
    "The pen is mightier than the sword.",
    "Brevity is the soul of wit.",
]

RECIPE = """\
model_name_or_path: model
stage: sayings
mixture:
  sayings: {path: packed, weight: 1.0}
evaluation:
  sayings: packed
eval_strategy: steps
eval_steps: 2
schedule: {name: constant, warmup: 1}
max_steps: 4
save_steps: 2
learning_rate: 1.0e-2
per_device_train_batch_size: 4
logging_steps: 1
use_cpu: true
output_dir: run
"""


def documents(count: int) -> list[str]:
    """Different texts made of the same sentences."""
    return [f"{number}. " + " ".join(SENTENCES[number % 5 :] + SENTENCES[: number % 5]) for number in range(count)]


def make_workspace(folder: Path) -> Path:
    """Fill a folder and return it."""
    tokenizer = make_tokenizer()
    make_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = [json.dumps({"text": text}) for text in documents(40)]
    (folder / "train.jsonl").write_text("\n".join(lines[:30]) + "\n", encoding="utf-8")
    (folder / "held-out.jsonl").write_text("\n".join(lines[30:]) + "\n", encoding="utf-8")
    pack(
        folder / "train.jsonl", folder / "packed", tokenizer=tokenizer, sequence_length=32, cache_dir=str(folder / "c")
    )
    (folder / "stage.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def make_model(vocab_size: int = VOCAB) -> MupForCausalLM:
    """A perturbed muP model of hidden size 32 with two layers."""
    torch.manual_seed(0)
    config = MupConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        mup={"base_hidden_size": 16},
    )
    model = MupForCausalLM(config)
    perturb(model, std=0.02)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)
