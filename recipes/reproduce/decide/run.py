"""Run the designs E1, E2, E5 and E8 of `study.yaml`; what has run is stored and not repeated.

    python recipes/reproduce/decide/run.py --corpora CORPORA --work WORK --output RESULTS [--only E1]
    python recipes/reproduce/decide/run.py ... --list            # what there is to run, and what has run

`--corpora` is a folder with `documentation.{train,validation}.jsonl.gz` (see `recipes/reproduce/corpora`). Start the
command in two shells for two jobs of one thread each. An interrupted run continues from its last checkpoint. A study
that is resumed with another version, design or corpus is refused. A run that diverged is stored as one.
"""

import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from runs import Run, base_of, best_rate, list_runs, prerequisites

from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained
from hf_warmscale.studies import PlannedRun, listing, open_study, run_all, study_options, wanted_runs
from hf_warmscale.training import ReplayMixture, Schedule, Stage
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.tuning import ProxyTask
from hf_warmscale.tuning.proxy import Diverged

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "corpora")]
from corpora import other_files, prepare_rows  # noqa: E402
from trunk import Regime, Rows, curve_of, final_losses, train_stage, train_with_cooldowns  # noqa: E402

ANOTHER_ORDER = 1000
"""What trains on a model of a seed sees the rows in the order of this seed more."""


def main() -> None:
    """Run what is wanted."""
    options = study_options(__doc__)
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    if options.smoke:
        shrink_budgets(design)
    runs = {run.name: run for run in list_runs(design)}
    every = [PlannedRun(name, {"run": asdict(run)}, prerequisites(design, run)) for name, run in runs.items()]
    plan = wanted_runs(every, options.only)
    if options.list:
        print(listing(plan, options.output))
        return
    if others := other_files(options.corpora, design["domains"]):
        print(f"Other text than that of the stored results: {', '.join(others)}", flush=True)
    length, domains = design["sequence_length"], design["domains"]
    rows = Rows(*prepare_rows(options.corpora, options.work / "data", sequence_length=length, domains=domains))
    tokens = ProxyTask(str(rows.train), validation=str(rows.validation)).tokens_hash()
    study = open_study(options.output, design, tokens=tokens, code=HERE)
    run_all(study, plan, lambda planned: execute(design, runs[planned.name], rows, study.folder, options.work))
    print(study.summary([run.name for run in plan]))


def execute(design: dict[str, Any], run: Run, rows: Rows, results: Path, work: Path) -> dict[str, Any]:
    """Train one run and return its result."""
    regime = Regime(**design["regime"])
    log2_lr = run.log2_lr if run.log2_lr is not None else best_rate(design, results) + run.octave
    torch.manual_seed(run.seed)
    model = first_model(design, run, results, work)
    per_step = regime.batch_size * design["sequence_length"]
    goes_on = run.arm not in ("scratch", "cooldown", "cosine")
    common: dict[str, Any] = {
        "lr": 2.0**log2_lr,
        "rows": rows,
        "seed": run.seed + (ANOTHER_ORDER if goes_on else 0),
        "regime": regime,
        "work": work / "models" / run.name,
    }
    steps = budgets(design, run, model.num_parameters(), per_step)
    train = train_cosine if run.arm == "cosine" else train_with_cooldowns
    return {
        "lr": 2.0**log2_lr,
        "parameters": model.num_parameters(),
        "tokens_per_step": per_step,
        "starts_from": base_of(design, run, results) if goes_on else None,
        **train(model, budgets=steps, **common),
    }


def first_model(design: dict[str, Any], run: Run, results: Path, work: Path) -> MupForCausalLM:
    """Return the model that a run starts from."""
    if run.arm in ("scratch", "cooldown", "cosine"):
        return MupForCausalLM(config_of(design, run.sizes))
    branch = max((work / "models" / base_of(design, run, results)).glob("cooled-*"), key=_steps)
    base: MupForCausalLM = MupForCausalLM.from_pretrained(run_checkpoints(branch)[-1])
    if run.arm == "trained-on":
        return base
    operator, _, shrink = run.arm.partition("-")
    way = {"depth": operator} if "num_hidden_layers" in run.sizes else {"width": operator}
    options = {"shrink": float(shrink)} if shrink else {}
    grown: MupForCausalLM = grow_from_pretrained(base, **run.sizes, **way, **options, seed=run.seed, verify=False)
    return grown


def config_of(design: dict[str, Any], sizes: dict[str, int]) -> MupConfig:
    """Return the config of a model; the base model is its muP base."""
    shape = design["model"]
    widths = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return MupConfig(**{**shape, **sizes}, mup={f"base_{name}": shape[name] for name in widths})


def budgets(design: dict[str, Any], run: Run, parameters: int, per_step: int) -> list[int]:
    """Return the steps at which the cooldowns of a run end, ascending."""
    tokens = [ratio * parameters for ratio in run.tokens_per_parameter] or list(run.tokens)
    if run.compute_of:
        large = MupForCausalLM(config_of(design, run.compute_of)).num_parameters()
        (ratio,) = run.tokens_per_parameter
        # The small model pays 6 N per token: first as many tokens as the large one, then as much compute.
        tokens = [ratio * large, ratio * large * large / parameters]
    return sorted({max(round(count / per_step), 2) for count in tokens})


def train_cosine(
    model: MupForCausalLM, *, lr: float, budgets: list[int], rows: Rows, seed: int, regime: Regime, work: Path
) -> dict[str, Any]:
    """Train one cosine to 0, with the warmup that the trunk of the same budget has."""
    started, (steps,) = time.monotonic(), budgets
    mixture = ReplayMixture({"train": load_packed(rows.train)}, {"train": 1.0}, seed=seed)
    warmup = regime.warmup(steps - regime.cooldown(steps))
    stage = Stage("cosine", Schedule("rewarm_cosine", warmup=warmup, min_lr=0.0), mixture, max_steps=steps)
    try:
        trainer = train_stage(model, stage, lr, rows, seed, regime, work / "cosine", [steps])
    except Diverged:
        end = {"step": steps, "validation_loss": math.nan, "curve": []}
    else:
        end = {"step": steps, **final_losses(trainer, rows, regime), "curve": curve_of(trainer)}
    return {"curve": [], "cooled": [end], "warmup": warmup, "seconds": time.monotonic() - started}


def shrink_budgets(design: dict[str, Any]) -> None:
    """Keep the form of the study and almost none of its cost."""
    design["regime"].update(
        batch_size=2, warmup_steps=2, evaluate_every=4, curve_rows=2, evaluation_rows=4, selection_rows=4
    )
    design["sequence_length"] = 64
    design["seeds"] = [0, 1]
    design["base"].update(tokens_per_parameter=0.005, log2_lrs=[-9, -8])
    for part in (design["E1"], design["E5"]):
        part.update(tokens_per_parameter=[0.001, 0.002])
    for part in (design["E1"], design["E2"], design["E5"], design["E8"]):
        part["octaves"] = [0]
    design["E8"]["tokens"] = [1e3, 2e3]


def _steps(folder: Path) -> int:
    return int(folder.name.partition("-")[2])


if __name__ == "__main__":
    main()
