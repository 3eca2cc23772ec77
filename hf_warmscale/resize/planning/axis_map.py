"""Axis maps: the source of each coordinate of a target axis.

An axis map is an int64 tensor with one entry per coordinate of the target axis: the coordinate of the source axis that
it copies, or -1 if it is new. The layer axis has a map of its own (`layer_map.py`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NEW = -1

Extend = Callable[[int, int], Tensor]
"""A rule that makes the map of an axis from its sizes in source and target."""


def tile(source: int, target: int) -> Tensor:
    """Repeat the whole axis: coordinate i is a copy of `i mod source`."""
    return torch.arange(target) % source


def pad(source: int, target: int) -> Tensor:
    """Append new coordinates."""
    return torch.cat([torch.arange(source), torch.full((target - source,), NEW)])


def sample(source: int, target: int, generator: torch.Generator) -> Tensor:
    """Append copies of random coordinates (Net2Net, arXiv:1511.05641, equation 6)."""
    drawn = torch.randint(source, (target - source,), generator=generator)
    return torch.cat([torch.arange(source), drawn])


def copies(index: Tensor) -> Tensor:
    """Return, for each target coordinate, the number of copies of its source (float64); 1 for a new coordinate."""
    if not (index >= 0).any():
        return torch.ones(len(index), dtype=torch.float64)
    counts = torch.bincount(index[index >= 0])
    return torch.where(index >= 0, counts[index.clamp(min=0)], 1).double()


def rank(index: Tensor) -> Tensor:
    """Return, for each target coordinate, the number of earlier copies of its source; the first copy has 0.

    Example:
        >>> rank(torch.tensor([0, 1, 0, 0])).tolist()
        [0, 0, 1, 2]
    """
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    # The leftmost insertion point of a value is the start of its run of equal values.
    starts = torch.searchsorted(ordered, ordered)
    ranks = torch.empty_like(index)
    ranks[order] = torch.arange(len(index)) - starts
    return ranks


def pairs(index: Tensor) -> tuple[Tensor, Tensor]:
    """Pair the copies of each source coordinate, so that a noise of +e and -e sums to zero over them.

    Returns:
        `tuple[Tensor, Tensor]`: for each target coordinate the number of its pair (int64) and its sign (float64): +1
        or -1, or 0 without a partner (new coordinates, single copies, the last of an odd number of copies).

    Example:
        >>> pairs(torch.tensor([0, 1, 0, 1]))[0].tolist()
        [0, 1, 0, 1]
    """
    place = rank(index)
    partnered = (index >= 0) & (place < copies(index).long() // 2 * 2)
    # One key per (source coordinate, pair): `place // 2` is below len(index), so no two pairs collide.
    keys = index * len(index) + place // 2
    number = torch.zeros_like(index)
    number[partnered] = torch.unique(keys[partnered], return_inverse=True)[1]
    sign = torch.where(partnered, 1.0 - 2.0 * (place % 2), 0.0).double()
    return number, sign


def is_uniform(index: Tensor, source: int) -> bool:
    """Tell whether every one of `source` coordinates has the same number of copies, and none of the target is new."""
    return bool((index >= 0).all()) and len(torch.unique(torch.bincount(index, minlength=source))) == 1


def is_identity(index: Tensor, source: int) -> bool:
    """Tell whether the axis stays the same."""
    return len(index) == source and torch.equal(index, torch.arange(source))


def head_maps(heads: tuple[int, int], kv_heads: tuple[int, int], extend: Extend) -> tuple[Tensor, Tensor]:
    """Return the maps of query heads and key-value heads under which every query head keeps its keys.

    Query head h reads the key-value head `h // (heads / kv_heads)`. So a copy of h must be in a copy of its group: if
    groups get smaller they are split, and if they get larger the new heads go inside.

    Args:
        heads (`tuple[int, int]`): query heads of source and target.
        kv_heads (`tuple[int, int]`): key-value heads of source and target.
        extend (`Callable`): the operator's rule for one axis.

    Raises:
        ValueError: if the key-value heads do not divide the query heads evenly.
    """
    group, target_group = _group_size(heads[0], kv_heads[0]), _group_size(heads[1], kv_heads[1])
    if target_group < group and group % target_group:
        raise ValueError(
            f"{heads[1]} heads over {kv_heads[1]} key-value heads split the groups of {group} query heads unevenly; "
            f"choose a number of key-value heads whose groups divide {group}."
        )
    # Read the source as `split` times as many groups, which share a key-value head in turn. Then only two independent
    # axes grow, groups and heads within a group. From 4 heads over 2 to 4 over 4: queries 0 1 2 3, keys 0 0 1 1.
    split = max(group // target_group, 1)
    groups = extend(kv_heads[0] * split, kv_heads[1])
    within = extend(group // split, target_group)
    query = product(groups, within, group // split)
    return query, torch.where(groups >= 0, groups // split, NEW)


def product(outer: Tensor, inner: Tensor, inner_size: int) -> Tensor:
    """Compose the maps of two factors of one axis, the slower one first; new where either is new."""
    flat = outer[:, None] * inner_size + inner[None, :]
    return torch.where((outer[:, None] >= 0) & (inner[None, :] >= 0), flat, NEW).flatten()


def gather(selected: Sequence[int]) -> Tensor:
    """Select some coordinates, in their own order (shrinking)."""
    return torch.tensor(sorted(selected), dtype=torch.int64)


def _group_size(heads: int, kv_heads: int) -> int:
    if heads % kv_heads:
        raise ValueError(
            f"{heads} attention heads cannot be shared evenly among {kv_heads} key-value heads; "
            f"choose num_attention_heads as a multiple of num_key_value_heads."
        )
    return heads // kv_heads
