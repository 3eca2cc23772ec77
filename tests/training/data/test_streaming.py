"""A stream as a source: the same rows on every rank and worker and after a resume, in the order of the stream."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterable

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage, StreamedRows, seen_rows
from hf_warmscale.training.data.batches import StageSamples
from hf_warmscale.training.data.packing import load_packed, pack, stream_packed
from hf_warmscale.training.recipe.fields import StageArguments
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


def files_of_numbers(folder: Path) -> list[str]:
    """Write three files of 400 numbered rows."""
    for number in range(3):
        rows = [{"input_ids": [number, row] * 4, "labels": [number, row] * 4} for row in range(400)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in sorted(folder.glob("*.jsonl"))]


def mixture_of_files(files: list[str], *, shuffled: bool) -> ReplayMixture:
    opened = load_dataset("json", data_files=files, split="train", streaming=True)
    streamed = StreamedRows(opened.shuffle(seed=0, buffer_size=50) if shuffled else opened, 1_000)
    return ReplayMixture({"stream": streamed, "old": OLD}, [0.9, 0.1])


WORKERS = [(None, 0), ("fork", 1), ("fork", 2), ("fork", 4)]


@pytest.mark.parametrize(
    ("method", "workers", "start", "shuffled"),
    [(*workers, start, shuffled) for workers in WORKERS for start in (0, 137) for shuffled in (False, True)]
    # Every spawned worker imports torch, so one case stands for all.
    + [pytest.param("spawn", 2, 137, True, marks=pytest.mark.slow)],
)
def test_workers_read_the_rows_that_one_process_reads(
    method: str | None, workers: int, start: int, shuffled: bool, tmp_path: Path
) -> None:
    """Files are open when workers start: one that read on in the file of its parent would give it other rows."""
    files = files_of_numbers(tmp_path)
    mixed = mixture_of_files(files, shuffled=shuffled)
    assert mixed[5] == mixture_of_files(files, shuffled=shuffled)[5]
    loader = DataLoader(
        StageSamples(mixed, start + 240),
        batch_size=8,
        sampler=range(start, start + 240),
        num_workers=workers,
        multiprocessing_context=method,
        collate_fn=list,
    )
    alone = StageSamples(mixture_of_files(files, shuffled=shuffled), start + 240)
    assert [row for batch in loader for row in batch] == [alone[index] for index in range(start, start + 240)]


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
    with pytest.raises(ValueError, match="ends before row 150, but num_rows is 200"):
        StreamedRows(stream(), 200)[150]
    with pytest.raises(ValueError, match="at least one row"):
        StreamedRows(stream(), 0)


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_packed_stream_alone_trains_in_every_format(form: str | None, tmp_path: Path) -> None:
    """Packed rows are stored as int32, and a loss needs int64 labels."""
    tokenizer = train_tokenizer()
    documents = load_dataset("json", data_files=str(write_corpus(tmp_path, "new")), split="train", streaming=True)
    packed = stream_packed(documents, tokenizer, sequence_length=LENGTH)
    streamed = StreamedRows(packed if form is None else packed.with_format(form), 8)
    assert {torch.as_tensor(values).dtype for values in streamed[3].values()} == {torch.int64}
    stage = Stage("alone", "constant", ReplayMixture({"new": streamed}, [1.0]), max_steps=2)
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    trainer = ContinualTrainer(model, arguments(tmp_path / "run"), stage=stage)
    trainer.train()
    assert all(0 < loss < 10 for loss in losses(trainer))


def test_only_whole_streams_of_datasets_are_accepted() -> None:
    class Torch(TorchIterable[object]):
        def __iter__(self) -> Iterator[object]:
            yield from FRESH

    with pytest.raises(ValueError, match="split with split_dataset_by_node"):
        StreamedRows(split_dataset_by_node(stream(), rank=0, world_size=2), 50)
    with pytest.raises(ValueError, match="wrap it with datasets"):
        StreamedRows(Torch(), 50)
    with pytest.raises(ValueError, match="The stream is a list"):
        StreamedRows(FRESH, 50)


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
