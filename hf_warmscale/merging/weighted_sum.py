"""The weighted sum of tensors into a tensor that exists, in wide precision and without a wide copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**18
"""A chunk of the sum and of one source stay in the cache together."""


def weighted_sum_(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], *, accumulate: torch.dtype = torch.float32
) -> None:
    """Write `sum_i w_i x_i` into `out`, accumulating in `accumulate` or in the wider dtype of `out`.

    Sources with a weight of exactly zero are not read, and one source of weight one is copied bit for bit.

    Args:
        out (`Tensor`): of any floating dtype and device; its content is replaced.
        tensors (`Sequence[Tensor]`): of the same shape, for example views of mapped files.
        weights (`Sequence[float]`): one a tensor.
        accumulate (`torch.dtype`): precision of the running sum.
    """
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0]
    if not used:
        out.zero_()
        return
    if [weight for _, weight in used] == [1.0]:
        out.copy_(used[0][0])
        return
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    _sum_by_chunks(target.view(-1), [(tensor.reshape(-1), weight) for tensor, weight in used], accumulate)
    if target is not out:
        out.copy_(target)


def _sum_by_chunks(out: Tensor, used: Sequence[tuple[Tensor, float]], accumulate: torch.dtype) -> None:
    dtype = torch.promote_types(out.dtype, accumulate)
    scratch = None if dtype == out.dtype else out.new_empty(min(CHUNK_ELEMENTS, out.numel()), dtype=dtype)
    (first, first_weight), *others = used
    for start in range(0, out.numel(), CHUNK_ELEMENTS):
        piece = slice(start, min(start + CHUNK_ELEMENTS, out.numel()))
        total = out[piece] if scratch is None else scratch[: piece.stop - piece.start]
        total.copy_(first[piece]).mul_(first_weight)
        for tensor, weight in others:
            total.add_(tensor[piece].to(out.device), alpha=weight)
        if scratch is not None:
            out[piece] = total
