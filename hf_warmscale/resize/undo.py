"""Undo a growth by its receipt: every source weight is what its copies agree on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_warmscale.resize.engine import Transfer
from hf_warmscale.resize.request import Growth


def undo_transfers(growth: Growth) -> dict[str, tuple[str, Transfer]]:
    """Return for every parameter of the source where in the target it is found, and how it got there.

    Of several blocks with the same source the first counts.
    """
    found: dict[str, tuple[str, Transfer]] = {}
    for name, parameter in growth.plan.target.parameters.items():
        transfer = growth.plan.transfer(name)
        if not growth.plan.is_new(parameter) and transfer.scale:
            found.setdefault(transfer.source, (name, transfer))
    return found


def undo_transfer(transfer: Transfer, target: Tensor, source_shape: tuple[int, ...]) -> Tensor:
    """Return the source tensor: the mean over all copies, freed from the factors they were given (float64).

    Paired noise sums to zero over the copies; what is new is left out.

    Args:
        transfer (`Transfer`): how the target was made.
        target (`Tensor`): the target tensor, trained or not.
        source_shape (`tuple[int, ...]`): of the result.
    """
    offset = transfer.offset if transfer.rescales() else 0.0
    values = target.double() + offset
    for dim, (index, weights) in enumerate(zip(transfer.index, transfer.weights, strict=True)):
        old = torch.nonzero(index >= 0).flatten()
        values = values.index_select(dim, old)
        if weights is not None:
            values = values / weights[old].reshape(-1, *[1] * (values.dim() - dim - 1))
        values = _mean_of_copies(values, dim, index[old], source_shape[dim])
    return values / transfer.scale - offset


def undo_weights(growth: Growth, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return every weight of the source of a growth, in the dtypes of the target or in `dtype`.

    Args:
        growth (`Growth`): the growth.
        weights (`Mapping[str, Tensor]`): of the target.
        dtype (`torch.dtype`, *optional*): of the result.
    """
    source = growth.plan.source
    return {
        name: undo_transfer(transfer, weights[grown], source.parameters[name].shape(source.sizes)).to(
            dtype or weights[grown].dtype
        )
        for name, (grown, transfer) in undo_transfers(growth).items()
    }


def _mean_of_copies(values: Tensor, dim: int, index: Tensor, size: int) -> Tensor:
    if len(index) == size and torch.equal(index, torch.arange(size)):
        return values
    total = torch.zeros(*values.shape[:dim], size, *values.shape[dim + 1 :], dtype=values.dtype)
    total.index_add_(dim, index, values)
    return total / torch.bincount(index, minlength=size).reshape(-1, *[1] * (values.dim() - dim - 1))
