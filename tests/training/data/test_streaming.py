"""A stream as a source: the same rows on every rank and worker and after a resume, in the order of the stream."""

import shutil
from pathlib import Path

import pytest
import torch
from datasets import IterableDataset, load_dataset
from torch.utils.data import DataLoader

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage, StreamedRows, seen_rows
from hf_warmscale.training.data.batches import StageSamples
from hf_warmscale.training.data.packing import load_packed, pack, stream_packed
from hf_warmscale.training.recipe.configuration import StageArguments
from hf_warmscale.training.recipe.sources import load_mixture
from tests.training.tiny import (
    LENGTH,
    OLD,
    arguments,
    losses,
    rows,
    tiny_model,
    train_tokenizer,
    weights,
    write_corpus,
)

FRESH = rows(100, seed=5)


def generate() -> object:
    yield from FRESH


def stream() -> IterableDataset:
    return IterableDataset.from_generator(generate)


def mixture(num_rows: int = 100) -> ReplayMixture:
    return ReplayMixture({"stream": StreamedRows(stream(), num_rows), "old": OLD}, [0.8, 0.2])


def test_rows_come_in_the_order_of_the_stream_and_wrap() -> None:
    mixed = mixture(20)
    drawn = [row["input_ids"] for row in (mixed[index] for index in range(50)) if row["source"] == "stream"]
    assert drawn == [FRESH[number % 20]["input_ids"] for number in range(40)]
    streamed = StreamedRows(stream(), 100)
    assert [streamed[index]["input_ids"] for index in (7, 90, 3)] == [
        FRESH[index]["input_ids"] for index in (7, 90, 3)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_the_order(workers: int) -> None:
    samples = StageSamples(mixture(), 64)
    loader = DataLoader(samples, batch_size=8, num_workers=workers, collate_fn=lambda batch: batch)
    assert [row for batch in loader for row in batch] == [mixture()[index] for index in range(64)]


def test_a_resumed_stage_goes_on_in_the_stream(tmp_path: Path) -> None:
    def trainer(output: Path) -> ContinualTrainer:
        stage = Stage("streamed", "rewarm_cosine", mixture(), max_steps=8)
        return ContinualTrainer(tiny_model(), arguments(output, save_steps=4), stage=stage)

    whole = trainer(tmp_path / "whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "half" / "checkpoint-4")
    half = trainer(tmp_path / "half")
    half.train(resume_from_checkpoint=True)
    assert losses(half) == losses(whole)
    assert torch.equal(weights(half), weights(whole))
    seen = seen_rows(tmp_path / "whole" / "checkpoint-4", {"stream": StreamedRows(stream(), 100)})["stream"]
    assert [row["input_ids"] for row in (seen[0], seen[12])] == [FRESH[0]["input_ids"], FRESH[12]["input_ids"]]
    assert len(seen) == 13


def test_a_packed_stream_is_what_pack_writes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer()
    corpus = write_corpus(tmp_path, "new")
    manifest = pack(corpus, tmp_path / "packed", tokenizer=tokenizer, sequence_length=LENGTH)
    documents = load_dataset("json", data_files=str(corpus), split="train", streaming=True)
    packed = load_packed(tmp_path / "packed").with_format(None)
    streamed = StreamedRows(stream_packed(documents, tokenizer, sequence_length=LENGTH), manifest.rows)
    for index, row in enumerate(packed):
        assert {name: torch.as_tensor(values).tolist() for name, values in streamed[index].items()} == row


def test_a_stream_shorter_than_said_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no row 150, and num_rows is 200"):
        StreamedRows(stream(), 200)[150]
    with pytest.raises(ValueError, match="at least one row"):
        StreamedRows(stream(), 0)


def test_a_recipe_streams_as_it_would_read_packed_rows(tmp_path: Path) -> None:
    tokenizer = train_tokenizer()
    corpus = write_corpus(tmp_path, "new")
    manifest = pack(corpus, tmp_path / "packed", tokenizer=tokenizer, sequence_length=LENGTH)
    entry = {"stream": str(corpus), "num_rows": manifest.rows, "sequence_length": LENGTH, "weight": 1.0}
    streamed = load_mixture(StageArguments(mixture={"new": entry}), tokenizer)
    packed = load_packed(tmp_path / "packed").with_format(None)
    for index, row in enumerate(packed):
        content = streamed[index]
        assert content.pop("source") == "new"
        assert {name: torch.as_tensor(values).tolist() for name, values in content.items()} == row


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_rows": None}, "'new' of the mixture needs num_rows"),
        ({"path": "packed"}, "no key in mixture.new 'path'"),
        ({"text_column": "txt"}, "'txt'; did you mean 'text'"),
        ({"stream": "missing.jsonl"}, "no file or folder missing.jsonl"),
    ],
)
def test_a_stream_that_a_recipe_gets_wrong_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    entry = {"stream": str(write_corpus(tmp_path, "new")), "num_rows": 4, "sequence_length": LENGTH, "weight": 1.0}
    given = {key: value for key, value in {**entry, **changes}.items() if value is not None}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_mixture(StageArguments(mixture={"new": given}), train_tokenizer())


def test_a_stream_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    entry = {"stream": str(write_corpus(tmp_path, "new")), "num_rows": 4, "sequence_length": LENGTH, "weight": 1.0}
    with pytest.raises(ValueError, match="needs a tokenizer"):
        load_mixture(StageArguments(mixture={"new": entry}), None)
