"""A budget and a frontier at the shell: what is written, what is shown, and that it loads."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_warmscale import shrink_from_pretrained
from hf_warmscale.cli import main
from hf_warmscale.compression import RecipeHealing
from tests.cli.shell import assert_sentence


def test_a_budget_is_met(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text((workspace / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    output, held_out = tmp_path / "small", str(workspace / "held-out.jsonl")
    command = ["shrink", str(workspace / "model"), str(output), "--memory", "120KB", "--calibration", str(texts)]
    storage = ["--trials", "4", "--storage", str(tmp_path / "journal.json")]
    assert main([*command, "--eval-data", held_out, *storage]) == 0
    shown = capsys.readouterr().out
    assert "\n  * " in shown and "depth only" in shown
    assert shlex.split(shown.split("Next:")[1])[-1] == json.dumps({"teacher": str(workspace / "model")})
    found = json.loads((output / "budget_search.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(output)
    assert 4 * model.num_parameters() == found["winner"]["spent"] <= 120_000
    assert json.loads((output / "shrink_receipt.json").read_text())["parameters"] == model.num_parameters()
    assert len(json.loads((tmp_path / "journal.json").read_text())["candidates"]) == 4
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (output, workspace / "model")]
    assert vocabularies[0] == vocabularies[1]
    assert (output / "budget_search.png").read_bytes().startswith(b"\x89PNG")


def test_adapters_that_healed_are_merged(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a model of bfloat16, which is trained in float32 as the recipe says."""
    shutil.copytree(workspace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    recipe = Path("stage.yaml").read_text(encoding="utf-8").replace("model_name_or_path: model\n", "")
    Path("heal.yaml").write_text(recipe + "lora: {r: 2, init_lora_weights: false}\n", encoding="utf-8")
    ids = torch.arange(16)[None]
    large = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16)
    student = shrink_from_pretrained(large, intermediate_size=48, calibration=ids, verify=False)
    before = student(input_ids=ids).logits
    RecipeHealing("heal.yaml", "model")(student, large)
    cut = AutoModelForCausalLM.from_pretrained("run/_cut", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(cut, "run/checkpoint-4")
    assert student.dtype == torch.bfloat16
    error = (student(input_ids=ids).logits - adapted(input_ids=ids).logits).abs().max()
    assert error < 0.1 * (student(input_ids=ids).logits - before).abs().max()


def test_a_frontier_is_shown_and_written(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "frontier"
    command = ["compress", str(workspace / "model"), "--bits", "8", "3", "--sparsities", "0", "0.5"]
    assert main([*command, "--eval-data", str(workspace / "held-out.jsonl"), "--output", str(output)]) == 0
    assert "stored" in capsys.readouterr().out
    rows = json.loads((output / "frontier.json").read_text())["rows"]
    assert [(row["bits"], row["sparsity"]) for row in rows] == [(None, 0), (8, 0), (3, 0), (8, 0.5), (3, 0.5)]
    assert sorted(path.name for path in output.iterdir()) == ["frontier.json", "frontier.png"]


def test_the_winner_is_healed_by_a_recipe_and_a_killed_healing_continues(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workspace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    recipe = Path("stage.yaml").read_text(encoding="utf-8").replace("model_name_or_path: model\n", "")
    Path("heal.yaml").write_text(recipe + "save_strategy: steps\n", encoding="utf-8")
    command = "shrink model healed --memory 120KB --calibration train.jsonl --eval-data held-out.jsonl --trials 2"
    heal = [*command.split(), "--storage", "journal.json", "--heal", "heal.yaml"]
    briefly = ["--finalists", "2", "--finalist-steps", "1"]
    with monkeypatch.context() as killed, pytest.raises(SystemExit):
        killed.setattr(RecipeHealing, "__call__", lambda *models: sys.exit("killed before the winner is healed"))
        main([*heal, *briefly])
    assert len(list(Path("run/_finalists").glob("*/checkpoint-1"))) == 2 and not Path("healed").exists()
    capsys.readouterr()
    assert main([*heal, *briefly]) == 0
    shown = capsys.readouterr().out
    assert not Path("run/_finalists").exists() and not list(Path("run").glob(".*"))
    assert "briefly" in shown and "winner, healed" in shown and "Next:    warmscale push healed" in shown
    first, cut = (load_file(Path(folder) / "model.safetensors") for folder in ("healed", "run/_cut"))
    assert not all(torch.equal(weight, cut[name]) for name, weight in first.items())
    for lost in ("healed", "run/checkpoint-4"):  # as after a kill
        shutil.rmtree(lost)
    assert main([*heal, *briefly]) == 0
    assert all(torch.equal(weight, first[name]) for name, weight in load_file("healed/model.safetensors").items())
    for name in ("shrink_receipt.json", "stage.json", "budget_search.json", "budget_search.png", "tokenizer.json"):
        assert (Path("healed") / name).is_file()
    healed = json.loads(Path("healed/budget_search.json").read_text())["healed"]
    assert healed["minus_unhealed"]["estimate"] != 0
    capsys.readouterr()
    other = [word.replace("120KB", "110KB").replace("healed", "other") for word in heal if "journal" not in word]
    other.remove("--storage")
    assert_sentence(main(other), capsys.readouterr(), "run holds the healing of another cut", "output_dir")
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--heal heal.yaml", "--heal is for a search under a budget"),
        ("--finalists 2 --hidden-size 16", "--finalists is for a search under a budget"),
        ("--parameters 1M --hidden-size 16", "--hidden-size names a size, and a budget searches sizes"),
        ("--parameters 1M --calibration a.txt", "A budget needs text for --eval-data"),
        ("--parameters 1M --calibration a.txt --eval-data b.txt --finalists 2", "add --heal CONFIG.yaml"),
        ("--parameters 1M --calibration a.txt --eval-data b.txt --finalist-steps 2", "add --finalists 4"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["shrink", "model", "never", *options.split()])
    assert_sentence(code, capsys.readouterr(), sentence)
    assert not Path("never").exists()
