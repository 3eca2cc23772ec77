"""A checkpoint that is being written is not a checkpoint, and does not reach the Hub."""

import inspect
from pathlib import Path

from huggingface_hub.utils._paths import filter_repo_objects
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_warmscale.training.saving import publish_checkpoint, staging_of


def test_a_published_checkpoint_replaces_an_older_one_of_its_name(tmp_path: Path) -> None:
    for content in ("first", "second"):
        staging = staging_of(tmp_path) / "checkpoint-5"
        staging.mkdir(parents=True)
        (staging / "weights").write_text(content)
        assert get_last_checkpoint(str(tmp_path)) in (None, str(tmp_path / "checkpoint-5"))
        assert (publish_checkpoint(tmp_path, "checkpoint-5") / "weights").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_uploads_of_trainer_leave_the_staging_folder_out(tmp_path: Path) -> None:
    ignored = "_*"
    assert f'"{ignored}"' in inspect.getsource(Trainer._push_from_checkpoint)
    file = (staging_of(tmp_path) / "checkpoint-5" / "model.safetensors").relative_to(tmp_path)
    assert list(filter_repo_objects([str(file), "model.safetensors"], ignore_patterns=[ignored])) == [
        "model.safetensors"
    ]
