"""What is grown and shrunk in memory: a stored model that is whole, or a live one that is plain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.resize import grow_checkpoint, grow_from_pretrained, shrink_from_pretrained
from tests.resize.families import FAMILIES, random_model, tokens

WAYS: dict[str, Callable[[Path | PreTrainedModel], PreTrainedModel]] = {
    "grow": lambda source: grow_from_pretrained(source, hidden_size=64),
    "shrink": lambda source: shrink_from_pretrained(source, num_hidden_layers=1),
}


def stored(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    random_model(FAMILIES[family](True), dtype=dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_weight_is_refused(way: str, tmp_path: Path) -> None:
    """transformers would draw it at random and say so in a log."""
    weights = load_file(stored(tmp_path) / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        WAYS[way](tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_no_such_source(way: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        WAYS[way](tmp_path / "nowhere")


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_inside_is_refused(way: str) -> None:
    model = random_model(FAMILIES["llama"](True))
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="merge and unload its adapters"):
        WAYS[way](model)


@pytest.mark.parametrize("way", WAYS)
def test_packed_weights_are_refused(way: str) -> None:
    model = random_model(FAMILIES["llama"](True))
    packed = torch.zeros(4, 1, dtype=torch.uint8)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match=r"up_proj\.weight of the live model is torch\.uint8"):
        WAYS[way](model)


def test_the_stored_dtype_counts(tmp_path: Path) -> None:
    """Not what the config says, so that memory and stream agree."""
    config = stored(tmp_path / "source", dtype=torch.bfloat16) / "config.json"
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    grown: Any = grow_from_pretrained(tmp_path / "source", hidden_size=64, verify=False)
    receipt = grow_checkpoint(tmp_path / "source", tmp_path / "grown", hidden_size=64)
    assert grown.dtype == torch.bfloat16
    assert grown.growth_receipt == receipt.to_dict()


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_without_a_tokenizer_random_tokens_are_compared(family: str, tmp_path: Path) -> None:
    """Of Qwen2 transformers makes a tokenizer that knows nothing."""
    source = stored(tmp_path, family)
    grown: Any = WAYS["grow"](source)
    assert grown.growth_receipt["verification"]["tokens"] == 128
    with pytest.raises(ValueError, match="has no tokenizer that transformers can load"):
        shrink_from_pretrained(source, num_hidden_layers=1, calibration=["some text"])


def test_what_was_grown_in_memory_comes_from_no_file(tmp_path: Path) -> None:
    once: Any = WAYS["grow"](stored(tmp_path))
    twice: Any = grow_from_pretrained(once, num_hidden_layers=4, depth="identity", verify=False)
    assert (
        once.growth_receipt["source"] == f"./{tmp_path.name}" and once.name_or_path == once.config.name_or_path == ""
    )
    assert twice.growth_receipt["source"] == "LlamaForCausalLM"


def test_the_live_gemma_is_the_stored_one(tmp_path: Path) -> None:
    """sqrt(96) is 9.8125 in bfloat16 and 9.798 in float32."""
    source = stored(tmp_path / "source", "gemma2", torch.bfloat16)
    grown = grow_from_pretrained(source, hidden_size=96, dtype=torch.float32, verify=False)
    grown.save_pretrained(tmp_path / "grown")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(grown(tokens()).logits, reloaded(tokens()).logits)


def test_what_is_not_finite_is_not_compared() -> None:
    model = random_model(FAMILIES["llama"](True), dtype=torch.float16)
    with torch.no_grad():
        model.model.norm.weight.fill_(6e4)
    with pytest.warns(UserWarning, match="not finite on the probe"):
        grown: Any = WAYS["grow"](model)
    assert grown.growth_receipt["verification"] is None
