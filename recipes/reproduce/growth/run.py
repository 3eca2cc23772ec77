"""Run what `study.yaml` lists; what has run is stored and not repeated.

    python recipes/reproduce/growth/run.py --corpora CORPORA --work WORK
    python recipes/reproduce/growth/report.py

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files with the domains english, german and python;
`--work` gets token ids, models and what an interrupted run needs to go on. Start the command in two shells to run two
jobs of one thread each: a run that another process holds is left to it. `--only` names runs by a part of their name.
"""

import argparse
import fcntl
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from runs import Run, base_name, inherited_lr, list_runs, prerequisites, wider
from training import Trainer, Training, train_with_cooldowns
from transformers.utils import logging

from hf_warmscale.checkpoints import write_json
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "mup"))
from tokens import prepare_tokens  # noqa: E402  # the text and the tokenizer of the muP study

PATIENCE = 10.0
"""Seconds between looks at runs that another process holds."""


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--smoke", action="store_true", help="almost no budget; needs an --output of its own")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    if arguments.smoke:
        shrink_budget(study)
    study["tokens"] = prepare_tokens(arguments.corpora, arguments.work / "tokens")
    pending = [run for run in list_runs(study) if any(part in run.name for part in arguments.only)]
    while pending := [run for run in pending if not (arguments.output / f"{run.name}.json").exists()]:
        if not any(attempt(study, run, arguments.output, arguments.work) for run in pending):
            time.sleep(PATIENCE)


def attempt(study: dict[str, Any], run: Run, output: Path, work: Path) -> bool:
    """Run `run` if its prerequisites are there and no other process holds it; tell whether it ran."""
    if not all((output / f"{name}.json").exists() for name in prerequisites(study, run)):
        return False
    with lock(work / "locks" / f"{run.name.replace('/', '-')}.lock") as free:
        target = output / f"{run.name}.json"
        if not free or target.exists():
            return False
        result = execute(study, run, output, work)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, result)
        print(f"{run.name}: {result['cooled'][-1]['validation_loss']:.4f} in {result['seconds']:.0f} s", flush=True)
    return True


def execute(study: dict[str, Any], run: Run, output: Path, work: Path) -> dict[str, Any]:
    """Train one run and return its result."""
    training = Training(tokens=study["tokens"], **study["training"])
    log2_lr = run.log2_lr if run.log2_lr is not None else inherited_lr(study, output)
    lr = run.lr_factor * 2.0**log2_lr
    torch.manual_seed(run.seed)
    model = first_model(study, run, output, work)
    # Growth continues on another order of the data than the base saw.
    trainer = Trainer(training, model, lr, run.seed if not run.sizes else 1000 + run.seed)
    state = work / "states" / f"{run.name.replace('/', '-')}.pt"
    state.parent.mkdir(parents=True, exist_ok=True)
    record = train_with_cooldowns(trainer, budgets(study, run, model, training), state, work / "models" / run.name)
    for leftover in (state, state.with_suffix(".trunk")):
        leftover.unlink(missing_ok=True)
    return {
        "run": asdict(run),
        "lr": lr,
        "parameters": model.num_parameters(),
        "tokens_per_step": training.tokens_per_step,
        "grown_from": base_name(study, run, output) if run.arm != "scratch" else None,
        "platform": f"{platform.machine()}, torch {torch.__version__}, 1 thread",
        **record,
    }


def first_model(study: dict[str, Any], run: Run, output: Path, work: Path) -> MupForCausalLM:
    """Return the model that a run starts from."""
    shape = study["model"]
    entry = {"base_hidden_size": shape["hidden_size"], "base_num_hidden_layers": shape["num_hidden_layers"]}
    if run.arm == "scratch":
        return MupForCausalLM(MupConfig(**{**shape, **run.sizes}, mup=entry))
    base = MupForCausalLM.from_pretrained(work / "models" / base_name(study, run, output))
    operator, _, shrink = run.arm.partition("-")
    depth = {"depth": operator} if "num_hidden_layers" in run.sizes else {"width": operator}
    options = {"shrink": float(shrink)} if shrink else {}
    return grow_from_pretrained(base, **run.sizes, **depth, **options, seed=run.seed, verify=False)


def budgets(study: dict[str, Any], run: Run, model: MupForCausalLM, training: Training) -> list[int]:
    """Return the steps at which a run's cooldowns end."""
    parameters = model.num_parameters()
    tokens = [ratio * parameters for ratio in run.tokens_per_parameter]
    if run.compute_of:
        shape = {**study["model"], **wider(study, 2)}
        wide = MupForCausalLM(MupConfig(**shape, mup={"base_hidden_size": shape["hidden_size"]})).num_parameters()
        own = study["base"]["tokens_per_parameter"] * parameters
        tokens = [own + ratio * wide * wide / parameters for ratio in run.compute_of]
    return [max(round(count / training.tokens_per_step), 2) for count in tokens]


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with the process; yield whether it was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def shrink_budget(study: dict[str, Any]) -> None:
    """Keep the form of the study and almost none of its cost."""
    study["training"].update(
        batch_size=2, sequence_length=32, warmup_steps=2, evaluate_every=2, curve_windows=2, evaluation_windows=4
    )
    study["base"]["tokens_per_parameter"] = 0.002
    study["width_2x"].update(tokens_per_parameter=0.0005)
    study["width_2x"]["longer"]["tokens_per_parameter"] = [0.0005, 0.001]
    study["control"]["compute_of_tokens_per_parameter"] = [0.0005, 0.001]
    study["width_4x"]["tokens_per_parameter"] = 0.0002
    study["depth_2x"]["tokens_per_parameter"] = 0.001


if __name__ == "__main__":
    main()
