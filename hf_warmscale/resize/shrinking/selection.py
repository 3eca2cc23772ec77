"""Select the coordinates of a smaller model: the most important ones, in their own order."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_warmscale.architecture import Axis, ModelMap
from hf_warmscale.resize.planning.axis_map import gather
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.shrinking.importance import Importance

PER_BLOCK = (Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE, Axis.SHARED_INTERMEDIATE)
"""Axes whose coordinates are selected block by block, like the heads."""


def most_important(scores: Tensor, count: int) -> Tensor:
    """Return the coordinates of the `count` largest scores, in ascending order; of equal scores the first.

    Example:
        >>> most_important(torch.tensor([0.0, 3.0, 1.0, 3.0]), 2).tolist()
        [1, 3]
    """
    return gather(torch.argsort(scores, descending=True, stable=True)[:count].tolist())


def select_blocks(importance: Importance, count: int) -> LayerMap:
    """Return the map of the blocks that change the residual stream most."""
    return LayerMap(tuple(most_important(importance.blocks, count).tolist()))


def select_shared(importance: Importance, source: ModelMap, sizes: Mapping[Axis, int]) -> dict[Axis, Tensor]:
    """Return the maps of the axes that all blocks share: the hidden size, and the first tokens of the vocabulary."""
    axes = {}
    if sizes[Axis.HIDDEN] != source.sizes[Axis.HIDDEN]:
        axes[Axis.HIDDEN] = most_important(importance.axes[Axis.HIDDEN, None], sizes[Axis.HIDDEN])
    if sizes[Axis.VOCAB] != source.sizes[Axis.VOCAB]:
        # Never by importance: the tokenizer fixes the ids, so only rows at the end may go.
        axes[Axis.VOCAB] = torch.arange(sizes[Axis.VOCAB])
    return axes


def select_in_block(
    importance: Importance, source: ModelMap, sizes: Mapping[Axis, int], layer: int
) -> dict[Axis, Tensor]:
    """Return the maps of the axes that belong to one block.

    Args:
        importance (`Importance`): of the source.
        source (`ModelMap`): the source.
        sizes (`Mapping[Axis, int]`): of the target.
        layer (`int`): the block, by its number in the source.
    """
    axes = {}
    for axis in PER_BLOCK:
        if axis in sizes and sizes[axis] != source.sizes[axis]:
            scores = importance.axes.get((axis, layer), torch.zeros(source.sizes[axis]))
            axes[axis] = most_important(scores, sizes[axis])
    own_keys = Axis.KV_HEADS in source.sizes
    heads = (source.sizes[Axis.HEADS], sizes[Axis.HEADS])
    kv_heads = (source.sizes[Axis.KV_HEADS], sizes[Axis.KV_HEADS]) if own_keys else heads
    if heads[0] != heads[1] or kv_heads[0] != kv_heads[1]:
        scores = importance.axes.get((Axis.HEADS, layer), torch.zeros(heads[0]))
        axes[Axis.HEADS], keys = select_heads(scores, heads[1], kv_heads)
        if own_keys:
            axes[Axis.KV_HEADS] = keys
    return axes


def select_heads(scores: Tensor, heads: int, kv_heads: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Select key-value heads and, for each of them, the same number of its query heads.

    The key-value heads with the largest total score of their query heads are selected.

    Args:
        scores (`Tensor`): of the query heads `[heads]`.
        heads (`int`): query heads to select.
        kv_heads (`tuple[int, int]`): key-value heads before and after.

    Raises:
        ValueError: if the target has more query heads per key-value head than the source.
    """
    # Query head h reads the key-value head h // group, so the selected heads must keep groups of equal size.
    group, target_group = len(scores) // kv_heads[0], heads // kv_heads[1]
    if target_group > group:
        raise ValueError(
            f"{heads} heads over {kv_heads[1]} key-value heads are {target_group} each, but the source has only "
            f"{group} each; choose more key-value heads."
        )
    grouped = scores.reshape(kv_heads[0], group)
    keys = most_important(grouped.sum(1), kv_heads[1])
    query = [int(key) * group + most_important(grouped[key], target_group) for key in keys]
    return torch.cat(query), keys
