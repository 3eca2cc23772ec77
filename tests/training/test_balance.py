"""The balance loss of a mixture of experts: in every training step, in no evaluation, in no saved config."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_warmscale.training import ContinualTrainer, Stage
from tests.training.families import family
from tests.training.tiny import NEW, arguments, tiny_model, weights


def trained(folder: Path, *, staged: bool = True, **settings: Any) -> ContinualTrainer:
    model = family("mixtral")
    model.config.output_router_logits = False
    # Steps of one row, again and again: with any number of micro-batches, the mean over them is the same.
    stage = Stage("experts", "constant", max_steps=2) if staged else None
    args = arguments(folder, save_steps=2, eval_strategy="steps", eval_steps=2, **settings)
    trainer = ContinualTrainer(model, args, stage=stage, train_dataset=[NEW[0]], eval_dataset=NEW[:4])
    trainer.train()
    return trainer


def test_a_step_has_the_mean_over_its_micro_batches(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", router_aux_loss_coef=0.5)
    parts: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    accumulated = trained(tmp_path / "parts", router_aux_loss_coef=0.5, **parts)
    without = trained(tmp_path / "without")
    torch.testing.assert_close(weights(accumulated), weights(whole), rtol=0, atol=1e-6)
    assert float((weights(without) - weights(whole)).abs().max()) > 1e-4


def test_it_needs_no_stage(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"lr_scheduler_type": "constant", "max_steps": 2}
    balanced = trained(tmp_path / "balanced", staged=False, router_aux_loss_coef=0.5, **plain)
    in_a_stage = trained(tmp_path / "stage", router_aux_loss_coef=0.5)
    torch.testing.assert_close(weights(balanced), weights(in_a_stage), rtol=0, atol=1e-6)


def test_the_loss_is_in_no_evaluation_and_no_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained(tmp_path, router_aux_loss_coef=0.5)
    assert not caplog.records
    tokens = torch.tensor([row["input_ids"] for row in NEW[:4]])
    model = trainer.model
    assert model is not None
    with torch.no_grad():
        plain = model.eval()(input_ids=tokens, labels=tokens).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(plain), rel=1e-5)
    saved = json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())
    assert not saved["output_router_logits"] and saved["router_aux_loss_coef"] == 0.1
    stage = json.loads((tmp_path / "checkpoint-2" / "stage.json").read_text())
    assert stage["arguments"]["router_aux_loss_coef"] == 0.5


def test_routers_without_it_are_named_and_a_dense_model_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path / "without")
    assert "MixtralForCausalLM trains without the balance loss" in caplog.text
    stage = Stage("dense", "constant", max_steps=1)
    args = arguments(tmp_path, router_aux_loss_coef=0.5)
    for each in (stage, None):
        with pytest.raises(
            ValueError, match=r"router_aux_loss_coef is 0\.5, but LlamaForCausalLM has no balance loss"
        ):
            ContinualTrainer(tiny_model(), args, stage=each, train_dataset=NEW)
