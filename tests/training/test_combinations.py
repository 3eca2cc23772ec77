"""Stages keep their meaning with muP groups, adapters, other trainers, bf16 and data workers."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from hf_warmscale.mup import MupConfig, MupForCausalLM, mup_param_groups
from hf_warmscale.training import ContinualArguments, ContinualMixin, ContinualTrainer, Stage, get_schedule
from tests.conftest import perturb
from tests.training.tiny import NEW, VOCAB, arguments, losses, rates, replay, tiny_model, train_tokenizer, weights

STEPS = 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # read by peft
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),  # a default of trl's
]


def stage() -> Stage:
    return Stage("first", get_schedule("rewarm_cosine", warmup=2), replay(), max_steps=STEPS)


def mup_model() -> MupForCausalLM:
    torch.manual_seed(0)
    config = MupConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, mup={"base_hidden_size": 16},
    )  # fmt: skip
    model = MupForCausalLM(config)
    perturb(model, std=0.02)
    return model


def adapted() -> nn.Module:
    model: nn.Module = get_peft_model(
        tiny_model(dropout=0.0), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    )
    perturb(model, std=0.02)
    return model


def interrupted(make: Any, output: Path) -> tuple[Trainer, Trainer]:
    """Train a stage at once, and again from its middle."""
    whole = make(output / "whole")
    whole.train()
    shutil.copytree(output / "whole" / "checkpoint-4", output / "half" / "checkpoint-4")
    half = make(output / "half")
    half.train(resume_from_checkpoint=True)
    return whole, half


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (mup_model, {}),
        (adapted, {}),
        (tiny_model, {"bf16": True}),
        (tiny_model, {"dataloader_num_workers": 2}),
        (tiny_model, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "optim": "adafactor"}),
    ],
    ids=["mup", "lora", "bf16", "workers", "accumulation-adafactor"],
)
def test_a_resumed_stage_is_the_uninterrupted_one(model: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    def make(output: Path) -> ContinualTrainer:
        return ContinualTrainer(model(), arguments(output, save_steps=4, **settings), stage=stage())

    whole, half = interrupted(make, tmp_path)
    assert losses(half) == losses(whole)
    assert rates(half) == rates(whole)
    assert torch.equal(weights(half), weights(whole))


def test_mup_groups_follow_the_schedule_in_their_ratios(tmp_path: Path) -> None:
    trainer = ContinualTrainer(mup_model(), arguments(tmp_path), stage=stage())
    trainer.train()
    expected = {group["name"]: group["lr"] for group in mup_param_groups(mup_model(), lr=1e-2)}
    assert len(set(expected.values())) > 1
    schedule = get_schedule("rewarm_cosine", warmup=2, total_steps=STEPS, learning_rate=1e-2)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for step, entry in enumerate(entries):
        found = {key.removeprefix("lr/"): value for key, value in entry.items() if key.startswith("lr/")}
        assert found == pytest.approx({name: rate * schedule.factor(step) for name, rate in expected.items()})


@dataclass
class ContinualSFTConfig(ContinualArguments, SFTConfig):
    """The arguments of trl with those of a stage."""


class ContinualSFTTrainer(ContinualMixin, SFTTrainer):
    """trl's trainer with stages."""


def test_stages_work_in_trl(tmp_path: Path) -> None:
    tokenizer = train_tokenizer()

    def make(output: Path) -> Trainer:
        args = ContinualSFTConfig(
            str(output), per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, save_steps=4,
            use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        fresh = tiny_model(dropout=0.0)
        fresh.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        perturb(fresh, std=0.01)
        trainer: Trainer = ContinualSFTTrainer(
            fresh, args, stage=stage(), train_dataset=Dataset.from_list(NEW), processing_class=tokenizer
        )
        return trainer

    whole, half = interrupted(make, tmp_path)
    schedule = get_schedule("rewarm_cosine", warmup=2, total_steps=STEPS, learning_rate=1e-2)
    assert rates(whole) == pytest.approx([schedule(step) for step in range(STEPS)])
    assert losses(half) == losses(whole)
    assert torch.equal(weights(half), weights(whole))
    assert any("loss/old" in entry for entry in whole.state.log_history)
