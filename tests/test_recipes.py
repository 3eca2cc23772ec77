"""Every recipe is read by the strict parser and trains for two steps with a small stand-in for its model and data."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import enable_progress_bars
from transformers.utils.logging import enable_progress_bar

from hf_warmscale.cli.entry import make_parser
from hf_warmscale.training.recipe.configuration import read_configuration
from hf_warmscale.training.recipe.run import train
from tests.cli.workspace import make_workspace
from tests.test_package import ROOT

RECIPES = sorted(
    path.relative_to(ROOT / "recipes")
    for path in (ROOT / "recipes").glob("*/*.yaml")
    if path.parent.name not in ("accelerate_configs", "reproduce")
)
STUDIES = sorted(
    path.relative_to(ROOT / "recipes" / "reproduce")
    for path in (ROOT / "recipes" / "reproduce").glob("*/*.py")
    if "study_options(__doc__)" in path.read_text("utf-8")
)
GUIDES = sorted((ROOT / "recipes").glob("*/README.md"))
TYPED = [
    pytest.param(command, id=f"{guide.parent.name}: {command[:60]}")
    for guide in GUIDES
    for command in re.findall(r"^    (?:.*-m hf_warmscale|warmscale) (.+)$", guide.read_text("utf-8"), re.MULTILINE)
]
ROUTED = {
    "model_type": "mixtral", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
}  # fmt: skip
"""Where a recipe trains a mixture of experts."""

ON_THIS_MACHINE = {
    "bf16": False,
    "max_steps": 2,
    "save_steps": 1,
    "eval_steps": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with its tokenizer, and packed rows."""
    return make_workspace(tmp_path_factory.mktemp("recipes"))


def with_stand_ins(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put the small model and rows in the places of the recipe's own; all other keys stay."""
    small = {key: value for key, value in recipe.items() if key not in ("tokenizer_name_or_path", "max_tokens")}
    if "model_config" in small:
        small["model_config"] = {
            **small["model_config"],
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
        }
        small["model_config"] |= {"num_hidden_layers": 1, "mup": {"base_hidden_size": 32}}
    elif "router_aux_loss_coef" in small:
        del small["model_name_or_path"]
        small |= {"model_config": ROUTED, "tokenizer_name_or_path": str(folder / "model")}
    else:
        small["model_name_or_path"] = str(folder / "model")
    if "layers_to_transform" in small.get("lora", {}):
        small["lora"] = {**small["lora"], "layers_to_transform": [1]}  # of two
    if "distillation" in small:
        small["distillation"] = {**small["distillation"], "teacher": str(folder / "model"), "dtype": "auto"}
    packed = str(folder / "packed")
    small["mixture"] = {
        name: {"path": packed, "weight": source["weight"]} for name, source in recipe["mixture"].items()
    }
    small["evaluation"] = dict.fromkeys(recipe["evaluation"], packed)
    return small | ON_THIS_MACHINE


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_is_read(recipe: Path, tmp_path: Path) -> None:
    text = (ROOT / "recipes" / recipe).read_text("utf-8")
    assert "# Hardware: " in text and re.search(r"Expected \((?:measured|estimate)", text)
    (tmp_path / "here.yaml").write_text(text.replace("bf16: true", "bf16: false"), encoding="utf-8")
    read_configuration(tmp_path / "here.yaml")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_trains_two_steps(recipe: Path, stand_in: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "recipes" / recipe).read_text("utf-8"))
    small = with_stand_ins(content, stand_in) | {"output_dir": str(tmp_path / "run")}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    trainer = train(tmp_path / "small.yaml")
    assert trainer.state.global_step == 2
    assert (tmp_path / "run" / "checkpoint-2" / "stage.json").is_file()


@pytest.mark.parametrize("command", TYPED)
def test_command_of_a_recipe_is_understood(command: str) -> None:
    assert make_parser().parse_args(shlex.split(command)).run is not None


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 8 and len(TYPED) >= 20 and len(STUDIES) >= 6


def test_the_ladder_is_tuned_on_the_model_that_it_trains() -> None:
    """`mup transfer` takes a config.json, `train` the same fields in its recipe."""
    folder = ROOT / "recipes" / "mup-ladder"
    tuned = json.loads((folder / "config.json").read_text("utf-8"))
    trained = yaml.safe_load((folder / "base.yaml").read_text("utf-8"))["model_config"]
    assert tuned == {"model_type": "granite", **trained}


@pytest.fixture
def bars() -> Iterator[None]:
    """Scripts of studies turn progress bars off; turn them on again."""
    yield
    enable_progress_bar()
    enable_progress_bars()


@pytest.mark.parametrize("script", STUDIES, ids=str)
@pytest.mark.usefixtures("bars")
def test_the_runs_of_a_study_are_listed(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "recipes" / "reproduce" / script
    folders = [str(tmp_path / name) for name in ("corpora", "work", "output")]
    options = [word for pair in zip(("--corpora", "--work", "--output"), folders, strict=True) for word in pair]
    monkeypatch.setattr(sys, "argv", [str(path), *options, "--list"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    for module in path.parent.glob("*.py"):  # every study has a `runs`
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and all(line.startswith("to run  ") for line in lines)
    assert not list(tmp_path.iterdir())
