"""Groups found by name: the same under every wrapper, and in Trainer and trl as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from hf_warmscale.mup import mup_optimizer, mup_param_groups
from hf_warmscale.mup.parameter_scaling import plain_name
from tests.mup.tiny import ROW, described_groups, tiny_mup


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("_orig_mod.module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        (
            "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        ),
        ("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("module.base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "model.layers.0.mlp.up_proj.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
    ],
)
def test_plain_names(wrapped: str, plain: str) -> None:
    assert plain_name(wrapped) == plain


def test_frozen_parameters_are_in_no_group_and_all_others_in_one() -> None:
    model = tiny_mup()
    model.model.embed_tokens.weight.requires_grad_(False)
    grouped = [id(parameter) for group in mup_param_groups(model, lr=1e-2) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters())) - 1
    assert id(model.model.embed_tokens.weight) not in grouped


def test_groups_of_one_setting_are_one_group() -> None:
    """Without weight decay, what differs in its factor only is the same group."""
    groups = mup_param_groups(tiny_mup(), lr=1e-2, weight_decay=0.0)
    settings = [(group["lr"], group["weight_decay"], group["eps"]) for group in groups]
    assert len(settings) == len(set(settings)) == 3
    assert groups[0]["lr"] == 1e-2


# peft reads a property under its old name
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_move_by_what_they_read() -> None:
    """A reads the width and moves at 1/m_N of the rate; B reads the rank and moves at the base rate (2402.12354)."""
    adapted = get_peft_model(tiny_mup(), LoraConfig(r=4, target_modules="all-linear"))
    rates = {
        name: group["lr"]
        for group in mup_param_groups(adapted, lr=1e-2)
        for name, parameter in adapted.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert rates
    assert all(rate == (1e-2 / 4 if "lora_A" in name else 1e-2) for name, rate in rates.items())


def arguments(folder: Path, kind: type[Any] = TrainingArguments, **changes: Any) -> Any:
    fields = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
    rates = {"learning_rate": 1e-2, "weight_decay": 0.1, "adam_epsilon": 1e-8, "adam_beta2": 0.95}
    # trl's configs turn bf16 autocast on by default, which moves a loss by 3e-4.
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_grad_norm": 0.0, "bf16": False}
    return kind(output_dir=str(folder), lr_scheduler_type="linear", **{**fields, **rates, **quiet, **changes})


def rows() -> Dataset:
    return Dataset.from_dict({"input_ids": [ROW.tolist()] * 8, "labels": [ROW.tolist()] * 8})


def bare_losses(steps: int) -> list[float]:
    model = tiny_mup()
    optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2, weight_decay=0.1), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ROW.repeat(2, 1), labels=ROW.repeat(2, 1)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return losses


# trl sets a field under its old name
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("trainer_class", [Trainer, SFTTrainer])
def test_an_unmodified_trainer_trains_in_mup(tmp_path: Path, trainer_class: type[Any]) -> None:
    more = {"dataset_kwargs": {"skip_prepare_dataset": True}} if trainer_class is SFTTrainer else {}
    kind = SFTConfig if trainer_class is SFTTrainer else TrainingArguments
    args = arguments(tmp_path, kind, **more)
    model = tiny_mup()
    tokenizer = {"processing_class": plain_tokenizer()} if trainer_class is SFTTrainer else {}
    trainer = trainer_class(
        model, args, train_dataset=rows(), optimizer_cls_and_kwargs=mup_optimizer(args), **tokenizer
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx(bare_losses(4), abs=1e-6)
    assert logged[0]["learning_rate"] == 1e-2
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = [(group["params"], group["weight_decay"]) for group in described_groups(model, names)]
    running = trainer.optimizer.param_groups
    assert [([names[id(p)] for p in group["params"]], group["weight_decay"]) for group in running] == expected


def plain_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(index): index for index in range(48)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="0", bos_token="1", eos_token="2")


def test_an_optimizer_that_is_no_adamw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rates of AdamW, and the optimizer is adafactor"):
        mup_optimizer(arguments(tmp_path, optim="adafactor"))


def test_a_deepspeed_optimizer_block_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install hf-warmscale[deepspeed]")
    config = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto"}
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({**config, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}))
    with pytest.raises(ValueError, match="has a block 'optimizer', which silently replaces"):
        mup_optimizer(arguments(tmp_path, deepspeed=str(path), use_cpu=False))
