"""Count tokens and loss of a stage by source, on the device, without waiting for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_warmscale.evaluation import IGNORE_INDEX
from hf_warmscale.training.stage import Progress

Gather = Callable[[Tensor], Tensor]


class SourceMeter:
    """Sum what the micro-batches of one rank hold, on the device, until it is read.

    Nothing here reads a value back from the device, so a step never waits for it; and nothing is in float64, which
    some devices lack. The losses are added with Kahan's compensation instead: a plain float32 sum over the tokens
    between two logs would lose digits.

    Args:
        names (`Sequence[str]`): the sources.
        device (`torch.device`): of the batches.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self._numbers = torch.arange(len(names), device=device)[:, None]
        # [tokens, labels that count] by source.
        self._counts = torch.zeros(2, len(names), dtype=torch.int64, device=device)
        # By kind of loss.
        self._sums: dict[str, _Sums] = {}

    def count(self, sources: Tensor, batch: Mapping[str, Any], *, shifted: bool = True) -> None:
        """Count the tokens of one micro-batch.

        Args:
            sources (`[rows]` or `[1, tokens]`): the number of the source of each row or token.
            batch (`Mapping`): with `input_ids` or `inputs_embeds`, and `labels` if there are any.
            shifted (`bool`): the loss predicts the next label, so that the first label of a row does not count.
        """
        inputs, mask = batch.get("input_ids"), batch.get("attention_mask")
        if inputs is None and "inputs_embeds" in batch:
            inputs = batch["inputs_embeds"][..., 0]
        if inputs is None:
            return
        present = mask.bool() if mask is not None and mask.shape == inputs.shape else torch.ones_like(inputs).bool()
        self._counts[0] += self._by_source(sources, present)
        if batch.get("labels") is not None:
            self._counts[1] += self._by_source(sources, _counted(batch["labels"], shifted))

    def add_losses(self, sources: Tensor, nll: Tensor, labels: Tensor, *, kind: str = "loss") -> None:
        """Add the losses of one micro-batch whose labels are shifted.

        Args:
            sources (`[rows]` or `[1, tokens]`): as in `count`.
            nll (`Tensor`): the loss of the next token at each position, `[rows, tokens]`.
            labels (`Tensor`): `[rows, tokens]`.
            kind (`str`): what is measured; all ranks must add the same kinds.
        """
        sums = self._sums.setdefault(kind, _Sums(len(self.names), self._numbers.device))
        counted = _counted(labels, shifted=True)
        # Column i holds the loss of token i + 1: moved, it stands where the token and its source do.
        values = self._by_source(sources, torch.where(counted, nll.roll(1, dims=1), 0))
        sums.add(values, self._by_source(sources, counted))

    def flush_counts(self, gather: Gather, progress: Progress) -> None:
        """Add the counts of all ranks to the progress and start again from zero."""
        totals = _sum_over_ranks(gather, self._counts)
        self._counts.zero_()
        for target, values in zip((progress.tokens, progress.loss_tokens), totals, strict=True):
            for name, value in zip(self.names, values, strict=True):
                target[name] = target.get(name, 0) + int(value)

    def flush_losses(self, gather: Gather) -> dict[str, float]:
        """Return the mean of each kind of loss for each source that was seen since the last call, in nats per token.

        The names are `<kind>/<source>`.
        """
        found: dict[str, float] = {}
        for kind, sums in self._sums.items():
            (totals,), (tokens,) = (_sum_over_ranks(gather, each[None]) for each in (sums.losses[0], sums.tokens))
            means = zip(self.names, totals, tokens, strict=True)
            found |= {f"{kind}/{name}": total / count for name, total, count in means if count}
            sums.clear()
        return found

    def _by_source(self, sources: Tensor, values: Tensor) -> Tensor:
        """Return the sum of `values`, one per position, for each source."""
        if sources.shape != values.shape:  # a source for each row
            values = values.sum(dim=1)
        # [sources, positions or rows]. Unlike `index_add` on CUDA, this sum is deterministic.
        mine = sources.reshape(1, -1) == self._numbers
        return torch.where(mine, values.reshape(1, -1), 0).sum(dim=1)


class _Sums:
    """Losses and the tokens that have them, by source."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.tokens = torch.zeros(sources, dtype=torch.int64, device=device)
        # [running sum, Kahan compensation] by source.
        self.losses = torch.zeros(2, sources, dtype=torch.float32, device=device)

    def add(self, values: Tensor, tokens: Tensor) -> None:
        self.tokens += tokens
        values = values - self.losses[1]
        total = self.losses[0] + values
        # The excess that rounding added to the sum; it is taken off the next value.
        self.losses = torch.stack([total, (total - self.losses[0]) - values])

    def clear(self) -> None:
        self.tokens.zero_()
        self.losses.zero_()


def _counted(labels: Tensor, shifted: bool) -> Tensor:
    counted = labels != IGNORE_INDEX
    if shifted:
        counted = counted.clone()
        # Nothing predicts the first label of a row.
        counted[:, 0] = False
    return counted


def _sum_over_ranks(gather: Gather, values: Tensor) -> list[list[float]]:
    """Return the sums of `[what, sources]` over all ranks, added in double precision on the host."""
    ranks = gather(values[None]).tolist()
    return [[sum(column) for column in zip(*rows, strict=True)] for rows in zip(*ranks, strict=True)]
