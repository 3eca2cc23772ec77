"""FSDP2 and ZeRO on one device, started as users start them, with the configurations of `recipes`."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.gpu.registry import Figures, Machine, SkippedError, check, require, require_same_losses
from tests.gpu.stages import llama, plain_losses, shape

ROOT = Path(__file__).parents[2]


@check
def fsdp2(machine: Machine, figures: Figures) -> None:
    """A stage under FSDP2, whole and resumed, has the losses of a plain loop."""
    if machine.device.type != "cuda":
        raise SkippedError("accelerate starts FSDP on accelerators alone.")
    run(machine, figures, "fsdp2.yaml", "fsdp2")


@check
def zero2(machine: Machine, figures: Figures) -> None:
    """So has one under ZeRO-2."""
    require_deepspeed()
    run(machine, figures, "zero2.yaml", "zero-2")


@check
def zero3(machine: Machine, figures: Figures) -> None:
    """So has one under ZeRO-3."""
    require_deepspeed()
    run(machine, figures, "zero3.yaml", "zero-3")


def require_deepspeed() -> None:
    """Skip where DeepSpeed is not installed."""
    if find_spec("deepspeed") is None:
        raise SkippedError("DeepSpeed is not installed; install hf-warmscale[deepspeed].")


def run(machine: Machine, figures: Figures, config: str, engine: str) -> None:
    """Train a stage on one rank, and again from its middle, and compare the losses."""
    dtype = torch.bfloat16 if machine.device.type == "cuda" else torch.float32
    # Eager attention adds in one order, so that the resumed stage can be compared closely.
    model = llama(shape(machine), attn_implementation="eager")
    with TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "model"))
        launch(machine, config, folder)
        seen = json.loads(Path(folder, "seen.json").read_text(encoding="utf-8"))
    figures["engine"] = seen["engine"]
    require(seen["engine"] == engine, f"{seen['engine']} ran instead of {engine}.")
    require_same_losses("whole", seen["whole"], plain_losses(machine, model), dtype, figures)
    require_same_losses("resumed", seen["resumed"], seen["whole"], torch.float32, figures)


def launch(machine: Machine, config: str, folder: str) -> None:
    """Start the worker with `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "recipes" / "accelerate_configs" / config)]
    command += [] if machine.device.type == "cuda" else ["--mixed_precision", "no"]
    command += ["-m", "tests.gpu.engine_worker", folder, *(["--tiny"] if machine.tiny else [])]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    said = re.search(r"\w+Error: .*", done.stderr)  # the first is the cause; the launcher adds its own
    require(
        done.returncode == 0, f"The launch ended with {done.returncode}: {said[0] if said else 'no error was printed'}"
    )
