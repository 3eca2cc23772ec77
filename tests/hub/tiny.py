"""A tiny model with a tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_warmscale.checkpoints import save_model
from tests.conftest import perturb

TEXT = ["Growth keeps the function.", "Merging averages the weights.", "Replay keeps the old domain."]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def tiny_model(*, seed: int = 0) -> LlamaForCausalLM:
    """Return a perturbed two-layer Llama of hidden size 16."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=300,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    perturb(model, seed=seed)
    return model


def tiny_folder(folder: Path, *, seed: int = 0, max_shard_size: int | str = "5GB") -> Path:
    """Save model and tokenizer."""
    save_model(tiny_model(seed=seed), folder, tokenizer=tiny_tokenizer(), max_shard_size=max_shard_size)
    return folder
