"""Magnitude pruning as plain functions: a schedule of sparsities, and which weights are the smallest (2002.11794).

The count-th smallest magnitude over all weights together is found exactly, without holding them together: a float32
magnitude is ordered as its bits are, so two histograms of 16 bits each, summed weight by weight, lead to it.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

HALF = 16
"""Bits that a histogram resolves; a float32 has two halves."""


def check_schedule(schedule: Sequence[float], every: int) -> tuple[float, ...]:
    """Return the schedule as a tuple of floats.

    Raises:
        ValueError: if a sparsity is not in (0, 1), they do not ascend, there is none, or `every` is below 1.
    """
    sparsities = tuple(float(sparsity) for sparsity in schedule)
    if not sparsities:
        raise ValueError("The schedule is empty; give at least one sparsity, such as (0.3, 0.6).")
    for sparsity in sparsities:
        check_sparsity(sparsity, lowest_allowed=False)
    if any(later <= earlier for earlier, later in pairwise(sparsities)):
        raise ValueError(f"The schedule {sparsities} does not ascend; pruned weights never come back.")
    if every < 1:
        raise ValueError(f"every is {every}; prune after at least 1 optimizer step.")
    return sparsities


def check_sparsity(sparsity: float, *, lowest_allowed: bool = True) -> None:
    """Refuse a share of zeros that is not below 1.

    Args:
        sparsity (`float`): the share.
        lowest_allowed (`bool`): allow 0.

    Raises:
        ValueError: naming the value.
    """
    if not 0 <= sparsity < 1 or (sparsity == 0 and not lowest_allowed):
        start = "[0" if lowest_allowed else "(0"
        raise ValueError(f"A sparsity is {sparsity:g}; it is a share of zeros in {start}, 1): at 1 no weight is left.")


def sparsity_at(schedule: Sequence[float], every: int, step: int) -> float:
    """Return the sparsity after `step` optimizer steps: the k-th one (from 1) holds from step `k * every` on.

    Example:
        >>> [sparsity_at((0.3, 0.6), 10, step) for step in (9, 10, 19, 20, 99)]
        [0.0, 0.3, 0.3, 0.6, 0.6]
    """
    stage = min(step // every, len(schedule))
    return schedule[stage - 1] if stage else 0.0


def num_pruned(sparsity: float, total: int) -> int:
    """Return how many of `total` weights are zero at a sparsity, rounded to the nearest (half to even)."""
    return round(sparsity * total)


def extend_masks(read: Callable[[str], Tensor], masks: MutableMapping[str, Tensor], count: int) -> None:
    """Mark the smallest weights, over all masks together, until `count` are marked; what is marked stays.

    Of equal magnitudes the first count, in the order of the masks and then of the weight. float64 weights are compared
    in float32.

    Args:
        read (`Callable[[str], Tensor]`): returns a weight by its name; it is called three times for each.
        masks (`MutableMapping[str, Tensor]`): true where a weight is pruned, each of its weight's shape; changed in
            place.
        count (`int`): weights to be marked in all.
    """
    more = count - sum(int(mask.sum()) for mask in masks.values())
    if more <= 0:
        return
    threshold, ties = nth_smallest(lambda: (_bits(read(name))[~mask] for name, mask in masks.items()), more)
    for name, mask in masks.items():
        bits = _bits(read(name)).masked_fill_(mask, torch.iinfo(torch.int32).max)
        equal = (bits == threshold).flatten().nonzero().flatten()[:ties]
        ties -= len(equal)
        mask |= bits < threshold
        mask.view(-1)[equal] = True


def nth_smallest(values: Callable[[], Iterable[Tensor]], count: int) -> tuple[int, int]:
    """Return the `count`-th smallest (from 1) of non-negative int32 numbers, and how many equal to it make up `count`.

    Args:
        values (`Callable[[], Iterable[Tensor]]`): gives the numbers, `[any]` int32, part by part; called twice.
        count (`int`): at most as many as there are numbers.

    Example:
        >>> nth_smallest(lambda: [torch.tensor([5, 2, 7], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)], 2)
        (5, 1)
    """
    upper, left = _bin_of(_histogram(part >> HALF for part in values()), count)
    inside = (part[part >> HALF == upper] & (2**HALF - 1) for part in values())
    lower, left = _bin_of(_histogram(inside), left)
    return (upper << HALF) | lower, left


def _histogram(parts: Iterator[Tensor]) -> Tensor:
    total = torch.zeros(2**HALF, dtype=torch.int64)
    for part in parts:
        total += torch.bincount(part.flatten(), minlength=2**HALF).cpu()
    return total


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """Return the bin in which the `count`-th entry lies, and its place there (from 1)."""
    sums = histogram.cumsum(0)
    place = int(torch.searchsorted(sums, count))
    return place, count - int(sums[place] - histogram[place])


def _bits(weight: Tensor) -> Tensor:
    """Return the bits of the magnitudes as float32, which are ordered as the magnitudes are."""
    return weight.detach().abs().float().view(torch.int32)
