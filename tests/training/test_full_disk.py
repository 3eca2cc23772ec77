"""A disk that fills up while a stage is saved: one sentence, and the run goes on once there is room."""

import shutil
from pathlib import Path

import pytest

from hf_warmscale.training import ContinualTrainer, Stage
from tests.checkpoints.test_crashes import full_disk
from tests.training.tiny import arguments, losses, replay, tiny_model


def trainer(run: Path) -> ContinualTrainer:
    """Return a trainer of four steps that saves every second one."""
    stage = Stage("new", {"name": "constant", "warmup": 1}, replay(), max_steps=4)
    return ContinualTrainer(tiny_model(), arguments(run, save_steps=2), stage=stage)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(tmp_path: Path) -> None:
    """The weights still fit, the optimizer state does not; torch says `unexpected pos` of that."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    weights = (tmp_path / "whole" / "checkpoint-2" / "model.safetensors").stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    with full_disk(disk):
        if not disk.is_mount():
            pytest.skip("mounting is not permitted here")
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 2 * weights))
        with pytest.raises(OSError, match=r"There is no room left to write .*checkpoint-2; free some") as refusal:
            trainer(disk / "run").train()
        assert "\n" not in str(refusal.value)
        assert not list((disk / "run").glob("checkpoint-*"))
        filler.unlink()
        again = trainer(disk / "run")
        again.train()
        assert losses(again) == losses(whole)
