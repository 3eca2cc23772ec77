"""One rule of what a document is, for packing, streams and extended tokenizers; each fault named by file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from packaging.version import Version
from transformers import PreTrainedTokenizerFast

from hf_warmscale.cli import main
from hf_warmscale.training.data.documents import load_documents, read_texts, stream_documents
from hf_warmscale.training.data.packing import load_packed, pack, stream_packed
from hf_warmscale.training.data.streaming import StreamedRows
from tests.training.tiny import train_tokenizer

GOOD = [f"the cat sat on the mat {number}" for number in range(600)]
BAD = 431
"""The line of the faulty document: far behind the first 4 kB."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


def json_lines(line: str | bytes) -> bytes:
    """Return a corpus of JSON lines whose line `BAD` is this one."""
    lines = [json.dumps({"text": text}).encode() for text in GOOD]
    lines[BAD - 1] = line if isinstance(line, bytes) else line.encode()
    return b"\n".join(lines)


NOT_TEXT: dict[str, tuple[str, bytes, str]] = {
    "null": ("a.jsonl", json_lines('{"text": null}'), f"line {BAD} holds null where text belongs"),
    "no text": ("a.jsonl", json_lines('{"other": "x"}'), f"line {BAD} holds null where text belongs"),
    "list": ("a.jsonl", json_lines('{"text": ["a", "b"]}'), f"line {BAD} holds ."),
    "number": ("a.jsonl", json_lines('{"text": 7}'), f"line {BAD} holds .?7.? where text belongs"),
    "only numbers": ("a.jsonl", b'{"text": 1}\n\n{"text": 2}\n' * 50, "line 1 holds 1 where text belongs"),
    "nul": ("a.jsonl", json_lines(r'{"text": "a\u0000b"}'), f"line {BAD} holds a NUL character"),
    "latin-1": ("a.jsonl", json_lines('{"text": "caf\xe9"}'.encode("latin-1")), f"line {BAD} is not UTF-8"),
    "surrogate": ("a.jsonl", json_lines(r'{"text": "a\ud83d"}'), f"line {BAD} holds half of a surrogate pair"),
    "broken json": ("a.jsonl", json_lines('{"text": "a'), f"line {BAD} is not JSON"),
    "end token": ("a.jsonl", json_lines('{"text": "a <eos> b"}'), f"line {BAD} spells the end-of-sequence token"),
    "array": ("a.json", json.dumps([{"text": "a"}, {"text": "b\0"}]).encode(), "entry 2 holds a NUL"),
    "text, latin-1": ("a.txt", ("a\n" * 3_000 + "caf\xe9").encode("latin-1"), "line 3001 is not UTF-8"),
    "text, UTF-16": ("a.txt", "\n".join(GOOD).encode("utf-16"), "line 1 is not UTF-8"),
    "text, nul": ("a.txt", b"a\n" * 3_000 + b"b\0c", "line 3001 holds a NUL"),
    "text, end token": ("a.txt", b"a\n" * 10 + b"b<eos>", "line 11 spells"),
    "gzip": ("a.jsonl.gz", gzip.compress(json_lines('{"text": "a\\u0000"}')), f"line {BAD} holds a NUL character"),
}


def packed(source: Path, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> None:
    folder = source.parent.parent
    pack(source, folder / "rows", tokenizer=tokenizer, sequence_length=16, cache_dir=str(folder / "cache"), **settings)


def streamed(source: Path, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> None:
    stream = stream_packed(stream_documents(source), tokenizer, sequence_length=16, source=source, **settings)
    list(StreamedRows(stream, 10_000)._from(0))


def read(source: Path, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> None:
    documents = load_documents(source, cache_dir=str(source.parent.parent / "cache"))
    read_texts(documents, source, tokenizer, text_column="text", **settings)


@pytest.mark.parametrize("use", [packed, streamed, read])
@pytest.mark.parametrize("kind", NOT_TEXT)
def test_what_is_not_text_is_named_by_file_and_line(
    kind: str, use: Callable[..., None], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    name, content, says = NOT_TEXT[kind]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*{name}, {says}.*[.]$"):
        use(tmp_path / "corpus", tokenizer)
    assert not (tmp_path / "rows").exists()


def test_the_second_file_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    Dataset.from_dict({"text": GOOD}).to_parquet(tmp_path / "corpus" / "a.parquet")
    Dataset.from_dict({"text": [*GOOD[:7], "a\0"]}).to_parquet(tmp_path / "corpus" / "b.parquet")
    for use in (packed, streamed, read):
        with pytest.raises(ValueError, match=r"b\.parquet, row 8 holds a NUL"):
            use(tmp_path / "corpus", tokenizer)


def test_a_spelled_end_token_is_what_the_option_says(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "the cat <eos> sat"}) + "\n")
    ends = {}
    for split in (True, False):
        settings: dict[str, Any] = {"sequence_length": 4, "cache_dir": str(tmp_path), "split_special_tokens": split}
        pack(tmp_path / "a.jsonl", tmp_path / str(split), tokenizer=tokenizer, **settings, padding_free=True)
        rows = load_packed(tmp_path / str(split))
        tokens = [token for row in rows for token in row["input_ids"].tolist()]
        ends[split] = tokens.count(tokenizer.eos_token_id)
        assert str(tokenizer.decode(tokens[:-1], skip_special_tokens=False)).startswith("the cat <eos>")
    assert ends == {True: 1, False: 2}


@pytest.mark.skipif(
    Version(datasets.__version__) < Version("5"), reason="datasets before 5 refuses a byte order mark in JSON lines"
)
def test_byte_order_marks_and_empty_documents_leave_no_trace(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = ["the cat sat on the mat", "", "a dog saw the cat"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "plain.jsonl").write_text(lines.replace('{"text": ""}\n', ""))
    (tmp_path / "marked.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    found = []
    for name in ("plain", "marked"):
        settings: dict[str, Any] = {"tokenizer": tokenizer, "sequence_length": 4, "cache_dir": str(tmp_path / name)}
        pack(tmp_path / f"{name}.jsonl", tmp_path / f"{name}-rows", **settings)
        found.append(load_packed(tmp_path / f"{name}-rows")["input_ids"][:].tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("length", [2, 3, 16])
def test_every_row_has_a_label(length: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A batch without any label has the loss 0/0."""
    texts = ["", "a", "b", "", "the cat sat", *[""] * 300, "c d e f g h i j k l m n o p q r s"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings: dict[str, Any] = {"tokenizer": tokenizer, "sequence_length": length, "cache_dir": str(tmp_path)}
    pack(tmp_path / "a.jsonl", tmp_path / "rows", **settings)
    assert all((row["labels"] != -100).any() for row in load_packed(tmp_path / "rows"))
    stream = stream_packed(stream_documents(tmp_path / "a.jsonl"), tokenizer, sequence_length=length)
    assert all((torch.as_tensor(row["labels"]) != -100).any() for row in StreamedRows(stream, 10)._from(0))


def test_the_shell_says_it_in_a_sentence(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.jsonl").write_bytes(NOT_TEXT["end token"][1])
    command = ["data", "pack", str(tmp_path / "a.jsonl"), str(tmp_path / "rows"), "--sequence-length", "16"]
    command += ["--tokenizer", str(tmp_path / "tokenizer")]
    assert main(command) == 2
    assert f"a.jsonl, line {BAD} spells" in capfd.readouterr().err
    assert main([*command, "--split-special-tokens"]) == 0
