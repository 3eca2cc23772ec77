"""Train a small model on real tokens for a few hundred steps: the unit of work of a sweep."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import get_linear_schedule_with_warmup

from hf_warmscale.mup import MupConfig, MupForCausalLM, WeightDecayRule, mup_param_groups


@dataclass(frozen=True)
class ProxyTask:
    """What every run of a sweep shares.

    Args:
        tokens (`str`): a folder with `train.npy` and `validation.npy`, one-dimensional arrays of token ids.
        steps (`int`): optimizer steps.
        batch_size (`int`): sequences in a batch.
        sequence_length (`int`): tokens in a sequence.
        warmup_steps (`int`): steps of linear warmup; then the rate decays linearly to 0.
        validation_batches (`int`): batches of the validation loss.
        weight_decay (`float`): at the base shape.
        weight_decay_rule (`str`): see [`group_weight_decay`].
        betas (`tuple[float, float]`): of AdamW.
        eps (`float`): of AdamW, at the base shape.
    """

    tokens: str
    steps: int = 500
    batch_size: int = 8
    sequence_length: int = 128
    warmup_steps: int = 50
    validation_batches: int = 16
    weight_decay: float = 0.1
    weight_decay_rule: WeightDecayRule = "paper"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def identity(self) -> dict[str, Any]:
        """Return the settings as plain values, with a hash of the tokens instead of where they lie."""
        arrays = (np.load(Path(self.tokens) / f"{split}.npy", mmap_mode="r") for split in ("train", "validation"))
        digest = sha256(b"".join(sha256(np.ascontiguousarray(array).data).digest() for array in arrays))
        return {**asdict(self), "tokens": digest.hexdigest()}

    def batches(self, split: Literal["train", "validation"], seed: int) -> Iterator[torch.Tensor]:
        """Yield batches `[batch_size, sequence_length]`, each a pure function of the split, the seed and its index."""
        tokens = np.load(Path(self.tokens) / f"{split}.npy", mmap_mode="r")
        last = len(tokens) - self.sequence_length
        if last < 0:
            raise ValueError(
                f"{len(tokens)} {split} tokens are fewer than one sequence of {self.sequence_length}; add text."
            )
        index = 0
        while True:
            starts = np.random.default_rng((seed, index)).integers(0, last + 1, size=self.batch_size)
            rows = [tokens[start : start + self.sequence_length] for start in starts]
            yield torch.from_numpy(np.stack(rows).astype(np.int64))
            index += 1


def train_proxy(task: ProxyTask, config: MupConfig, *, lr: float, seed: int) -> float:
    """Train a model from scratch and return its validation loss, in nats per token; infinite if it diverged.

    Args:
        task (`ProxyTask`): the data and the optimizer.
        config (`MupConfig`): of the model.
        lr (`float`): the peak learning rate at the base shape.
        seed (`int`): of the initial weights and of the order of the data.
    """
    torch.manual_seed(seed)
    return train_model(task, MupForCausalLM(config), lr=lr, seed=seed)


def train_model(task: ProxyTask, model: MupForCausalLM, *, lr: float, seed: int) -> float:
    """Train a model in place, from the weights that it has, and return its validation loss as `train_proxy` does.

    Args:
        task (`ProxyTask`): the data and the optimizer.
        model (`MupForCausalLM`): what to train.
        lr (`float`): the peak learning rate at the base shape.
        seed (`int`): of the order of the data.
    """
    model.train()
    groups = mup_param_groups(
        model, lr=lr, weight_decay=task.weight_decay, eps=task.eps, weight_decay_rule=task.weight_decay_rule
    )
    optimizer = torch.optim.AdamW(groups, betas=task.betas, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, task.warmup_steps, task.steps)
    for _, batch in zip(range(task.steps), task.batches("train", seed), strict=False):
        loss = model(input_ids=batch, labels=batch).loss
        if not math.isfinite(loss.item()):
            return math.inf
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return validation_loss(task, model)


@torch.no_grad()
def validation_loss(task: ProxyTask, model: MupForCausalLM) -> float:
    """Return the mean loss over the first validation batches, the same for every run, in nats per token."""
    model.train(False)
    batches = zip(range(task.validation_batches), task.batches("validation", 0), strict=False)
    return float(np.mean([model(input_ids=batch, labels=batch).loss.item() for _, batch in batches]))
