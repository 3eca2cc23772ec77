"""How much of a grown model is mere repetition."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from hf_warmscale.resize.planning.axis_map import pairs
from hf_warmscale.resize.planning.transfer import Transfer


def duplicate_fraction(transfers: Mapping[str, Transfer]) -> float:
    """Return the share of the target's scalars that repeat another one of the same source scalar, without noise.

    Args:
        transfers (`Mapping[str, Transfer]`): of every parameter of the target.
    """
    total = sum(prod(transfer.shape) for transfer in transfers.values())
    seen: set[str] = set()
    repeated = 0
    for transfer in transfers.values():
        if transfer.scale == 0:
            continue
        old, distinct = _plain_entries(transfer)
        repeated += old if transfer.source in seen else old - distinct
        seen.add(transfer.source)
    return repeated / total


def _plain_entries(transfer: Transfer) -> tuple[int, int]:
    """Return how many scalars are copied without noise, and of how many source scalars."""
    indices = list(transfer.index)
    if transfer.noise is not None:
        if not transfer.noise.paired or transfer.fan_in is None:
            return 0, 0
        _, sign = pairs(indices[transfer.fan_in])
        indices[transfer.fan_in] = indices[transfer.fan_in][sign == 0]
    old = [index[index >= 0] for index in indices]
    return prod(len(index) for index in old), prod(_distinct(index) for index in old)


def _distinct(index: Tensor) -> int:
    return len(torch.unique(index))
