"""Train a small model on real tokens for a few hundred steps: the unit of work of a sweep."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.optim import AdamW
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_warmscale.mup import MupConfig, MupForCausalLM, WeightDecayRule, mup_param_groups
from hf_warmscale.studies import tokens_hash
from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Schedule, Stage
from hf_warmscale.training.data.collators import collate_packed
from hf_warmscale.training.data.packing import load_packed

HELD_OUT_SHARE = 0.05
LOOKS = 20
"""How often a run looks whether its loss is still finite."""


@dataclass(frozen=True)
class ProxyTask:
    """What every run of a sweep shares.

    Args:
        rows (`str`): packed rows, the output of `warmscale data pack`; documents do not attend to one another.
        steps (`int`): optimizer steps.
        batch_size (`int`): rows in a batch.
        warmup_steps (`int`): steps of linear warmup; then the rate decays linearly to 0.
        validation_rows (`int`): rows of the validation loss.
        validation (`str`, *optional*): packed rows to validate on; by default the last rows of `rows`, at most 5 % of
            them, on which no run trains.
        weight_decay (`float`): at the base shape.
        weight_decay_rule (`str`): see [`group_weight_decay`].
        betas (`tuple[float, float]`): of AdamW.
        eps (`float`): of AdamW, at the base shape.

    Example:

    ```python
    >>> ProxyTask("packed", steps=20, warmup_steps=2).batch_size
    8
    ```
    """

    rows: str
    steps: int = 500
    batch_size: int = 8
    warmup_steps: int = 50
    validation_rows: int = 128
    validation: str | None = None
    weight_decay: float = 0.1
    weight_decay_rule: WeightDecayRule = "paper"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values, without where the rows lie."""
        return {name: value for name, value in asdict(self).items() if name not in ("rows", "validation")}

    def tokens_hash(self) -> str:
        """Return a hash of the tokens and of where documents begin, to train on and to validate on."""
        parts = (rows.select_columns(["input_ids", "position_ids"]).with_format("numpy") for rows in self.split())
        return tokens_hash(
            np.concatenate([np.concatenate(column) for column in batch.values()])
            for rows in parts
            # The batch size is part of the hash: each batch is a part, and the lengths of the parts count.
            for batch in rows.iter(batch_size=1_000)
        )

    def split(self) -> tuple[Dataset, Dataset]:
        """Return the rows to train on and those to validate on.

        Raises:
            FileNotFoundError: if there are no packed rows.
            ValueError: if there are too few.
        """
        rows = load_packed(self.rows)
        if self.validation is not None:
            held_out = load_packed(self.validation)
            return rows, held_out.select(range(min(self.validation_rows, len(held_out))))
        # The last rows, whatever the seed: all runs are validated on the same ones.
        held_out = min(self.validation_rows, round(HELD_OUT_SHARE * len(rows)) or 1)
        if len(rows) <= held_out:
            raise ValueError(f"{self.rows} holds {len(rows)} row, which leaves none to train on; add text.")
        cut = len(rows) - held_out
        return rows.select(range(cut)), rows.select(range(cut, len(rows)))

    def mixture(self, seed: int) -> ReplayMixture:
        """Return the rows to train on in the order of a seed, pass after pass."""
        return ReplayMixture({"train": self.split()[0]}, {"train": 1.0}, seed=seed)

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches in the order of a seed, without end: what the model takes, labels included."""
        mixture, first = self.mixture(seed), 0
        while True:
            yield collate_packed(mixture.__getitems__(range(first, first + self.batch_size)))
            first += self.batch_size

    def schedule(self) -> Schedule:
        """Return the linear warmup and the linear decay to 0."""
        # At least one step of decay is left, however short the run.
        warmup = min(self.warmup_steps, self.steps - 1)
        return Schedule("wsd", warmup=warmup, cooldown=self.steps - warmup, cooldown_shape="linear", min_lr=0.0)

    def arguments(self, output: str, *, lr: float, seed: int) -> ContinualTrainingArguments:
        """Return the trainer's arguments for one run, which leaves no files.

        The gradients are not clipped: their global norm depends on the width, so clipping would be another rule.
        """
        return ContinualTrainingArguments(
            output_dir=output,
            learning_rate=lr,
            per_device_train_batch_size=self.batch_size,
            per_device_eval_batch_size=self.batch_size,
            max_grad_norm=0.0,
            logging_steps=max(1, self.steps // LOOKS),
            # Trainer's default replaces a NaN loss by the mean of the others, and a diverged run would look healthy.
            logging_nan_inf_filter=False,
            save_strategy="no",
            prediction_loss_only=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            seed=seed,
        )


def train_proxy(task: ProxyTask, config: MupConfig, *, lr: float, seed: int) -> float:
    """Train a model from scratch and return its validation loss, in nats per token; infinite if it diverged.

    Args:
        task (`ProxyTask`): the data and the optimizer.
        config (`MupConfig`): of the model.
        lr (`float`): the peak learning rate at the base shape.
        seed (`int`): of the initial weights and of the order of the data.

    Example:

    ```python
    >>> loss = train_proxy(ProxyTask("packed"), config, lr=2**-7, seed=0)
    ```
    """
    # Before the model is built: its weights are drawn from this state.
    torch.manual_seed(seed)
    return train_model(task, MupForCausalLM(config), lr=lr, seed=seed)


def train_model(task: ProxyTask, model: MupForCausalLM, *, lr: float, seed: int) -> float:
    """Train a model in place, from the weights that it has, and return its validation loss as `train_proxy` does.

    It trains where [`ContinualTrainer`] trains: on the accelerator, if there is one.

    Args:
        task (`ProxyTask`): the data and the optimizer.
        model (`MupForCausalLM`): what to train.
        lr (`float`): the peak learning rate at the base shape.
        seed (`int`): of the order of the data.

    Example:

    ```python
    >>> torch.manual_seed(0)
    >>> loss = train_model(ProxyTask("packed"), MupForCausalLM(config), lr=2**-7, seed=0)
    ```
    """
    groups = mup_param_groups(
        model, lr=lr, weight_decay=task.weight_decay, eps=task.eps, weight_decay_rule=task.weight_decay_rule
    )
    with TemporaryDirectory(prefix="warmscale-proxy-") as folder:
        trainer = ProxyTrainer(
            model,
            task.arguments(folder, lr=lr, seed=seed),
            stage=Stage("proxy", task.schedule(), task.mixture(seed), max_steps=task.steps),
            eval_dataset=task.split()[1],
            optimizers=(AdamW(groups, betas=task.betas), None),
            callbacks=[StopWhenDiverged()],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except Diverged:
            return math.inf
        loss = float(trainer.evaluate()["eval_loss"])
    return loss if math.isfinite(loss) else math.inf


class ProxyTrainer(ContinualTrainer):
    """A trainer whose stages leave no report: drawing the picture takes longer than many a small run."""

    def _report(self) -> None:
        pass


class Diverged(Exception):
    """The training loss is not finite any more."""


class StopWhenDiverged(TrainerCallback):
    """End a training whose loss is not finite: what follows would be wasted, and its report could not be written."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the mean loss since the last look."""
        if logs is not None and not math.isfinite(logs.get("loss", 0.0)):
            raise Diverged
