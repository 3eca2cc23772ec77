"""The one rule of what a document is, and where in a corpus the first one is that breaks it.

A document is text: a string of Unicode characters without NUL. It must not spell the end-of-sequence token, unless the
user says what that means. A byte order mark at its start is dropped, and an empty document gives no tokens. `pack`,
streams and `extend` all follow this rule.
"""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import load_dataset

from hf_warmscale.training.data.corpus_files import builder_of, corpus_files

BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a document, as the end of a sentence, and at which character."""

    clause: str
    character: int = 0


def fault_of(text: Any, end: str | None = None) -> Fault | None:
    """Return what is wrong with a document, or `None`.

    Args:
        text: what the text column holds.
        end (`str`, *optional*): the end-of-sequence token, if documents must not spell it.
    """
    if not isinstance(text, str):
        return Fault(f"holds {json.dumps(text, default=str)[:40]} where text belongs; repair or remove it")
    if "\0" in text:
        return Fault("holds a NUL character, as binary data do; remove it", text.index("\0"))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Fault("holds half of a surrogate pair, which is not a character; repair it", error.start)
    if end and end in text:
        return Fault(
            f"spells the end-of-sequence token {end!r}; set split_special_tokens to true to read it as text, or to "
            "false to keep it as that token",
            text.index(end),
        )
    return None


def clean(
    texts: Sequence[Any], numbers: Sequence[int], source: str | os.PathLike[str] | None, end: str | None
) -> list[str]:
    """Return documents without byte order marks, or refuse the first that is not text.

    Args:
        texts (`Sequence`): what the text column holds.
        numbers (`Sequence[int]`): the places of the documents in the corpus.
        source (`str` or `PathLike`, *optional*): the corpus, to name file and line.
        end (`str`, *optional*): see `fault_of`.

    Raises:
        ValueError: naming file and line.
    """
    for text, number in zip(texts, numbers, strict=True):
        if fault := fault_of(text, end):
            raise ValueError(f"{place_of(source, number, fault, text)} {fault.clause}.")
    return [text.removeprefix(BYTE_ORDER_MARK) for text in texts]


def place_of(source: str | os.PathLike[str] | None, number: int, fault: Fault, text: Any) -> str:
    """Return file and line of a document: `corpus.jsonl, line 7`."""
    if source is None or not Path(source).exists():
        return f"Document {number + 1} of {'the stream' if source is None else source}"
    for file in corpus_files(Path(source)):
        count = 1 if builder_of(file) == "text" else _num_documents(file)
        if number < count:
            return f"{file}, {_entry(file, number, fault, text)}"
        number -= count
    return f"A document of {source}"


def first_unreadable(source: str | os.PathLike[str], column: str) -> str | None:
    """Return a sentence on the first line of a local corpus that cannot be read as text or JSON, or `None`.

    The builders of datasets do not say on which line they stopped, so a corpus that one of them refused is read again.
    """
    if not Path(source).exists():
        return None
    for file in corpus_files(Path(source)):
        if builder_of(file) != "parquet" and (fault := _unreadable(file, column)):
            return f"{file}, {fault}"
    return None


def _unreadable(file: Path, column: str) -> str | None:
    try:
        whole = builder_of(file) == "text" or _is_array(file)
        for number, line in enumerate(_lines(file), 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 (byte {line[error.start]:#04x}); convert the file."
            if not whole and text.strip():
                try:
                    row = json.loads(text)
                except ValueError as error:
                    return f"line {number} is not JSON ({error}); repair it."
                fault = fault_of(row.get(column)) if isinstance(row, dict) else Fault("is not an object; repair it")
                if fault:
                    return f"line {number} {fault.clause}."
    except (gzip.BadGzipFile, EOFError) as error:
        return f"which should be gzip, is damaged ({error}); repair or rename it."
    return None


def _entry(file: Path, number: int, fault: Fault, text: Any) -> str:
    if builder_of(file) == "text":
        return f"line {text[: fault.character].count(chr(10)) + 1}"
    if builder_of(file) == "parquet":
        return f"row {number + 1}"
    if _is_array(file):
        return f"entry {number + 1}"
    filled = (line for line, content in enumerate(_lines(file), 1) if content.strip())
    return f"line {next(islice(filled, number, None))}"


def _num_documents(file: Path) -> int:
    if builder_of(file) == "parquet":
        return sum(1 for _ in load_dataset("parquet", data_files=str(file), split="train", streaming=True))
    if _is_array(file):
        return len(json.loads(b"".join(_lines(file))))
    return sum(1 for line in _lines(file) if line.strip())


def _is_array(file: Path) -> bool:
    """Tell whether a JSON file is one array instead of one object per line."""
    first = next((line.strip() for line in _lines(file) if line.strip()), b"")
    return builder_of(file) == "json" and first.startswith(b"[")


def _lines(file: Path) -> Iterator[bytes]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        yield from stream
