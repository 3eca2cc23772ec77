"""What a run left is read back: checkpoints in order, the latest state, earlier stages, the part of the schedule."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_warmscale.checkpoints import RunFolder, checkpoint_step, logged_names, run_checkpoints

DATA = {"seed": 0, "sources": {"train": {"rows": 100, "fingerprint": "ab"}}, "weights": {"0": {"train": 1.0}}}
WSD = {"name": "wsd", "learning_rate": 0.01, "min_lr": None}


def stage(step: int, *, max_steps: int = 10, schedule: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    progress = {"step": step, "tokens": {"train": 64 * step}}
    return {
        "name": "base",
        "schedule": schedule or WSD,
        "max_steps": max_steps,
        "mixture": DATA,
        "progress": progress,
        "lineage": [],
        **fields,
    }


def state(step: int, rates: dict[int, float] | None = None) -> dict[str, Any]:
    history: list[dict[str, Any]] = [
        {"step": at, "loss": 5.0 - at / 10, "learning_rate": rate} for at, rate in (rates or {}).items()
    ]
    return {
        "global_step": step,
        "max_steps": 10,
        "log_history": [*history, {"step": step, "eval_loss": 4.0 - step / 10, "eval_german_loss": 4.5}],
    }


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


RATES = {2: 0.005, 4: 0.01, 6: 0.01, 8: 0.005, 10: 0.001}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 10, 6):
        rates = {at: rate for at, rate in RATES.items() if at <= step}
        write(
            tmp_path / f"checkpoint-{step}",
            trainer_state=state(step, rates),
            stage=stage(step),
            config={"hidden_size": 16},
        )
    return tmp_path


def test_only_a_checkpoint_with_a_step_counts_in_the_order_of_steps(run: Path) -> None:
    for name in ("checkpoint-2-keep", "checkpoint-best", "checkpoint-", "checkpoint-1e3", "my-checkpoint-3"):
        (run / name).mkdir()
    (run / "checkpoint-99").write_text("a file")
    assert [path.name for path in run_checkpoints(run)] == ["checkpoint-2", "checkpoint-6", "checkpoint-10"]
    assert RunFolder(run).checkpoints == run_checkpoints(run)
    assert checkpoint_step("a/checkpoint-20/") == 20


def test_the_end_of_a_run_is_its_last_checkpoint(run: Path) -> None:
    opened = RunFolder(run)
    assert (opened.global_step, opened.is_finished, opened.total_tokens) == (10, True, 640)
    assert opened.last_logged("eval_loss") == 3.0
    assert opened.logged("learning_rate") == list(RATES.items())
    assert opened.config == {"hidden_size": 16}
    assert logged_names(opened.history, "eval_", "_loss") == ["eval_german_loss"]
    assert opened.last_logged("nothing") is None


def test_what_the_folder_itself_holds_wins_when_it_is_later(run: Path) -> None:
    write(run, trainer_state=state(9), stage=stage(9))
    assert RunFolder(run).global_step == 10
    write(run, trainer_state=state(12), stage=stage(12, max_steps=12))
    later = RunFolder(run)
    assert (later.global_step, later.total_tokens) == (12, 768)


def test_a_checkpoint_is_a_run_that_ends_there(run: Path) -> None:
    opened = RunFolder(run / "checkpoint-6")
    assert (opened.global_step, opened.is_finished, opened.total_tokens) == (6, False, 384)


def test_the_parts_of_a_schedule_are_told_apart(run: Path) -> None:
    opened = RunFolder(run)
    parts = {step: opened.part_at(step) for step in (2, 4, 6, 8, 10)}
    assert parts == {2: "unknown", 4: "warmup", 6: "constant", 8: "cooldown", 10: "cooled"}


@pytest.mark.parametrize(
    ("schedule", "part"),
    [
        (WSD, "cooled"),
        ({"name": "rewarm_cosine", "learning_rate": 0.01, "min_lr": 0.0}, "cooled"),
        ({"name": "constant", "learning_rate": 0.01, "min_lr": None}, "constant"),
        ({"name": "wsd", "learning_rate": 0.01, "min_lr": 0.01}, "constant"),
    ],
)
def test_only_a_schedule_that_falls_ends_cooled(tmp_path: Path, schedule: dict[str, Any], part: str) -> None:
    write(tmp_path, trainer_state=state(10, {6: 0.01, 10: 0.01}), stage=stage(10, schedule=schedule))
    assert RunFolder(tmp_path).part_at(10) == part


@pytest.mark.parametrize(("last", "part"), [(0.001, "cooled"), (0.009, "cooldown")])
def test_without_a_stage_the_logged_rates_tell(tmp_path: Path, last: float, part: str) -> None:
    write(tmp_path, trainer_state=state(10, {6: 0.01, 10: last}))
    opened = RunFolder(tmp_path)
    assert (opened.part_at(10), opened.stage, opened.total_tokens, opened.data_hash) == (part, None, None, None)
    assert opened.is_finished


def test_a_branch_has_the_tokens_and_the_data_of_its_trunk(tmp_path: Path) -> None:
    ancestor = {key: stage(6)[key] for key in ("name", "mixture", "progress")}
    moved_on = {**DATA, "first_sample": 24, "skipped_rows": {"train": 24}, "seed": 5}
    other = {**DATA, "sources": {"train": {"rows": 100, "fingerprint": "cd"}}}
    trunk = RunFolder(write(tmp_path / "trunk", trainer_state=state(6), stage=stage(6)))
    folders = {
        name: write(tmp_path / name, trainer_state=state(4), stage=stage(4, mixture=mixture, lineage=[ancestor]))
        for name, mixture in (("branch", moved_on), ("other", other))
    }
    branch, elsewhere = RunFolder(folders["branch"]), RunFolder(folders["other"])
    assert branch.total_tokens == 640
    assert branch.data_hash == trunk.data_hash != elsewhere.data_hash


def test_a_folder_that_no_run_left_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no trainer_state.json.*name the output_dir of a run"):
        RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no run"):
        RunFolder(tmp_path / "missing")
    write(tmp_path, trainer_state=state(1))
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        _ = RunFolder(tmp_path).config


@pytest.mark.parametrize("text", ["{", "[]", '{"global_step": 3}', '{"global_step": "3", "log_history": []}'])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=r"trainer_state.json (is damaged|has no global_step)"):
        RunFolder(tmp_path)
