"""One rank of a launched run: train a configuration, then again from its middle, and write down what was seen.

accelerate launch ... tests/training/engine_worker.py CONFIG.yaml FOLDER
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from hf_warmscale.training.launch import engine_name
from hf_warmscale.training.recipe.run import train
from hf_warmscale.training.trainer import ContinualTrainer
from tests.processes import use_gloo

SETTINGS = ["--adam_epsilon", "1e-4", "--total_batch_size", "{0: 32, 96: 64}"]
"""An epsilon far above rounding: where a gradient vanishes, the order of a sum would decide the sign of Adam's step.

The total batch changes after the checkpoint that is resumed: from there on a step has several micro-batches.
"""


def seen(trainer: ContinualTrainer) -> dict[str, object]:
    """Return what a test compares."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.stage_run is not None
    return {
        "engine": engine_name(trainer.model_wrapped),
        "world_size": trainer.args.world_size,
        "losses": [entry["loss"] for entry in history],
        "rates": [entry["learning_rate"] for entry in history],
        "by_source": {key: entry for key, entry in history[-1].items() if "/" in key},
        "tokens": trainer.stage_run.record.progress.tokens,
    }


def main(config: str, folder: str) -> None:
    """Train in `FOLDER/whole`, resume a copy of its first half in `FOLDER/resumed`, write `FOLDER/<rank>.json`."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        use_gloo()
    whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
    first = train(config, [*SETTINGS, "--output_dir", str(whole)])
    if first.is_world_process_zero():
        middle = min(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        shutil.copytree(middle, resumed / middle.name)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    AcceleratorState._reset_state()  # one accelerator a process; a real resume is a new process
    second = train(config, [*SETTINGS, "--output_dir", str(resumed)])
    result = {"whole": seen(first), "resumed": seen(second)}
    (Path(folder) / f"{first.args.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
