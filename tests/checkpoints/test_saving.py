"""A saved model folder holds everything that belongs to the model, and nothing else."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from hf_warmscale.checkpoints import content_hash, copy_side_files, open_checkpoint, save_model
from tests.checkpoints.tiny import load_completely, stored_tensors, tiny_model
from tests.hub.tiny import tiny_tokenizer


def test_all_of_a_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(max_new_tokens=7)
    tokenizer = tiny_tokenizer()
    save_model(model, tmp_path / "out", tokenizer=tokenizer, receipts={"growth_receipt.json": {"seed": 1}})
    assert content_hash(stored_tensors(load_completely(tmp_path / "out"))) == content_hash(stored_tensors(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "out").max_new_tokens == 7
    assert json.loads((tmp_path / "out" / "growth_receipt.json").read_text()) == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_side_files_are_carried_over(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tiny_model(seed=1)
    save_model(tiny_model(), source, tokenizer=tiny_tokenizer())
    left_behind = ["README.md", "training_args.bin", "optimizer.pt", "trainer_state.json", "modeling_own.py"]
    for name in left_behind:
        (source / name).write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("tools")
    save_model(other, tmp_path / "out", side_files=source)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "additional_chat_templates/tools.jinja",
    }
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert open_checkpoint(tmp_path / "out").content_hash() == content_hash(stored_tensors(other))


def test_side_files_of_a_cached_snapshot_are_copied_not_linked(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    for folder in ("snapshot", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "snapshot" / "tokenizer.json").symlink_to(tmp_path / "blob")
    assert copy_side_files(tmp_path / "snapshot", tmp_path / "out") == ["tokenizer.json"]
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def test_a_failing_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_model(tiny_model(), tmp_path / "out", receipts={"receipt.json": {"loss": float("nan")}})
    assert list(tmp_path.iterdir()) == []
