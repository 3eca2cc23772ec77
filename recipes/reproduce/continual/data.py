"""The text of the study as packed rows: English cut in two by length, German, Python."""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_warmscale.studies import tokens_hash
from hf_warmscale.training.data.packing import load_packed

sys.path.insert(0, str(Path(__file__).parent.parent / "corpora"))
from corpora import documents, pack_texts, prepare_tokenizer

SOURCES = ("english", "german", "python", "english_short")
"""`english` holds the long documents of its corpus, `english_short` the short ones: half of the text each."""


def prepare_rows(study: dict[str, Any], corpora: Path, work: Path) -> Path:
    """Write packed rows to `work/rows/<source>.<split>`, unless they are there; return the folder."""
    rows = work / "rows"
    tokenizer = prepare_tokenizer(corpora, work)
    for name, content in texts(study, corpora).items():
        if not (rows / name).exists():
            pack_texts(content, rows / name, tokenizer, study["sequence_length"], work)
    return rows


def hash_of(rows: Path) -> str:
    """Return a hash of the tokens of all sources and splits."""
    folders = sorted(path for path in rows.iterdir() if path.is_dir())
    return tokens_hash(
        batch["input_ids"]
        for folder in folders
        for batch in load_packed(folder).select_columns(["input_ids"]).with_format("numpy").iter(batch_size=1_000)
    )


def texts(study: dict[str, Any], corpora: Path) -> dict[str, list[str]]:
    """Return the documents of every source and split."""
    found = {
        f"{name}.{split}": list(documents(corpora, split, [name]))
        for name in SOURCES[1:3]
        for split in ("train", "validation")
    }
    long, short = halves(list(documents(corpora, "train", ["english"])))
    for name, half in {SOURCES[0]: long, SOURCES[3]: short}.items():
        every = study["held_out_every"]
        found[f"{name}.train"] = [text for index, text in enumerate(half) if index % every]
        found[f"{name}.validation"] = half[::every]
    return found


def halves(texts: list[str]) -> tuple[list[str], list[str]]:
    """Return the longest documents that hold half of the text, and the others, both in their first order."""
    left = sum(map(len, texts)) / 2
    long: set[int] = set()
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
        if left > 0:
            long.add(index)
        left -= len(texts[index])
    first = [text for index, text in enumerate(texts) if index in long]
    return first, [text for index, text in enumerate(texts) if index not in long]


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
