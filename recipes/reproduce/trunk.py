"""Train a model at a constant rate, the trunk, and cool a branch of it down at each budget; resumable inside a run.

What the studies share. Trunk and branches are stages of `ContinualTrainer`: packed rows in the order of a seed, muP
groups, on whatever device the trainer finds. A branch sees the rows that the trunk sees next.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from hf_warmscale.checkpoints.run_folder import logged, run_checkpoints
from hf_warmscale.mup import MupForCausalLM
from hf_warmscale.training import (
    ContinualTrainer,
    ContinualTrainingArguments,
    ReplayMixture,
    Schedule,
    Stage,
    anneal_stage,
)
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.tuning.proxy import Diverged, StopWhenDiverged


@dataclass(frozen=True)
class Regime:
    """How all arms of a study are trained.

    Args:
        batch_size (`int`): rows in a step.
        warmup_steps (`int`): of the trunk, at least.
        warmup_share (`float`): of the trunk; the longer of the two warmups counts.
        cooldown_fraction (`float`): of each budget, linear to 0.
        weight_decay, betas, eps: of AdamW, at the base shape.
        evaluate_every (`int`): steps between points of the curve.
        curve_rows (`int`): validation rows for a point of the curve.
        evaluation_rows (`int`): validation rows at the end of a branch.
        selection_rows (`int`): as many others at the end of a branch, where the rates of a study are chosen on rows
            that judge none of them.
        save_every (`int`): steps between states to resume from.
        bf16 (`bool`): train and evaluate in mixed precision of bfloat16; the weights stay in float32.
        torch_compile (`bool`): compile the model.
    """

    batch_size: int = 16
    warmup_steps: int = 100
    warmup_share: float = 0.02
    cooldown_fraction: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    evaluate_every: int = 32
    curve_rows: int = 48
    evaluation_rows: int = 192
    selection_rows: int = 0
    save_every: int = 200
    bf16: bool = False
    torch_compile: bool = False

    def warmup(self, steps: int) -> int:
        """Return the warmup of a trunk of `steps` steps."""
        return min(max(self.warmup_steps, round(self.warmup_share * steps)), steps)

    def cooldown(self, budget: int) -> int:
        """Return the steps of the branch that ends at a budget of `budget` steps."""
        return max(round(self.cooldown_fraction * budget), 1)


@dataclass(frozen=True)
class Rows:
    """The packed rows of a study.

    Args:
        train (`Path`): to train on.
        validation (`Path`): to validate on.
    """

    train: Path
    validation: Path

    def held_out(self, count: int) -> Dataset:
        """Return at most `count` validation rows, spread evenly over the documents."""
        rows = load_packed(self.validation)
        return rows.select(sorted({index * len(rows) // count for index in range(count)}))

    def selecting(self, count: int, *, judging: int) -> Dataset:
        """Return at most `count` validation rows, spread evenly over those that are not among the `judging` ones."""
        rows = load_packed(self.validation)
        others = sorted(set(range(len(rows))) - {index * len(rows) // judging for index in range(judging)})
        return rows.select([others[index * len(others) // count] for index in range(min(count, len(others)))])


def train_with_cooldowns(
    model: PreTrainedModel,
    *,
    lr: float,
    budgets: list[int],
    rows: Rows,
    seed: int,
    regime: Regime,
    work: Path,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Train a trunk and a cooled branch for each budget, from where an interrupted run was.

    Args:
        model (`PreTrainedModel`): with its first weights, the same in every call.
        lr (`float`): at the base shape.
        budgets (`list[int]`): steps, ascending.
        rows (`Rows`): the data.
        seed (`int`): of the order of the data.
        regime (`Regime`): see there.
        work (`Path`): a folder for the checkpoints; the cooled models stay in `work/cooled-<steps>`.
        parent (`Path`, *optional*): a checkpoint whose moments the trunk keeps.

    Returns:
        `dict`: `curve` and `cooled`, with losses in nats per token and steps; a diverged run has a last loss of NaN.
    """
    started = time.monotonic()
    forks = [budget - regime.cooldown(budget) for budget in budgets]
    mixture = ReplayMixture({"train": load_packed(rows.train)}, {"train": 1.0}, seed=seed)
    warmup = regime.warmup(forks[-1])
    trunk = Stage(
        "trunk",
        Schedule("constant", warmup=warmup),
        mixture,
        max_steps=forks[-1],
        optimizer="reset" if parent is None else "keep",
        parent=parent,
    )
    record: dict[str, Any] = {"curve": [], "cooled": []}
    try:
        trainer = train_stage(model, trunk, lr, rows, seed, regime, work / "trunk", forks)
        record["curve"] = curve_of(trainer)
        for budget, fork in zip(budgets, forks, strict=True):
            parent = work / "trunk" / f"checkpoint-{fork}"
            branch = anneal_stage(parent, mixture, max_steps=budget - fork, shape="linear", min_lr=0.0)
            start = MupForCausalLM.from_pretrained(parent)
            trainer = train_stage(start, branch, lr, rows, seed, regime, work / f"cooled-{budget}", [budget - fork])
            points = [{**point, "step": point["step"] + fork} for point in curve_of(trainer)]
            record["cooled"].append({"step": budget, **final_losses(trainer, rows, regime), "curve": points})
    except Diverged:
        record["cooled"].append({"step": budgets[-1], "validation_loss": math.nan, "curve": []})
    return {**record, "warmup": warmup, "seconds": time.monotonic() - started}


def final_losses(trainer: ContinualTrainer, rows: Rows, regime: Regime) -> dict[str, float]:
    """Return the validation loss of a trained model, and its loss on the rows that select where there are such."""
    found = {"validation_loss": trainer.evaluate(rows.held_out(regime.evaluation_rows))["eval_loss"]}
    if regime.selection_rows:
        others = rows.selecting(regime.selection_rows, judging=regime.evaluation_rows)
        found["selection_loss"] = trainer.evaluate(others)["eval_loss"]
    return found


def train_stage(
    model: PreTrainedModel,
    stage: Stage,
    lr: float,
    rows: Rows,
    seed: int,
    regime: Regime,
    folder: Path,
    keep: list[int],
    *,
    make: type[ContinualTrainer] = ContinualTrainer,
    callbacks: Sequence[TrainerCallback] = (),
    **more: Any,
) -> ContinualTrainer:
    """Train a stage, or what is left of it, and return its trainer; the checkpoints at the steps `keep` stay.

    `make` is the class of the trainer, and `more` what it takes beyond [`ContinualTrainer`].
    """
    arguments = ContinualTrainingArguments(
        output_dir=str(folder),
        learning_rate=lr,
        weight_decay=regime.weight_decay,
        adam_beta1=regime.betas[0],
        adam_beta2=regime.betas[1],
        adam_epsilon=regime.eps,
        per_device_train_batch_size=regime.batch_size,
        per_device_eval_batch_size=regime.batch_size,
        max_grad_norm=0.0,
        bf16=regime.bf16,
        use_cpu=not torch.accelerator.is_available(),  # which `bf16` asks for by name
        torch_compile=regime.torch_compile,
        eval_strategy="steps",
        eval_steps=regime.evaluate_every,
        logging_steps=regime.evaluate_every,
        logging_nan_inf_filter=False,
        save_steps=regime.save_every,
        prediction_loss_only=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
    )
    trainer = make(
        model,
        arguments,
        stage=stage,
        eval_dataset=rows.held_out(regime.curve_rows),
        callbacks=[StopWhenDiverged(), SaveAt(keep), *callbacks],
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=bool(folder.is_dir() and run_checkpoints(folder)))
    return trainer


class SaveAt(TrainerCallback):
    """Save at chosen steps too: the trunk is left where a cooldown begins."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = set(steps)

    def on_step_end(
        self, args: ContinualTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint."""
        control.should_save = control.should_save or state.global_step in self.steps
        return control


def curve_of(trainer: ContinualTrainer) -> list[dict[str, float]]:
    """Return the validation losses along a run."""
    points = logged(trainer.state.log_history, "eval_loss")
    return [{"step": step, "validation_loss": loss} for step, loss in points]
