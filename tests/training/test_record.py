"""The record of a stage says what happened, and names what would change the trajectory of a resumed one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.samplers import GridSampler
from transformers import LlamaForCausalLM, TrainerCallback

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage, StageRecord
from tests.training.tiny import DOMAINS, NEW, OLD, arguments, losses, rates, replay, tiny_model, weights

STEPS = 6


def stage(**settings: Any) -> Stage:
    return Stage("first", "constant", **{"mixture": replay(0.3), "max_steps": STEPS, **settings})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("recorded")
    ContinualTrainer(tiny_model(), arguments(output, save_steps=3), stage=stage()).train()
    return output


def half(finished: Path, folder: Path) -> Path:
    shutil.copytree(finished / "checkpoint-3", folder / "checkpoint-3")
    return folder


class Tight(LlamaForCausalLM):
    """A model that runs out of memory with more than two rows."""

    largest = 2

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        if self.training and len(input_ids) > self.largest:
            raise RuntimeError("CUDA out of memory.")
        return super().forward(input_ids=input_ids, labels=labels, **kwargs)


def tight() -> Tight:
    torch.manual_seed(0)
    return Tight(tiny_model().config)


@pytest.mark.parametrize("length", [{"max_steps": STEPS}, {"max_steps": None, "max_tokens": 16 * 12}])
def test_a_batch_size_that_was_found_is_recorded(length: dict[str, Any], tmp_path: Path) -> None:
    args = arguments(tmp_path / "whole", save_steps=3, per_device_train_batch_size=3, auto_find_batch_size=True)
    whole = ContinualTrainer(tight(), args, stage=stage(**length))
    whole.train()
    record = StageRecord.load(tmp_path / "whole" / "checkpoint-6")
    assert (record.samples_per_step, record.max_steps) == (2, STEPS)
    assert record.progress.samples == sum(record.progress.rows.values()) == 2 * STEPS
    assert record.progress.num_tokens() == 16 * 2 * STEPS
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    args = arguments(tmp_path / "half", save_steps=3, per_device_train_batch_size=3, auto_find_batch_size=True)
    again = ContinualTrainer(tight(), args, stage=stage(**length))
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))


def test_a_batch_size_cannot_shrink_inside_a_stage(finished: Path, tmp_path: Path) -> None:
    args = arguments(half(finished, tmp_path), auto_find_batch_size=True)
    trainer = ContinualTrainer(tight(), args, stage=stage())
    with pytest.raises(ValueError, match="raise gradient_accumulation_steps by the same factor"):
        trainer.train(resume_from_checkpoint=True)


def test_each_trial_of_a_search_records_its_own_rate(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_steps=STEPS, eval_strategy="steps", eval_steps=STEPS)
    trainer = ContinualTrainer(
        None, args, stage=stage(), eval_dataset=DOMAINS["new"], model_init=lambda: tiny_model(dropout=0.0)
    )
    rates_asked = [1e-2, 3e-3, 1e-3]
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates_asked)},
        backend="optuna", n_trials=3, sampler=GridSampler({"learning_rate": rates_asked}, seed=0),
    )  # fmt: skip
    recorded, logged = [], []
    for run in sorted(tmp_path.glob("run-*")):
        recorded.append(StageRecord.load(run / f"checkpoint-{STEPS}").schedule["learning_rate"])
        state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        logged.append({entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry})
        assert (run / "report.json").is_file()
    assert sorted(recorded) == sorted(rates_asked)
    assert logged == [{rate} for rate in recorded]


CHANGES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "optimizer": (tiny_model, {"optim": "adafactor"}, "arguments.optim is adamw_torch_fused there and adafactor now"),
    "label smoothing": (tiny_model, {"label_smoothing_factor": 0.1}, "arguments.label_smoothing_factor is 0.0"),
    "neftune": (tiny_model, {"neftune_noise_alpha": 5.0}, "arguments.neftune_noise_alpha is None there and 5.0 now"),
    "bf16": (tiny_model, {"bf16": True}, "arguments.bf16 is False there and True now"),
    "dropout": (lambda: tiny_model(dropout=0.3), {}, "arguments.model.attention_dropout is 0.1 there and 0.3 now"),
    "weight decay": (tiny_model, {"weight_decay": 0.1}, "arguments.weight_decay is 0.0 there and 0.1 now"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_changes_the_trajectory_is_named(name: str, finished: Path, tmp_path: Path) -> None:
    make, settings, words = CHANGES[name]
    trainer = ContinualTrainer(make(), arguments(half(finished, tmp_path), **settings), stage=stage())
    with pytest.raises(ValueError, match=words):
        trainer.train(resume_from_checkpoint=True)
    if name in ("neftune", "bf16", "dropout"):
        args = arguments(tmp_path, on_mismatch="use_checkpoint", **settings)
        with pytest.raises(ValueError, match=r"cannot change arguments\..*; make it with that of the checkpoint"):
            ContinualTrainer(make(), args, stage=stage()).train(resume_from_checkpoint=True)


def test_an_optimizer_of_the_checkpoint_is_taken(finished: Path, tmp_path: Path) -> None:
    args = arguments(half(finished, tmp_path), on_mismatch="use_checkpoint", optim="adafactor", save_steps=3)
    trainer = ContinualTrainer(tiny_model(), args, stage=stage())
    trainer.train(resume_from_checkpoint=True)
    assert type(trainer.optimizer.optimizer) is torch.optim.AdamW  # type: ignore[union-attr]
    state = json.loads((finished / "checkpoint-6" / "trainer_state.json").read_text())
    assert losses(trainer) == [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_the_order_of_sources_is_that_of_the_record(tmp_path: Path) -> None:
    """Sources of equal weight draw in turn, so their order is part of the sequence."""
    sources = {"new": NEW, "old": OLD}

    def trainer(names: list[str]) -> ContinualTrainer:
        mixture = ReplayMixture({name: sources[name] for name in names}, dict.fromkeys(names, 0.5))
        return ContinualTrainer(tiny_model(), arguments(tmp_path, save_steps=3), stage=stage(mixture=mixture))

    whole = trainer(["new", "old"])
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = trainer(["old", "new"])
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize(
    ("ignored", "words"),
    [
        ({"ignore_data_skip": True}, "a stage always continues at its place in the data"),
        ({"train_sampling_strategy": "sequential"}, "the mixture decides the order"),
        ({"train_sampling_strategy": "group_by_length"}, "the mixture decides the order"),
        ({"dataloader_in_order": False}, "depend on which worker is faster"),
        ({"data_seed": 3}, "the mixture has a seed of its own"),
    ],
)
def test_arguments_that_the_record_could_not_tell_are_refused(
    ignored: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        ContinualTrainer(tiny_model(), arguments(tmp_path, **ignored), stage=stage())


def test_the_data_seed_orders_a_train_dataset(tmp_path: Path) -> None:
    """Without a mixture it does what it does in `Trainer`: other rows, the same weights at the start."""

    def trainer(**settings: Any) -> ContinualTrainer:
        args = arguments(tmp_path / str(settings), save_strategy="no", **settings)
        return ContinualTrainer(tiny_model(dropout=0.0), args, train_dataset=NEW, stage=stage(mixture=None))

    runs = [trainer(), trainer(data_seed=7), trainer(data_seed=42)]
    for run in runs:
        run.train()
    assert runs[0].stage_run is not None and runs[1].stage_run is not None
    assert runs[1].stage_run.record.mixture["seed"] == 7
    assert losses(runs[0]) == losses(runs[2]) != losses(runs[1])


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_an_evaluation_at_the_start_is_made_when_asked_for(strategy: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_on_start=True, eval_strategy=strategy, eval_steps=100, save_strategy="no")
    trainer = ContinualTrainer(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert steps == ([0] if strategy == "no" else [0, STEPS])


def test_a_rate_of_zero_trains_nothing_and_says_so(tmp_path: Path) -> None:
    trainer = ContinualTrainer(tiny_model(), arguments(tmp_path, learning_rate=0.0), stage=stage())
    before = weights(trainer).clone()
    trainer.train()
    assert torch.equal(before, weights(trainer))
    assert rates(trainer) == [0.0] * STEPS
    entry = next(entry for entry in trainer.state.log_history if "lr/0" in entry)
    assert entry["lr/0"] == 0.0


def test_interrupted_and_resumed_on_the_same_trainer(finished: Path, tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4 and self.armed:
                self.armed = False
                raise KeyboardInterrupt

        armed = True

    for mixture, rows in ((replay(0.3), None), (None, NEW)):
        output = tmp_path / str(mixture is None)
        trainer = ContinualTrainer(
            tiny_model(), arguments(output, save_steps=3), train_dataset=rows, stage=stage(mixture=mixture),
            callbacks=[Interrupt()],
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        trainer.train(resume_from_checkpoint=True)
        assert trainer.train_dataset is rows
        whole = ContinualTrainer(
            tiny_model(), arguments(output / "whole"), train_dataset=rows, stage=stage(mixture=mixture)
        )
        whole.train()
        assert torch.equal(weights(trainer), weights(whole))


def test_split_batches_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `split_batches` a batch is what all ranks see together."""
    args = arguments(tmp_path, accelerator_config={"split_batches": True})
    trainer = ContinualTrainer(tiny_model(), args, stage=stage())
    monkeypatch.setattr(type(trainer), "get_total_train_batch_size", lambda self, args: 8)
    monkeypatch.setattr(type(args), "world_size", 2)
    assert trainer._samples_per_step() == 4
