"""A checkpoint that is damaged or incomplete is refused in one sentence that names the last good one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_warmscale.training import ContinualTrainer, Stage
from tests.training.tiny import arguments, losses, replay, tiny_model


def trainer(output: Path, **settings: object) -> ContinualTrainer:
    stage = Stage("first", "constant", replay(0.3), max_steps=6)
    return ContinualTrainer(tiny_model(), arguments(output, save_steps=2, **settings), stage=stage)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    trainer(output).train()
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Checkpoints at 2 and 4; the second one gets damaged."""
    for step in (2, 4):
        shutil.copytree(finished / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "stage.json", "config.json",
         "model.safetensors"]  # fmt: skip


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize("damage", [truncate, empty, replace])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_the_last_good_checkpoint(
    name: str, damage: Callable[[Path], None], run: Path
) -> None:
    damage(run / "checkpoint-4" / name)
    with pytest.raises(ValueError, match="damaged") as refusal:
        trainer(run).train(resume_from_checkpoint=True)
    text = str(refusal.value)
    assert name in text or name == "model.safetensors"
    assert f"resume {run / 'checkpoint-2'}, the last good one." in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_lost_file_is_named(name: str, run: Path) -> None:
    (run / "checkpoint-4" / name).unlink()
    with pytest.raises(ValueError, match=f"lacks {name}, so the stage cannot continue exactly; resume .*checkpoint-2"):
        trainer(run).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_it_continues_without_a_lost_file_when_told_to(name: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "checkpoint-4" / name).unlink()
    resumed = trainer(run, on_mismatch="override")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert any(f"lacks {name}" in record.message for record in caplog.records)


def test_weights_alone_are_continued_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, save_only_model=True).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    trainer(tmp_path, save_only_model=True).train(resume_from_checkpoint=True)
    assert any("lacks scheduler.pt, optimizer.pt, rng_state.pth" in record.message for record in caplog.records)


def test_a_path_without_a_checkpoint_is_named(run: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*checkpoint-9; the last one of .* is checkpoint-4"):
        trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-9"))


def test_an_optimizer_state_of_another_model_is_one_sentence(run: Path) -> None:
    torch.save({"state": {}, "param_groups": []}, run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"optimizer state of .* cannot be loaded .*; resume .*checkpoint-2"):
        trainer(run).train(resume_from_checkpoint=True)


def test_the_last_good_one_can_be_resumed(run: Path, finished: Path) -> None:
    shutil.rmtree(run / "checkpoint-4")
    resumed = trainer(run)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert resumed.state.global_step == 6
    assert len(losses(resumed)) == 6
