"""A combination is saved as the names of its members; no weights are written but those of adapters."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from tests.decoding.tiny import log_probs, members, tokens


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Return the folders of a large base, a small base and a small tuned model."""
    paths = [tmp_path / name for name in ("large", "small", "tuned")]
    for path, model in zip(paths, members(), strict=True):
        model.save_pretrained(path)
    return paths


def assert_same(one: nn.Module, two: nn.Module) -> None:
    torch.testing.assert_close(log_probs(one, tokens()), log_probs(two, tokens()), rtol=0, atol=0)


def test_by_name(folders: list[Path], tmp_path: Path) -> None:
    large, small, tuned = folders
    model = EmulatedFineTuningForCausalLM.from_members(
        large, [tuned, small], small, weights=[0.7, 0.2], beta=1.25, upscale_top_p=0.9, dtype=torch.float64
    )
    assert model.tuned[1] is model.reference  # what occurs twice is loaded once
    model.generation_config.eos_token_id = 7
    model.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "combination_receipt.json",
        "config.json",
        "generation_config.json",
    ]
    loaded = EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(loaded, model)
    assert (loaded.config.weights, loaded.config.beta, loaded.config.upscale_top_p) == ([0.7, 0.2], 1.25, 0.9)
    assert loaded.generation_config.eos_token_id == 7
    assert loaded.tuned[1] is loaded.reference
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), model)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "out" / "config.json").read_text()


def test_live_models_are_saved_by_the_folders_they_came_from(folders: list[Path], tmp_path: Path) -> None:
    large, small, tuned = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    model = EmulatedFineTuningForCausalLM(large, tuned, small)
    model.save_pretrained(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["members"]["base"] == {"name_or_path": str(folders[0].resolve())}
    assert "text_config" not in content
    assert_same(EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "out"), model)


@pytest.mark.parametrize("by_folder", [False, True])
def test_an_adapter_is_saved_beside_the_names(folders: list[Path], tmp_path: Path, by_folder: bool) -> None:
    large, small, _ = folders
    base = AutoModelForCausalLM.from_pretrained(small)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.eval().save_pretrained(str(tmp_path / "adapter"))
    if by_folder:
        model = EmulatedFineTuningForCausalLM.from_members(large, tmp_path / "adapter")
    else:
        model = EmulatedFineTuningForCausalLM(AutoModelForCausalLM.from_pretrained(large), adapted)
    model.save_pretrained(tmp_path / "out")
    loaded = EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(loaded.tuned[0], PeftModel) and loaded.reference is loaded.tuned[0]
    assert_same(loaded, model)
    assert [path.name for path in (tmp_path / "out").rglob("*.safetensors")] == ["adapter_model.safetensors"]


@pytest.fixture
def repository(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of `someone/small`: its branch `tuned` is the tuned model, `main` the small base."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--small"
    for revision, folder in {"a" * 40: folders[1], "b" * 40: folders[2]}.items():
        target = repository / "snapshots" / revision
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    (repository / "refs").mkdir()
    for name, revision in {"main": "a", "tuned": "b"}.items():
        (repository / "refs" / name).write_text(40 * revision, encoding="utf-8")
    return repository


def test_a_revision_is_kept(folders: list[Path], repository: Path, tmp_path: Path) -> None:
    model = EmulatedFineTuningForCausalLM.from_members(folders[0], "someone/small@tuned", "someone/small")
    model.save_pretrained(tmp_path / "out")
    (repository / "refs" / "tuned").write_text(40 * "a", encoding="utf-8")  # the branch moves on
    assert_same(EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "out"), model)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| tuned | `someone/small` | {40 * 'b'} |" in card and "base_model:\n- someone/small\n" in card
    assert str(tmp_path) not in card


def test_the_revision_of_an_adapters_base_is_kept(folders: list[Path], repository: Path, tmp_path: Path) -> None:
    """As peft records it: the base of the adapter is loaded at that revision, alone and in a combination."""
    base = AutoModelForCausalLM.from_pretrained(repository / "snapshots" / (40 * "b"))
    base.name_or_path = "someone/small"  # what peft takes for the name
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", revision="tuned")
    adapted = get_peft_model(base, config).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    live = EmulatedFineTuningForCausalLM(AutoModelForCausalLM.from_pretrained(folders[0]), adapted)
    loaded = EmulatedFineTuningForCausalLM.from_members(folders[0], tmp_path / "adapter")
    for name, model in {"live": live, "loaded": loaded}.items():
        model.save_pretrained(tmp_path / name)
        assert_same(EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / name), live)
    content = json.loads((tmp_path / "loaded" / "config.json").read_text())
    (tuned,) = content["members"]["tuned"]
    assert tuned == {"name_or_path": "someone/small", "revision": 40 * "b", "adapter": "tuned"}


def test_what_has_no_name_is_refused(folders: list[Path], tmp_path: Path) -> None:
    base, reference, tuned = members()
    with pytest.raises(ValueError, match=r"^The base model was built in memory, so it could not be loaded again"):
        EmulatedFineTuningForCausalLM(base, tuned, reference).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        EmulatedFineTuningForCausalLM.from_members(tmp_path / "nothing", folders[2], folders[1])
    model = EmulatedFineTuningForCausalLM.from_members(folders[0], folders[2], folders[1])
    model.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text('{"model_type": "emulated_fine_tuning"}')
    with pytest.raises(ValueError, match=r"names no members in its config\.json"):
        EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "out")


def test_a_member_that_moved_is_named(folders: list[Path], tmp_path: Path) -> None:
    models: list[PreTrainedModel] = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    EmulatedFineTuningForCausalLM(models[0], models[2], models[1]).save_pretrained(tmp_path / "out")
    folders[2].rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"There is no folder {folders[2]}"):
        EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "out")
