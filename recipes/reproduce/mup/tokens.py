"""Real text as token ids: one BPE tokenizer with 1,024 entries for three domains, the same on every machine."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DOMAINS = ("english", "german", "python")
VOCAB_SIZE = 1024
END_OF_TEXT = "<|endoftext|>"


def prepare_tokens(corpora: Path, cache: Path) -> Path:
    """Write `train.npy`, `validation.npy` and `tokenizer.json` to `cache`, unless they are there; return `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    if (cache / "validation.npy").exists():
        return cache
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(corpora, "train"), trainer)
    tokenizer.save(str(cache / "tokenizer.json"))
    end = [tokenizer.token_to_id(END_OF_TEXT)]
    for split in ("train", "validation"):
        encodings = tokenizer.encode_batch(list(documents(corpora, split)))
        ids = [np.array(encoding.ids + end, dtype=np.uint16) for encoding in encodings]
        np.save(cache / f"{split}.npy", np.concatenate(ids))
    return cache


def documents(corpora: Path, split: str) -> Iterator[str]:
    """Yield the text of every document of a split, one domain after the other."""
    for domain in DOMAINS:
        with gzip.open(corpora / f"{domain}.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
