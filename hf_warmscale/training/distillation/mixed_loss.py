"""Cross-entropy mixed with divergences from teachers, in chunks of positions, with the gradient by hand.

Autograd would keep several float32 copies of all logits. Here the gradient is written, chunk by chunk, into one tensor
of the logits' dtype while the loss is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_warmscale.evaluation import IGNORE_INDEX
from hf_warmscale.evaluation.cross_entropy import CHUNK_ELEMENTS
from hf_warmscale.training.distillation.divergence import Direction
from hf_warmscale.training.distillation.predictions import Predictions

CPU_CHUNK_ELEMENTS = 2**19
"""Logits in a chunk on a CPU: 2 MB, so that the passes over a chunk find it in the cache."""


@dataclass(frozen=True)
class Pull:
    """The pull of a teacher on the student at some positions of a batch.

    Args:
        predictions (`Predictions`): of a teacher for `rows`, at positions `[rows, tokens]`.
        weight (`float`): its share in the loss; the square of the temperature is a factor besides (1503.02531).
        temperature (`float`): of both softmaxes.
        direction (`str`): see `Direction`.
        rows (`tuple[int, ...]`, *optional*): of the batch, in the order of the predictions; by default all.
        mask (`Tensor`, *optional*): `[rows, tokens]`, where it acts; by default everywhere.
    """

    predictions: Predictions
    weight: float
    temperature: float = 1.0
    direction: Direction = "forward"
    rows: tuple[int, ...] | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class MixedLoss:
    """The result of `mixed_loss`.

    Args:
        total (`Tensor`): the sum over the positions, a scalar with a gradient.
        nll (`Tensor`): the loss of each target in nats, `[rows, tokens]`, 0 where it is ignored; without a gradient.
        divergence (`Tensor`): from the teacher at each position in nats, unweighted; otherwise as `nll`.
    """

    total: Tensor
    nll: Tensor
    divergence: Tensor


def mixed_loss(
    logits: Tensor, targets: Tensor, pulls: Sequence[Pull], *, nll_weight: float, ignore_index: int = IGNORE_INDEX
) -> MixedLoss:
    """Return the sum over positions of `nll_weight * nll + weight * temperature^2 * divergence`.

    Args:
        logits (`Tensor`): `[rows, tokens, vocabulary]` of the student.
        targets (`Tensor`): ids `[rows, tokens]` of the next tokens.
        pulls (`Sequence[Pull]`): the teachers; no two of them act at one position. They may have fewer tokens, which
            are then the last ones: prompt tuning puts virtual tokens before each row.
        nll_weight (`float`): of the cross-entropy.
        ignore_index (`int`): the target of positions that do not count.

    Example:

    ```python
    >>> pull = Pull(Logits(teacher_logits.flatten(0, 1), vocabulary), weight=0.5, temperature=2.0)
    >>> mixed_loss(logits, targets, [pull], nll_weight=0.5).total.backward()
    ```
    """
    work = _Work(targets, tuple(pulls), nll_weight, ignore_index)
    total, nll, divergence = _HandMadeGradient.apply(logits, work)  # type: ignore[no-untyped-call]
    return MixedLoss(total, nll, divergence)


@dataclass(frozen=True)
class _Work:
    targets: Tensor
    pulls: tuple[Pull, ...]
    nll_weight: float
    ignore_index: int


class _HandMadeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, work: _Work) -> tuple[Tensor, Tensor, Tensor]:
        gradient = None
        if logits.requires_grad:
            # The gradient of the sum is at most 1 and is divided by the number of tokens later. In float16 that
            # division must come first, or rather not underflow, hence float32.
            dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            gradient = torch.empty_like(logits, dtype=dtype, memory_format=torch.contiguous_format)
        total, nll, divergence = _run(logits, work, gradient)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(nll, divergence)
        return total, nll, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *unused: Tensor) -> tuple[Tensor, None]:
        # In place: a second backward pass through the same loss then raises, as it does after a plain one.
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(slope).to(ctx.dtype), None


def _run(logits: Tensor, work: _Work, gradient: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens, vocabulary = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    flat, targets = logits.reshape(-1, vocabulary), work.targets.reshape(-1)
    sums = torch.zeros(3, len(flat), dtype=dtype, device=logits.device)
    slopes = None if gradient is None else gradient.view(-1, vocabulary)
    budget = CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else CHUNK_ELEMENTS
    size = max(1, budget // vocabulary)
    for block in _blocks(rows, tokens, work.pulls):
        for offset in range(0, block.count, size):
            here = slice(block.start + offset, block.start + min(offset + size, block.count))
            pulls = [(pull, start + offset) for pull, start in block.pulls]
            sums[:, here], slope = _chunk(flat[here].to(dtype), targets[here], work, pulls)
            if slopes is not None:
                slopes[here] = 0.0 if slope is None else slope
    nll, divergence, weighted = sums.view(3, rows, tokens)
    return work.nll_weight * nll.sum() + weighted.sum(), nll, divergence


def _chunk(
    logits: Tensor, targets: Tensor, work: _Work, pulls: Sequence[tuple[Pull, int]]
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, the divergence and the weighted divergence of each position, `[3, positions]`, and the slope.

    The slope, `[positions, vocabulary]`, is that of the weighted sum; `None` stands for 0.
    """
    counts = targets != work.ignore_index
    at = torch.where(counts, targets, 0)[:, None]
    log_q = logits.log_softmax(dim=-1)
    nll = torch.where(counts, -log_q.gather(1, at)[:, 0], 0.0)
    divergence, weighted = torch.zeros_like(nll), torch.zeros_like(nll)
    slope = None
    if work.nll_weight:
        factor = work.nll_weight * counts.to(logits.dtype)[:, None]
        slope = log_q.exp().mul_(factor).scatter_add_(1, at, -factor)
    for pull, start in pulls:
        value, part = pull.predictions.divergence(
            start, _student(logits, log_q, pull), pull.temperature, pull.direction
        )
        acts = counts
        if pull.mask is not None:
            acts = counts & pull.mask.reshape(-1)[start : start + len(targets)].to(counts.device)
        factor = pull.weight * pull.temperature * acts.to(logits.dtype)
        divergence += torch.where(acts, value, 0.0)
        weighted += torch.where(acts, value, 0.0) * factor * pull.temperature
        # `part` is with respect to logits over temperature, so that one of the two temperatures cancels.
        # Filled first: at a padded position a teacher may give NaN, and NaN times 0 is NaN.
        slope = _added(slope, part.masked_fill_(~acts[:, None], 0.0).mul_(factor[:, None]), logits.shape[1])
    return torch.stack([nll, divergence, weighted]), slope


def _student(logits: Tensor, log_q: Tensor, pull: Pull) -> Tensor:
    """Return the student's log-probabilities of the ids that are compared, at the temperature of the teacher."""
    ids = pull.predictions.num_ids
    if pull.temperature == 1 and ids == logits.shape[1]:
        return log_q
    return (logits[:, :ids] / pull.temperature).log_softmax(dim=-1)


def _added(slope: Tensor | None, part: Tensor, vocabulary: int) -> Tensor:
    padding = vocabulary - part.shape[1]
    if slope is None:
        return torch.nn.functional.pad(part, (0, padding)) if padding else part
    slope[:, : part.shape[1]] += part
    return slope


@dataclass(frozen=True)
class _Block:
    """Positions that the same teachers act on: the first, how many, and where each teacher has the first of them."""

    start: int
    count: int
    pulls: tuple[tuple[Pull, int], ...]


def _blocks(rows: int, tokens: int, pulls: Sequence[Pull]) -> Iterator[_Block]:
    """Cut the positions of a batch where the teachers change; without need they are not cut at all."""
    if all(pull.rows is None and pull.predictions.num_positions == rows * tokens for pull in pulls):
        yield _Block(0, rows * tokens, tuple((pull, 0) for pull in pulls))
        return
    for row in range(rows):
        found = [(pull, _place(row, pull)) for pull in pulls if pull.rows is None or row in pull.rows]
        own = max((pull.predictions.num_positions // _num_rows(pull, rows) for pull, _ in found), default=0)
        yield _Block(row * tokens, tokens - own, ())
        yield _Block((row + 1) * tokens - own, own, tuple((pull, place * own) for pull, place in found))


def _place(row: int, pull: Pull) -> int:
    return row if pull.rows is None else pull.rows.index(row)


def _num_rows(pull: Pull, rows: int) -> int:
    return rows if pull.rows is None else len(pull.rows)
