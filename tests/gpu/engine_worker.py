"""The launched process of `engines`: train a stage, then again from its middle, and write the losses down."""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from hf_warmscale import ContinualTrainer
from hf_warmscale.training import ContinualTrainingArguments
from hf_warmscale.training.launch import engine_name, prepare_processes
from tests.gpu.registry import Machine
from tests.gpu.stages import STEPS, constant_stage, losses, settings
from tests.processes import use_gloo

HALF = STEPS // 2


def main(folder: str, *options: str) -> None:
    """Train `FOLDER/model`, and write `FOLDER/seen.json`."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        use_gloo()
    machine = Machine(torch.device("cuda" if on_gpu else "cpu"), tiny="--tiny" in options)
    whole = train(machine, Path(folder), "whole", resume=False)
    shutil.copytree(Path(folder, "whole", f"checkpoint-{HALF}"), Path(folder, "resumed", f"checkpoint-{HALF}"))
    AcceleratorState._reset_state()  # one accelerator a process; a real resume is a new process
    resumed = train(machine, Path(folder), "resumed", resume=True)
    seen = {"engine": engine_name(whole.model_wrapped), "whole": losses(whole), "resumed": losses(resumed)}
    Path(folder, "seen.json").write_text(json.dumps(seen), encoding="utf-8")


def train(machine: Machine, folder: Path, name: str, *, resume: bool) -> ContinualTrainer:
    """Train the stage in a folder of its own; the engine decides on the device."""
    on_gpu = machine.device.type == "cuda"
    # DeepSpeed refuses arguments that contradict the configuration, and that says bf16.
    chosen = {**settings(machine), "bf16": on_gpu, "save_strategy": "steps", "save_steps": HALF, "use_cpu": False}
    args = ContinualTrainingArguments(output_dir=str(folder / name), **prepare_processes(chosen))
    # After the arguments: ZeRO-3 takes a model apart while it is loaded.
    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    trainer = ContinualTrainer(model, args, stage=constant_stage(machine))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
