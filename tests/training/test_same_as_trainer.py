"""A stage with losses by source ends with the weights that `Trainer` ends with, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, Trainer, default_data_collator
from transformers.modeling_outputs import CausalLMOutput

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage
from hf_warmscale.training.data.collators import collate_packed
from tests.training.families import family
from tests.training.tiny import LENGTH, VOCAB, arguments, losses, replay, tiny_model, weights

STEPS = 3
Rows = list[dict[str, Any]]

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "workers": {"dataloader_num_workers": 1},
    "bf16": {"bf16": True},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "label smoothing and accumulation": {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
    "neftune": {"neftune_noise_alpha": 5.0},
    "no clipping": {"max_grad_norm": 0.0},
    "hard clipping": {"max_grad_norm": 0.05},
    "weight decay": {"weight_decay": 0.1, "adam_beta2": 0.9},
    "unfused": {"optim": "adamw_torch"},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd", "learning_rate": 0.5},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop"},
    "activation checkpointing": {"activation_checkpointing": True},
    "sparse logging": {"logging_steps": 2},
    "unfiltered logging": {"logging_nan_inf_filter": False},
    "tokens not averaged": {"average_tokens_across_devices": False, "gradient_accumulation_steps": 2},
    "tokens counted": {"include_num_input_tokens_seen": "all", "torch_empty_cache_steps": 1},
    "learning rate 0": {"learning_rate": 0.0},
}


def both(
    make: Callable[[], nn.Module],
    mixture: ReplayMixture,
    folder: Path,
    collator: Any = None,
    **settings: Any,
) -> tuple[Trainer, ContinualTrainer]:
    """Train the same model on the same rows with `Trainer` and as a stage."""
    args = arguments(folder / "stage", save_strategy="no", **settings)
    ours = ContinualTrainer(make(), args, collator, stage=Stage("measured", "constant", mixture, max_steps=STEPS))
    ours.train()
    assert ours.stage_run is not None
    content = [mixture.read([index])[0][1] for index in range(len(ours.stage_run.samples))]
    plain = arguments(
        folder / "plain", save_strategy="no", max_steps=STEPS, lr_scheduler_type="constant",
        train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    theirs = Trainer(make(), plain, collator, train_dataset=content)
    theirs.train()
    return theirs, ours


def check_same(theirs: Trainer, ours: ContinualTrainer) -> None:
    assert torch.equal(weights(theirs), weights(ours))
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)
    entries = [entry for entry in ours.state.log_history if "loss/new" in entry]
    assert entries, "no losses by source"


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_stage_trains_as_trainer_does(name: str, tmp_path: Path) -> None:
    check_same(*both(tiny_model, replay(0.3), tmp_path, **SETTINGS[name]))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt2", "gpt_neox", "gemma2", "opt"])
def test_families_keep_their_own_losses(name: str, tmp_path: Path) -> None:
    """Router losses among them."""
    check_same(*both(lambda: family(name), replay(0.3), tmp_path, gradient_accumulation_steps=2))


def packed_rows(count: int, *, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (count, LENGTH), generator=generator)
    positions = torch.arange(LENGTH) % (LENGTH // 2)
    return [
        {"input_ids": row, "position_ids": positions, "labels": torch.where(positions == 0, -100, row)}
        for row in tokens
    ]


def test_packed_rows(tmp_path: Path) -> None:
    mixture = ReplayMixture({"new": packed_rows(40, seed=1), "old": packed_rows(20, seed=2)}, [0.7, 0.3])
    check_same(*both(tiny_model, mixture, tmp_path, collate_packed))


class OwnLossForCausalLM(LlamaForCausalLM):
    """A family that computes its loss itself."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> CausalLMOutput:
        logits = super().forward(input_ids=input_ids).logits
        assert logits is not None
        loss = nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1))
        return CausalLMOutput(loss=loss, logits=logits)


class FusedLossForCausalLM(OwnLossForCausalLM):
    """A head that never makes logits, as far as its caller sees."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> CausalLMOutput:
        return CausalLMOutput(loss=super().forward(input_ids, labels).loss)


def test_a_family_with_a_loss_of_its_own_is_measured_from_its_logits(tmp_path: Path) -> None:
    theirs, ours = both(lambda: OwnLossForCausalLM(tiny_model().config), replay(0.3), tmp_path)
    check_same(theirs, ours)
    tokens = {"new": 0.0, "old": 0.0}
    for entry in ours.state.log_history[:STEPS]:
        seen = {name: entry[f"loss_tokens/{name}"] - tokens[name] for name in tokens}
        mean = sum(entry.get(f"loss/{name}", 0.0) * count for name, count in seen.items()) / sum(seen.values())
        assert mean == pytest.approx(entry["loss"], rel=1e-5)
        tokens = {name: entry[f"loss_tokens/{name}"] for name in tokens}


def test_a_fused_head_has_no_losses_by_source_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = both(lambda: FusedLossForCausalLM(tiny_model().config), replay(0.3), tmp_path)
    assert torch.equal(weights(theirs), weights(ours))
    assert not [key for entry in ours.state.log_history for key in entry if key.startswith("loss/")]
    assert [record.message for record in caplog.records if "FusedLossForCausalLM" in record.message] == [
        "FusedLossForCausalLM gives no loss of the next token, so there are no losses by source."
    ]


def test_a_loss_function_of_the_user(tmp_path: Path) -> None:
    """`compute_loss_func` gets the outputs, as in `Trainer`; losses by source are those of the logits."""

    def doubled(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        flat = outputs.logits[:, :-1].reshape(-1, VOCAB)
        loss = nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum")
        return torch.as_tensor(2 * loss / num_items_in_batch)

    stage = Stage("measured", "constant", replay(0.3), max_steps=STEPS)
    args = arguments(tmp_path, save_strategy="no")
    trainer = ContinualTrainer(tiny_model(), args, default_data_collator, stage=stage, compute_loss_func=doubled)
    trainer.train()
    entry = trainer.state.log_history[0]
    shares = {name: entry[f"loss_tokens/{name}"] for name in ("new", "old") if f"loss/{name}" in entry}
    mean = sum(entry[f"loss/{name}"] * count for name, count in shares.items()) / sum(shares.values())
    assert 2 * mean == pytest.approx(entry["loss"], rel=1e-5)
