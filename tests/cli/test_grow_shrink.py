"""`warmscale grow` and `warmscale shrink`: there and back, and what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

from hf_warmscale.cli import main
from tests.cli.shell import assert_sentence, files_below
from tests.cli.test_refusals import poison

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def here(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(workspace, tmp_path / "resize")
    monkeypatch.chdir(folder)
    return folder


def test_there_and_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grow = "grow model large --hidden-size 64 --num-hidden-layers 3 --depth identity"
    assert main(grow.split()) == 0
    assert main(["shrink", "large", "back"]) == 0
    printed = capsys.readouterr().out
    assert "-fold by clone and identity\n" in printed
    assert "by the receipt of its growth" in printed and "largest logit difference" in printed
    assert json.loads((here / "back/shrink_receipt.json").read_text())["how"] == "receipt"
    before, after = (load_file(folder / "model.safetensors") for folder in (here / "model", here / "back"))
    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) <= 1e-7
    assert not (here / "back/growth_receipt.json").exists()
    assert (here / "back/tokenizer.json").exists()


def test_by_calibration(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "shrink model small --num-hidden-layers 1 --intermediate-size 32 --calibration text.txt"
    (here / "text.txt").write_text("The pen is mightier than the sword. " * 20, encoding="utf-8")
    assert main(command.split()) == 0
    assert "most important coordinates on calibration text" in capsys.readouterr().out
    receipt = json.loads((here / "small/shrink_receipt.json").read_text())
    assert receipt["calibration_tokens"] > 100
    assert receipt["layers"] == [int(torch.tensor(receipt["block_influence"]).argmax())]
    (here / "text.jsonl").write_text(json.dumps({"text": (here / "text.txt").read_text()}) + "\n", encoding="utf-8")
    assert main(command.replace("small", "alike").replace(".txt", ".jsonl").split()) == 0
    alike = json.loads((here / "alike/shrink_receipt.json").read_text())
    assert alike["block_influence"] == receipt["block_influence"]


def test_experts_at_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense_llama().save_pretrained(here / "dense")
    grow = "grow dense mixture --num-experts 4 --hidden-size 64 --snr-db none --verify"
    assert main(grow.split()) == 0
    printed = capsys.readouterr().out
    assert "num_experts" in printed and "largest logit difference" in printed
    receipt = json.loads((here / "mixture/growth_receipt.json").read_text())
    assert (receipt["experts"], receipt["snr_db"], receipt["exact"]) == (4, None, True)
    assert receipt["verification"]["max_abs_logit_difference"] <= receipt["verification"]["rounding"]
    assert AutoConfig.from_pretrained(here / "mixture").model_type == "mixtral"


def test_a_probe_longer_than_the_model_is_cut(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2 has no more positions than it says, and a tokenizer warns of what is longer."""
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=24)).save_pretrained(
        here / "short"
    )
    for path in (here / "model").glob("tokenizer*"):
        shutil.copy(path, here / "short")
    settings = json.loads((here / "short/tokenizer_config.json").read_text())
    (here / "short/tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 24}))
    assert main(["grow", "short", "out", "--vocab-size", "320", "--verify"]) == 0
    assert main(["shrink", "out", "back"]) == 0
    printed = capsys.readouterr()
    assert "Measured on 24 tokens" in printed.out
    assert "longer" not in printed.err


def test_what_is_not_exact_is_said_at_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OlmoForCausalLM(OlmoConfig(**SIZES)).save_pretrained(here / "olmo")  # its norms have no gain to rescale
    assert main(["grow", "olmo", "out", "--hidden-size", "48", "--width", "zero_pad"]) == 0
    assert "cannot here: a tiny olmo model" in capsys.readouterr().err
    assert not json.loads((here / "out/growth_receipt.json").read_text())["exact"]


REFUSALS = {
    "grow model out --hidden-size 16": ["hidden_size", "shrink"],
    "grow model out --num-attention-heads 5": ["heads", "key-value"],
    "grow model out --hidden-size 80": ["clone", "zero_pad"],
    "grow model out": ["at least one that grows"],
    "grow model out --width szp --hidden-size 64 --shrink 2": ["above 0 and at most 1"],
    "grow model out --hidden-size 64 --snr-db nan": ["snr_db is nan"],
    "grow model out --hidden-size 64 --snr-db inf": ["snr_db is inf"],
    "grow model out --hidden-size 64 --snr-db loud": ["'loud' is neither a number of decibels"],
    "grow model out --num-hidden-layers 3 --depth dus": ["even number"],
    "grow gpt2 out --num-key-value-heads 2": ["gpt2", "no num_key_value_heads"],
    "grow gpt2 out --num-experts 4": ["gpt2", "mixture of experts", "mistral"],
    "grow mixture out --num-experts 8": ["number of experts", "from 4 to 8"],
    "grow dense out --num-experts 1": ["num_experts is 1", "more experts"],
    "grow poisoned out --hidden-size 64": ["model.norm.weight", "NaN"],
    "shrink poisoned out --hidden-size 16": ["model.norm.weight", "NaN"],
    "shrink mixture out": ["at least one that shrinks"],
    "shrink gpt2 out --num-key-value-heads 2": ["gpt2", "no num_key_value_heads"],
    "shrink model out --hidden-size 64": ["hidden_size", "grow"],
    "shrink model out": ["at least one that shrinks"],
    "shrink none out --hidden-size 16": ["none"],
    "shrink model packed --hidden-size 16": ["packed", "not empty"],
    "shrink model out --hidden-size 16 --calibration none.txt": ["none.txt"],
    "shrink model out --num-attention-heads 3": ["shared evenly"],
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refused(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(command.split()[1], here)
    before = files_below(here)
    code = main(command.split())
    assert_sentence(code, capsys.readouterr(), *REFUSALS[command])
    assert files_below(here) == before


def make_source(name: str, folder: Path) -> None:
    """Save the model that a command names, if the workspace does not have it."""
    if name == "gpt2":
        GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)).save_pretrained(folder / name)
    elif name == "dense":
        dense_llama().save_pretrained(folder / name)
    elif name == "mixture":
        config = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
        MixtralForCausalLM(config).save_pretrained(folder / name)
    elif name == "poisoned":
        shutil.copytree(folder / "model", folder / name)
        poison(folder / name / "model.safetensors")


def dense_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES))
