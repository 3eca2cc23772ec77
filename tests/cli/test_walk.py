"""The verbs, one after the other, as a user types them; the merge is the command that the training printed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_warmscale.cli import main
from tests.cli.shell import warmscale
from tests.hub.server import TOKEN, hub_server


@pytest.fixture
def here(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of one's own, as the current folder."""
    folder = shutil.copytree(workspace, tmp_path / "walk")
    monkeypatch.chdir(folder)
    return folder


class Shell:
    """Type commands in this process, which has torch loaded already."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, command: str) -> str:
        """Return what a command that succeeds prints on standard output."""
        self._capsys.readouterr()
        code = main(command.split())
        printed = self._capsys.readouterr()
        assert code == 0, printed.err
        assert "Next:" in printed.out
        return printed.out


def test_from_a_small_model_to_the_hub(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = Shell(capsys)

    grown = typed("grow model large --hidden-size 64 --verify")
    assert re.search(r"hidden_size +32 +64", grown) and "largest logit difference" in grown
    assert json.loads((here / "large/growth_receipt.json").read_text())["width"] == "clone"

    packed = typed("data pack train.jsonl rows --tokenizer large --sequence-length 24")
    assert json.loads((here / "rows/pack.json").read_text())["documents"] == 30
    assert re.search(r"\n +30 ", packed)

    drawn = typed("train stage.yaml --show-schedule lr.png --max_steps 10")
    assert re.search(r"constant +10 +0.01", drawn)
    assert (here / "lr.png").read_bytes().startswith(b"\x89PNG")

    trained = typed("train stage.yaml --model_name_or_path large")
    assert re.search(r"steps +4 +\n", trained) and "eval_sayings_loss" in trained
    following = re.search(r"Next: +warmscale (merge run/checkpoint-2 run/checkpoint-4 --output) MERGED", trained)
    assert following

    assert typed(f"{following[1]} average").count("0.5") == 2
    searched = typed(f"{following[1]} found --eval-data held-out.jsonl --trials 5")
    assert "held-out" in searched and "erge: " in searched
    assert "Before and after" in (here / "found" / "README.md").read_text()

    assert "lm_head" in typed("mup export found llama")
    same_logits(here / "found", here / "llama")


def test_push_to_a_hub(workspace: Path, tmp_path: Path) -> None:
    """In a process of its own: where the Hub is, is read when its client is imported."""
    with hub_server() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        done = warmscale("push", "model", "me/sayings", cwd=workspace, HF_HOME=str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    assert "me/sayings" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def same_logits(one: Path, other: Path) -> None:
    """Both are stock models with the same logits."""
    tokens = torch.tensor([AutoTokenizer.from_pretrained(one)("The pen is gold.")["input_ids"]])
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (one, other)]
    torch.testing.assert_close(*logits, rtol=0, atol=2e-5)


def test_explain_gives_a_reason_for_every_group(workspace: Path) -> None:
    """In a process of its own: how wide a terminal is, rich finds out when it is imported."""
    done = warmscale("mup", "explain", "model", cwd=workspace, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "lr: η/m_in = 0.5" in done.stdout
    assert "sums over a growing axis" in done.stdout


STUDIES = {"check": ["--lr", "0.01", "--steps", "2"], "transfer": ["--log2-lrs", "-9", "-8", "-7", "--steps", "2"]}


@pytest.mark.parametrize("study", STUDIES)
def test_studies_run(study: str, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / study
    command = ["mup", study, str(workspace / "model"), "--data", str(workspace / "packed"), "--output", str(output)]
    assert main([*command, *STUDIES[study], "--widths", "32", "64", "--seeds", "1", "--rules", "completep"]) == 0
    assert "completep" in capsys.readouterr().out
    assert [*output.glob("*.json")] and [*output.glob("*.png")] and [*output.rglob("runs/*.json")]
