"""A grown model is written as its family writes it, from memory or streamed: names, dtypes, bits and config."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.resize import grow_checkpoint, grow_from_pretrained, shrink_checkpoint, shrink_from_pretrained
from tests.resize.families import FAMILIES, random_model

WRITTEN = ("llama", "mixtral", "gpt_neox", "gpt2", "gemma2", "phi3", "qwen3", "opt")
GROWTH: Mapping[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "depth": "identity"}


def layout(folder: Path) -> dict[str, str]:
    """Return the dtype and shape of every stored tensor by name."""
    return {name: str(spec) for name, spec in open_checkpoint(folder).specs.items()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def own_files(folder: Path) -> Path:
    """Save a fresh model of the config in a folder, as its family does."""
    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM.from_config(config, dtype=config.dtype).save_pretrained(folder / "own")
    return folder / "own"


def assert_same_files(one: Path, other: Path) -> None:
    assert layout(one) == layout(other)
    bits = stored(other)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in stored(one).items())
    assert config_of(one) == config_of(other)


@pytest.mark.parametrize("family", WRITTEN)
def test_memory_stream_and_family_write_alike(family: str, tmp_path: Path) -> None:
    random_model(FAMILIES[family](False), dtype=torch.float32).save_pretrained(tmp_path / "source")
    grow_checkpoint(tmp_path / "source", tmp_path / "streamed", **GROWTH)
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    for source in (tmp_path / "source", live):
        grow_from_pretrained(source, **GROWTH, verify=False).save_pretrained(tmp_path / "memory")
        assert layout(tmp_path / "memory") == layout(tmp_path / "streamed")
        bits = stored(tmp_path / "streamed")
        assert all(torch.equal(tensor, bits[name]) for name, tensor in stored(tmp_path / "memory").items())
    assert layout(own_files(tmp_path / "streamed")) == layout(tmp_path / "streamed")
    grow_from_pretrained(tmp_path / "source", **GROWTH, verify=False).save_pretrained(tmp_path / "memory")
    assert config_of(tmp_path / "memory") == config_of(tmp_path / "streamed")
    assert config_of(tmp_path / "streamed")["architectures"] == [type(live).__name__]


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_so_do_mixtures_of_equal_experts(family: str, tmp_path: Path) -> None:
    """Files hold one matrix for each expert, as other engines read them, and config names the class."""
    random_model(FAMILIES[family](True), dtype=torch.float32).save_pretrained(tmp_path / "source")
    grow_checkpoint(tmp_path / "source", tmp_path / "streamed", num_experts=4)
    grown = grow_from_pretrained(tmp_path / "source", num_experts=4, verify=False)
    grown.save_pretrained(tmp_path / "memory")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")
    assert layout(own_files(tmp_path / "streamed")) == layout(tmp_path / "streamed")
    assert config_of(tmp_path / "streamed")["architectures"] == [type(grown).__name__]
    assert any(".experts.3." in name for name in layout(tmp_path / "memory"))


def mixed(folder: Path, family: str) -> PreTrainedModel:
    """Save a model in bfloat16 whose norms are float32 and whose embedding is float16."""
    model = random_model(FAMILIES[family](True), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32)
    embedding = model.get_parameter(f"{_table(model)}.weight")
    embedding.data = torch.randn_like(embedding).half()
    model.save_pretrained(folder)
    return model


def _table(model: PreTrainedModel) -> str:
    return next(str(name) for name, module in model.named_modules() if module is model.get_input_embeddings())


WAYS: Mapping[str, tuple[Callable[..., Any], Callable[..., PreTrainedModel], Mapping[str, Any]]] = {
    "grow": (grow_checkpoint, grow_from_pretrained, {"hidden_size": 64}),
    "szp": (grow_checkpoint, grow_from_pretrained, {"hidden_size": 64, "width": "szp"}),
    "one dtype": (grow_checkpoint, grow_from_pretrained, {"hidden_size": 64, "dtype": torch.bfloat16}),
    "shrink": (shrink_checkpoint, shrink_from_pretrained, {"hidden_size": 16, "verify": False}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_mixed_dtypes_stay_as_they_are(family: str, way: str, tmp_path: Path) -> None:
    """Memory, whether the source is live or stored, and stream give the same bits in the same dtypes."""
    on_disk, in_memory, arguments = WAYS[way]
    if way == "shrink" and family == "gpt2":
        arguments = {"num_hidden_layers": 1, "verify": False}
    model = mixed(tmp_path / "source", family)
    on_disk(tmp_path / "source", tmp_path / "streamed", **arguments)
    in_memory(tmp_path / "source", **{"verify": False, **arguments}).save_pretrained(tmp_path / "stored")
    assert_same_files(tmp_path / "stored", tmp_path / "streamed")
    kinds = {str(spec.dtype) for spec in open_checkpoint(tmp_path / "streamed").specs.values()}
    assert len(kinds) == (1 if way == "one dtype" else 3)
    if way != "shrink":  # a live model of mixed dtypes does not run, so its importance is not measured
        in_memory(model, **{"verify": False, **arguments}).save_pretrained(tmp_path / "live")
        assert layout(tmp_path / "live") == layout(tmp_path / "streamed")
        if family != "gemma2":  # the factor on the embedding of a live Gemma is that of its own buffer
            bits = stored(tmp_path / "streamed")
            assert all(torch.equal(tensor, bits[name]) for name, tensor in stored(tmp_path / "live").items())


@pytest.mark.parametrize("verify", [True, False])
def test_verified_or_not_the_bits_are_the_same(verify: bool, tmp_path: Path) -> None:
    """Verification runs in the widest dtype, and the mixed one comes back."""
    mixed(tmp_path / "source", "llama")
    grown: Any = grow_from_pretrained(tmp_path / "source", hidden_size=64, verify=verify)
    receipt = grow_checkpoint(tmp_path / "source", tmp_path / "grown", hidden_size=64, verify=verify)
    bits = stored(tmp_path / "grown")
    state = grown.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in bits.items())
    assert grown.growth_receipt == receipt.to_dict()
    if verify:
        assert receipt.verification is not None and not receipt.warnings
