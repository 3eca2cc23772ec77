"""Packed documents do not see one another, nothing is lost, and what cannot be read is said."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage
from hf_warmscale.training.data.collators import collate_packed
from hf_warmscale.training.data.packing import (
    full_rows,
    load_packed,
    pack,
    read_manifest,
    tokenizer_hash,
    whole_documents,
)
from tests.conftest import perturb
from tests.training.tiny import TEXT, arguments, train_tokenizer, write_corpus

LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.fixture(scope="module")
def packed(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(
        write_corpus(folder, "old"),
        folder / "rows",
        tokenizer=tokenizer,
        sequence_length=LENGTH,
        cache_dir=str(folder),
    )
    return folder / "rows"


def model_for(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    perturb(model).eval()
    return model


def pieces(row: dict[str, torch.Tensor]) -> list[slice]:
    """Return where each document of a row lies."""
    starts = [*torch.nonzero(row["position_ids"] == 0).flatten().tolist(), len(row["input_ids"])]
    return [slice(a, b) for a, b in pairwise(starts)]


# ---- The layout ----


def test_rows_hold_all_tokens_in_order_and_positions_restart() -> None:
    documents = [np.arange(n, dtype=np.int32) + 100 * n for n in (5, 9, 1, 16, 4)]
    rows = list(full_rows(iter(documents), 8))
    everything = np.concatenate(documents)
    assert np.concatenate([tokens for tokens, _ in rows]).tolist() == everything[:32].tolist()
    assert rows[0][1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert rows[1][1].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert all(len(tokens) == 8 and positions[0] == 0 for tokens, positions in rows)


def test_whole_documents_are_cut_only_when_too_long() -> None:
    documents = [np.arange(n, dtype=np.int32) for n in (5, 19, 1)]
    assert [len(tokens) for tokens, _ in whole_documents(iter(documents), 8)] == [5, 8, 8, 3]


def test_packed_data_are_described_and_complete(packed: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    manifest, rows = read_manifest(packed), load_packed(packed, tokenizer=tokenizer)
    documents = [json.loads(line)["text"] for line in (packed.parent / "old.jsonl").read_text().splitlines()]
    stream = [token for text in documents for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert rows["input_ids"][:].flatten().tolist() == stream[: manifest.tokens]
    assert (manifest.rows, manifest.documents) == (len(rows), len(documents))
    assert manifest.tokens + manifest.dropped_tokens == len(stream)
    assert manifest.text_bytes == sum(len(text.encode()) for text in documents)
    starts = rows["position_ids"][:] == 0
    assert (rows["labels"][:][starts] == -100).all()
    assert (rows["labels"][:][~starts] == rows["input_ids"][:][~starts]).all()


@pytest.mark.parametrize("processes", [2])
def test_rows_do_not_depend_on_the_number_of_processes(
    processes: int, packed: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pack(
        packed.parent / "old.jsonl",
        tmp_path / "rows",
        tokenizer=tokenizer,
        sequence_length=LENGTH,
        num_proc=processes,
        cache_dir=str(tmp_path),
    )
    assert load_packed(tmp_path / "rows")["input_ids"][:].equal(load_packed(packed)["input_ids"][:])


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet", "txt", "folder"])
def test_local_formats_give_the_same_tokens(
    kind: str, packed: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lines = (packed.parent / "old.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    source = tmp_path / f"old.{kind}"
    if kind == "jsonl.gz":
        with gzip.open(source, "wt") as file:
            file.write("\n".join(lines))
    elif kind == "parquet":
        Dataset.from_dict({"text": texts}).to_parquet(source)
    elif kind == "txt":
        source.write_text(texts[3] * 3)
    else:
        source.mkdir()
        for number, text in enumerate(texts):
            (source / f"{number:03}.txt").write_text(text)
    manifest = pack(source, tmp_path / "rows", tokenizer=tokenizer, sequence_length=LENGTH, cache_dir=str(tmp_path))
    if kind == "txt":
        assert manifest.documents == 1
    else:
        assert load_packed(tmp_path / "rows")["input_ids"][:].equal(load_packed(packed)["input_ids"][:])


# ---- No document sees another ----


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_each_document_alone(
    attention: str, packed: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = model_for(tokenizer)
    model.set_attn_implementation(attention)
    row = load_packed(packed)[1]
    assert len(pieces(row)) > 1
    with torch.no_grad():
        together = model(**collate_packed([row]), use_cache=False).logits[0]
        for piece in pieces(row):
            alone = model(input_ids=row["input_ids"][None, piece], use_cache=False).logits[0]
            assert (together[piece] - alone).abs().max() < 2e-6
        masked = model(**collate_packed([row]), attention_mask=torch.ones(1, LENGTH), use_cache=False).logits[0]
    assert (masked - together).abs().max() > 1e-3


def test_padding_free_batches_give_each_document_its_own_loss(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = write_corpus(tmp_path, "new")
    pack(
        source, tmp_path / "rows", tokenizer=tokenizer, sequence_length=64, padding_free=True, cache_dir=str(tmp_path)
    )
    rows = [load_packed(tmp_path / "rows")[index] for index in range(4)]
    model = model_for(tokenizer)
    batch = collate_packed(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (1, sum(lengths))
    with torch.no_grad():
        together = model(**batch, use_cache=False).loss * (sum(lengths) - len(rows))
        alone = sum(model(**collate_packed([row]), use_cache=False).loss * (len(row["input_ids"]) - 1) for row in rows)
    assert together.item() == pytest.approx(float(alone), rel=1e-5)


def stage_on(rows: Any) -> Stage:
    mixture = ReplayMixture({"new": rows, "old": rows}, {"new": 0.75, "old": 0.25})
    return Stage("packed", "constant", mixture, max_steps=2)


@pytest.mark.parametrize("padding_free", [False, True])
def test_stages_train_on_packed_rows_and_count_them_by_source(
    padding_free: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = write_corpus(tmp_path, "new")
    pack(
        source,
        tmp_path / "rows",
        tokenizer=tokenizer,
        sequence_length=LENGTH,
        padding_free=padding_free,
        cache_dir=str(tmp_path),
    )
    rows = load_packed(tmp_path / "rows")
    trainer = ContinualTrainer(
        model_for(tokenizer), arguments(tmp_path / "run"), stage=stage_on(rows), processing_class=tokenizer
    )
    trainer.train()
    assert trainer.stage_run is not None
    mixture, progress = trainer.stage_run.mixture, trainer.stage_run.record.progress
    expected = {"new": 0, "old": 0}
    targets = {"new": 0, "old": 0}
    for row in mixture.__getitems__(range(8)):
        expected[row["source"]] += len(row["input_ids"])
        targets[row["source"]] += int((row["labels"] != -100).sum())
    assert progress.tokens == expected
    assert progress.loss_tokens == targets


def test_a_collator_that_lets_documents_mix_is_refused(
    packed: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def with_mask(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_data_collator(rows)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    trainer = ContinualTrainer(
        model_for(tokenizer), arguments(tmp_path), with_mask, stage=stage_on(load_packed(packed))
    )
    with pytest.raises(ValueError, match="documents attend to one another"):
        trainer.train()


def test_the_usual_collator_would_have_mixed_them(packed: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What the refusal guards against: transformers' own collator adds the mask."""
    tokenizer.pad_token = tokenizer.eos_token
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = next(iter(DataLoader(load_packed(packed), batch_size=2, collate_fn=collator)))
    assert bool(batch["attention_mask"].all())


# ---- What is refused ----


def test_unusable_input_is_refused_in_a_sentence(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def refused(source: Path, says: str, error: type[Exception] = ValueError, **settings: Any) -> None:
        options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "sequence_length": LENGTH,
            "cache_dir": str(tmp_path / "cache"),
        }
        with pytest.raises(error, match=says):
            pack(source, tmp_path / "out", **{**options, **settings})
        assert not (tmp_path / "out").exists()

    empty, binary, broken = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "broken.jsonl"
    empty.touch()
    binary.write_bytes(bytes(range(256)))
    broken.write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "fake.jsonl.gz").write_text("not gzip")
    (tmp_path / "folder").mkdir()
    good = write_corpus(tmp_path, "old", documents=3)
    refused(empty, "is empty")
    refused(binary, r"binary\.txt, line 2 is not UTF-8")
    refused(broken, r"broken\.jsonl, line 2 is not JSON")
    refused(tmp_path / "fake.jsonl.gz", "should be gzip, is damaged")
    refused(tmp_path / "none.txt", "There is no file", FileNotFoundError)
    refused(tmp_path / "folder", "holds no")
    refused(good, "did you mean 'text'", text_column="txet")
    refused(good, "fills no row", sequence_length=5_000)
    refused(good, "at least 2", sequence_length=1)


def test_data_of_another_tokenizer_are_refused(
    packed: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="packed with another tokenizer"):
        load_packed(packed, tokenizer=train_tokenizer([TEXT["new"]], size=280))
    with pytest.raises(FileNotFoundError, match="warmscale data pack"):
        load_packed(tmp_path)
    with pytest.raises(ValueError, match="not empty"):
        pack(packed.parent / "old.jsonl", packed, tokenizer=tokenizer, sequence_length=LENGTH)


def test_padding_a_batch_does_not_change_the_hash(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    before = tokenizer_hash(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "a b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == before
