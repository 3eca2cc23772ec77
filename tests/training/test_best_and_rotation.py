"""The best checkpoint is kept and found; rotation goes by the step and touches nothing of the user's."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_warmscale.training import ContinualTrainer, Stage
from hf_warmscale.training.saving import rotate, sweep
from tests.training.tiny import DOMAINS, NEW, arguments, replay, tiny_model


def stage(steps: int = 8) -> Stage:
    return Stage("first", "constant", replay(0.3), max_steps=steps)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*"))


class Falls(ContinualTrainer):
    """Its evaluation is best at a chosen step."""

    best_step = 4

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {**super().evaluate(*args, **kwargs), "eval_loss": abs(self.state.global_step - self.best_step) + 1.0}


@pytest.mark.parametrize("evaluated", [{"eval_strategy": "steps", "eval_steps": 2}, {"eval_strategy": "epoch"}])
@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_is_kept(evaluated: dict[str, Any], limit: int, tmp_path: Path) -> None:
    """Evaluated at steps, or at the end of an epoch of four steps, where the save has come first."""
    output = tmp_path / "run"
    args = arguments(
        output,
        save_steps=2,
        save_total_limit=limit,
        metric_for_best_model="loss",
        greater_is_better=False,
        **evaluated,
    )
    trainer = Falls(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)
    if evaluated["eval_strategy"] == "epoch":
        trainer.best_step = 8
    trainer.train()
    best = f"checkpoint-{trainer.best_step}"
    assert trainer.state.best_model_checkpoint == str(output / best)
    assert best in checkpoints(output)
    assert len(checkpoints(output)) == limit


def test_a_best_step_that_was_saved_before_its_evaluation_is_found(tmp_path: Path) -> None:
    """Evaluation by steps comes after the save of the same step where a callback asks for it later."""

    class Later(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = state.global_step % 2 == 0

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                state.best_global_step = 4

    args = arguments(tmp_path, save_strategy="steps", save_steps=100, save_total_limit=2)
    trainer = ContinualTrainer(tiny_model(), args, stage=stage(), callbacks=[Later()])
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-8"]


def test_a_run_folder_that_was_moved_still_has_its_best(tmp_path: Path) -> None:
    def trainer(output: Path) -> Falls:
        args = arguments(
            output, save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
            metric_for_best_model="loss", greater_is_better=False,
        )  # fmt: skip
        return Falls(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)

    whole = trainer(tmp_path / "first")
    whole.train()
    (tmp_path / "first").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoint-8")
    again = trainer(tmp_path / "moved")
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-4")
    assert whole.model is not None and again.model is not None
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["checkpoint-2-keep", "checkpoint-best", "checkpoint-"])
def test_folders_of_the_user_are_left_alone(name: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    (output / name).mkdir(parents=True)
    (output / name / "note").write_text("mine")
    args = arguments(
        output, save_steps=2, save_total_limit=1, eval_strategy="steps", eval_steps=2, metric_for_best_model="loss",
        greater_is_better=False, load_best_model_at_end=True,
    )  # fmt: skip
    Falls(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS).train()
    assert checkpoints(output) == sorted(["checkpoint-4", name])
    assert (output / name / "note").read_text() == "mine"


def test_rotation_goes_by_the_step_not_by_the_time(tmp_path: Path) -> None:
    """A copy of a run gives all its checkpoints new times, in any order."""
    for step, time in ((2, 300.0), (4, 100.0), (10, 200.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    found = [tmp_path / f"checkpoint-{step}" for step in (2, 4, 10)]
    rotate(found, 2, None)
    assert checkpoints(tmp_path) == ["checkpoint-10", "checkpoint-4"]
    rotate(found[1:], 1, str(found[1]))
    assert checkpoints(tmp_path) == ["checkpoint-10", "checkpoint-4"], "the best and the last stay"
    rotate(found[1:], 1, str(found[1]), only_best=True)
    assert checkpoints(tmp_path) == ["checkpoint-4"]


def test_early_stopping_sees_the_mean_of_the_domains(tmp_path: Path) -> None:
    """And stops when it would on one data set: after the evaluations that did not improve."""

    seen: list[float] = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(kwargs["metrics"].get("eval_loss", 0.0))

    callbacks = [EarlyStoppingCallback(early_stopping_patience=2), Watch()]
    args = arguments(
        tmp_path, save_steps=1, eval_strategy="steps", eval_steps=1, metric_for_best_model="loss",
        greater_is_better=True, load_best_model_at_end=True, learning_rate=0.0,
    )  # fmt: skip
    trainer = ContinualTrainer(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS, callbacks=callbacks)
    trainer.train()
    means = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [value for value in seen if value] == means
    assert trainer.state.global_step == 3, "one evaluation to set the best, two that are no better"


def test_without_a_stage_the_best_is_what_trainer_finds(tmp_path: Path) -> None:
    found = []
    for kind in (Trainer, ContinualTrainer):
        args = arguments(
            tmp_path / kind.__name__, max_steps=8, save_steps=2, save_total_limit=2, eval_strategy="steps",
            eval_steps=2, metric_for_best_model="loss", greater_is_better=False, load_best_model_at_end=True,
        )  # fmt: skip
        trainer = kind(tiny_model(), args, train_dataset=NEW, eval_dataset=DOMAINS["new"])
        trainer.train()
        best = trainer.state.best_model_checkpoint
        assert best is not None
        state = json.loads((Path(best) / "trainer_state.json").read_text())
        found.append((Path(best).name, checkpoints(tmp_path / kind.__name__), state["best_metric"]))
    assert found[0] == found[1]


def test_a_checkpoint_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    """A kill between the two renames of a replacement leaves nothing in its place; the old one is complete."""
    aside = tmp_path / "_partial" / "checkpoint-4.old"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"whole")
    (tmp_path / "_partial" / "checkpoint-4").mkdir()
    sweep(tmp_path)
    assert (tmp_path / "checkpoint-4" / "model.safetensors").read_bytes() == b"whole"
    assert not (tmp_path / "_partial").exists()
