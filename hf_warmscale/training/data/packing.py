"""Tokenize documents and lay them out in rows that say where each document begins."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value, load_from_disk
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hf_warmscale.checkpoints import refuse_existing, staged_directory, write_json
from hf_warmscale.evaluation import IGNORE_INDEX
from hf_warmscale.training.data.batches import PACKED_COLUMNS
from hf_warmscale.training.data.document_faults import clean
from hf_warmscale.training.data.documents import load_documents, readable, unreadable

Tokens = NDArray[np.int32]

MANIFEST = "pack.json"
FEATURES = Features({column: List(Value("int32")) for column in PACKED_COLUMNS})


@dataclass(frozen=True)
class PackManifest:
    """What packed data were made from, written beside them as `pack.json`.

    Args:
        source (`str`): the last part of the path, or the name of the dataset.
        sequence_length (`int`): tokens in a row; the longest row if `padding_free`.
        padding_free (`bool`): a row is one document or a part of one, and a batch lays its rows end to end.
        documents, rows, tokens, dropped_tokens (`int`): what came in, and what went out; the tokens dropped did not
            fill a last row.
        text_bytes (`int`): UTF-8 bytes of the documents, for bits per byte.
        tokenizer (`str`): hash of the tokenizer, see `tokenizer_hash`.
        vocab_size (`int`): of the tokenizer.
    """

    source: str
    sequence_length: int
    padding_free: bool
    documents: int
    rows: int
    tokens: int
    dropped_tokens: int
    text_bytes: int
    tokenizer: str
    vocab_size: int

    @property
    def tokens_per_byte(self) -> float:
        """Tokens in a byte of text: what turns a loss per token into one per byte."""
        # `text_bytes` counts all text, the dropped tail too.
        return (self.tokens + self.dropped_tokens) / self.text_bytes


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    padding_free: bool = False,
    subset: str | None = None,
    split: str = "train",
    text_column: str = "text",
    split_special_tokens: bool | None = None,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> PackManifest:
    """Tokenize a corpus and write rows with `input_ids`, `position_ids` and `labels`.

    Documents follow one another, each closed by the end-of-sequence token. Where one begins, `position_ids` return
    to 0 and the label is ignored; transformers builds the block-diagonal mask from that, provided the batch holds no
    `attention_mask` (see `load_packed`). Tokenizing runs in `num_proc` processes and is cached in `cache_dir`, so a
    second call resumes an interrupted one; the rows do not depend on `num_proc`.

    Args:
        source, subset, split, text_column: see `load_documents`.
        output (`str` or `PathLike`): a new folder.
        tokenizer (`PreTrainedTokenizerBase`): must have an end-of-sequence token.
        sequence_length (`int`): tokens in a row.
        padding_free (`bool`): keep every document in a row of its own, cut only if longer than `sequence_length`.
        split_special_tokens (`bool`, *optional*): read special tokens that a text spells as text (`True`) or as these
            tokens (`False`). By default they are these tokens, and a text that spells the end-of-sequence token is
            refused.
        num_proc (`int`, *optional*): processes that tokenize.
        cache_dir (`str`, *optional*): of `datasets`.

    Returns:
        `PackManifest`: also written to `pack.json`.

    Raises:
        ValueError: if the folder is in use, the tokenizer has no end-of-sequence token, a document is not text (naming
            file and line, see `document_faults`), or the text fills no row.

    Example:

    ```python
    >>> manifest = pack("train.jsonl", "packed/new", tokenizer=tokenizer, sequence_length=2048)
    >>> print(manifest.rows, manifest.tokens)
    ```
    """
    refuse_existing(output)
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}; a row needs at least 2 tokens.")
    _refuse_without_end(tokenizer)
    documents = load_documents(source, subset=subset, split=split, text_column=text_column, cache_dir=cache_dir)
    settings = {
        "tokenizer": tokenizer,
        "text_column": text_column,
        "source": str(source),
        "split_special_tokens": split_special_tokens,
    }
    tokenized = _tokenize_all(documents, settings, num_proc)
    arrange = whole_documents if padding_free else full_rows
    # Refuse before the output folder is touched. The generator stops at the first row, so this costs little.
    if next(arrange(_column(tokenized, "tokens"), sequence_length), None) is None:
        raise ValueError(f"The text of {source} fills no row of {sequence_length} tokens; lower sequence_length.")
    with tempfile.TemporaryDirectory(prefix="warmscale-pack-") as scratch, staged_directory(output) as staging:
        rows = Dataset.from_generator(
            _generate,
            gen_kwargs={"tokenized": tokenized, "arrange": arrange, "length": sequence_length},
            features=FEATURES,
            cache_dir=scratch,
        )
        rows.save_to_disk(staging)
        kept, found = (
            sum(map(len, _column(data, name))) for data, name in ((rows, "input_ids"), (tokenized, "tokens"))
        )
        manifest = PackManifest(
            source=Path(source).name,
            sequence_length=sequence_length,
            padding_free=padding_free,
            documents=len(tokenized),
            rows=len(rows),
            tokens=kept,
            dropped_tokens=found - kept,
            text_bytes=sum(tokenized["text_bytes"]),
            tokenizer=tokenizer_hash(tokenizer),
            vocab_size=len(tokenizer),
        )
        write_json(staging / MANIFEST, asdict(manifest))
    return manifest


def stream_packed(
    documents: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    text_column: str = "text",
    split_special_tokens: bool | None = None,
    source: str | os.PathLike[str] | None = None,
) -> IterableDataset:
    """Tokenize a stream of documents and lay it out in full rows, as `pack` does, while it is read.

    Args:
        documents (`IterableDataset`): with a text column.
        tokenizer (`PreTrainedTokenizerBase`): must have an end-of-sequence token.
        sequence_length (`int`): tokens in a row.
        text_column (`str`): the column that holds the text.
        split_special_tokens (`bool`, *optional*): see `pack`.
        source (`str` or `PathLike`, *optional*): the corpus, if the stream holds its documents in order: a document
            that is not text is then named by file and line.

    Raises:
        ValueError: if the tokenizer has no end-of-sequence token; while it is read, if a document is not text.

    Example:

    ```python
    >>> web = load_dataset("HuggingFaceFW/fineweb", split="train", streaming=True)
    >>> len(next(iter(stream_packed(web, tokenizer, sequence_length=2048)))["input_ids"])
    2048
    ```
    """
    _refuse_without_end(tokenizer)
    settings = {
        "tokenizer": tokenizer,
        "text_column": text_column,
        "source": source,
        "split_special_tokens": split_special_tokens,
    }
    return IterableDataset.from_generator(
        _generate_streamed,
        gen_kwargs={"read": partial(_tokens_of, documents, settings), "length": sequence_length},
        features=FEATURES,
    )


def load_packed(folder: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None) -> Dataset:
    """Load packed rows, memory-mapped, as tensors.

    Use them with `ContinualTrainer` without a collator, or with transformers' `default_data_collator`: a collator that
    adds an `attention_mask` of ones lets documents attend to one another.

    Args:
        folder (`str` or `PathLike`): the output of `pack`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the one to train with.

    Raises:
        FileNotFoundError: if the folder holds no packed data.
        ValueError: if they were made with another tokenizer, or are damaged.

    Example:

    ```python
    >>> rows = load_packed("packed", tokenizer=tokenizer)
    >>> mixture = ReplayMixture({"english": rows}, [1.0])
    ```
    """
    manifest = read_manifest(folder)
    if tokenizer is not None and tokenizer_hash(tokenizer) != manifest.tokenizer:
        raise ValueError(
            f"The data in {folder} were packed with another tokenizer ({manifest.vocab_size} tokens) than the one "
            f"given ({len(tokenizer)} tokens); pack them again."
        )
    try:
        return load_from_disk(str(folder)).with_format("torch")
    except (OSError, ValueError, KeyError) as error:  # pyarrow's and json's errors name no file
        raise ValueError(f"The packed rows in {folder} are damaged ({error}); pack the text again.") from error


def read_manifest(folder: str | os.PathLike[str]) -> PackManifest:
    """Read the `pack.json` of packed data."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}; make packed data with `warmscale data pack`.")
    try:
        return PackManifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); pack the text again.") from error


def tokenize(
    batch: dict[str, list[Any]],
    numbers: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str,
    source: str | os.PathLike[str] | None = None,
    split_special_tokens: bool | None = None,
) -> dict[str, Any]:
    """Return the tokens of each document, closed by the end-of-sequence token, and its size in bytes.

    A document without tokens gets no end either: nothing would predict it.
    """
    end = str(tokenizer.eos_token) if split_special_tokens is None else None
    texts = clean(batch[text_column], numbers, source, end)
    # Without special tokens: the one that closes a document is added below, and a tokenizer's template would add
    # others at every document.
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": bool(split_special_tokens)}
    encoded = tokenizer(texts, **options)["input_ids"] if texts else []
    return {
        "tokens": [[*tokens, tokenizer.eos_token_id] if tokens else [] for tokens in encoded],
        "text_bytes": [len(text.encode()) for text in texts],
    }


def _refuse_without_end(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no end-of-sequence token to close documents; set eos_token.")


def _tokenize_all(documents: Dataset, settings: dict[str, Any], num_proc: int | None) -> Dataset:
    """Tokenize documents in several processes; `datasets` caches the result by the settings."""
    column = settings["text_column"]
    try:
        return documents.map(
            tokenize,
            batched=True,
            with_indices=True,
            fn_kwargs=settings,
            remove_columns=[column],
            num_proc=num_proc,
            desc="tokenizing",
        )
    except UnicodeDecodeError as error:  # a builder may store bytes as text without looking at them
        raise unreadable(settings["source"], column, error) from error


def full_rows(documents: Iterable[Tokens], length: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield rows of exactly `length` tokens and positions; a cut document continues in the next row, from position 0.

    A row of single tokens only is dropped: it would have no label, and a batch of such rows the loss 0/0.
    """
    tokens: list[Tokens] = []
    positions: list[Tokens] = []
    room = length
    for document in documents:
        while len(document):
            part, document = document[:room], document[room:]
            tokens.append(part)
            positions.append(np.arange(len(part), dtype=np.int32))
            room -= len(part)
            if room == 0:
                # A piece of n tokens has n - 1 labels.
                if any(len(piece) > 1 for piece in tokens):
                    yield np.concatenate(tokens), np.concatenate(positions)
                tokens, positions, room = [], [], length


def whole_documents(documents: Iterable[Tokens], length: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield a row for every document, or several if it is longer than `length`."""
    for document in documents:
        for start in range(0, len(document), length):
            part = document[start : start + length]
            # A single token has no label.
            if len(part) > 1:
                yield part, np.arange(len(part), dtype=np.int32)


def pack_row(tokens: Tokens, positions: Tokens) -> dict[str, Tokens]:
    """Return a row. The first token of each document has no label: no token before it belongs to the document."""
    labels = np.where(positions == 0, IGNORE_INDEX, tokens).astype(np.int32)
    return {"input_ids": tokens, "position_ids": positions, "labels": labels}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short hash of how a tokenizer turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for passing in ("padding", "truncation"):  # set by every call, no part of the vocabulary
        content.pop(passing, None)
    text = json.dumps([content, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _generate(tokenized: Dataset, arrange: Any, length: int) -> Iterator[dict[str, Tokens]]:
    for tokens, positions in arrange(_column(tokenized, "tokens"), length):
        yield pack_row(tokens, positions)


def _column(dataset: Dataset, name: str) -> Iterator[Tokens]:
    for batch in dataset.select_columns([name]).with_format("numpy").iter(batch_size=1_000):
        for values in batch[name]:
            yield np.asarray(values, dtype=np.int32)


def _generate_streamed(read: Callable[[], Iterator[Tokens]], length: int) -> Iterator[dict[str, Tokens]]:
    for tokens, positions in full_rows(read(), length):
        yield pack_row(tokens, positions)


def _tokens_of(documents: IterableDataset, settings: dict[str, Any]) -> Iterator[Tokens]:
    column = settings["text_column"]
    for number, row in enumerate(readable(documents, settings["source"], column)):
        for tokens in tokenize({column: [row[column]]}, [number], **settings)["tokens"]:
            yield np.asarray(tokens, dtype=np.int32)
