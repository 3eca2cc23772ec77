"""A run whose numbers are not finite ends well: null in the files, and a word about it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_warmscale.training import ContinualTrainer, Stage, StageRecord
from tests.training.tiny import DOMAINS, arguments, replay, tiny_model

STEPS = 4


def stage() -> Stage:
    return Stage("first", "constant", replay(0.3), max_steps=STEPS)


def read(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


class NotFinite(ContinualTrainer):
    """One domain has a loss that is not finite."""

    value = float("nan")

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if kwargs["metric_key_prefix"] == "eval_old" and output.metrics is not None:
            output.metrics["eval_old_loss"] = self.value
        return output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_domain_that_is_not_finite_becomes_null(value: float, tmp_path: Path) -> None:
    args = arguments(tmp_path, save_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = NotFinite(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)
    trainer.value = value
    trainer.train()
    record = read(tmp_path / "checkpoint-4" / "stage.json")
    report = read(tmp_path / "report.json")
    (old,) = (row for row in report["domains"] if row["domain"] == "old")
    if value == 1e30:
        assert record["start_losses"]["old"] == old["end"] == value and report["diverged"] == []
        return
    assert record["start_losses"]["old"] is None and record["start_losses"]["new"] > 0
    assert (old["start"], old["end"], old["change"]) == (None, None, None)
    assert "eval_old_loss" in report["diverged"]
    assert "eval_old_loss" in (tmp_path / "report.md").read_text()
    assert StageRecord.load(tmp_path / "checkpoint-4").start_losses["old"] is None


@pytest.mark.parametrize("filtered", [True, False])
def test_a_diverged_run_ends_well(filtered: bool, tmp_path: Path) -> None:
    """Its weights are NaN from the second step on; the filter of Trainer hides the loss, not the gradient."""
    model = tiny_model()
    args = arguments(
        tmp_path, save_steps=2, eval_strategy="steps", eval_steps=2, logging_nan_inf_filter=filtered, max_grad_norm=0.0
    )
    trainer = ContinualTrainer(model, args, stage=stage(), eval_dataset=DOMAINS)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    trainer.train()
    report = read(tmp_path / "report.json")
    assert {"eval_new_loss", "eval_loss", "loss/new"} <= set(report["diverged"])
    assert report["steps"] == STEPS
    assert read(tmp_path / "checkpoint-4" / "stage.json")["start_losses"] == {"new": None, "old": None}
    assert "The run diverged" in (tmp_path / "report.md").read_text()
    resumed = ContinualTrainer(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)
    resumed.train(resume_from_checkpoint=True)
