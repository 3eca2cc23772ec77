"""Run what `study.yaml` lists; what has run is stored and not repeated.

    python recipes/reproduce/robust/run.py --corpora CORPORA --work WORK --output RESULTS
    python recipes/reproduce/robust/report.py --results RESULTS

`CORPORA` holds `<domain>.{train,validation}.jsonl.gz` (see `recipes/reproduce/corpora`); `WORK` gets rows and models.
A run that was interrupted goes on from its last checkpoint. One thread; about 45 minutes of one core.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from datasets import Dataset
from judging import judge, measure, sweep
from models import first_model, load_tokenizer, plain
from peft import PeftModel
from runs import Run, list_runs
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback

from hf_warmscale import (
    ContinualTrainer,
    ContinualTrainingArguments,
    DistillationTrainer,
    ReplayMixture,
    Stage,
    get_schedule,
)
from hf_warmscale.checkpoints import run_checkpoints, save_model
from hf_warmscale.studies import (
    PlannedRun,
    listing,
    open_study,
    run_all,
    study_options,
    tokens_hash,
    wanted_runs,
)
from hf_warmscale.training import seen_rows
from hf_warmscale.training.data.packing import load_packed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "corpora"))
import corpora as text  # noqa: E402


def main() -> None:
    """Run what is wanted."""
    options = study_options(__doc__)
    design = yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))
    if options.smoke:
        shrink(design)
    runs = {run.name: run for run in list_runs(design)}
    plan = wanted_runs([PlannedRun(run.name, run.content(), run.after) for run in runs.values()], options.only)
    if options.list:
        print(listing(plan, options.output))
        return
    hashed = prepare_rows(design, options.corpora, options.work)
    study = open_study(options.output, design, tokens=hashed, code=HERE)
    run_all(study, plan, lambda planned: execute(design, runs[planned.name], options.corpora, options.work))
    print(study.summary([run.name for run in plan]))


def shrink(design: dict[str, Any]) -> None:
    """Leave almost nothing to do."""
    design.update(seeds=[0], curve_rows=8, evaluation_rows=16, documents=10, training_bytes=1_000_000)
    for settings in (*design["bases"].values(), *design["arms"].values()):
        settings["steps"] = 6


def prepare_rows(design: dict[str, Any], corpora: Path, work: Path) -> str:
    """Pack both domains with the tokenizer of the base, unless they are there; return a hash of their tokens."""
    tokenizer = text.prepare_tokenizer(corpora, work, [design["base"]])
    folders = []
    for domain in (design["base"], design["shift"]):
        for split in text.SPLITS:
            folders.append(folder := work / "rows" / f"{domain}.{split}")
            if not folder.exists():
                left, texts = design["training_bytes"], []
                for document in text.documents(corpora, split, [domain]):
                    if left > 0:
                        texts.append(document)
                    left -= len(document.encode())
                text.pack_texts(texts, folder, tokenizer, design["sequence_length"], work)
    return tokens_hash(
        batch["input_ids"]
        for folder in folders
        for batch in load_packed(folder).select_columns(["input_ids"]).with_format("numpy").iter(batch_size=1_000)
    )


def execute(design: dict[str, Any], run: Run, corpora: Path, work: Path) -> dict[str, Any]:
    """Make one run and return its result."""
    if run.kind == "sweep":
        return sweep(design, run, corpora, work)
    started = time.process_time()
    trainer = make_trainer(design, run, work)
    flops = FirstStep()
    trainer.add_callback(flops)
    flops.watch(trainer)
    output = work / "runs" / run.name
    trainer.train(resume_from_checkpoint=bool(output.is_dir() and run_checkpoints(output)))
    seconds = time.process_time() - started
    final = trainer.evaluate(held_out(design, work, design["evaluation_rows"]))
    model = trainer.accelerator.unwrap_model(trainer.model)
    keep(model, work / "models" / run.name, work)
    assert trainer.stage_run is not None
    return {
        "parameters": model.num_parameters(),
        "trained_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "tokens": trainer.stage_run.record.progress.num_tokens(),
        "flops_per_step": flops.found,
        "flops": None if flops.found is None else flops.found * run.steps,
        "seconds": seconds,
        "losses": {name: final[f"eval_{name}_loss"] for name in ("old", "new")},
        "curve": curve(trainer),
        **(judge(design, run, work, model) if isinstance(model, PeftModel) else {}),
        **({"emulated": measure(design, run, work)} if run.arm == "teacher" else {}),
    }


def make_trainer(design: dict[str, Any], run: Run, work: Path) -> ContinualTrainer:
    """Return the trainer of a run."""
    training = design["training"]
    arguments = ContinualTrainingArguments(
        output_dir=str(work / "runs" / run.name),
        weight_decay=training["weight_decay"],
        adam_beta1=training["betas"][0],
        adam_beta2=training["betas"][1],
        max_grad_norm=training["clip"],
        per_device_train_batch_size=training["batch_size"],
        per_device_eval_batch_size=32,
        eval_strategy="steps",
        eval_steps=100,
        save_steps=200,
        save_total_limit=1,
        logging_steps=50,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        seed=run.seed,
    )
    schedule = get_schedule("rewarm_cosine", learning_rate=run.lr, warmup=training["warmup"], min_lr=0.0)
    stage = Stage(run.name, schedule, mixture(design, run, work), max_steps=run.steps, parent=parent_of(run, work))
    torch.manual_seed(run.seed)
    options: dict[str, Any] = {"stage": stage, "eval_dataset": held_out(design, work, design["curve_rows"])}
    model = first_model(design, run, work)
    if run.taught:
        teacher = plain(work / "models" / f"teacher-seed{run.seed}")
        options |= {"teacher": teacher, "sources": ["new"], **design["distillation"]}
    trainer = DistillationTrainer(model, arguments, **options) if run.taught else ContinualTrainer(
        model, arguments, **options
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def mixture(design: dict[str, Any], run: Run, work: Path) -> ReplayMixture:
    """Return the mixture of a run; no row is seen twice, and only rows that the base saw are replayed."""
    old = load_packed(work / "rows" / f"{design['base']}.train")
    if run.kind == "base":
        # The large base sees other rows than the small one that it was grown from.
        return ReplayMixture({"old": old}, {"old": 1.0}, seed=run.seed + 1000 * (run.size == "large"), max_passes=1)
    sources: dict[str, Any] = {"new": load_packed(work / "rows" / f"{design['shift']}.train")}
    if run.replay:
        parent = parent_of(run, work)
        assert parent is not None
        sources |= seen_rows(parent, {"old": old})
    weights = {"new": 1 - run.replay, "old": run.replay} if run.replay else {"new": 1.0}
    return ReplayMixture(sources, weights, seed=run.seed, max_passes=1)


def parent_of(run: Run, work: Path) -> Path | None:
    """Return the checkpoint of the base that a run starts from; its record tells which rows were seen."""
    if run.kind == "base":
        return None
    return run_checkpoints(work / "runs" / f"{run.size}-seed{run.seed}")[-1]


def held_out(design: dict[str, Any], work: Path, count: int) -> dict[str, Dataset]:
    """Return packed validation rows of both domains, spread evenly."""
    found = {}
    for name, domain in (("old", design["base"]), ("new", design["shift"])):
        rows = load_packed(work / "rows" / f"{domain}.validation")
        found[name] = rows.select(sorted({index * len(rows) // count for index in range(count)}))
    return found


def keep(model: Any, folder: Path, work: Path) -> None:
    """Save a model, or its adapter, with the tokenizer, unless it is there."""
    if folder.exists():
        return
    if isinstance(model, PeftModel):
        model.save_pretrained(folder)
    else:
        save_model(model, folder, tokenizer=load_tokenizer(work))


def curve(trainer: ContinualTrainer) -> list[dict[str, float]]:
    """Return the losses along the run."""
    points: dict[int, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        for name in ("old", "new"):
            if f"eval_{name}_loss" in entry and entry["step"] <= trainer.state.global_step:
                points.setdefault(entry["step"], {})[name] = entry[f"eval_{name}_loss"]
    return [{"step": step, **losses} for step, losses in sorted(points.items())]


class FirstStep(TrainerCallback):
    """Count the operations of matrix products in the first training step: student, teacher and start."""

    def __init__(self) -> None:
        self.found: int | None = None

    def watch(self, trainer: ContinualTrainer) -> None:
        """Count around the next call of `training_step`, and only that."""
        step = trainer.training_step

        def counted(*arguments: Any, **options: Any) -> Any:
            trainer.training_step = step  # type: ignore[method-assign]
            with FlopCounterMode(display=False) as counter:
                loss = step(*arguments, **options)
            self.found = counter.get_total_flops()
            return loss

        trainer.training_step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
