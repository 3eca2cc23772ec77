"""The text of the study as packed rows: English cut in two by length, German, Python."""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hf_warmscale.training.data.packing import load_packed, pack

sys.path.insert(0, str(Path(__file__).parent.parent / "mup"))
from tokens import END_OF_TEXT, prepare_tokens  # the tokenizer of the muP study

SOURCES = ("english", "german", "python", "english_short")
"""`english` holds the long documents of its corpus, `english_short` the short ones: half of the text each."""


def prepare_rows(study: dict[str, Any], corpora: Path, work: Path) -> Path:
    """Write packed rows to `work/rows/<source>.<split>`, unless they are there; return the folder."""
    rows = work / "rows"
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    tokens = prepare_tokens(corpora, work / "tokens")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokens / "tokenizer.json"), **ends)
    for name, documents in texts(study, corpora).items():
        if (rows / name).exists():
            continue
        source = work / "text" / f"{name}.jsonl"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        length, cache = study["sequence_length"], work / "cache"
        pack(source, rows / name, tokenizer=tokenizer, sequence_length=length, cache_dir=str(cache))
        shutil.rmtree(cache)
    return rows


def texts(study: dict[str, Any], corpora: Path) -> dict[str, list[str]]:
    """Return the documents of every source and split."""
    found = {
        f"{name}.{split}": read(corpora, name, split) for name in SOURCES[1:3] for split in ("train", "validation")
    }
    for name, documents in zip((SOURCES[0], SOURCES[3]), halves(read(corpora, "english", "train")), strict=True):
        every = study["held_out_every"]
        found[f"{name}.train"] = [text for index, text in enumerate(documents) if index % every]
        found[f"{name}.validation"] = documents[::every]
    return found


def halves(documents: list[str]) -> tuple[list[str], list[str]]:
    """Return the longest documents that hold half of the text, and the others, both in their first order."""
    left = sum(map(len, documents)) / 2
    long: set[int] = set()
    for index in sorted(range(len(documents)), key=lambda index: -len(documents[index])):
        if left > 0:
            long.add(index)
        left -= len(documents[index])
    first = [text for index, text in enumerate(documents) if index in long]
    return first, [text for index, text in enumerate(documents) if index not in long]


def read(corpora: Path, domain: str, split: str) -> list[str]:
    """Return the documents of a corpus."""
    with gzip.open(corpora / f"{domain}.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def training_rows(rows: Path, source: str) -> Dataset:
    """Return the rows of a source to train on."""
    return load_packed(rows / f"{source}.train")


def validation_rows(rows: Path, count: int) -> dict[str, Dataset]:
    """Return `count` validation rows of every source, spread evenly over its documents."""
    found = {name: load_packed(rows / f"{name}.validation") for name in SOURCES}
    return {name: data.select(spread(len(data), count)) for name, data in found.items()}


def spread(size: int, count: int) -> list[int]:
    """Return at most `count` numbers below `size`, evenly spaced."""
    return sorted({index * size // count for index in range(count)})
