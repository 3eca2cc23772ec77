"""What published configs hold beside sizes does not stop a growth, and is not multiplied by it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_warmscale.resize import grow_checkpoint, grow_from_pretrained, shrink_from_pretrained
from tests.resize.families import FAMILIES, random_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    random_model(FAMILIES["llama"](True), dtype=torch.float32).save_pretrained(folder)
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_lists_of_others_and_foreign_code(source: Path, tmp_path: Path) -> None:
    edit(source / "config.json", languages=["de", "fr"], auto_map={"AutoModelForCausalLM": "modeling.Llama"})
    grow_checkpoint(source, tmp_path / "grown", num_hidden_layers=6)
    grown = grow_from_pretrained(source, num_hidden_layers=6, verify=False)
    for config in (json.loads((tmp_path / "grown/config.json").read_text()), grown.config.to_dict()):
        assert config["languages"] == ["de", "fr"] and "auto_map" not in config
        assert config["architectures"] in (["LlamaForCausalLM"], None)
    small = shrink_from_pretrained(source, num_hidden_layers=1, verify=False)
    assert "auto_map" not in small.config.to_dict() and small.config.languages == ["de", "fr"]


def test_a_generation_config_that_cannot_be_saved(source: Path, tmp_path: Path) -> None:
    """It was published, so it loads, but transformers refuses to save it."""
    edit(source / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.8)
    live = AutoModelForCausalLM.from_pretrained(source)
    givens: tuple[Any, ...] = (source, live)
    for number, given in enumerate(givens):
        grown = grow_from_pretrained(given, hidden_size=64, verify=False)
        grown.save_pretrained(tmp_path / str(number))
        saved = json.loads((tmp_path / str(number) / "generation_config.json").read_text())
        assert "temperature" not in saved and saved["eos_token_id"] == 1
    assert live.generation_config.temperature == 0.9
    grow_checkpoint(source, tmp_path / "streamed", hidden_size=64)
    AutoModelForCausalLM.from_pretrained(tmp_path / "streamed").save_pretrained(tmp_path / "again")
