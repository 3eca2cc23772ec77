"""The quickstart's tokenizer and token rows, made once and reused when the run is resumed."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_warmscale.checkpoints import staged_directory, write_text
from hf_warmscale.evaluation import EvaluationSet
from hf_warmscale.quickstart.settings import Settings
from hf_warmscale.quickstart.text import DOMAINS, END_OF_TEXT, Domain, Split, installed_documents
from hf_warmscale.studies import tokens_hash
from hf_warmscale.training.data.packing import load_packed, pack

HELD_OUT: tuple[Split, ...] = ("evaluation", "select", "confirm")
PACKED = {
    "prose": "prose-train",
    "more-prose": "prose-more",
    "code": "code-train",
    "prose-evaluation": "prose-evaluation",
    "code-evaluation": "code-evaluation",
}
"""The packed rows and the text they are made of."""


@dataclass(frozen=True)
class QuickstartData:
    """Packed rows and held-out documents of both domains.

    Args:
        folder (`Path`): where `packed/<name>` lies.
        tokenizer (`PreTrainedTokenizerBase`): byte-level BPE, trained on both domains.
        documents (`dict[Split, dict[Domain, list[str]]]`): the held-out texts of each split.
        curve_rows (`int`): rows of each domain that are evaluated along a run.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    documents: dict[Split, dict[Domain, list[str]]]
    curve_rows: int

    def path(self, name: str) -> Path:
        """Return the folder of packed rows: `prose`, `more-prose`, `code`, or one with `-evaluation`."""
        return self.folder / "packed" / name

    def rows(self, name: str) -> Dataset:
        """Return packed rows."""
        return load_packed(self.path(name), tokenizer=self.tokenizer)

    def tokens_hash(self) -> str:
        """Return a hash of all packed rows."""
        return tokens_hash(np.concatenate(self.rows(name).with_format("numpy")["input_ids"][:]) for name in PACKED)

    def evaluation(self) -> dict[str, Dataset]:
        """Return a few rows of each domain, for the curves."""
        found = {domain: self.rows(f"{domain}-evaluation") for domain in DOMAINS}
        return {domain: rows.select(range(min(self.curve_rows, len(rows)))) for domain, rows in found.items()}

    def held_out(self, split: Split) -> dict[Domain, EvaluationSet]:
        """Return a held-out split, prepared for scoring."""
        return {
            domain: EvaluationSet.from_documents(texts, self.tokenizer, max_length=self.tokenizer.model_max_length)
            for domain, texts in self.documents[split].items()
        }


def prepare_data(folder: Path, settings: Settings) -> QuickstartData:
    """Collect the text, train the tokenizer and pack the rows, or load what an earlier run made in `folder`."""
    if not folder.is_dir():
        with staged_directory(folder) as staging:
            _make(staging, settings)
    documents: dict[Split, dict[Domain, list[str]]] = {
        split: {
            domain: _read(folder / "text" / f"{domain}-{split}.jsonl")[: settings.held_out_documents]
            for domain in DOMAINS
        }
        for split in HELD_OUT
    }
    return QuickstartData(folder, AutoTokenizer.from_pretrained(folder / "tokenizer"), documents, settings.curve_rows)


def train_tokenizer(texts: Iterable[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with one special token, which begins and ends every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=settings.row_length,
        clean_up_tokenization_spaces=False,
    )


def _make(folder: Path, settings: Settings) -> None:
    found = installed_documents({domain: settings.bytes_of(domain) for domain in DOMAINS})
    training = [document.text for domain in DOMAINS for document in found[domain] if document.split == "train"]
    tokenizer = train_tokenizer(training, settings)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "text").mkdir()
    (folder / "packed").mkdir()
    for domain in DOMAINS:
        for split in ("train", "more", *HELD_OUT):
            texts = [document.text for document in found[domain] if document.split == split]
            _write(folder / "text" / f"{domain}-{split}.jsonl", texts)
    disable_progress_bars()
    for name, text in PACKED.items():
        pack(
            folder / "text" / f"{text}.jsonl",
            folder / "packed" / name,
            tokenizer=tokenizer,
            sequence_length=settings.row_length,
            cache_dir=str(folder / "cache"),
        )
    enable_progress_bars()
    shutil.rmtree(folder / "cache")


def _write(path: Path, texts: list[str]) -> None:
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def _read(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
