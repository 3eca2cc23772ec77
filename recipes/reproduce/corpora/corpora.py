"""Real text as packed rows: one byte-level BPE tokenizer with 1,024 entries, the same on every machine.

    python recipes/reproduce/corpora/corpora.py --corpora CORPORA          # are these the files of the stored results?

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files, one `{"text": ...}` a line. The runners take
any folder with such names; a hash of the tokens is stored with every run.
"""

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_warmscale.checkpoints import staged_directory
from hf_warmscale.training.data.packing import pack

DOMAINS = ("english", "german", "python")
SPLITS = ("train", "validation")
VOCAB_SIZE = 1024
END_OF_TEXT = "<|endoftext|>"

KNOWN = {
    "documentation.train": "691a945c0d3ab536",
    "documentation.validation": "9c1ba571b599d2fb",
    "english.train": "ab33959782775319",
    "english.validation": "a58b70cc25a9878c",
    "german.train": "05ab9964cce17933",
    "german.validation": "4a8be7d5b1cb6030",
    "python.train": "e2d366bd3ecc6f50",
    "python.validation": "2a37c1e033e17cda",
}
"""The first 16 digits of the SHA-256 of each file that the stored results were made from."""


def other_files(corpora: Path, domains: Sequence[str] = DOMAINS) -> list[str]:
    """Return the files that are not those of the stored results.

    Raises:
        FileNotFoundError: if one is missing.
    """
    names = [f"{domain}.{split}" for domain in domains for split in SPLITS]
    found = {name: hashlib.sha256(path_of(corpora, name).read_bytes()).hexdigest()[:16] for name in names}
    return [name for name, digest in found.items() if KNOWN.get(name) != digest]


def prepare_tokenizer(corpora: Path, work: Path, domains: Sequence[str] = DOMAINS) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the training text of the domains and save it in `work`, unless it is there."""
    folder = work / "tokenizer"
    if not folder.exists():
        with staged_directory(folder) as staging:
            train_tokenizer(corpora, domains).save_pretrained(staging)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def train_tokenizer(corpora: Path, domains: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the training text of the domains."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(corpora, "train", domains), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def prepare_rows(
    corpora: Path, work: Path, *, sequence_length: int, domains: Sequence[str] = DOMAINS
) -> tuple[Path, Path]:
    """Pack the text of the domains, all in one, below `work`, unless it is there; return both splits' folders."""
    tokenizer = prepare_tokenizer(corpora, work, domains)
    folders = [work / "rows" / split for split in SPLITS]
    for folder, split in zip(folders, SPLITS, strict=True):
        if not folder.exists():
            pack_texts(documents(corpora, split, domains), folder, tokenizer, sequence_length, work)
    return folders[0], folders[1]


def pack_texts(
    texts: Iterator[str] | Sequence[str],
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    sequence_length: int,
    work: Path,
) -> None:
    """Pack documents into rows."""
    source = work / "text" / f"{folder.name}.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    with source.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    pack(source, folder, tokenizer=tokenizer, sequence_length=sequence_length, cache_dir=str(work / "cache"))
    source.unlink()


def documents(corpora: Path, split: str, domains: Sequence[str] = DOMAINS) -> Iterator[str]:
    """Yield the text of every document of a split, one domain after the other."""
    for domain in domains:
        with gzip.open(path_of(corpora, f"{domain}.{split}"), "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def path_of(corpora: Path, name: str) -> Path:
    """Return the file of a domain's split.

    Raises:
        FileNotFoundError: if it is not there.
    """
    path = corpora / f"{name}.jsonl.gz"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; see recipes/reproduce/corpora/README.md for how it was made.")
    return path


def main() -> None:
    """Compare the files with those of the stored results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    corpora = parser.parse_args().corpora
    others = other_files(corpora, ("documentation", *DOMAINS))
    print(f"other files: {', '.join(others)}" if others else "These are the files of the stored results.")


if __name__ == "__main__":
    main()
