"""A budget and a frontier at the shell: what is written, what is shown, and that it loads."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_warmscale.cli import main


def test_a_budget_is_met(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text((workspace / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    output, held_out = tmp_path / "small", str(workspace / "held-out.jsonl")
    command = ["shrink", str(workspace / "model"), str(output), "--memory", "120KB", "--calibration", str(texts)]
    storage = ["--trials", "4", "--storage", str(tmp_path / "journal.json")]
    assert main([*command, "--eval-data", held_out, *storage]) == 0
    shown = capsys.readouterr().out
    assert "\n  * " in shown and "depth only" in shown and "Next:" in shown
    found = json.loads((output / "budget_search.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(output)
    assert 4 * model.num_parameters() == found["winner"]["spent"] <= 120_000
    assert json.loads((output / "shrink_receipt.json").read_text())["parameters"] == model.num_parameters()
    assert len(json.loads((tmp_path / "journal.json").read_text())["candidates"]) == 4
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (output, workspace / "model")]
    assert vocabularies[0] == vocabularies[1]
    assert (output / "budget_search.png").read_bytes().startswith(b"\x89PNG")


def test_a_frontier_is_shown_and_written(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "frontier"
    command = ["compress", str(workspace / "model"), "--bits", "8", "3", "--sparsities", "0", "0.5"]
    assert main([*command, "--eval-data", str(workspace / "held-out.jsonl"), "--output", str(output)]) == 0
    assert "stored" in capsys.readouterr().out
    rows = json.loads((output / "frontier.json").read_text())["rows"]
    assert [(row["bits"], row["sparsity"]) for row in rows] == [(None, 0), (8, 0), (3, 0), (8, 0.5), (3, 0.5)]
    assert sorted(path.name for path in output.iterdir()) == ["frontier.json", "frontier.png"]
