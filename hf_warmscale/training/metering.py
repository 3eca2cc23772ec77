"""Count tokens and loss of a stage by source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_warmscale.training.data.batches import per_position
from hf_warmscale.training.stage import Progress

IGNORED = -100
TOKENS_AT_ONCE = 4096
"""Positions whose loss is computed together: a copy of all logits would double the peak memory."""

Gather = Callable[[Tensor], Tensor]


class SourceMeter:
    """Sum what the micro-batches of one rank hold, on the device, until it is read.

    Args:
        names (`Sequence[str]`): the sources.
        device (`torch.device`): of the batches.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.counts = torch.zeros(2, len(names), dtype=torch.int64, device=device)
        self.losses = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    def add(self, sources: Tensor, inputs: dict[str, Any], outputs: Mapping[str, Any] | None) -> None:
        """Count one micro-batch.

        Args:
            sources (`[rows]` or `[1, tokens]`): the number of the source of each row or token.
            inputs (`dict`): the batch, with `input_ids` and `labels` of `[rows, tokens]`.
            outputs (`Mapping`, *optional*): of the model, with `logits` of `[rows, tokens, vocabulary]`, or with the
                `log_probs` of the targets alone (trl's fused head); without them no loss is measured.
        """
        labels = inputs["labels"]
        by_position = per_position(sources, labels.shape)
        present = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(labels).bool()
        targets, target_sources = labels[:, 1:], by_position[:, 1:]
        counted = target_sources[targets != IGNORED]
        self.counts[0] += torch.bincount(by_position[present], minlength=len(self.names))
        self.counts[1] += torch.bincount(counted, minlength=len(self.names))
        nll = None if outputs is None else target_nll(outputs, targets)
        if nll is not None:
            self.losses[0].index_add_(0, target_sources.reshape(-1), nll.reshape(-1).double())
            self.losses[1] += torch.bincount(counted, minlength=len(self.names))

    def flush_counts(self, gather: Gather, progress: Progress) -> None:
        """Add the counts of all ranks to the progress and start again from zero."""
        totals = _sum_over_ranks(gather, self.counts).tolist()
        self.counts.zero_()
        for target, values in zip((progress.tokens, progress.loss_tokens), totals, strict=True):
            for name, value in zip(self.names, values, strict=True):
                target[name] = target.get(name, 0) + int(value)

    def flush_losses(self, gather: Gather) -> dict[str, float]:
        """Return the mean loss of each source that was seen since the last call, in nats per token."""
        sums, tokens = _sum_over_ranks(gather, self.losses).tolist()
        self.losses.zero_()
        return {name: total / count for name, total, count in zip(self.names, sums, tokens, strict=True) if count}


def target_nll(outputs: Mapping[str, Any], targets: Tensor) -> Tensor | None:
    """Return the loss of every target, `[rows, tokens - 1]`, or `None` if the model gave neither form of it."""
    log_probs, logits = outputs.get("log_probs"), outputs.get("logits")
    if log_probs is not None:
        found: Tensor = -log_probs.detach()
        return found
    return None if logits is None else token_nll(logits.detach()[:, :-1], targets)


@contextmanager
def captured(model: nn.Module) -> Iterator[list[Mapping[str, Any]]]:
    """Collect what a model returns inside the block, for a loss function that keeps it to itself."""
    seen: list[Mapping[str, Any]] = []

    def keep(module: nn.Module, arguments: Any, outputs: Any) -> None:
        if isinstance(outputs, Mapping):
            seen.append(outputs)

    handle = model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of every position, 0 where it is ignored: `[rows, tokens]`, in nats."""
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    parts = [
        nn.functional.cross_entropy(part.float(), target, reduction="none", ignore_index=IGNORED)
        for part, target in zip(flat.split(TOKENS_AT_ONCE), wanted.split(TOKENS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts).reshape(targets.shape)


def _sum_over_ranks(gather: Gather, values: Tensor) -> Tensor:
    return gather(values[None]).sum(dim=0)
