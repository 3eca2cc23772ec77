"""A model is loaded whole, or refused in one sentence: nothing is filled with random numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_warmscale.checkpoints import load_config, load_model, require_model
from tests.checkpoints.tiny import tiny_folder

FILE = "model.safetensors"


def test_the_model_is_the_stored_one(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    model = load_model(folder)
    stored = require_model(folder)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.tensors())
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_config(folder).vocab_size == load_config(folder / "config.json").vocab_size == model.config.vocab_size


def test_a_missing_tensor_is_not_made_up(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    tensors = load_file(folder / FILE)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / FILE)
    with pytest.raises(ValueError, match=r"lacks the tensor model\.norm\.weight"):
        load_model(folder)


def test_what_is_not_finite_is_refused_unless_that_is_known(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    tensors = load_file(folder / FILE)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight of .* holds NaN"):
        load_model(folder)
    assert load_model(folder, finite=False).model.norm.weight[0].isnan()


def test_folders_that_hold_something_else_say_what(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; the folder is empty"):
        require_model(folder)
    (folder / "model-Q4.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds model-Q4\.gguf, a file for llama\.cpp"):
        load_config(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it holds an adapter; merge it into its base model"):
        require_model(folder)


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    shutil.copy(path, tmp_path / "own.json")
    (tmp_path / "own.json").write_text(json.dumps({**config, "hidden_size": "many"}))
    with pytest.raises(ValueError, match=r"own\.json cannot be used: .*hidden_size"):
        load_config(tmp_path / "own.json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"The config\.json of .* cannot be used"):
        load_config(folder)
