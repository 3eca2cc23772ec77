"""Run what `study.yaml` lists; what has run is stored and not repeated.

    python recipes/reproduce/growth/run.py --corpora CORPORA --work WORK --output RESULTS
    python recipes/reproduce/growth/report.py --results RESULTS

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files with the domains english, german and python
(see `recipes/reproduce/corpora`); `--work` gets rows, checkpoints and the models to grow. Start the command in two
shells to run two jobs of one thread each: a run that another process holds is left to it. An interrupted run goes on
from its last checkpoint. `--only` names runs by a part of their name.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from runs import Run, base_name, inherited_lr, list_runs, prerequisites, wider

from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained
from hf_warmscale.studies import PlannedRun, Study, listing, open_study, run_all, study_options, wanted_runs
from hf_warmscale.tuning import ProxyTask

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "corpora")]
from corpora import prepare_rows  # noqa: E402
from trunk import Regime, Rows, train_with_cooldowns  # noqa: E402


def main() -> None:
    """Run what is wanted."""
    options = study_options(__doc__)
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    if options.smoke:
        shrink_budget(design)
    length = design["training"].pop("sequence_length")
    runs = {run.name: run for run in list_runs(design)}
    every = [PlannedRun(name, {"run": asdict(run)}, tuple(prerequisites(design, run))) for name, run in runs.items()]
    plan = wanted_runs(every, options.only)
    if options.list:
        print(listing(plan, options.output))
        return
    rows = Rows(*prepare_rows(options.corpora, options.work / "data", sequence_length=length))
    tokens = ProxyTask(str(rows.train), validation=str(rows.validation)).tokens_hash()
    study = open_study(options.output, {**design, "sequence_length": length}, tokens=tokens, code=HERE)
    run_all(study, plan, lambda planned: execute(design, length, study, runs[planned.name], rows, options.work))
    print(study.summary([run.name for run in plan]))


def execute(design: dict[str, Any], length: int, study: Study, run: Run, rows: Rows, work: Path) -> dict[str, Any]:
    """Train one run and return its result."""
    regime, output = Regime(**design["training"]), study.folder
    log2_lr = run.log2_lr if run.log2_lr is not None else inherited_lr(design, output)
    lr = run.lr_factor * 2.0**log2_lr
    torch.manual_seed(run.seed)
    model = first_model(design, run, output, work)
    steps = budgets(design, run, model, regime.batch_size * length)
    record = train_with_cooldowns(
        model,
        lr=lr,
        budgets=steps,
        rows=rows,
        # Growth continues on another order of the data than the base saw.
        seed=run.seed if not run.sizes else 1000 + run.seed,
        regime=regime,
        work=work / "models" / run.name,
    )
    return {
        "lr": lr,
        "parameters": model.num_parameters(),
        "tokens_per_step": regime.batch_size * length,
        "grown_from": base_name(design, run, output) if run.arm != "scratch" else None,
        **record,
    }


def first_model(study: dict[str, Any], run: Run, output: Path, work: Path) -> MupForCausalLM:
    """Return the model that a run starts from."""
    shape = study["model"]
    entry = {"base_hidden_size": shape["hidden_size"], "base_num_hidden_layers": shape["num_hidden_layers"]}
    if run.arm == "scratch":
        return MupForCausalLM(MupConfig(**{**shape, **run.sizes}, mup=entry))
    base = MupForCausalLM.from_pretrained(cooled_model(work / "models" / base_name(study, run, output)))
    operator, _, shrink = run.arm.partition("-")
    depth = {"depth": operator} if "num_hidden_layers" in run.sizes else {"width": operator}
    options = {"shrink": float(shrink)} if shrink else {}
    return grow_from_pretrained(base, **run.sizes, **depth, **options, seed=run.seed, verify=False)


def cooled_model(folder: Path) -> Path:
    """Return the last checkpoint of the longest cooled branch of a run."""
    branch = max(folder.glob("cooled-*"), key=lambda path: int(path.name.partition("-")[2]))
    return run_checkpoints(branch)[-1]


def budgets(study: dict[str, Any], run: Run, model: MupForCausalLM, tokens_per_step: int) -> list[int]:
    """Return the steps at which a run's cooldowns end."""
    parameters = model.num_parameters()
    tokens = [ratio * parameters for ratio in run.tokens_per_parameter]
    if run.compute_of:
        shape = {**study["model"], **wider(study, 2)}
        wide = MupForCausalLM(MupConfig(**shape, mup={"base_hidden_size": shape["hidden_size"]})).num_parameters()
        own = study["base"]["tokens_per_parameter"] * parameters
        tokens = [own + ratio * wide * wide / parameters for ratio in run.compute_of]
    return [max(round(count / tokens_per_step), 2) for count in tokens]


def shrink_budget(study: dict[str, Any]) -> None:
    """Keep the form of the study and almost none of its cost."""
    study["training"].update(
        batch_size=2, sequence_length=32, warmup_steps=2, evaluate_every=2, curve_rows=2, evaluation_rows=4
    )
    study["base"]["tokens_per_parameter"] = 0.002
    study["width_2x"].update(tokens_per_parameter=0.0005)
    study["width_2x"]["longer"]["tokens_per_parameter"] = [0.0005, 0.001]
    study["control"]["compute_of_tokens_per_parameter"] = [0.0005, 0.001]
    study["width_4x"]["tokens_per_parameter"] = 0.0002
    study["depth_2x"]["tokens_per_parameter"] = 0.001


if __name__ == "__main__":
    main()
