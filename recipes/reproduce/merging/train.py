"""Train the trajectories of `study.yaml`; what was trained is stored and not repeated.

    python recipes/reproduce/merging/train.py --corpora CORPORA --work WORK --output RESULTS

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files with the domains english, german and python
(see `recipes/reproduce/corpora`); `--work` gets rows and checkpoints: `WORK/seed-0/constant/checkpoint-80`, ...,
`WORK/seed-0/annealed/...`. An interrupted run goes on from its last checkpoint.
"""

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from text import prepare_training

from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.studies import PlannedRun, listing, open_study, run_all, study_options, wanted_runs
from hf_warmscale.training import ReplayMixture, Schedule, Stage, anneal_stage
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.tuning import ProxyTask

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "corpora")]
from corpora import prepare_tokenizer  # noqa: E402
from trunk import Regime, Rows, train_stage  # noqa: E402


def main() -> None:
    """Train what is wanted."""
    options = study_options(__doc__)
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    if options.smoke:
        design.update(steps=20, save_every=2)
        design["training"]["warmup_steps"] = 2  # a branch leaves the trunk where its rate is constant
    plan = wanted_runs([PlannedRun(f"seed-{seed}", {"seed": seed}) for seed in design["seeds"]], options.only)
    if options.list:
        print(listing(plan, options.output / "trajectories"))
        return
    rows = Rows(*prepare_training(design, options.corpora, options.work))
    tokens = ProxyTask(str(rows.train), validation=str(rows.validation)).tokens_hash()
    study = open_study(options.output / "trajectories", design, tokens=tokens, code=HERE)
    run_all(study, plan, partial(train, design, rows, options.work))
    for seed in design["seeds"]:
        for folder in (options.work / f"seed-{seed}").glob("*/checkpoint-*"):
            prepare_tokenizer(options.corpora, options.work).save_pretrained(folder)


def train(design: dict[str, Any], rows: Rows, work: Path, run: PlannedRun) -> dict[str, Any]:
    """Train a trajectory at a constant rate, and from its last fifth a branch whose rate falls to 0."""
    seed, steps, lr = run.content["seed"], design["steps"], 2.0 ** design["log2_lr"]
    regime = Regime(
        **design["training"], warmup_share=0.0, evaluate_every=steps, curve_rows=48, save_every=design["save_every"]
    )
    cooldown, folder = regime.cooldown(steps), work / run.name
    mixture = ReplayMixture({"train": load_packed(rows.train)}, {"train": 1.0}, seed=seed)
    trunk = Stage("constant", Schedule("constant", warmup=regime.warmup(steps)), mixture, max_steps=steps)
    model = new_model(design, seed)
    train_stage(model, trunk, lr, rows, seed, regime, folder / "constant", [steps - cooldown])
    fork = folder / "constant" / f"checkpoint-{steps - cooldown}"
    branch = anneal_stage(fork, mixture, max_steps=cooldown, shape="linear", min_lr=0.0)
    start = MupForCausalLM.from_pretrained(fork)
    trainer = train_stage(start, branch, lr, rows, seed, regime, folder / "branch", [cooldown])
    name_by_the_whole_run(folder, steps - cooldown)
    return {
        "parameters": model.num_parameters(),
        "tokens": steps * regime.batch_size * design["sequence_length"],
        "annealed_loss": trainer.evaluate(rows.held_out(regime.evaluation_rows))["eval_loss"],
    }


def name_by_the_whole_run(folder: Path, fork: int) -> None:
    """Copy the models of both phases to `annealed`, by the steps since the very beginning."""
    annealed = folder / "annealed"
    shutil.rmtree(annealed, ignore_errors=True)
    constant = {path: int(path.name.rpartition("-")[2]) for path in run_checkpoints(folder / "constant")}
    branch = {path: fork + int(path.name.rpartition("-")[2]) for path in run_checkpoints(folder / "branch")}
    for path, step in [*((path, step) for path, step in constant.items() if step <= fork), *branch.items()]:
        target = annealed / f"checkpoint-{step}"
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("optimizer*", "scheduler*", "rng_state*"))


def new_model(design: dict[str, Any], seed: int) -> MupForCausalLM:
    """Return an untrained model, a pure function of the seed."""
    torch.manual_seed(seed)
    shape = design["model"]
    entry = {"base_hidden_size": shape["hidden_size"], "base_num_hidden_layers": shape["num_hidden_layers"]}
    return MupForCausalLM(MupConfig(**shape, mup=entry))


if __name__ == "__main__":
    main()
