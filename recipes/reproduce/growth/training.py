"""Train a model at a constant rate, and cool it down at chosen budgets; resumable."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_warmscale.mup import MupForCausalLM, mup_param_groups
from hf_warmscale.staging import staged_file


@dataclass(frozen=True)
class Training:
    """What all runs share; see `study.yaml`."""

    tokens: Path
    batch_size: int
    sequence_length: int
    warmup_steps: int
    cooldown_fraction: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    evaluate_every: int
    curve_windows: int
    evaluation_windows: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * self.sequence_length

    def batch(self, split: str, *key: int, size: int) -> torch.Tensor:
        """Return `[size, sequence_length]` random windows, a pure function of the split and the key."""
        ids = np.load(self.tokens / f"{split}.npy", mmap_mode="r")
        starts = np.random.default_rng(key).integers(0, len(ids) - self.sequence_length + 1, size=size)
        return torch.from_numpy(
            np.stack([ids[start : start + self.sequence_length] for start in starts]).astype(np.int64)
        )


class Trainer:
    """One model in training.

    Args:
        training (`Training`): the data and the optimizer.
        model (`MupForCausalLM`): with its first weights.
        lr (`float`): at the base shape.
        seed (`int`): of the order of the data.
    """

    def __init__(self, training: Training, model: MupForCausalLM, lr: float, seed: int) -> None:
        self.training, self.model, self.seed = training, model, seed
        torch.compiler.reset()  # one process trains many models, and a function is compiled only eight times
        self.compiled = torch.compile(model)
        groups = mup_param_groups(model, lr=lr, weight_decay=training.weight_decay, eps=training.eps)
        self.optimizer = torch.optim.AdamW(groups, betas=training.betas, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0

    def train(self, steps: int, cooldown: int = 0) -> Iterator[float]:
        """Train until `steps`, the last `cooldown` of them with a rate that falls to 0; yield the training losses."""
        self.model.train()
        while self.step < steps:
            factor = min(1.0, (self.step + 1) / self.training.warmup_steps)
            if cooldown:
                factor *= min(1.0, (steps - self.step) / cooldown)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            batch = self.training.batch("train", self.seed, self.step, size=self.training.batch_size)
            loss = self.compiled(input_ids=batch, labels=batch).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            yield loss.item()

    @torch.no_grad()
    def evaluate(self, windows: int) -> float:
        """Return the loss on the first validation windows, in nats per token."""
        self.model.eval()
        losses = [
            self.compiled(input_ids=batch, labels=batch).loss.item()
            for batch in self.training.batch("validation", 0, size=windows).split(self.training.batch_size)
        ]
        self.model.train()
        return sum(losses) / len(losses)

    def state(self) -> dict[str, Any]:
        """Return what a later process needs to go on."""
        return {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def train_with_cooldowns(trainer: Trainer, budgets: list[int], work: Path, model_folder: Path) -> dict[str, Any]:
    """Train at a constant rate, and from its last fifth cool down to each budget.

    Args:
        trainer (`Trainer`): the model.
        budgets (`list[int]`): steps, ascending.
        work (`Path`): a file for what an interrupted run needs.
        model_folder (`Path`): where the model of the last cooldown goes.

    Returns:
        `dict`: the curve of the constant run and the cooled losses, with the tokens of each.
    """
    record: dict[str, Any] = {"curve": [], "cooled": [], "seconds": 0.0}
    if work.exists():
        saved = torch.load(work, weights_only=True)
        record = saved.pop("record")
        trainer.restore(saved)
    for budget in budgets[len(record["cooled"]) :]:
        cooldown = max(round(trainer.training.cooldown_fraction * budget), 1)
        _constant_phase(trainer, budget - cooldown, record, work)
        trunk = {**trainer.state(), "model": {k: v.clone() for k, v in trainer.model.state_dict().items()}}
        trunk_file = work.with_suffix(".trunk")
        _save(trunk, trunk_file)
        started = time.monotonic()
        curve = list(_measured(trainer, budget, cooldown))
        end = {
            "step": budget,
            "validation_loss": trainer.evaluate(trainer.training.evaluation_windows),
            "curve_loss": trainer.evaluate(trainer.training.curve_windows),
            "curve": curve,
        }
        record["cooled"].append(end)
        record["seconds"] += time.monotonic() - started
        trainer.model.save_pretrained(model_folder)
        trainer.restore(torch.load(trunk_file, weights_only=True))
        _save({**trainer.state(), "record": record}, work)
    return record


def _constant_phase(trainer: Trainer, steps: int, record: dict[str, Any], work: Path) -> None:
    started = time.monotonic()
    for point in _measured(trainer, steps, 0):
        record["curve"].append(point)
        if time.monotonic() - started > 120:
            record["seconds"] += time.monotonic() - started
            started = time.monotonic()
            _save({**trainer.state(), "record": record}, work)
    record["seconds"] += time.monotonic() - started


def _measured(trainer: Trainer, steps: int, cooldown: int) -> Iterator[dict[str, float]]:
    """Train and yield a point of the curve now and then."""
    every, windows = trainer.training.evaluate_every, trainer.training.curve_windows
    if trainer.step == 0:
        yield {"step": 0, "validation_loss": trainer.evaluate(windows)}
    for loss in trainer.train(steps, cooldown):
        if trainer.step % every == 0:
            yield {"step": trainer.step, "training_loss": loss, "validation_loss": trainer.evaluate(windows)}


def _save(state: dict[str, Any], path: Path) -> None:
    with staged_file(path) as staging:
        torch.save(state, staging)
