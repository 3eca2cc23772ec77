"""A resumed stage takes another total batch or another mixture from its checkpoint on, and says so in its record."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_warmscale.training import (
    ContinualTrainer,
    DistillationTrainer,
    ReplayMixture,
    Stage,
    StageRecord,
    get_schedule,
    seen_rows,
)
from hf_warmscale.training.branching import anneal_stage, in_constant_phase
from tests.training.tiny import LENGTH, NEW, OLD, arguments, rates, replay, rows, tiny_model, weights

STEPS, BEFORE = 12, 5
PEAK = 1e-2
SCHEDULE = get_schedule("rewarm_cosine", warmup=2)
OTHER: dict[str, Any] = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
"""Six rows in a step in place of four."""


def stage(mixture: ReplayMixture | None = None, **settings: Any) -> Stage:
    return Stage("first", SCHEDULE, mixture or replay(0.3), **{"max_steps": STEPS, **settings})


def trainer(output: Path, made: Stage | None = None, **settings: Any) -> ContinualTrainer:
    return ContinualTrainer(tiny_model(dropout=0.0), arguments(output, **settings), stage=made or stage())


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("begun")
    trainer(output, save_steps=1).train()
    return output / f"checkpoint-{BEFORE}"


def resumed(begun: Path, folder: Path, made: Stage | None = None, **settings: Any) -> ContinualTrainer:
    shutil.copytree(begun, folder / begun.name)
    again = trainer(folder, made, on_mismatch="override", **settings)
    again.train(resume_from_checkpoint=True)
    return again


def by_hand(mixture: ReplayMixture, sizes: list[int]) -> torch.Tensor:
    """Train on the samples of a mixture in their order, some rows in each step, as if it had always been so."""
    model = tiny_model(dropout=0.0)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK, weight_decay=0.0)
    schedule = SCHEDULE.resolve(total_steps=STEPS, learning_rate=PEAK)
    sample = 0
    for size in sizes:
        read = torch.tensor([row["input_ids"] for row in mixture.__getitems__(range(sample, sample + size))])
        sample += size
        for group in optimizer.param_groups:
            group["lr"] = schedule(sample / 4 - 1)
        model(input_ids=read, labels=read).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def test_another_total_batch_is_a_change_point(begun: Path, tmp_path: Path) -> None:
    """20 rows in steps of four, 28 in steps of six: the data and the schedule stay, the steps become fewer."""
    changed = resumed(begun, tmp_path / "run", **OTHER)
    record = StageRecord.load(tmp_path / "run" / "checkpoint-10")
    assert record.batch_changes == [{"step": 5, "sample": 20, "samples_per_step": 6}]
    assert (record.samples_per_step, record.max_steps, record.num_steps, record.progress.samples) == (4, 12, 10, 50)
    assert record.progress.num_tokens() == sum(record.progress.rows.values()) * LENGTH == 50 * LENGTH
    assert record.progress.rows == replay(0.3).counts(50)
    torch.testing.assert_close(weights(changed), by_hand(replay(0.3), [4] * 5 + [6] * 5), rtol=0, atol=2e-6)
    assert changed.state.global_step == 10 and rates(changed)[-1] == pytest.approx(0.1 * PEAK)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "From step 5 on (sample 20) a step has 6 rows." in report
    # A crash behind the change point: the same arguments are no change any more, and the run is the same bit for bit.
    crashed = tmp_path / "crashed"
    shutil.copytree(tmp_path / "run" / "checkpoint-8", crashed / "checkpoint-8")
    again = trainer(crashed, **OTHER)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(changed))


def test_a_length_in_tokens_stays_in_tokens(begun: Path, tmp_path: Path) -> None:
    by_tokens = stage(max_steps=None, max_tokens=STEPS * 4 * LENGTH)
    changed = resumed(begun, tmp_path, by_tokens, per_device_train_batch_size=2)
    assert changed.state.global_step == BEFORE + 14  # 28 rows in steps of two
    assert changed.stage_run is not None
    assert changed.stage_run.record.progress.num_tokens() == STEPS * 4 * LENGTH


def test_another_mixture_is_a_change_point(begun: Path, tmp_path: Path) -> None:
    late = rows(20, seed=9)
    sources = {"old": OLD, "new": NEW, "late": late}
    mixed = ReplayMixture(sources, {"new": 0.2, "old": 0.3, "late": 0.5})
    changed = resumed(begun, tmp_path / "run", stage(mixed))
    record = StageRecord.load(tmp_path / "run" / f"checkpoint-{STEPS}")
    assert record.mixture["weights"] == {"0": {"new": 0.7, "old": 0.3}}
    assert record.mixture["changes"] == {"20": {"20": {"new": 0.2, "old": 0.3, "late": 0.5}}}
    assert record.progress.rows["late"] == 14
    drawn = mixed.continuing(replay(0.3).describe(), 20)
    torch.testing.assert_close(weights(changed), by_hand(drawn, [4] * STEPS), rtol=0, atol=2e-6)
    # The rows that the stage saw, for a replay by the next one.
    seen = seen_rows(tmp_path / "run" / f"checkpoint-{STEPS}", sources)
    read = [row["input_ids"] for row in drawn.__getitems__(range(4 * STEPS)) if row["source"] == "old"]
    assert [row["input_ids"] for row in seen["old"].__getitems__(range(len(seen["old"])))] == read
    (tmp_path / "crashed").mkdir()
    shutil.copytree(tmp_path / "run" / "checkpoint-8", tmp_path / "crashed" / "checkpoint-8")
    again = trainer(tmp_path / "crashed", stage(mixed))
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(changed))


def test_an_anneal_begins_where_a_changed_trunk_stands(begun: Path, tmp_path: Path) -> None:
    """The rate that the trunk's last step had, and the rows that it would read next."""
    constant = get_schedule("wsd", warmup=1, cooldown=0.25)
    made = Stage("first", constant, replay(0.6), max_steps=STEPS)
    changed = resumed(begun, tmp_path, made, **OTHER)
    assert in_constant_phase(StageRecord.load(tmp_path / "checkpoint-7"))  # 32 of 48 rows; the cooldown begins at 36
    assert not in_constant_phase(StageRecord.load(tmp_path / "checkpoint-8"))
    branch = anneal_stage(tmp_path / "checkpoint-7", replay(0.6), max_steps=3)
    assert branch.mixture is not None and changed.stage_run is not None
    assert branch.mixture.__getitems__(range(6)) == changed.stage_run.mixture.__getitems__(range(32, 38))
    assert branch.schedule.peak == PEAK


def test_every_refusal_names_the_way(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / begun.name)
    with pytest.raises(
        ValueError, match=r"is 4 there and 6 now; .*'override' changes the total batch from sample 20 on"
    ):
        trainer(tmp_path, **OTHER).train(resume_from_checkpoint=True)
    with pytest.raises(
        ValueError, match=r"weights\.0\.new is 0\.7 .*'override' changes the mixture from sample 20 on"
    ):
        trainer(tmp_path, stage(replay(0.5))).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"make it with 4 .* or set on_mismatch='override' to go on with 6"):
        trainer(tmp_path, on_mismatch="use_checkpoint", **OTHER).train(resume_from_checkpoint=True)
    # 6 rows of `old` were drawn, and the change asks for 20 more.
    scarce = ReplayMixture({"new": NEW, "old": OLD[:20]}, [0.3, 0.7], max_passes=1)
    with pytest.raises(ValueError, match="'old' runs dry: the stage draws 26 rows"):
        trainer(tmp_path, stage(scarce), on_mismatch="override").train(resume_from_checkpoint=True)


def test_a_teacher_is_heard_on_its_sources_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    def heard(folder: Path, names: list[str]) -> DistillationTrainer:
        mixture = ReplayMixture({name: {"new": NEW, "old": OLD}[name] for name in names}, {"new": 0.7, "old": 0.3})
        made = stage(mixture, max_steps=2)
        args = arguments(folder, save_steps=1)
        return DistillationTrainer(
            tiny_model(dropout=0.0), args, stage=made, teacher=tiny_model(seed=1), sources="new"
        )

    whole = heard(tmp_path / "whole", ["new", "old"])
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "half" / "checkpoint-1")
    again = heard(tmp_path / "half", ["old", "new"])
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))
