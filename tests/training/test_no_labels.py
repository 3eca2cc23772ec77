"""Rows without any label count as no tokens: a mean over none of them is 0/0, which makes every weight NaN."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage
from tests.training.families import family
from tests.training.tiny import OLD, arguments, replay, rows, weights

BLANK = 2
"""The micro-batch without labels, counted from 1."""


class Blanking:
    """A collator that takes the labels out of one micro-batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, given: list[Any]) -> dict[str, Any]:
        self.calls += 1
        batch = default_data_collator(given)
        if self.calls == BLANK:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch


class Watch(TrainerCallback):
    """Keep the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append(torch.cat([each.detach().flatten().clone() for each in kwargs["model"].parameters()]))


def train(folder: Path, name: str, *, sources: int, takes_count: bool, **settings: Any) -> tuple[Watch, Any]:
    model: Any = family(name)
    model.accepts_loss_kwargs = takes_count
    mixture = replay(0.5) if sources == 2 else ReplayMixture({"old": OLD}, [1.0])
    args = arguments(folder, optim="sgd", weight_decay=0.0, save_strategy="no", **settings)
    trainer = ContinualTrainer(model, args, Blanking(), stage=Stage("s", "constant", mixture, max_steps=3))
    trainer.add_callback(watch := Watch())
    trainer.train()
    return watch, trainer


# Bart computes its loss itself; without the count of labels a loss is the mean over its micro-batch.
@pytest.mark.parametrize(
    ("name", "takes_count", "sources"),
    [("llama", True, 1), ("llama", False, 2), ("bart", True, 2), ("bart", False, 1)],
)
def test_a_step_without_labels_changes_nothing(name: str, takes_count: bool, sources: int, tmp_path: Path) -> None:
    watch, trainer = train(tmp_path, name, sources=sources, takes_count=takes_count)
    first, second, third = watch.weights
    assert torch.equal(first, second) and not torch.equal(second, third) and bool(third.isfinite().all())
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[1]["loss"] == 0.0 and not any(key.startswith("loss/") for key in logged[1])


def test_a_micro_batch_without_labels_beside_one_with_them(tmp_path: Path) -> None:
    """Trainer is right here, as it divides by the labels of the whole step."""
    content = rows(24)
    settings: dict[str, Any] = {"optim": "sgd", "gradient_accumulation_steps": 2, "save_strategy": "no"}
    stage = Stage("s", "constant", max_steps=3)
    ours = ContinualTrainer(
        family("llama"), arguments(tmp_path, **settings), Blanking(), train_dataset=content, stage=stage
    )
    ours.train()
    order = [row["input_ids"] for row in (ours.stage_run.samples[i] for i in range(24))]  # type: ignore[union-attr]
    settings |= {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_steps": 3, "use_cpu": True}
    settings |= {"lr_scheduler_type": "constant", "report_to": "none", "train_sampling_strategy": "sequential"}
    theirs = Trainer(
        family("llama"),
        TrainingArguments(str(tmp_path / "theirs"), **settings),
        Blanking(),
        train_dataset=[{"input_ids": row, "labels": row} for row in order],
    )
    theirs.train()
    assert torch.equal(weights(ours), weights(theirs))


def test_an_evaluation_leaves_out_batches_without_labels(tmp_path: Path) -> None:
    content = rows(8)
    blank = [{**row, "labels": [-100] * len(row["labels"])} for row in content[:4]]
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    trainer = ContinualTrainer(family("llama"), args, stage=Stage("s", "constant", replay(), max_steps=1))
    assert trainer.evaluate(blank + content[4:])["eval_loss"] == trainer.evaluate(content[4:])["eval_loss"]
