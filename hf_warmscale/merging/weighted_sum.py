"""The weighted sum of tensors into an existing tensor, in wide precision but without a wide copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**18
"""One chunk of the sum and one of a source fit into the cache together."""


def weighted_sum_(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], *, accumulate: torch.dtype = torch.float32
) -> None:
    """Write `sum_i w_i x_i` into `out`, accumulating in `accumulate` or in the wider dtype of `out`.

    Sources with a weight of exactly zero are not read, and a single source with weight one is copied bit for bit.

    Args:
        out (`Tensor`): of any floating dtype and device; its content is replaced.
        tensors (`Sequence[Tensor]`): of the same shape, for example views of mapped files.
        weights (`Sequence[float]`): one per tensor.
        accumulate (`torch.dtype`): the precision of the running sum.
    """
    # Not only for speed: 0 times an infinity or NaN would spread it into the sum.
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0]
    if not used:
        out.zero_()
        return
    if [weight for _, weight in used] == [1.0]:
        out.copy_(_beside(out, used[0][0], out.dtype))
        return
    # `view(-1)` needs one flat run of memory; a `reshape` of `out` would silently write into a copy.
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    _sum_by_chunks(target.view(-1), [(tensor.reshape(-1), weight) for tensor, weight in used], accumulate)
    if target is not out:
        out.copy_(target)


def _sum_by_chunks(out: Tensor, used: Sequence[tuple[Tensor, float]], accumulate: torch.dtype) -> None:
    dtype = torch.promote_types(out.dtype, accumulate)
    # Where `out` itself is wide enough it is the accumulator; else one narrow chunk at a time is summed beside it.
    scratch = None if dtype == out.dtype else out.new_empty(min(CHUNK_ELEMENTS, out.numel()), dtype=dtype)
    (first, first_weight), *others = used
    for start in range(0, out.numel(), CHUNK_ELEMENTS):
        piece = slice(start, min(start + CHUNK_ELEMENTS, out.numel()))
        total = out[piece] if scratch is None else scratch[: piece.stop - piece.start]
        # This overwrites `out` before the other sources are read, so `out` must not be one of them.
        total.copy_(_beside(out, first[piece], dtype)).mul_(first_weight)
        for tensor, weight in others:
            total.add_(_beside(out, tensor[piece], dtype), alpha=weight)
        if scratch is not None:
            out[piece] = total


def _beside(out: Tensor, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring a tensor to the device of `out`: a float64 one is narrowed first, for not every device has float64."""
    return (tensor.to(dtype) if tensor.dtype == torch.float64 else tensor).to(out.device)
