"""Every silent trap of resuming a Trainer on new data: what transformers does, and what a stage does instead."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, interleave_datasets
from datasets.distributed import split_dataset_by_node
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage, StageRecord, get_schedule
from tests.training.data.test_mixture import Numbers
from tests.training.tiny import LENGTH, NEW, OLD, arguments, losses, rates, rows, tiny_model

PEAK, NEW_PEAK = 1e-3, 5e-4


def plain(output: Path, **settings: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "max_steps": 20, "learning_rate": PEAK, "lr_scheduler_type": "cosine", "warmup_steps": 2,
        "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 10, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(str(output), **{**defaults, **settings})


def rewarmed(max_steps: int = 8, **settings: Any) -> Stage:
    schedule = get_schedule("rewarm_cosine", warmup=4, learning_rate=NEW_PEAK)
    return Stage("second", schedule, ReplayMixture({"new": NEW}, [1.0]), max_steps=max_steps, **settings)


EXPECTED = [NEW_PEAK * step / 4 for step in range(1, 5)]
"""The first four rates of the second stage."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain cosine run of 20 steps, checkpoints at 5, 10, 15 and 20."""
    output = tmp_path_factory.mktemp("plain")
    Trainer(tiny_model(), plain(output, save_steps=5), train_dataset=OLD).train()
    return output


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a stage."""
    output = tmp_path_factory.mktemp("first")
    stage = Stage("first", "rewarm_cosine", ReplayMixture({"old": OLD}, [1.0]), max_steps=20)
    ContinualTrainer(tiny_model(), arguments(output, learning_rate=PEAK, save_steps=10), stage=stage).train()
    return output


def resumed(checkpoint: Path, output: Path, **settings: Any) -> list[float]:
    """Resume a plain checkpoint with other arguments and return the rates of the steps that follow."""
    shutil.copytree(checkpoint, output / checkpoint.name)
    trainer = Trainer(tiny_model(), plain(output, **settings), train_dataset=OLD)
    trainer.train(resume_from_checkpoint=True)
    return rates(trainer)[int(checkpoint.name.split("-")[1]) :]


def second_stage(first_stage: Path, output: Path, step: int = 10, **settings: Any) -> ContinualTrainer:
    trainer = ContinualTrainer(tiny_model(), arguments(output, save_steps=2), stage=rewarmed(**settings))
    trainer.train(resume_from_checkpoint=str(first_stage / f"checkpoint-{step}"))
    return trainer


def test_1_a_new_rate_and_warmup_are_ignored(finished: Path, first_stage: Path, tmp_path: Path) -> None:
    asked = {"learning_rate": NEW_PEAK, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
    found = resumed(finished / "checkpoint-10", tmp_path / "plain", **asked)
    assert found[1:] == [PEAK] * 9
    assert found[0] == pytest.approx(5.868e-4, rel=1e-3)
    assert rates(second_stage(first_stage, tmp_path / "ours"))[:4] == pytest.approx(EXPECTED, rel=1e-12)


def test_2_a_finished_cosine_is_extended_at_half_the_old_peak(
    finished: Path, first_stage: Path, tmp_path: Path
) -> None:
    found = resumed(finished / "checkpoint-20", tmp_path / "plain", max_steps=40, learning_rate=NEW_PEAK)
    assert found[0] == 0.0
    assert found[1] == pytest.approx(PEAK / 2, rel=0.1)
    assert rates(second_stage(first_stage, tmp_path / "ours", step=20))[:4] == pytest.approx(EXPECTED, rel=1e-12)


class KeepsFreshSchedule(Trainer):
    """The usual fix: load the moments, leave the scheduler as it was made."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        scheduler, state = self.lr_scheduler, self.lr_scheduler.state_dict()  # type: ignore[union-attr]
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler.load_state_dict(state)  # type: ignore[union-attr]


def test_3_loading_the_moments_brings_the_old_rate_with_them(
    finished: Path, first_stage: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "checkpoint-10", tmp_path / "plain" / "checkpoint-10")
    args = plain(tmp_path / "plain", learning_rate=NEW_PEAK, warmup_steps=4)
    fixed = KeepsFreshSchedule(tiny_model(), args, train_dataset=OLD)
    fixed.train(resume_from_checkpoint=True)
    assert fixed.optimizer is not None
    assert fixed.optimizer.param_groups[0]["initial_lr"] == PEAK
    ours = second_stage(first_stage, tmp_path / "ours", optimizer="keep")
    assert rates(ours)[:4] == pytest.approx(EXPECTED, rel=1e-12)
    assert ours.optimizer is not None
    assert {group["initial_lr"] for group in ours.optimizer.param_groups} == {NEW_PEAK}


def test_4_the_usual_fix_rewarms_again_after_a_crash(finished: Path, first_stage: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoint-10", tmp_path / "plain" / "checkpoint-10")

    def usual_fix(checkpoint: Path) -> list[float]:
        args = plain(tmp_path / "plain", learning_rate=NEW_PEAK, warmup_steps=4, save_steps=5)
        trainer = KeepsFreshSchedule(tiny_model(), args, train_dataset=OLD)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return rates(trainer)[int(checkpoint.name.split("-")[1]) :]

    usual_fix(tmp_path / "plain" / "checkpoint-10")
    after_crash = usual_fix(tmp_path / "plain" / "checkpoint-15")
    assert after_crash[1] == pytest.approx(NEW_PEAK / 4)  # warming up once more

    whole = second_stage(first_stage, tmp_path / "ours")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "ours" / f"checkpoint-{step}")
    again = ContinualTrainer(tiny_model(), arguments(tmp_path / "ours", save_steps=2), stage=rewarmed())
    again.train(resume_from_checkpoint=True)
    assert rates(again) == rates(whole)


def test_5_a_checkpoint_of_weights_only_starts_the_schedule_anew(tmp_path: Path) -> None:
    Trainer(tiny_model(), plain(tmp_path / "plain", max_steps=10, save_only_model=True), train_dataset=OLD).train()
    trainer = Trainer(tiny_model(), plain(tmp_path / "plain", save_only_model=True), train_dataset=OLD)
    trainer.train(resume_from_checkpoint=True)
    assert rates(trainer)[10:12] == [0.0, PEAK / 2]  # step 11 of 20 warms up like step 1

    def ours(stop: int) -> ContinualTrainer:
        args = arguments(tmp_path / "ours", save_only_model=True, save_steps=4)
        stage = Stage("only", "rewarm_cosine", ReplayMixture({"old": OLD}, [1.0]), max_steps=8)
        return ContinualTrainer(tiny_model(), args, stage=stage)

    whole = ours(8)
    whole.train()
    shutil.rmtree(tmp_path / "ours" / "checkpoint-8")
    again = ours(8)
    again.train(resume_from_checkpoint=True)
    assert rates(again) == rates(whole)


class Watched(list[dict[str, list[int]]]):
    """Rows that remember which of them were read."""

    def __init__(self, content: list[dict[str, list[int]]]) -> None:
        super().__init__(content)
        self.read: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        self.read.add(int(index))
        return super().__getitem__(index)


def test_6_the_first_rows_of_new_data_are_skipped(finished: Path, first_stage: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoint-10", tmp_path / "plain" / "checkpoint-10")
    fresh = Watched(rows(80, seed=7))
    args = plain(tmp_path / "plain", train_sampling_strategy="sequential")
    Trainer(tiny_model(), args, train_dataset=fresh).train(resume_from_checkpoint=True)
    assert fresh.read == set(range(40, 80))  # of 80 new rows, the first 40 were never seen

    args = plain(tmp_path / "plain", max_steps=-1, num_train_epochs=1, ignore_data_skip=True)
    short = Trainer(tiny_model(), args, train_dataset=rows(40, seed=7))
    short.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-10"))
    assert short.state.global_step == 10  # not one step, and no word about it

    fresh = Watched(rows(32, seed=7))
    stage = Stage("second", "constant", ReplayMixture({"new": fresh}, [1.0]), max_steps=8)
    ContinualTrainer(tiny_model(), arguments(tmp_path / "ours"), stage=stage).train(str(first_stage / "checkpoint-10"))
    assert fresh.read == set(range(32))


def test_7_other_probabilities_are_accepted_in_silence(tmp_path: Path) -> None:
    new, old = (Dataset.from_dict({"n": list(range(start, start + 50))}).to_iterable_dataset() for start in (0, 100))
    mixed = interleave_datasets([new, old], probabilities=[0.9, 0.1], seed=0)
    iterator = iter(mixed)
    for _ in range(10):
        next(iterator)
    other = interleave_datasets([new, old], probabilities=[0.1, 0.9], seed=0)
    other.load_state_dict(mixed.state_dict())
    assert sum(row["n"] >= 100 for row in other.take(10)) > 5

    def trainer(share: float) -> ContinualTrainer:
        mixture = ReplayMixture({"new": NEW, "old": OLD}, [1 - share, share])
        stage = Stage("mixed", "constant", mixture, max_steps=4)
        return ContinualTrainer(tiny_model(), arguments(tmp_path, save_steps=2), stage=stage)

    trainer(0.1).train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match=r"mixture\.weights\.0\.old is 0\.1 there and 0\.9 now"):
        trainer(0.9).train(resume_from_checkpoint=True)


def test_8_every_rank_draws_the_same_sources() -> None:
    """Shares of 64-sample global batches over 8 ranks: 8 independent draws instead of 64."""

    def numbers(shard: list[int], base: int) -> Any:
        for index in shard:
            for offset in range(200):
                yield {"n": base + 1_000 * index + offset}

    new, old = (
        IterableDataset.from_generator(numbers, gen_kwargs={"shard": list(range(16)), "base": base})
        for base in (0, 10**6)
    )
    mixed = interleave_datasets([new, old], probabilities=[0.95, 0.05], seed=0, stopping_strategy="all_exhausted")
    sequences = []
    for rank in range(4):
        own = split_dataset_by_node(mixed, rank=rank, world_size=4)
        sequences.append([row["n"] >= 10**6 for row in own.take(64)])
    assert all(sequence == sequences[0] for sequence in sequences)

    sources, _ = ReplayMixture({"new": Numbers(1_000), "old": Numbers(100)}, [0.95, 0.05]).locate_range(0, 64 * 64)
    ranks = sources.reshape(-1, 8, 8)  # step, rank, row
    assert not all((ranks[:, rank] == ranks[:, 0]).all() for rank in range(8))
    assert set(ranks.sum(axis=(1, 2)).tolist()) == {3, 4}


def test_9_a_wrapping_source_repeats_its_order_and_a_short_one_ends_the_run() -> None:
    new, old = (Dataset.from_dict({"n": list(range(start, start + size))}) for start, size in ((0, 200), (1_000, 5)))
    mixed = interleave_datasets(
        [new.shuffle(seed=0), old.shuffle(seed=0)], probabilities=[0.9, 0.1], seed=0, stopping_strategy="all_exhausted"
    )
    replayed = [row["n"] for row in mixed if row["n"] >= 1_000]
    assert replayed[:5] == replayed[5:10] == replayed[10:15]
    assert len(interleave_datasets([new, old], probabilities=[0.9, 0.1], seed=0)) < 100

    sources, drawn = ReplayMixture({"new": Numbers(200), "old": Numbers(5)}, [0.9, 0.1]).locate_range(0, 200)
    assert (np.sort(drawn[sources == 1].reshape(4, 5), axis=1) == np.arange(5)).all()
    assert len({tuple(order) for order in drawn[sources == 1].reshape(4, 5)}) > 1
    assert len(drawn) == 200


def test_10_the_place_in_the_data_is_in_the_checkpoint(finished: Path, first_stage: Path) -> None:
    assert not (finished / "checkpoint-10" / "stage.json").exists()
    progress = StageRecord.load(first_stage / "checkpoint-10").progress
    assert (progress.samples, progress.rows, progress.tokens) == (40, {"old": 40}, {"old": 40 * LENGTH})


def test_11_the_first_step_is_wasted_and_the_floor_never_reached(tmp_path: Path) -> None:
    decay = {"num_decay_steps": 5, "decay_type": "1-sqrt"}
    args = plain(
        tmp_path / "plain", max_steps=10, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=decay,
        save_strategy="no",
    )  # fmt: skip
    theirs = Trainer(tiny_model(), args, train_dataset=OLD)
    theirs.train()
    assert rates(theirs)[0] == 0.0
    assert rates(theirs)[-1] == pytest.approx(PEAK * (1 - math.sqrt(4 / 5)))

    schedule = get_schedule("wsd", warmup=2, cooldown=5, min_lr=0.0)
    stage = Stage("wsd", schedule, ReplayMixture({"old": OLD}, [1.0]), max_steps=10)
    ours = ContinualTrainer(tiny_model(), arguments(tmp_path / "ours", learning_rate=PEAK), stage=stage)
    ours.train()
    assert rates(ours)[0] == PEAK / 2
    assert rates(ours)[-1] == 0.0


def test_weights_alone_give_a_correct_second_stage(first_stage: Path, tmp_path: Path) -> None:
    """Starting from `from_pretrained` and starting from `resume_from_checkpoint` are the same stage."""
    parent = first_stage / "checkpoint-20"
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    loaded = ContinualTrainer(model, arguments(tmp_path / "loaded"), stage=rewarmed(parent=parent))
    loaded.train()
    assert losses(loaded) == losses(second_stage(first_stage, tmp_path / "resumed", step=20))
