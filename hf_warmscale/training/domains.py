"""The summary of an evaluation over several domains, and the exact loss of a data set that several ranks share."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_warmscale.training.data.collators import num_tokens
from hf_warmscale.training.data.rows import Rows

Gather = Callable[[Tensor], Tensor]


def summarise(losses: Mapping[str, float], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the mean of the losses by domain, and the weighted mean.

    Args:
        losses (`Mapping[str, float]`): nats per token, by domain.
        weights (`Mapping[str, float]`, *optional*): of the weighted mean.

    Raises:
        ValueError: if a weight names no domain.
    """
    summary = {"loss": sum(losses.values()) / len(losses)}
    if weights is not None:
        if unknown := set(weights) - set(losses):
            raise ValueError(f"eval_weights name {sorted(unknown)}; the evaluation domains are {sorted(losses)}.")
        summary["weighted_loss"] = sum(weight * losses[name] for name, weight in weights.items())
    return summary


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """Return a loss in bits per UTF-8 byte, which compares models with different tokenizers.

    Args:
        loss (`float`): in nats per token.
        tokens_per_byte (`float`): of the text, see `PackManifest.tokens_per_byte`.
    """
    return loss * tokens_per_byte / math.log(2)


class SharedEvaluation:
    """The loss of a data set that several ranks evaluate together, equal to that of one rank.

    So that all ranks have as many batches, accelerate fills the last ones up with rows from the beginning. Trainer
    gives such a batch the weight of the rows that belong there, but takes its mean over all of its rows, and over the
    batches of all ranks together. Here the rows that were filled in are cut off, and each batch has its own mean.

    Args:
        rows (`Sequence`): the data set.
        batch_size (`int`): rows of a rank's batch.
        rank, num_ranks (`int`): whose batches these are; rank r has the batches r, r + num_ranks, ...
        device (`torch.device`): where the sums are kept.
    """

    def __init__(self, rows: Rows, batch_size: int, *, rank: int, num_ranks: int, device: torch.device) -> None:
        self.rows, self.batch_size = rows, batch_size
        self._next, self._num_ranks = rank, num_ranks
        self._sums = torch.zeros(2, device=device)

    def next_batch(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the next batch without the rows that were filled in, and how many are left.

        Where none is left, all are returned, since ranks may have to compute together (ZeRO-3); they weigh nothing.
        """
        start = self._next * self.batch_size
        self._next += self._num_ranks
        left = min(max(len(self.rows) - start, 0), self.batch_size)
        # 0: this whole batch was filled in, and `add` gives it the weight 0.
        if left in (0, self.batch_size):
            return inputs, left
        sizes = {len(value) for value in inputs.values() if isinstance(value, Tensor)}
        if sizes == {1}:  # the rows are laid end to end
            tokens = sum(num_tokens(self.rows[index]) for index in range(start, start + left))
            return {key: value[:, :tokens] for key, value in inputs.items()}, left
        return {key: value[:left] if isinstance(value, Tensor) else value for key, value in inputs.items()}, left

    def add(self, loss: Tensor, rows: int) -> None:
        """Add the mean loss of a batch of so many rows; like Trainer, leave out what is not finite."""
        added = torch.stack([loss.float() * rows, torch.full_like(loss, rows, dtype=torch.float32)])
        self._sums += torch.where(torch.isfinite(loss), added, 0.0)

    def loss(self, gather: Gather) -> float:
        """Return the mean over all ranks, in nats per token; NaN if no batch had a finite loss."""
        total, rows = gather(self._sums[None]).sum(dim=0).tolist()
        return total / rows if rows else math.nan
