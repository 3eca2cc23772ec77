"""A disk that fills up while a stage is saved: one sentence, and the run goes on once there is room."""

import resource
from pathlib import Path

import pytest

from hf_warmscale.training import ContinualTrainer, Stage
from tests.training.tiny import arguments, losses, replay, tiny_model


def trainer(run: Path) -> ContinualTrainer:
    """Return a trainer of four steps that saves every second one."""
    stage = Stage("new", {"name": "constant", "warmup": 1}, replay(), max_steps=4)
    return ContinualTrainer(tiny_model(), arguments(run, save_steps=2), stage=stage)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk: the weights still fit, the optimizer state does not."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    weights = (tmp_path / "whole" / "checkpoint-2" / "model.safetensors").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.2 * weights), hard))
    try:
        with pytest.raises(OSError, match="There is no room left to write .*checkpoint-2; free some space") as refusal:
            trainer(tmp_path / "run").train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    again = trainer(tmp_path / "run")
    again.train()
    assert losses(again) == losses(whole)
