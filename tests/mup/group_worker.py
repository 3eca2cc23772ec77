"""One rank of a launched run: train the shared tiny model for three steps and write down groups and losses."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import fully_shard
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from hf_warmscale.mup import MupForCausalLM, mup_optimizer, mup_param_groups
from hf_warmscale.training.launch import engine_name, prepare_processes
from tests.mup.tiny import ROW, described_groups, tiny_llama_config
from tests.processes import use_gloo

STEPS = 3
ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": False},
}


def with_trainer(mode: str, source: str, folder: Path) -> dict[str, Any]:
    """Train with an unmodified Trainer under DDP or ZeRO; the model is loaded after the arguments, as ZeRO-3 wants."""
    zero = {**ZERO, "zero_optimization": {"stage": int(mode[-1])}} if mode.startswith("zero") else None
    settings: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 1,
        "max_steps": STEPS,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    args = TrainingArguments(**prepare_processes({**settings, **({"deepspeed": zero} if zero else {})}))
    model = MupForCausalLM.from_pretrained(source)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = described_groups(model, names)
    other = other_family(source)
    hidden_shapes = all(parameter.numel() == 0 for parameter in model.parameters())
    rows = [{"input_ids": ROW, "labels": ROW}] * 8  # all alike, so that every split of the batch is the same batch
    trainer = Trainer(model, args, train_dataset=rows, optimizer_cls_and_kwargs=mup_optimizer(args))  # type: ignore[arg-type]
    trainer.train()
    assert trainer.optimizer is not None
    return {
        "engine": engine_name(trainer.model_wrapped),
        "hidden_shapes": hidden_shapes,
        "groups": groups,
        "other": other,
        "running": [[group["lr"], group["weight_decay"], group["eps"]] for group in trainer.optimizer.param_groups],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def with_fully_shard(source: str) -> dict[str, Any]:
    """Train with a bare loop under torch's own sharding."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    model = MupForCausalLM.from_pretrained(source)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = described_groups(model, names)
    other = other_family(source)
    optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2, weight_decay=0.1, eps=1e-8))
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ROW[None], labels=ROW[None]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    running = [[group["lr"], group["weight_decay"], group["eps"]] for group in optimizer.param_groups]
    return {
        "engine": engine_name(model),
        "hidden_shapes": False,
        "groups": groups,
        "other": other,
        "running": running,
        "losses": losses,
    }


def other_family(source: str) -> list[dict[str, Any]]:
    """Return the groups of a Llama, loaded as this engine loads, beside a base that is described here and now."""
    model = LlamaForCausalLM.from_pretrained(f"{source}-llama")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return described_groups(model, names, base_config=tiny_llama_config(16, 2))


def main(modes: str, source: str, folder: str) -> None:
    """Run the modes one after the other and write `FOLDER/<mode>-<rank>.json` for each."""
    if "zero" in modes:
        use_gloo()
    for mode in modes.split(","):
        seen = with_fully_shard(source) if mode == "fsdp2" else with_trainer(mode, source, Path(folder))
        result = {**seen, "world": dist.get_world_size()}
        (Path(folder) / f"{mode}-{dist.get_rank()}.json").write_text(json.dumps(result))
        AcceleratorState._reset_state()  # one accelerator a process, and each mode brings its own
    dist.destroy_process_group()
