"""A stage declares the total batch by sample: the same run, bit for bit, as one that is interrupted and changed."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_warmscale.training import ContinualTrainer, Schedule, Stage, StageRecord, get_schedule
from hf_warmscale.training.branching import anneal_stage
from hf_warmscale.training.recipe.fields import StageArguments
from hf_warmscale.training.recipe.stage_plan import plan_stage
from tests.training.tiny import LENGTH, arguments, replay, tiny_model, weights

STEPS = 10
"""Of the first total batch: 40 rows."""

PLAN: Mapping[int, int] = {0: 4, 20: 6, 32: 2}
SCHEDULE = get_schedule("rewarm_cosine", warmup=2)
CONSTANT = get_schedule("wsd", warmup=0, cooldown=0.5)


CHANGES = [
    {"step": 5, "sample": 20, "samples_per_step": 6},
    {"step": 7, "sample": 32, "samples_per_step": 2},
]


class Watched(ContinualTrainer):
    """Notes the rows of every micro-batch in their order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rows: list[list[int]] = []
        super().__init__(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Note the rows and train on them."""
        self.rows += inputs["input_ids"].tolist()
        return super().training_step(model, inputs, *args, **kwargs)


class Stop(TrainerCallback):
    """Stops the training after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the end."""
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def watched(
    output: Path,
    *,
    plan: int | Mapping[int, int] | None = PLAN,
    stop_at: int | None = None,
    schedule: Schedule = SCHEDULE,
    **settings: Any,
) -> Watched:
    """Return a trainer of a stage of 40 rows, in micro-batches of two."""
    settings = {"per_device_train_batch_size": 2, **settings}
    stage = Stage("planned", schedule, replay(0.3), max_steps=STEPS, total_batch_size=plan)
    callbacks = [] if stop_at is None else [Stop(stop_at)]
    return Watched(tiny_model(), arguments(output, **settings), stage=stage, callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Five steps of four rows, two of six, four of two."""
    trainer = watched(tmp_path_factory.mktemp("planned"), save_steps=1)
    trainer.train()
    return trainer


def saved(trainer: ContinualTrainer, step: int) -> Path:
    return Path(str(trainer.args.output_dir)) / f"checkpoint-{step}"


def history(trainer: ContinualTrainer) -> list[dict[str, Any]]:
    """Return what was logged of each step, without times; the epoch is a share of a length that a change alters."""
    ignored = {"epoch", "tokens_per_second"}
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: value for key, value in entry.items() if key not in ignored} for entry in entries]


def test_a_declared_change_is_an_interruption_with_an_override(whole: Watched, tmp_path: Path) -> None:
    """Weights, losses, rates and record; dropout makes the random state part of it."""
    checkpoint: Path | None = None
    parts: list[Watched] = []
    for number, accumulated in enumerate((2, 3, 1)):
        folder = tmp_path / str(number)
        if checkpoint is not None:
            shutil.copytree(checkpoint, folder / checkpoint.name)
        settings: dict[str, Any] = {"gradient_accumulation_steps": accumulated, "save_steps": 1}
        parts.append(watched(folder, plan=None, on_mismatch="override", **settings))
        parts[-1].train(resume_from_checkpoint=checkpoint is not None)
        checkpoint = folder / f"checkpoint-{(5, 7, 11)[number]}"
    last = parts[-1]
    assert torch.equal(weights(last), weights(whole))
    assert history(last) == history(whole) and len(history(whole)) == 11
    records = [asdict(StageRecord.load(saved(trainer, 11))) for trainer in (last, whole)]
    for record in records:
        record["progress"].pop("seconds")
    assert records[0] == records[1]
    assert records[1]["batch_changes"] == CHANGES
    assert [entry["epoch"] for entry in whole.state.log_history if "loss" in entry] == [
        pytest.approx(step / 11) for step in range(1, 12)
    ]


def test_the_rows_are_those_of_a_constant_total_batch(whole: Watched, tmp_path: Path) -> None:
    constant = watched(tmp_path, plan=4)
    constant.train()
    assert whole.rows == constant.rows and len(whole.rows) == STEPS * 4
    assert not torch.equal(weights(whole), weights(constant))
    assert whole.stage_run is not None and constant.stage_run is not None
    one, other = whole.stage_run.record, constant.stage_run.record
    assert (one.max_steps, one.num_steps, other.num_steps) == (STEPS, 11, STEPS)
    assert one.progress.tokens == other.progress.tokens and one.progress.num_tokens() == STEPS * 4 * LENGTH
    assert one.progress.rows == other.progress.rows == replay(0.3).counts(STEPS * 4)
    assert one.progress.loss_tokens == other.progress.loss_tokens
    # Rates are a function of the rows: after 20 rows the one that step 5 of the constant run had.
    rates = [entry["learning_rate"] for entry in history(whole)]
    assert rates[:5] == [entry["learning_rate"] for entry in history(constant)][:5]
    assert rates[-1] == history(constant)[-1]["learning_rate"]
    report = json.loads((Path(str(whole.args.output_dir)) / "report.json").read_text())
    assert report["changes"] == [
        "From step 5 on (sample 20) a step has 6 rows.",
        "From step 7 on (sample 32) a step has 2 rows.",
    ]


def test_one_total_batch_is_its_accumulation_steps(tmp_path: Path) -> None:
    """Six rows from the start; a change behind the end of the stage changes nothing."""
    plain = watched(tmp_path / "plain", plan=None, gradient_accumulation_steps=3)
    plain.train()
    declared = watched(tmp_path / "declared", plan={0: 6, 6 * STEPS: 2})
    declared.train()
    assert torch.equal(weights(declared), weights(plain)) and history(declared) == history(plain)
    assert "a step has" not in (tmp_path / "declared" / "report.md").read_text()


@pytest.mark.parametrize("step", [3, 5, 6])
def test_killed_before_at_and_behind_a_change(whole: Watched, step: int, tmp_path: Path) -> None:
    shutil.copytree(saved(whole, step), tmp_path / f"checkpoint-{step}")
    again = watched(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))
    assert history(again) == history(whole)
    assert again.rows == whole.rows[StageRecord.load(saved(whole, step)).progress.samples :]
    assert again.state.log_history[-2]["epoch"] == whole.state.log_history[-2]["epoch"] == 1


def test_a_callback_that_stops_the_training_stops_it_between_changes(tmp_path: Path) -> None:
    stopped = watched(tmp_path, stop_at=5)
    stopped.train()
    assert stopped.state.global_step == 5 and len(stopped.rows) == 20


def test_another_plan_is_refused_or_begins_at_the_checkpoint(whole: Watched, tmp_path: Path) -> None:
    shutil.copytree(saved(whole, 6), tmp_path / "checkpoint-6")
    other = {0: 4, 20: 6, 26: 4, 34: 6}
    there = r"samples_per_step is \{26: 6, 32: 2\} there and"
    with pytest.raises(ValueError, match=rf"{there} 4 now; .*'override' changes the total batch from sample 26 on"):
        watched(tmp_path, plan=None, gradient_accumulation_steps=2).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=rf"{there} \{{26: 4, 34: 6\}} now"):
        watched(tmp_path, plan=other).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"make it with \{26: 6, 32: 2\} \(total_batch_size; or"):
        watched(tmp_path, plan=4, on_mismatch="use_checkpoint").train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"at sample 32, in the middle of a step of 4 rows; .* sample 30 or 34"):
        watched(tmp_path, plan={0: 4, 32: 6}, on_mismatch="override").train(resume_from_checkpoint=True)
    changed = watched(tmp_path, plan=other, on_mismatch="override")
    changed.train(resume_from_checkpoint=True)
    assert changed.stage_run is not None
    assert changed.rows == whole.rows[26:]
    assert changed.stage_run.record.batch_changes == [
        CHANGES[0],
        {"step": 6, "sample": 26, "samples_per_step": 4},
        {"step": 8, "sample": 34, "samples_per_step": 6},
    ]


def test_every_refusal_names_the_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 2, .* 'planned'; leave it out"):
        watched(tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"auto_find_batch_size changes the total batch, .* choose per_device"):
        watched(tmp_path, auto_find_batch_size=True)
    with pytest.raises(ValueError, match=r"is 7, .* the 2 rows of one micro-batch on 1 process.*, or take 6"):
        watched(tmp_path, plan={0: 4, 20: 7}).train()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [{0: 16, 640: 32}, "{0: 16, 640: 32}", '{"0": 16, "640": 32}'])
def test_a_recipe_names_it_as_a_mapping_or_as_json(value: Any, tmp_path: Path) -> None:
    made = plan_stage(StageArguments(total_batch_size=value), arguments(tmp_path, max_steps=80))
    assert made.total_batch_size == {0: 16, 640: 32}
    assert plan_stage(StageArguments(total_batch_size="32"), arguments(tmp_path, max_steps=8)) == (
        Stage("stage", "rewarm_cosine", max_steps=8, total_batch_size=32)
    )


def test_a_branch_has_the_total_batch_that_it_is_given(tmp_path: Path) -> None:
    trunk = watched(
        tmp_path / "trunk", plan={0: 2, 4: 4}, save_steps=3, schedule=get_schedule("wsd", warmup=0, cooldown=0.5)
    )
    trunk.train()
    branch = anneal_stage(tmp_path / "trunk" / "checkpoint-3", replay(0.3), max_steps=2, total_batch_size={0: 2, 2: 4})
    annealed = Watched(tiny_model(), arguments(tmp_path / "branch", per_device_train_batch_size=1), stage=branch)
    annealed.train()
    assert annealed.state.global_step == 2 and annealed.rows[:4] == trunk.rows[8:12] and len(annealed.rows) == 6
