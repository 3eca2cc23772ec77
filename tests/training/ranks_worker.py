"""One rank of two: train a stage, evaluate uneven domains, save and resume, and write down what was seen."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage, StageRecord
from hf_warmscale.training.launch import launched_processes
from tests.training.families import family
from tests.training.tiny import arguments, rows, weights

ROWS, STEPS = 28, 5
PLAN = {0: 4, 12: 8}
"""Three steps of one micro-batch, then two of two."""


def uneven(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of which some count a few labels only."""
    made = rows(count, seed=seed)
    return [{**row, "labels": [-100] * (i % 5 * 3) + row["labels"][i % 5 * 3 :]} for i, row in enumerate(made)]


def mostly_blank(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of which two of three have no label, so that some ranks, and some steps, have none at all."""
    made = rows(count, seed=seed)
    return [
        {**row, "labels": row["labels"] if i % 3 == 0 else [-100] * len(row["labels"])} for i, row in enumerate(made)
    ]


DOMAINS = {"few": uneven(3, 3), "some": uneven(13, 4), "even": uneven(16, 5)}


def trainer(output: Path, **settings: Any) -> ContinualTrainer:
    """Return a trainer of micro-batches of four rows over all ranks; each rank evaluates four rows at a time."""
    settings |= {"per_device_train_batch_size": 4 // launched_processes(), "per_device_eval_batch_size": 4}
    args = arguments(output, save_steps=2, eval_strategy="steps", eval_steps=2, **settings)
    mixture = ReplayMixture({"new": mostly_blank(60, 1), "old": mostly_blank(40, 2)}, {"new": 0.7, "old": 0.3}, 0)
    model: Any = family("mixtral")
    model.router_aux_loss_coef = 0.0  # the router's loss of half a batch is another one
    stage = Stage("ranks", "constant", mixture, max_steps=ROWS // 4, total_batch_size=PLAN)
    return ContinualTrainer(model, args, stage=stage, eval_dataset=DOMAINS)


def main(folder: Path) -> None:
    """Train in `FOLDER/whole`, resume a copy of its middle in `FOLDER/half`, write `FOLDER/<rank>.json`."""
    whole = trainer(folder / "whole")
    whole.train()
    if whole.is_world_process_zero():
        shutil.copytree(folder / "whole" / "checkpoint-2", folder / "half" / "checkpoint-2")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    AcceleratorState._reset_state()
    half = trainer(folder / "half")
    half.train(resume_from_checkpoint=True)
    history = whole.state.log_history
    first = {key: value for entry in history if entry["step"] == 0 for key, value in entry.items()}
    seen = {
        "world_size": whole.args.world_size,
        "resumed": torch.equal(weights(half), weights(whole)),
        "first": {key: value for key, value in first.items() if key.endswith("_loss")},
        "losses": [
            {key: entry[key] for key in entry if key == "loss" or key.startswith("loss/")}
            for entry in history
            if "loss" in entry
        ],
        "tokens": StageRecord.load(folder / "whole" / f"checkpoint-{STEPS}").progress.tokens,
    }
    (folder / f"{whole.args.process_index}.json").write_text(json.dumps(seen))
