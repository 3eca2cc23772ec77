"""Without a stage the trainer is transformers' own; with one, a stage survives crashes and re-warms exactly once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage, StageRecord, get_schedule, seen_rows
from tests.training.tiny import DOMAINS, LENGTH, NEW, OLD, arguments, losses, rates, replay, rows, tiny_model, weights

STEPS, WARMUP, PEAK = 20, 5, 1e-2


def stage(name: str = "first", **settings: Any) -> Stage:
    defaults: dict[str, Any] = {
        "max_steps": STEPS,
        "mixture": replay(),
        "schedule": get_schedule("rewarm_cosine", warmup=WARMUP),
    }
    return Stage(name, **{**defaults, **settings})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContinualTrainer]:
    """A first stage of 20 steps with checkpoints at 5, 10, 15 and 20."""
    output = tmp_path_factory.mktemp("first")
    trainer = ContinualTrainer(
        tiny_model(), arguments(output, eval_strategy="steps", eval_steps=10), stage=stage(), eval_dataset=DOMAINS
    )
    trainer.train()
    return output, trainer


def crashed(finished: tuple[Path, ContinualTrainer], folder: Path, at: int = 10) -> Path:
    """Copy the run as it was after the checkpoint at step `at`."""
    output = folder / "run"
    for path in finished[0].glob("checkpoint-*"):
        if int(path.name.split("-")[1]) <= at:
            shutil.copytree(path, output / path.name)
    return output


# ---- Drop-in ----


def test_without_a_stage_it_is_the_trainer_bit_for_bit(tmp_path: Path) -> None:
    both = []
    for number, trainer_class in enumerate((Trainer, ContinualTrainer)):
        args = TrainingArguments(
            str(tmp_path / str(number)), max_steps=12, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            logging_steps=1, save_steps=6, use_cpu=True, report_to="none", disable_tqdm=True, warmup_steps=3,
        )  # fmt: skip
        trainer = trainer_class(tiny_model(), args, train_dataset=NEW)
        trainer.train()
        both.append((losses(trainer), rates(trainer), weights(trainer)))
    assert both[0][:2] == both[1][:2]
    assert torch.equal(both[0][2], both[1][2])
    names = [{path.name for path in (tmp_path / number / "checkpoint-12").iterdir()} for number in "01"]
    assert names[0] == names[1]


# ---- Inside a stage ----


def test_a_stage_runs_its_schedule(finished: tuple[Path, ContinualTrainer]) -> None:
    schedule = get_schedule("rewarm_cosine", total_steps=STEPS, learning_rate=PEAK, warmup=WARMUP)
    assert rates(finished[1]) == pytest.approx([schedule(step) for step in range(STEPS)], rel=1e-12)


def test_a_crash_resume_is_the_uninterrupted_run(finished: tuple[Path, ContinualTrainer], tmp_path: Path) -> None:
    output = crashed(finished, tmp_path)
    args = arguments(output, eval_strategy="steps", eval_steps=10)
    trainer = ContinualTrainer(tiny_model(seed=1), args, stage=stage(), eval_dataset=DOMAINS)
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(finished[1])
    assert rates(trainer) == rates(finished[1])
    assert torch.equal(weights(trainer), weights(finished[1]))
    ours, theirs = (StageRecord.load(folder / "checkpoint-20") for folder in (output, finished[0]))
    ours.progress.seconds = theirs.progress.seconds
    assert ours == theirs


def test_a_finished_stage_resumes_to_nothing(finished: tuple[Path, ContinualTrainer], tmp_path: Path) -> None:
    trainer = ContinualTrainer(tiny_model(seed=1), arguments(crashed(finished, tmp_path, at=20)), stage=stage())
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS
    assert torch.equal(weights(trainer), weights(finished[1]))


def test_accumulation_and_batch_size_share_one_order(tmp_path: Path) -> None:
    runs = []
    # With Adam's usual epsilon a gradient that is only rounding would make a step as large as any other.
    settings = {"adam_epsilon": 1e-4}
    for name, batch, accumulation in (("wide", 8, 1), ("deep", 2, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        args = arguments(tmp_path / name, **sizes, **settings)
        trainer = ContinualTrainer(tiny_model(dropout=0.0), args, stage=stage(max_steps=8))
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_the_record_counts_rows_and_tokens_by_source(finished: tuple[Path, ContinualTrainer]) -> None:
    progress = StageRecord.load(finished[0] / "checkpoint-15").progress
    assert (progress.step, progress.samples) == (15, 60)
    assert progress.rows == {"new": 54, "old": 6}
    assert progress.tokens == {"new": 54 * LENGTH, "old": 6 * LENGTH}
    assert progress.loss_tokens == {"new": 54 * (LENGTH - 1), "old": 6 * (LENGTH - 1)}


# ---- What is reported ----


def test_losses_by_source_average_to_the_loss(finished: tuple[Path, ContinualTrainer]) -> None:
    entries = [entry for entry in finished[1].state.log_history if "loss/new" in entry]
    assert len(entries) == STEPS
    before = {"new": 0.0, "old": 0.0}
    for entry in entries:
        counts = {name: entry[f"loss_tokens/{name}"] - before[name] for name in before}
        mean = sum(entry[f"loss/{name}"] * count for name, count in counts.items() if count) / sum(counts.values())
        assert mean == pytest.approx(entry["loss"], rel=1e-5)
        assert entry["tokens_per_second"] > 0
        before = {name: entry[f"loss_tokens/{name}"] for name in before}


def test_rates_are_reported_by_group(finished: tuple[Path, ContinualTrainer]) -> None:
    entry = next(entry for entry in finished[1].state.log_history if "lr/0" in entry)
    assert entry["lr/0"] == entry["lr/1"] == entry["learning_rate"]


def test_domains_are_averaged_and_forgetting_counts_from_the_start(finished: tuple[Path, ContinualTrainer]) -> None:
    history = finished[1].state.log_history
    new, old = ([entry[f"eval_{name}_loss"] for entry in history if f"eval_{name}_loss" in entry] for name in DOMAINS)
    summaries = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in summaries] == [0, 10, 20]
    assert [entry["eval_loss"] for entry in summaries] == pytest.approx(
        [(a + b) / 2 for a, b in zip(new, old, strict=True)]
    )
    assert [entry["eval_old_forgetting"] for entry in summaries] == pytest.approx([loss - old[0] for loss in old])


@pytest.mark.parametrize("metric", ["loss", "weighted_loss", "old_forgetting"])
def test_aggregates_choose_the_best_model(metric: str, tmp_path: Path) -> None:
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=5, load_best_model_at_end=True, metric_for_best_model=metric,
        greater_is_better=False, eval_weights={"new": 0.75, "old": 0.25},
    )  # fmt: skip
    trainer = ContinualTrainer(tiny_model(), args, stage=stage(max_steps=10), eval_dataset=DOMAINS)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert Path(best).is_dir()
    assert json.loads((Path(best) / "trainer_state.json").read_text())["best_model_checkpoint"] == best


def test_unknown_eval_weights_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=5, eval_weights={"nwe": 1.0})
    with pytest.raises(ValueError, match="eval_weights name"):
        ContinualTrainer(tiny_model(), args, stage=stage(max_steps=5), eval_dataset=DOMAINS).train()


# ---- A new stage ----


@pytest.mark.parametrize("route", ["resume", "parent"])
def test_a_new_stage_rewarms_once_and_records_its_lineage(
    route: str, finished: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    parent, second = finished[0] / "checkpoint-20", tmp_path / "second"
    schedule = get_schedule("rewarm_cosine", warmup=4, learning_rate=5e-3)
    expected = [schedule.resolve(total_steps=12, learning_rate=1.0)(step) for step in range(12)]

    def trainer(model: Any = None) -> ContinualTrainer:
        next_stage = stage("second", schedule=schedule, max_steps=12, parent=parent if route == "parent" else None)
        model = model or AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
        return ContinualTrainer(model, arguments(second), stage=next_stage)

    first_half = trainer(tiny_model(seed=1) if route == "resume" else None)
    first_half.train(str(parent) if route == "resume" else None)
    assert rates(first_half) == pytest.approx(expected, rel=1e-12)
    lineage = StageRecord.load(second / "checkpoint-10").lineage
    assert [entry["name"] for entry in lineage] == ["first"]
    assert StageRecord.load(second / "checkpoint-10").total_tokens() == (80 + 40) * LENGTH
    shutil.rmtree(second / "checkpoint-12")
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert rates(again) == rates(first_half)
    assert losses(again) == losses(first_half)
    assert torch.equal(weights(again), weights(first_half))


def test_keep_takes_over_the_moments_and_reset_forgets_them(
    finished: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    parent = finished[0] / "checkpoint-20"
    steps = {}
    for policy in ("reset", "keep"):
        next_stage = stage("second", max_steps=1, schedule="constant", optimizer=policy, parent=parent)
        model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
        trainer = ContinualTrainer(model, arguments(tmp_path / policy, save_steps=1), stage=next_stage)
        trainer.train()
        saved = torch.load(tmp_path / policy / "checkpoint-1" / "optimizer.pt", weights_only=True)
        steps[policy] = {int(state["step"]) for state in saved["state"].values()}
        assert rates(trainer) == [pytest.approx(PEAK)]
    assert steps == {"reset": {1}, "keep": {STEPS + 1}}


def test_a_model_of_model_init_starts_from_the_checkpoint(
    finished: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    args = arguments(tmp_path, learning_rate=0.0, save_strategy="no")
    next_stage = stage("second", schedule="constant", max_steps=1)
    trainer = ContinualTrainer(None, args, stage=next_stage, model_init=lambda: tiny_model(seed=1))
    trainer.train(str(finished[0] / "checkpoint-20"))
    assert torch.equal(weights(trainer), weights(finished[1]))


def test_replay_holds_only_rows_that_the_first_stage_saw(finished: tuple[Path, ContinualTrainer]) -> None:
    checkpoint = finished[0] / "checkpoint-10"
    drawn = [replay()[index] for index in range(40)]
    seen = seen_rows(checkpoint, {"new": NEW})["new"]
    assert len(seen) == 36
    assert [seen[i]["input_ids"] for i in range(36)] == [row["input_ids"] for row in drawn if row["source"] == "new"]
    with pytest.raises(ValueError, match="never saw the source 'french'"):
        seen_rows(checkpoint, {"french": NEW})
    with pytest.raises(ValueError, match="holds other rows"):
        seen_rows(checkpoint, {"new": rows(100, seed=9)})


# ---- Files of other versions ----

FIXTURES = Path(__file__).parent / "fixtures"


def test_a_stage_of_the_first_release_is_continued(finished: tuple[Path, ContinualTrainer], tmp_path: Path) -> None:
    """Version 0.1.0 wrote no format version, and recorded fewer arguments."""
    output = crashed(finished, tmp_path)
    shutil.copy(FIXTURES / "stage-0.1.0.json", output / "checkpoint-10" / "stage.json")
    assert StageRecord.load(output / "checkpoint-10").written_as == 1
    trainer = ContinualTrainer(tiny_model(seed=1), arguments(output), stage=stage())
    trainer.train(resume_from_checkpoint=True)
    assert torch.equal(weights(trainer), weights(finished[1]))
    assert (
        json.loads((output / "checkpoint-20" / "stage.json").read_text())["format_version"]
        == StageRecord.format_version
    )


def test_a_stage_of_a_newer_format_is_refused(finished: tuple[Path, ContinualTrainer], tmp_path: Path) -> None:
    checkpoint = crashed(finished, tmp_path) / "checkpoint-10"
    content = json.loads((checkpoint / "stage.json").read_text())
    (checkpoint / "stage.json").write_text(
        json.dumps({**content, "format_version": StageRecord.format_version + 1, "new": 1})
    )
    with pytest.raises(ValueError, match=r"stage\.json has the format version 3, .* up to 2; update"):
        StageRecord.load(checkpoint)


# ---- Refusals ----


def differing() -> dict[str, Stage]:
    return {
        "schedule.warmup": stage(schedule=get_schedule("rewarm_cosine", warmup=2)),
        "max_steps": stage(max_steps=30),
        "mixture.weights.0.old": stage(mixture=replay(0.2)),
        "mixture.seed": stage(mixture=replay(seed=1)),
    }


@pytest.mark.parametrize("name", list(differing()))
def test_what_differs_is_shown(name: str, finished: tuple[Path, ContinualTrainer], tmp_path: Path) -> None:
    trainer = ContinualTrainer(tiny_model(), arguments(crashed(finished, tmp_path)), stage=differing()[name])
    with pytest.raises(ValueError, match=name):
        trainer.train(resume_from_checkpoint=True)


def test_override_takes_the_arguments_and_keeps_the_place(
    finished: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    args = arguments(crashed(finished, tmp_path), on_mismatch="override", learning_rate=2e-3, weight_decay=0.5)
    trainer = ContinualTrainer(tiny_model(), args, stage=stage(schedule=get_schedule("constant", warmup=0)))
    trainer.train(resume_from_checkpoint=True)
    assert rates(trainer)[10:] == [2e-3] * 10
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.5, 0.0}  # type: ignore[union-attr]


def test_use_checkpoint_takes_the_checkpoint(finished: tuple[Path, ContinualTrainer], tmp_path: Path) -> None:
    args = arguments(crashed(finished, tmp_path), on_mismatch="use_checkpoint", learning_rate=2e-3, weight_decay=0.5)
    other = stage(schedule=get_schedule("constant", warmup=0), mixture=replay(0.5, seed=7), max_steps=90)
    trainer = ContinualTrainer(tiny_model(), args, stage=other)
    trainer.train(resume_from_checkpoint=True)
    assert rates(trainer) == rates(finished[1])
    assert losses(trainer) == losses(finished[1])


def test_a_used_folder_a_stageless_checkpoint_and_a_foreign_one_are_refused(
    finished: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    output = crashed(finished, tmp_path)
    with pytest.raises(ValueError, match="already holds checkpoint-10"):
        ContinualTrainer(tiny_model(), arguments(output), stage=stage()).train()
    with pytest.raises(ValueError, match="give that stage its own output_dir"):
        ContinualTrainer(tiny_model(), arguments(output), stage=stage("second")).train(True)
    (output / "checkpoint-10" / "stage.json").unlink()
    with pytest.raises(ValueError, match=r"has no stage\.json"):
        ContinualTrainer(tiny_model(), arguments(output), stage=stage()).train(True)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        ContinualTrainer(tiny_model(), arguments(tmp_path / "none"), stage=stage()).train(True)


@pytest.mark.parametrize(
    "ignored", [{"max_steps": 7}, {"warmup_steps": 3}, {"lr_scheduler_type": "cosine"}, {"num_train_epochs": 2}]
)
def test_arguments_that_the_stage_would_ignore_are_refused(ignored: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the stage 'first' decides it"):
        ContinualTrainer(tiny_model(), arguments(tmp_path, **ignored), stage=stage())


def test_keep_without_a_parent_or_its_state_is_refused(
    finished: tuple[Path, ContinualTrainer], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="name the parent"):
        ContinualTrainer(tiny_model(), arguments(tmp_path), stage=stage(optimizer="keep")).train()
    parent = crashed(finished, tmp_path) / "checkpoint-10"
    (parent / "optimizer.pt").unlink()
    late = stage("second", optimizer="keep", parent=parent)
    with pytest.raises(ValueError, match="holds no optimizer state"):
        ContinualTrainer(tiny_model(), arguments(tmp_path / "second"), stage=late).train()


def test_tokens_need_rows_of_one_length(tmp_path: Path) -> None:
    trainer = ContinualTrainer(tiny_model(), arguments(tmp_path), stage=stage(max_steps=None, max_tokens=1_000))
    trainer.train()
    assert trainer.state.global_step == 16
    ragged = [
        {"input_ids": row["input_ids"][: 4 + i % 5], "labels": row["labels"][: 4 + i % 5]} for i, row in enumerate(NEW)
    ]
    uneven = Stage("first", "constant", ReplayMixture({"new": ragged, "old": OLD}, [0.5, 0.5]), max_tokens=1_000)
    with pytest.raises(ValueError, match="differ in length"):
        ContinualTrainer(tiny_model(), arguments(tmp_path / "uneven"), stage=uneven).train()


def test_a_stage_needs_one_length() -> None:
    for steps, tokens in ((None, None), (1, 1), (0, None)):
        with pytest.raises(ValueError, match="length"):
            Stage("first", "constant", replay(), max_steps=steps, max_tokens=tokens)
