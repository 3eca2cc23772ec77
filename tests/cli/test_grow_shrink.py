"""`warmscale grow` and `warmscale shrink`: there and back, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_warmscale.cli import main
from tests.cli.shell import assert_sentence, files_below


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
    assert "what matters on calibration text" in capsys.readouterr().out
    receipt = json.loads((here / "small/shrink_receipt.json").read_text())
    assert receipt["calibration_tokens"] > 100
    assert receipt["layers"] == [int(torch.tensor(receipt["block_influence"]).argmax())]


REFUSALS = {
    "grow model out --hidden-size 16": ["hidden_size", "shrink"],
    "grow model out --num-attention-heads 5": ["heads", "key-value"],
    "grow model out --hidden-size 80": ["clone", "zero_pad"],
    "grow model out": ["at least one that grows"],
    "grow model out --width szp --hidden-size 64 --shrink 2": ["between 0 and 1"],
    "grow model out --num-hidden-layers 3 --depth dus": ["even number"],
    "shrink model out --hidden-size 64": ["hidden_size", "grow"],
    "shrink model out": ["at least one that shrinks"],
    "shrink none out --hidden-size 16": ["none"],
    "shrink model packed --hidden-size 16": ["packed", "not empty"],
    "shrink model out --hidden-size 16 --calibration none.txt": ["none.txt"],
    "shrink model out --num-attention-heads 3": ["shared evenly"],
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refused(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(here)
    code = main(command.split())
    assert_sentence(code, capsys.readouterr(), *REFUSALS[command])
    assert files_below(here) == before
