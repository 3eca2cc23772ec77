"""What an evaluation says of several domains together, and of the end of a data set that several ranks share."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


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
    counts these too: it weighs the mean of such a batch by the rows that belong there, but the mean is over all of its
    rows. Here the rows that were filled in are cut off, and each rank keeps the sum over its own batches.

    Args:
        num_rows (`int`): of the data set.
        batch_size (`int`): rows of a rank's batch.
        rank, num_ranks (`int`): whose batches these are; rank r has the batches r, r + num_ranks, ...
        device (`torch.device`): where the sums are kept.
    """

    def __init__(self, num_rows: int, batch_size: int, *, rank: int, num_ranks: int, device: torch.device) -> None:
        self.num_rows, self.batch_size = num_rows, batch_size
        self._next, self._num_ranks = rank, num_ranks
        self._sums = torch.zeros(2, device=device)

    def next_rows(self) -> int:
        """Return how many rows of the next batch belong to the data set; 0 if all of them were filled in."""
        start = self._next * self.batch_size
        self._next += self._num_ranks
        return min(max(self.num_rows - start, 0), self.batch_size)

    def add(self, loss: Tensor, rows: int) -> None:
        """Add the mean loss of a batch of so many rows."""
        if rows:
            self._sums += torch.stack([loss.float() * rows, torch.full_like(loss, rows, dtype=torch.float32)])

    def sums(self) -> Tensor:
        """Return the sum of the losses, each by its rows, and the rows, of this rank: `[1, 2]`."""
        return self._sums[None]
