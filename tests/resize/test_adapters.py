"""A LoRA adapter grows with its model, and block expansion trains the new blocks alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.architecture import StayInFloat64
from hf_warmscale.resize import freeze_old_blocks, grow_adapter, grow_checkpoint, grow_from_pretrained
from tests.conftest import perturb
from tests.resize.families import FAMILIES, random_model, tokens

GROWTHS: dict[str, dict[str, Any]] = {
    "clone": {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 3, "depth": "identity"},
    "zero_pad": {"hidden_size": 48, "intermediate_size": 56, "width": "zero_pad"},
}


def with_adapter(model: PreTrainedModel, targets: str | list[str] = "all-linear") -> PeftModel:
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    perturb(adapted, std=0.05)
    return adapted.double().eval()


ONE_BLOCK = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize(("family", "targets"), [("llama", "all-linear"), ("opt", "all-linear"), ("llama", ONE_BLOCK)])
def test_model_and_adapter_compute_what_they_did(family: str, targets: str | list[str], tmp_path: Path) -> None:
    adapted = with_adapter(random_model(FAMILIES[family](True)), targets)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad(), StayInFloat64():
        expected = adapted(input_ids=tokens()).logits
    adapted.unload().save_pretrained(tmp_path / "source")
    for name, growth in GROWTHS.items():
        if family == "opt":
            growth = {**growth, "hidden_size": 64} | {"num_attention_heads": None}
        grow_checkpoint(tmp_path / "source", tmp_path / name, **growth)
        grow_adapter(tmp_path / "adapter", tmp_path / "source", tmp_path / name, tmp_path / f"{name}-adapter")
        grown = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64)
        large = PeftModel.from_pretrained(grown, tmp_path / f"{name}-adapter").double().eval()
        with torch.no_grad(), StayInFloat64():
            found = large(input_ids=tokens()).logits
        assert float((found - expected).abs().max()) <= 1e-11, name


def test_refused(tmp_path: Path) -> None:
    source = random_model(FAMILIES["llama"](True))
    source.save_pretrained(tmp_path / "source")
    grow_checkpoint(tmp_path / "source", tmp_path / "grown", hidden_size=64)
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        grow_adapter(tmp_path, tmp_path / "source", tmp_path / "grown", tmp_path / "out")
    get_peft_model(source, LoraConfig(r=2, target_modules=["embed_tokens"])).save_pretrained(str(tmp_path / "lookup"))
    with pytest.raises(ValueError, match="not a LoRA of a linear layer"):
        grow_adapter(tmp_path / "lookup", tmp_path / "source", tmp_path / "grown", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_new_blocks_train(family: str) -> None:
    source = random_model(FAMILIES[family](True))
    grown = grow_from_pretrained(source, num_hidden_layers=12, depth="identity", verify=False)
    names = freeze_old_blocks(grown)
    new = set(grown.config.to_dict()["growth"]["new_layers"])
    assert len(new) == 10
    assert {int(next(part for part in name.split(".") if part.isdigit())) for name in names} == new
    assert names == [name for name, parameter in grown.named_parameters() if parameter.requires_grad]
    grown(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is None for name, parameter in grown.named_parameters() if name not in names)
    with pytest.raises(ValueError, match="no inserted blocks"):
        freeze_old_blocks(source)
