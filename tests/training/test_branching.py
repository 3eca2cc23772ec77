"""Annealing branches off a trunk that stays continuable; averages stand for decays; the end of a stage is reported."""

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.options import AVERAGES
from hf_warmscale.training import (
    AverageCheckpoints,
    ContinualTrainer,
    Stage,
    StageRecord,
    anneal_stage,
    average_run,
    average_weights,
    constant_checkpoints,
    get_schedule,
)
from tests.training.tiny import DOMAINS, LENGTH, arguments, losses, rates, replay, tiny_model, weights

PEAK = 1e-2


def trunk_stage() -> Stage:
    return Stage("trunk", get_schedule("constant", warmup=2), replay(), max_steps=20)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContinualTrainer]:
    output = tmp_path_factory.mktemp("trunk") / "run"
    args = arguments(output, eval_strategy="steps", eval_steps=10)
    callbacks = [AverageCheckpoints("swa")]
    trainer = ContinualTrainer(tiny_model(), args, stage=trunk_stage(), eval_dataset=DOMAINS, callbacks=callbacks)
    trainer.train()
    return output, trainer


def test_an_anneal_lands_on_its_tokens_and_the_trunk_goes_on(
    trunk: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    checkpoint = trunk[0] / "checkpoint-10"
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    stage = anneal_stage(checkpoint, replay(), max_tokens=8 * 4 * LENGTH, shape="linear", min_lr=0.0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    branch = ContinualTrainer(model, arguments(tmp_path / "branch"), stage=stage)
    branch.train()
    assert rates(branch) == pytest.approx([PEAK * (1 - step / 8) for step in range(1, 9)], abs=1e-15)
    record = StageRecord.load(tmp_path / "branch" / "checkpoint-8")
    assert (record.progress.num_tokens(), record.total_tokens()) == (8 * 4 * LENGTH, 18 * 4 * LENGTH)
    assert before == {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    shutil.copytree(checkpoint, tmp_path / "trunk" / checkpoint.name)
    args = arguments(tmp_path / "trunk", eval_strategy="steps", eval_steps=10)
    again = ContinualTrainer(tiny_model(seed=1), args, stage=trunk_stage(), eval_dataset=DOMAINS)
    again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(trunk[1])
    assert torch.equal(weights(again), weights(trunk[1]))


def test_an_anneal_needs_a_constant_rate(tmp_path: Path) -> None:
    stage = Stage("falling", "rewarm_cosine", replay(), max_steps=5)
    ContinualTrainer(tiny_model(), arguments(tmp_path), stage=stage).train()
    with pytest.raises(ValueError, match="is not constant"):
        anneal_stage(tmp_path / "checkpoint-5", max_steps=5)
    with pytest.raises(ValueError, match="has 0 checkpoints in its constant phase"):
        average_run(tmp_path, tmp_path / "average")


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_sum_to_one(average: str) -> None:
    for count in (2, 5, 9):
        assert sum(average_weights(average, count)) == pytest.approx(1)  # type: ignore[arg-type]


def test_wsm_weights_are_those_of_the_paper() -> None:
    """Eight intervals, so nine checkpoints: linear is the mean, 1-sqrt weighs the oldest most (2507.17634)."""
    assert average_weights("wsm-linear", 9) == pytest.approx([1 / 9] * 9)
    expected = [0.333, 0.138, 0.106, 0.089, 0.079, 0.071, 0.065, 0.061, 0.057]
    assert average_weights("wsm-1-sqrt", 9) == pytest.approx(expected, abs=6e-4)


def test_the_constant_phase_is_averaged_at_the_end(trunk: tuple[Path, ContinualTrainer]) -> None:
    folders = constant_checkpoints(trunk[0])
    assert [folder.name for folder in folders] == [f"checkpoint-{step}" for step in (5, 10, 15, 20)]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    average = AutoModelForCausalLM.from_pretrained(trunk[0] / "average-swa", dtype=torch.float32)
    for name, value in average.state_dict().items():
        mean = torch.stack([model.state_dict()[name] for model in models]).mean(dim=0)
        assert (value - mean).abs().max() < 1e-6


def test_the_end_of_a_stage_is_reported(trunk: tuple[Path, ContinualTrainer]) -> None:
    report = json.loads((trunk[0] / "report.json").read_text())
    history = trunk[1].state.log_history
    last = {
        name: [entry[f"eval_{name}_loss"] for entry in history if f"eval_{name}_loss" in entry] for name in DOMAINS
    }
    for row in report["domains"]:
        found = last[row["domain"]]
        assert (row["start"], row["end"], row["change"]) == (found[0], found[-1], found[-1] - found[0])
    assert {row["source"]: row["rows"] for row in report["sources"]} == {"new": 72, "old": 8}
    assert report["tokens"] == 80 * LENGTH
    assert "| old | 8 |" in (trunk[0] / "report.md").read_text()
    assert (trunk[0] / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_the_cache_setting_of_the_model_survives_training(trunk: tuple[Path, ContinualTrainer]) -> None:
    assert json.loads((trunk[0] / "checkpoint-5" / "config.json").read_text())["use_cache"] is True
    assert cast(PreTrainedModel, trunk[1].model).config.use_cache is False
