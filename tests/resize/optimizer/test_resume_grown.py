"""grow, then `train(resume_from_checkpoint=...)`: the grown run goes on where the small one would have gone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from hf_warmscale.mup import MupConfig, MupForCausalLM, mup_optimizer
from hf_warmscale.resize import grow_checkpoint, grow_optimizer_state
from hf_warmscale.training import ContinualTrainer, Stage, get_schedule
from tests.conftest import perturb
from tests.resize.families import GROUPED
from tests.training.tiny import NEW, arguments, losses, rates, replay, tiny_model

WIDER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "snr_db": None,
}
STEPS, GROWN_AT = 8, 4
ROUNDING = 1e-6  # the models are float64, in which the runs are the same; a loss is logged in float32

pytestmark = pytest.mark.usefixtures("float64_norms")


def test_a_plain_trainer_goes_on_with_the_factors(tmp_path: Path) -> None:
    def make(model: PreTrainedModel, folder: Path, **kwargs: Any) -> Trainer:
        args = TrainingArguments(
            str(folder), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, save_steps=GROWN_AT,
            learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.0, use_cpu=True, report_to="none",
            disable_tqdm=True, warmup_steps=2,
        )  # fmt: skip
        if "factors" in kwargs:
            kwargs = {"optimizer_cls_and_kwargs": mup_optimizer(args, **kwargs)}
        return Trainer(model, args, train_dataset=NEW, **kwargs)

    small = make(tiny_model(dropout=0.0).double(), tmp_path / "small")
    small.train()
    checkpoint = tmp_path / "small" / f"checkpoint-{GROWN_AT}"
    target = tmp_path / "large" / checkpoint.name
    grow_checkpoint(checkpoint, target, hidden_size=32, intermediate_size=64, num_attention_heads=4, snr_db=None)
    factors = grow_optimizer_state(checkpoint, target)
    large = make(AutoModelForCausalLM.from_pretrained(target), tmp_path / "large", factors=factors)
    large.train(resume_from_checkpoint=str(target))
    assert large.state.global_step == STEPS
    assert losses(large) == pytest.approx(losses(small), abs=ROUNDING)
    assert rates(large) == pytest.approx(rates(small))
    assert large.optimizer is not None
    peaks = {group["initial_lr"] for group in large.optimizer.param_groups}
    assert sorted(peaks) == pytest.approx([5e-3, 1e-2])


@pytest.mark.parametrize("way", ["resume", "keep"])
def test_a_stage_goes_on(way: str, tmp_path: Path) -> None:
    """As the same stage, and as a new one that keeps its parent's moments."""

    def stage(name: str, steps: int, **settings: Any) -> Stage:
        return Stage(name, get_schedule("constant"), replay(), max_steps=steps, **settings)

    torch.manual_seed(0)
    model = MupForCausalLM(MupConfig(**GROUPED, mup={"base_hidden_size": 16}))
    perturb(model.double(), std=0.02)
    args = {"save_steps": GROWN_AT, "max_grad_norm": 0.0, "weight_decay": 0.1}
    small = ContinualTrainer(model, arguments(tmp_path / "small", **args), stage=stage("first", STEPS))
    small.train()
    checkpoint = tmp_path / "small" / f"checkpoint-{GROWN_AT}"
    target = tmp_path / "large" / checkpoint.name
    grow_checkpoint(checkpoint, target, **WIDER)
    assert grow_optimizer_state(checkpoint, target) is None
    grown = MupForCausalLM.from_pretrained(target)
    if way == "resume":
        large = ContinualTrainer(grown, arguments(tmp_path / "large", **args), stage=stage("first", STEPS))
        large.train(resume_from_checkpoint=True)
        assert losses(large) == pytest.approx(losses(small), abs=ROUNDING)
        return
    again = ContinualTrainer(
        MupForCausalLM.from_pretrained(checkpoint),
        arguments(tmp_path / "again", **args),
        stage=stage("second", STEPS, parent=str(checkpoint), optimizer="keep"),
    )
    large = ContinualTrainer(
        grown,
        arguments(tmp_path / "new", **args),
        stage=stage("second", STEPS, parent=str(target), optimizer="keep"),
    )
    again.train()
    large.train()
    assert losses(large) == pytest.approx(losses(again), abs=ROUNDING)
