"""Train the trajectories of `study.yaml`; what was trained is stored and not repeated.

    python recipes/reproduce/merging/train.py --corpora CORPORA --work WORK

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files with the domains english, german and python;
`--work` gets token ids and checkpoints: `WORK/seed-0/constant/checkpoint-80`, ..., `WORK/seed-0/annealed/...`. An
interrupted run goes on from its last checkpoint.
"""

import argparse
import os
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from text import load_tokenizer, prepare_training
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from hf_warmscale.checkpoints import save_model, write_json
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.staging import staged_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "growth"))
from training import Trainer, Training  # noqa: E402  # the loop of the growth study


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    tokens = arguments.work / "tokens"
    training = make_training(study, prepare_training(study, arguments.corpora, tokens, arguments.work / "training"))
    for seed in study["seeds"]:
        target = arguments.output / "trajectories" / f"seed-{seed}.json"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target, train(study, training, seed, load_tokenizer(tokens), arguments.work / f"seed-{seed}"))


def make_training(study: dict[str, Any], folder: Path) -> Training:
    """Return the settings of the growth study's loop; it measures no curve here."""
    return Training(tokens=folder, **study["training"], evaluate_every=0, curve_windows=0, evaluation_windows=192)


def train(
    study: dict[str, Any], training: Training, seed: int, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, Any]:
    """Train a trajectory at a constant rate, and from its last fifth a branch whose rate falls to 0."""
    trainer = new_trainer(study, training, seed)
    cooldown = round(training.cooldown_fraction * study["steps"])
    branch = folder / "branch.pt"
    phase(study, trainer, 0, folder / "constant", tokenizer, branch)
    trainer.restore(torch.load(branch, weights_only=True))
    phase(study, trainer, cooldown, folder / "annealed", tokenizer, None)
    return {
        "seed": seed,
        "parameters": trainer.model.num_parameters(),
        "tokens": study["steps"] * training.tokens_per_step,
        "annealed_loss": trainer.evaluate(training.evaluation_windows),
    }


def new_trainer(study: dict[str, Any], training: Training, seed: int) -> Trainer:
    """Return an untrained model, a pure function of the seed."""
    torch.manual_seed(seed)
    shape = study["model"]
    entry = {"base_hidden_size": shape["hidden_size"], "base_num_hidden_layers": shape["num_hidden_layers"]}
    return Trainer(training, MupForCausalLM(MupConfig(**shape, mup=entry)), 2.0 ** study["log2_lr"], seed)


def phase(
    study: dict[str, Any],
    trainer: Trainer,
    cooldown: int,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    branch: Path | None,
) -> None:
    """Train to the end and keep a model every `save_every` steps; keep the whole state where the branch begins."""
    state = folder.with_suffix(".pt")
    if state.exists():
        trainer.restore(torch.load(state, weights_only=True))
    while trainer.step < study["steps"]:
        started = time.monotonic()
        goal = trainer.step + study["save_every"]
        losses = deque(train_until(trainer, study["steps"], cooldown, goal), maxlen=20)
        target = folder / f"checkpoint-{goal}"
        shutil.rmtree(target, ignore_errors=True)
        save_model(trainer.model, target, tokenizer=tokenizer)
        if branch is not None and goal == study["steps"] - round(trainer.training.cooldown_fraction * study["steps"]):
            save_state(trainer, branch)
        save_state(trainer, state)
        rate = study["save_every"] * trainer.training.tokens_per_step / (time.monotonic() - started)
        print(f"{target}: {sum(losses) / len(losses):.4f}, {rate:,.0f} tokens/s", flush=True)


def train_until(trainer: Trainer, steps: int, cooldown: int, goal: int) -> list[float]:
    """Train towards `steps`, but only until `goal`."""
    losses = []
    for loss in trainer.train(steps, cooldown):
        losses.append(loss)
        if trainer.step == goal:
            break
    return losses


def save_state(trainer: Trainer, path: Path) -> None:
    """Write what a later process needs to go on."""
    with staged_file(path) as staging:
        torch.save(trainer.state(), staging)


if __name__ == "__main__":
    main()
