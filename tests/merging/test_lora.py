"""Adapters of one base, merged through their products."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hf_warmscale.checkpoints import open_checkpoint, save_model
from hf_warmscale.merging import search_merge
from hf_warmscale.merging.lora import AdapterSource
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer

# peft 0.21 asks transformers for the old name of activation checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.arange(2, 22)[None]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(tiny_llama(), tmp_path / "base", tokenizer=tiny_tokenizer())
    return tmp_path / "base"


def adapter(base: Path, folder: Path, seed: int, **settings: object) -> Path:
    """An adapter whose both factors are random."""
    targets = {"target_modules": ["q_proj", "down_proj"], "r": 2 + seed, "lora_alpha": 3}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(targets | settings)))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> list[Path]:
    return [adapter(base, tmp_path / f"adapter-{seed}", seed) for seed in (1, 2)]


def logits_of_cat(base: Path, adapters: list[Path], weights: list[float]) -> Tensor:
    """What peft's exact combination gives."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapters[0]), adapter_name="0")
    for index, folder in enumerate(adapters[1:], start=1):
        model.load_adapter(str(folder), adapter_name=str(index))
    names = [str(index) for index in range(len(adapters))]
    model.base_model.add_weighted_adapter(names, weights, "merged", combination_type="cat")  # type: ignore[operator]
    model.set_adapter("merged")
    logits: Tensor = model.eval()(IDS).logits
    return logits.detach()


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.3, 0.6], [1.0, 1.0], [0.0, 0.0]])
def test_a_merge_is_exact(weights: list[float], base: Path, adapters: list[Path]) -> None:
    source = AdapterSource(adapters, CPU)
    source.combine((0.7, 0.1))  # nothing of an earlier merge stays
    source.combine(weights)
    expected = (
        logits_of_cat(base, adapters, weights)
        if any(weights)
        else AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    )
    torch.testing.assert_close(source.model.eval()(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_what_is_written_is_a_stock_model(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    AdapterSource(adapters, CPU).write(tmp_path / "out", (0.3, 0.6), max_shard_size="5GB")
    assert open_checkpoint(tmp_path / "out").specs == open_checkpoint(base).specs
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(logits, logits_of_cat(base, adapters, [0.3, 0.6]), rtol=1e-5, atol=1e-5)


def test_the_search(adapters: list[Path], splits: tuple[list[str], list[str]], tmp_path: Path) -> None:
    select, confirm = (part[:20] for part in splits)
    result = search_merge(
        adapters, select=select, confirm=confirm, space="lora", n_trials=4, max_length=64, output=tmp_path / "out"
    )
    assert result.study is not None
    assert " of 2 " in result.verdict and "adapter " in result.verdict
    assert [trial.user_attrs.get("start") for trial in result.study.trials][:3] == ["1", "0+1", "0"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"
    record = json.loads((tmp_path / "out" / "merge_result.json").read_text())
    assert record["base"]["source"] == "./base"
    assert record["base"]["sha256"] == open_checkpoint(tmp_path / "base").content_hash()
    assert [each["source"] for each in record["inputs"]] == [f"./{folder.name}" for folder in adapters]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "has use_dora set, so it is more than a low-rank product"),
        ({"bias": "lora_only"}, "changes its base in other ways too"),
        ({"init_lora_weights": "pissa"}, "changes its base in other ways too"),
        ({"modules_to_save": ["norm"]}, "has modules_to_save set"),
    ],
)
def test_more_than_a_product(
    settings: dict[str, object], message: str, base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    other = adapter(base, tmp_path / "other", 3, **settings)
    with pytest.raises(ValueError, match=message):
        AdapterSource([adapters[0], other], CPU)


def test_nan(base: Path, adapters: list[Path]) -> None:
    """In an adapter, and in their base."""
    for file in (adapters[1] / "adapter_model.safetensors", base / "model.safetensors"):
        whole = file.read_bytes()
        tensors = load_file(file)
        name = sorted(tensors)[-1]
        tensors[name].flatten()[0] = torch.nan
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"{name} of .*{file.parent.name} holds NaN"):
            AdapterSource(adapters, CPU).check()
        file.write_bytes(whole)


def test_another_base(adapters: list[Path], tmp_path: Path) -> None:
    save_model(tiny_llama(seed=1), tmp_path / "second")
    other = adapter(tmp_path / "second", tmp_path / "other", 1)
    with pytest.raises(ValueError, match="have different bases"):
        AdapterSource([adapters[0], other], CPU)


def test_a_model_folder_is_no_adapter(base: Path, adapters: list[Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        AdapterSource([adapters[0], base], CPU)
