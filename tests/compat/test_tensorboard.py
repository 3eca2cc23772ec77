"""TensorBoard shows a stage: the losses by source and the rates by group are scalars like any other."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_warmscale import ContinualTrainer, Stage
from tests.training.tiny import arguments, replay, rows, tiny_model


def test_tensorboard_shows_losses_by_source_and_rates_by_group(tmp_path: Path) -> None:
    settings = {"report_to": "tensorboard", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    stage = Stage("next", {"name": "rewarm_cosine", "warmup": 1}, replay(), max_steps=2)
    domains = {"new": rows(2), "old": rows(2, seed=2)}
    trainer = ContinualTrainer(tiny_model(), arguments(tmp_path, **settings), stage=stage, eval_dataset=domains)
    trainer.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    seen = EventAccumulator(str(events)).Reload()
    shown = set(seen.Tags()["scalars"])
    assert {
        "train/loss/new",
        "train/loss/old",
        "train/lr/0",
        "train/total_tokens",
        "eval/new_loss",
        "eval/old_loss",
    } <= shown
    logged = [entry["loss/new"] for entry in trainer.state.log_history if "loss/new" in entry]
    assert [point.value for point in seen.Scalars("train/loss/new")] == pytest.approx(logged)
