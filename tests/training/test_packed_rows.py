"""Packed rows are collated as packed rows wherever they come from, and the README's example runs as it is typed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_warmscale.cli import main
from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage
from hf_warmscale.training.data.collators import RowCollator, collate_packed
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.training.data.separation import separation_of
from tests.test_package import ROOT
from tests.training.tiny import arguments, train_tokenizer, write_corpus

TOKENIZER = train_tokenizer()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    TOKENIZER.save_pretrained(folder / "tokenizer")
    write_corpus(folder, "new", documents=120)
    options = ["--tokenizer", str(folder / "tokenizer"), "--sequence-length", "32"]
    assert main(["data", "pack", str(folder / "new.jsonl"), str(folder / "rows"), *options]) == 0
    return folder / "rows"


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
@pytest.mark.parametrize("as_mixture", [True, False])
def test_packed_rows_train_and_are_evaluated_without_a_mask(
    tokenizer: Any, as_mixture: bool, packed: Path, tmp_path: Path
) -> None:
    """In training, in evaluation, with a tokenizer or without: the loss is that of the rows collated as packed."""
    rows = load_packed(packed)
    mixture = ReplayMixture({"new": rows}, [1.0]) if as_mixture else None
    args = arguments(tmp_path, save_strategy="no", learning_rate=0.0, eval_strategy="steps", eval_steps=2)
    trainer = ContinualTrainer(
        model(), args, train_dataset=None if as_mixture else rows, eval_dataset=rows.select(range(8)),
        stage=Stage("packed", "constant", mixture, max_steps=2), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    batch = collate_packed([rows[index] for index in range(8)])
    with torch.no_grad():
        expected = model().eval()(**batch, use_cache=False).loss
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert found == [pytest.approx(float(expected), rel=1e-6)] * 2


def test_packed_rows_are_laid_out_for_the_model_of_model_init(packed: Path, tmp_path: Path) -> None:
    trainer = ContinualTrainer(
        None, arguments(tmp_path), stage=Stage("packed", "constant", max_steps=2), train_dataset=load_packed(packed),
        model_init=model,
    )  # fmt: skip
    assert isinstance(trainer.data_collator, RowCollator)
    assert trainer.data_collator.separation == separation_of(model()) is not None


def test_unpacked_rows_beside_packed_ones_are_documents_of_their_own(packed: Path) -> None:
    row = load_packed(packed)[0]
    plain = {"input_ids": row["input_ids"][:10], "labels": row["input_ids"][:10]}
    batch = RowCollator(lambda rows: {})([row, plain])
    assert batch["position_ids"][0, -10:].tolist() == list(range(10))
    assert int(batch["labels"][0, -10]) == -100
    alone = RowCollator(lambda rows: {"rows": len(rows)})([plain])
    assert alone == {"rows": 1}


def test_a_collator_that_masks_packed_rows_is_refused(packed: Path, tmp_path: Path) -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        batch = collate_packed(rows)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    trainer = ContinualTrainer(
        model(), arguments(tmp_path), collate, train_dataset=load_packed(packed),
        stage=Stage("packed", "constant", max_steps=2),
    )  # fmt: skip
    with pytest.raises(ValueError, match="documents attend to one another"):
        trainer.train()


def test_the_example_of_the_readme_runs_as_it_is_typed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its sizes are smaller here: the model, the steps, and the checkpoints that it names."""
    (code,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    small = model()
    small.save_pretrained("HuggingFaceTB/SmolLM2-135M")
    TOKENIZER.save_pretrained("HuggingFaceTB/SmolLM2-135M")
    smaller = {
        "num_hidden_layers=40": "num_hidden_layers=3", '"packed/new"': repr(str(packed)),
        "max_steps=10_000": "max_steps=20", "save_steps=500": "save_steps=1, use_cpu=True, report_to='none'",
        "checkpoint-8000": "checkpoint-16", "checkpoint-8500": "checkpoint-17",
    }  # fmt: skip
    for typed, here in smaller.items():
        assert typed in code, f"the example no longer says {typed}"
        code = code.replace(typed, here)
    code = code.replace('output="merged"', 'output="merged", n_trials=3')
    words = ["der", "hund", "und", "die", "katze", "sind", "im", "haus"]
    documents = [" ".join(words[i % 5 :] + words[: i % 7 + 2]) for i in range(24)]
    names: dict[str, Any] = {
        "tokenizer": TOKENIZER, "documents": documents[:12],
        "others": [f"{document} alt" for document in documents[12:]],
    }  # fmt: skip
    exec(code, names)
    assert (tmp_path / "merged" / "config.json").is_file()
    assert names["result"].verdict
