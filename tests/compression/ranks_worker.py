"""One rank of two: prune under DDP or ZeRO, resume from the middle, and write down what was seen."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from hf_warmscale.compression import MagnitudePruningCallback
from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, Stage
from hf_warmscale.training.launch import engine_name, prepare_processes
from tests.processes import use_gloo
from tests.training.tiny import replay, tiny_model

STEPS, SPARSITY = 4, 0.37
ZERO_STAGES = {"zero2": 2, "zero3": 3}


def partly_zero() -> LlamaForCausalLM:
    """Return a model with a block that stays zero: in the middle, a part of it counts as pruned and the rest not."""
    model = tiny_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("model.layers.1.mlp"):
                weight.zero_()
    return model


def run(mode: str, output: Path, *, resume: bool) -> dict[str, Any]:
    """Train once; ZeRO keeps masters apart from the weights that the model computes with, in float32 too."""
    zero = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": ZERO_STAGES.get(mode, 0), "stage3_gather_16bit_weights_on_model_save": True},
    }
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
    }
    settings |= {"deepspeed": zero} if mode in ZERO_STAGES else {}
    args = ContinualTrainingArguments(**prepare_processes(settings))
    pruning = MagnitudePruningCallback((0.2, SPARSITY), every=2)
    stage = Stage("prune", "constant", replay(0.3), max_steps=STEPS)
    trainer = ContinualTrainer(partly_zero(), args, stage=stage, callbacks=[pruning])
    trainer.train(resume_from_checkpoint=True if resume else None)
    masters = {name: pruning.weights.read(name).cpu() for name in pruning.weights.names}
    seen = {
        "engine": engine_name(trainer.model_wrapped),
        "pruned": sum(int(mask.sum()) for mask in pruning.masks.values()),
        "zeros": sum(int((weight == 0).sum()) for weight in masters.values()),
        "total": sum(weight.numel() for weight in masters.values()),
        "digest": hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in masters.values())).hexdigest(),
    }
    saved = output / f"checkpoint-{STEPS}" / "model.safetensors"
    if trainer.is_world_process_zero():
        stored = load_file(saved)
        seen["stored"] = all(not stored[name][mask].any() for name, mask in pruning.masks.items())
        seen["names"] = sorted(stored)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    AcceleratorState._reset_state()
    return seen


def main(modes: str, folder: Path) -> None:
    """Train in `FOLDER/<mode>/whole`, resume a copy of its middle, write `FOLDER/<mode>-<rank>.json`."""
    if "zero" in modes:
        use_gloo()
    for mode in modes.split(","):
        whole = run(mode, folder / mode / "whole", resume=False)
        rank = torch.distributed.get_rank()
        if rank == 0:
            shutil.copytree(folder / mode / "whole" / "checkpoint-3", folder / mode / "half" / "checkpoint-3")
        torch.distributed.barrier()
        half = run(mode, folder / mode / "half", resume=True)
        (folder / f"{mode}-{rank}.json").write_text(json.dumps({"whole": whole, "half": half}))
