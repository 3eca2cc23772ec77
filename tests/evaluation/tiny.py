"""A byte-level tokenizer, a small Llama and documents of very different lengths."""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import perturb

SPECIALS = ["<s>", "</s>"]


def tiny_tokenizer(*, bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, behind the two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(SPECIALS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIALS[0] if bos else None, eos_token=SPECIALS[1] if eos else None
    )


def tiny_llama(*, seed: int = 0, **fields: int) -> LlamaForCausalLM:
    """A perturbed two-layer Llama of width 16 over 258 tokens."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 258,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
    }
    special = {"bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig.from_dict(sizes | special | fields))
    perturb(model, seed=seed)
    return model


def tiny_documents(count: int = 12, *, seed: int = 0, longest: int = 60) -> list[str]:
    """Random words, some of them outside ASCII, one to `longest` characters a document."""
    rng = random.Random(seed)
    letters = "abcdefgh äß→"
    return ["x" + "".join(rng.choices(letters, k=rng.randint(0, longest - 1))) for _ in range(count)]
