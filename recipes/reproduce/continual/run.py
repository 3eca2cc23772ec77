"""Run what `study.yaml` lists; what has run is stored and not repeated.

    python recipes/reproduce/continual/run.py --corpora CORPORA --work WORK --output RESULTS
    python recipes/reproduce/continual/report.py --results RESULTS

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files with the domains english, german and python
(see `recipes/reproduce/corpora`); `--work` gets rows and checkpoints. A run that was interrupted goes on from its last
checkpoint. `--only` names runs by a part of their name.
"""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from data import SOURCES, hash_of, prepare_rows, training_rows, validation_rows
from datasets import Dataset
from runs import Run, list_runs
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_warmscale.studies import PlannedRun, listing, open_study, run_all, study_options, wanted_runs
from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage, seen_rows

HERE = Path(__file__).parent


def main() -> None:
    """Run what is wanted."""
    options = study_options(__doc__)
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    if options.smoke:
        study.update(steps=20, evaluate_every=10, curve_rows=8, evaluation_rows=16)
    runs = {run.name: run for run in list_runs(study)}
    every = [
        PlannedRun(name, {"run": json.loads(json.dumps(asdict(run)))}, (run.parent,) if run.parent else ())
        for name, run in runs.items()
    ]
    plan = wanted_runs(every, options.only)
    if options.list:
        print(listing(plan, options.output))
        return
    rows = prepare_rows(study, options.corpora, options.work)
    opened = open_study(options.output, study, tokens=hash_of(rows), code=HERE)
    run_all(opened, plan, lambda planned: execute(study, runs[planned.name], rows, options.work / "runs"))
    print(opened.summary([run.name for run in plan]))


def execute(study: dict[str, Any], run: Run, rows: Path, folder: Path) -> dict[str, Any]:
    """Train one run, from where it was if it was interrupted, and return its result."""
    started = time.process_time()
    trainer = make_trainer(study, run, rows, folder)
    output = folder / run.name
    trainer.train(resume_from_checkpoint=output.is_dir() and get_last_checkpoint(str(output)) is not None)
    final = trainer.evaluate(validation_rows(rows, study["evaluation_rows"]))
    assert trainer.stage_run is not None
    record = trainer.stage_run.record
    for leftover in sorted(output.glob("checkpoint-*")):
        if leftover.name != f"checkpoint-{run.steps}":
            shutil.rmtree(leftover)
    return {
        "parameters": trainer.model.num_parameters(),
        "rows": record.progress.rows,
        "tokens": record.progress.num_tokens(),
        "total_tokens": record.total_tokens(),
        "losses": {name: final[f"eval_{name}_loss"] for name in SOURCES},
        "curve": curve(trainer),
        "seconds": time.process_time() - started,
    }


def make_trainer(study: dict[str, Any], run: Run, rows: Path, folder: Path) -> ContinualTrainer:
    """Return the trainer of a run."""
    parent = folder / str(run.parent) / f"checkpoint-{parent_steps(study, run)}" if run.parent else None
    stage = Stage(
        run.name,
        run.schedule,
        make_mixture(run, rows, parent),
        max_steps=run.steps,
        optimizer="keep" if run.keep else "reset",
        parent=parent,
    )
    args = ContinualTrainingArguments(
        output_dir=str(folder / run.name),
        learning_rate=study["learning_rate"],
        eval_strategy="steps",
        eval_steps=study["evaluate_every"],
        per_device_eval_batch_size=16,
        save_steps=2 * study["evaluate_every"],
        save_total_limit=1,
        logging_steps=study["evaluate_every"],
        seed=run.seed,
        disable_tqdm=True,
        report_to="none",
        **study["training"],
    )
    domains = validation_rows(rows, study["curve_rows"])
    trainer = ContinualTrainer(first_model(study, run, parent), args, stage=stage, eval_dataset=domains)
    trainer.remove_callback(PrinterCallback)
    return trainer


def first_model(study: dict[str, Any], run: Run, parent: Path | None) -> LlamaForCausalLM:
    """Return the model that a run starts from."""
    if parent is not None:
        return AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    torch.manual_seed(run.seed)
    return LlamaForCausalLM(LlamaConfig(**study["model"]))


def make_mixture(run: Run, rows: Path, parent: Path | None) -> ReplayMixture:
    """Return the mixture of a run; no row is seen twice, and only rows that were seen are replayed."""
    sources: dict[str, Any] = {name: part_of(training_rows(rows, name), run) for name in run.weights}
    if run.replayed is not None:
        assert parent is not None
        sources |= seen_rows(parent, {run.replayed: sources[run.replayed]})
    return ReplayMixture(sources, run.weights, seed=run.seed, max_passes=1)


def part_of(rows: Dataset, run: Run) -> Dataset:
    """Return the rows that a run may see."""
    if run.part is None:
        return rows
    number, count, begin, end = run.part
    third = rows.shard(count, number)
    return third.select(range(round(begin * len(third)), round(end * len(third))))


def parent_steps(study: dict[str, Any], run: Run) -> int:
    """Return the length of the parent."""
    return next(other.steps for other in list_runs(study) if other.name == run.parent)


def curve(trainer: ContinualTrainer) -> list[dict[str, float]]:
    """Return the losses by domain along the run."""
    points: dict[int, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        for name in SOURCES:
            if f"eval_{name}_loss" in entry and entry["step"] <= trainer.state.global_step:
                points.setdefault(entry["step"], {})[name] = entry[f"eval_{name}_loss"]
    return [{"step": step, **losses} for step, losses in sorted(points.items())]


if __name__ == "__main__":
    main()
