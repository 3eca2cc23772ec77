"""From coordinates of axes to coordinates of a dimension."""

from collections.abc import Mapping

import torch

from hf_warmscale.architecture.model_map import Axis, Block, Dimension


def flat_index(dimension: Dimension, sizes: Mapping[Axis, int], sources: Mapping[Axis, torch.Tensor]) -> torch.Tensor:
    """Compose source coordinates of axes into source coordinates of a whole dimension.

    Args:
        dimension (`Dimension`): blocks that lie one after another, each a product of factors.
        sizes (`Mapping[Axis, int]`): the source size of every axis.
        sources (`Mapping[Axis, torch.Tensor]`): for each coordinate of the target axis, the source coordinate it
            takes (int64, -1 where it takes none); an axis that is left out stays as it is.

    Returns:
        `torch.Tensor`: for each target coordinate the source coordinate, -1 where any factor has none.

    Example:

    ```python
    >>> import torch
    >>> from hf_warmscale.architecture import Axis, Block, flat_index
    >>> rows = (Block((Axis.HEADS, 2)),)
    >>> flat_index(rows, {Axis.HEADS: 2}, {Axis.HEADS: torch.tensor([1, 0])}).tolist()
    [2, 3, 0, 1]
    ```
    """
    parts, offset = [], 0
    for block in dimension:
        index = _block_index(block, sizes, sources)
        parts.append(torch.where(index < 0, index, index + offset))
        offset += block.size(sizes)
    return torch.cat(parts)


def _block_index(block: Block, sizes: Mapping[Axis, int], sources: Mapping[Axis, torch.Tensor]) -> torch.Tensor:
    index = torch.zeros(1, dtype=torch.int64)
    for factor, size in zip(block.factors, block.shape(sizes), strict=True):
        identity = torch.arange(size)
        source = sources.get(factor, identity) if isinstance(factor, Axis) else identity
        # Row-major, the slowest factor first. `size` is that of the source although `source` has the target's length,
        # for the result points into the source.
        missing = (index[:, None] < 0) | (source[None, :] < 0)
        index = torch.where(missing, -1, index[:, None] * size + source[None, :]).flatten()
    return index
