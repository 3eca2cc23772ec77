"""From the folders of runs to the loss of a larger model; what does not belong in a ladder is flagged or refused."""

import json
from pathlib import Path

import pytest
import torch

from hf_warmscale import ContinualTrainer, MupForCausalLM, Stage, get_schedule, predict_loss
from hf_warmscale.scaling import ladder_frame, read_run
from hf_warmscale.scaling.runs import config_at, count_parameters
from tests.scaling.measurements import true_loss
from tests.scaling.run_folders import mup_config, write_ladder, write_run
from tests.training.tiny import DOMAINS, arguments, replay

SIZES, RATIOS = (16, 32, 48, 64, 96), (50.0, 100.0, 400.0)


def tokens_of(ratio: float) -> int:
    return 5 * int(ratio * count_parameters(mup_config(min(SIZES)))[0] / 5)


def test_a_ladder_predicts_a_larger_width(tmp_path: Path) -> None:
    runs = [run for seed in (0, 1) for run in write_ladder(tmp_path, SIZES, RATIOS, seed=seed)]
    found = predict_loss(runs, hidden_size=128, tokens=tokens_of(400), bootstrap=4)
    size = count_parameters(mup_config(128))[0]
    assert found.num_parameters == size
    assert found.loss == pytest.approx(true_loss(size, tokens_of(400)), rel=1e-4)
    assert found.law.form == "chinchilla" and found.law.embeddings is True
    assert found.interval is not None and found.interval[0] <= found.loss <= found.interval[1]
    assert found.backtest.law is not None and found.backtest.law.mare < 1e-3
    assert not [flag for flag in found.flags if "recipe" in flag or "muP" in flag]
    same = predict_loss(runs[: len(runs) // 2], num_parameters=size, tokens=tokens_of(400), bootstrap=0)
    assert same.loss == pytest.approx(found.loss, rel=1e-4)
    assert same.interval is None and any(flag.startswith("no interval") for flag in same.flags)
    json.dumps(found.to_dict(), allow_nan=False)


def test_runs_of_one_budget_give_a_power_law(tmp_path: Path) -> None:
    runs = write_ladder(tmp_path, SIZES)
    found = predict_loss(runs, hidden_size=128, tokens=tokens_of(100), bootstrap=0)
    size = count_parameters(mup_config(128))[0]
    assert found.law.form == "power"
    assert found.loss == pytest.approx(true_loss(size, tokens_of(100)), rel=1e-4)
    with pytest.raises(ValueError, match="nothing tells the loss at 7"):
        predict_loss(runs, hidden_size=128, tokens=7)


def test_sizes_can_be_counted_without_embeddings(tmp_path: Path) -> None:
    runs = [read_run(run) for run in write_ladder(tmp_path, SIZES)]
    with_them, without = (ladder_frame(runs, embeddings=value) for value in (True, False))
    embeddings = 2 * 200 * torch.tensor(SIZES)
    assert (with_them.N - without.N).tolist() == embeddings.tolist()
    assert (with_them.embeddings, without.embeddings) == (True, False)


def test_the_other_sizes_follow_the_runs(tmp_path: Path) -> None:
    runs = [read_run(run) for run in write_ladder(tmp_path, (16, 32))]
    config = config_at(runs, 64)
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (64, 128, 8)
    assert (config.num_hidden_layers, config.vocab_size, config.head_dim) == (2, 200, 8)
    with pytest.raises(ValueError, match="would need num_attention_heads"):
        config_at(runs, 20)


def test_branches_of_one_trunk_are_one_run(tmp_path: Path) -> None:
    runs = [read_run(run) for run in write_ladder(tmp_path, (16, 32), RATIOS)]
    frame = ladder_frame(runs)
    assert len(set(frame.run)) == 2
    other = write_run(tmp_path / "again", hidden_size=16, tokens=tokens_of(50), loss=3.0)
    assert len(set(ladder_frame([*runs, read_run(other)]).run)) == 3


CHANGES = {
    "rate": ({"schedule": {"name": "wsd", "learning_rate": 0.02, "min_lr": 0.0}}, "mixed recipes: learning rate"),
    "batch": ({"samples_per_step": 8}, "mixed recipes: rows in a step is 4 or 8"),
    "decay": ({"arguments": {"weight_decay": 0.0}}, "mixed recipes: weight_decay is 0.1 or 0.0"),
    "init": (
        {"arguments": {"model": {"initializer_range": 0.5}}},
        "mixed recipes: model.initializer_range is 0.02 or 0.5",
    ),
    "data": (
        {
            "lineage": [],
            "mixture": {"seed": 0, "sources": {"text": {"rows": 9, "fingerprint": "cd"}}, "weights": {}},
        },
        "mixed recipes: data",
    ),
}


@pytest.mark.parametrize(("changes", "flag"), CHANGES.values(), ids=CHANGES.keys())
def test_a_run_of_another_recipe_is_flagged(tmp_path: Path, changes: dict[str, object], flag: str) -> None:
    runs = write_ladder(tmp_path, SIZES)
    stage = json.loads((runs[1] / "checkpoint-10" / "stage.json").read_text())
    (runs[1] / "checkpoint-10" / "stage.json").write_text(json.dumps({**stage, **changes}))
    if "lineage" in changes:  # the tokens of the trunk are gone with it
        stage["progress"]["tokens"]["text"] *= 5
        content = {**stage, **changes, "progress": stage["progress"]}
        (runs[1] / "checkpoint-10" / "stage.json").write_text(json.dumps(content))
    found = predict_loss(runs, num_parameters=10**5, tokens=tokens_of(100), bootstrap=0)
    assert any(each.startswith(flag) for each in found.flags), found.flags


def test_models_without_mup_are_flagged(tmp_path: Path) -> None:
    runs = write_ladder(tmp_path, SIZES)
    for run in runs:
        path = run / "checkpoint-10" / "config.json"
        config = json.loads(path.read_text())
        del config["mup"]
        path.write_text(json.dumps(config))
    found = predict_loss(runs, num_parameters=10**5, tokens=tokens_of(100), bootstrap=0)
    assert found.flags[0].startswith("not muP")


def test_what_is_no_rung_is_refused(tmp_path: Path) -> None:
    (run, *_) = runs = write_ladder(tmp_path, (16, 32, 48, 64))
    uncooled = write_run(
        tmp_path / "trunk", hidden_size=16, tokens=1000, loss=5.0, schedule={"name": "constant", "learning_rate": 0.01}
    )
    state = tmp_path / "blind" / "checkpoint-10" / "trainer_state.json"
    write_run(state.parents[1], hidden_size=16, tokens=1000, loss=5.0)
    state.write_text(json.dumps({"global_step": 10, "max_steps": 10, "log_history": [{"step": 4, "eval_loss": 4.0}]}))
    refused = {
        "has no cooled point": [*runs, uncooled],
        "logged no eval_loss at its last step": [*runs, state.parents[1]],
        "named twice": [*runs, run],
        "no training run left": [*runs, tmp_path],
        "one size": [run],
        "list of run folders": [],
    }
    for words, folders in refused.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            predict_loss(folders, hidden_size=96, tokens=tokens_of(100), bootstrap=0)
    with pytest.raises(ValueError, match="either hidden_size or num_parameters"):
        predict_loss(runs, tokens=tokens_of(100))


def test_the_folder_of_a_real_run_is_read(tmp_path: Path) -> None:
    """What the trainer leaves today is what is read: tokens over all steps, the last loss, the cooled end."""
    config = mup_config(16).resized(vocab_size=64)
    stage = Stage("base", get_schedule("wsd", warmup=1, cooldown=0.4, min_lr=0.0), replay(), max_steps=5)
    args = arguments(tmp_path / "run", eval_strategy="steps", eval_steps=4, save_steps=3)
    trainer = ContinualTrainer(MupForCausalLM(config), args, stage=stage, eval_dataset=DOMAINS)
    trainer.train()
    run = read_run(tmp_path / "run")
    assert run.tokens == 5 * 4 * 16
    assert run.loss == [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert (run.hidden_size, run.sizes[0]) == (16, count_parameters(config)[0])
    assert run.recipe()["learning rate"] == 1e-2
    with pytest.raises(ValueError, match="has no cooled point"):
        read_run(tmp_path / "run" / "checkpoint-3")
