"""Make the receipt of a growth from its plan."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from hf_warmscale.architecture import Axis, ModelMap
from hf_warmscale.resize.growing.experts import Upcycling, is_expert
from hf_warmscale.resize.growing.receipt import GrowthReceipt
from hf_warmscale.resize.planning.axis_map import pairs
from hf_warmscale.resize.planning.request import Growth
from hf_warmscale.resize.planning.transfer import Transfer


def make_receipt(
    growth: Growth | Upcycling, *, source: str, source_hash: str, inexact_because: str | None
) -> GrowthReceipt:
    """Return the receipt of a growth before it is verified.

    Args:
        growth (`Growth` or `Upcycling`): the growth.
        source (`str`): the public name of the source.
        source_hash (`str`): of its weights.
        inexact_because (`str` or `None`): see [`GrowthReceipt`].
    """
    if isinstance(growth, Growth):
        return _of_growth(growth, source, source_hash, inexact_because)
    if not isinstance(growth.growth, Growth):
        before = _unchanged(growth.dense, growth.seed, source, source_hash, inexact_because)
    else:
        before = _of_growth(growth.growth, source, source_hash, inexact_because)
    dense, target, experts = growth.dense, growth.target, growth.target.sizes[Axis.EXPERTS]
    copied = [parameter for name, parameter in dense.parameters.items() if is_expert(name)]
    repeated = sum(prod(parameter.shape(dense.sizes)) for parameter in copied) * (experts - 1)
    return replace(
        before,
        sizes=_by_name(target),
        parameters=target.num_parameters(),
        growth_factor=target.num_parameters() / before.source_parameters,
        duplicate_fraction=(before.duplicate_fraction * dense.num_parameters() + repeated) / target.num_parameters(),
        experts=experts,
    )


def _of_growth(growth: Growth, source: str, source_hash: str, inexact_because: str | None) -> GrowthReceipt:
    request, plan = growth.request, growth.plan
    before, after = plan.source.num_parameters(), plan.target.num_parameters()
    return GrowthReceipt(
        source=source,
        source_hash=source_hash,
        width=request.width,
        depth=request.depth,
        snr_db=request.snr_db if request.width == "clone" else None,
        shrink=request.shrink if request.width == "szp" else None,
        seed=request.seed,
        source_sizes=_by_name(plan.source),
        sizes=_by_name(plan.target),
        layers=list(plan.layers.source),
        new_layers=sorted(plan.layers.zero_initialised),
        source_parameters=before,
        parameters=after,
        growth_factor=after / before,
        duplicate_fraction=duplicate_fraction(growth.transfers),
        exact=plan.means_exact() and inexact_because is None,
        inexact_because=inexact_because,
    )


def _unchanged(
    dense: ModelMap, seed: int, source: str, source_hash: str, inexact_because: str | None
) -> GrowthReceipt:
    """Return the receipt of a dense model that keeps its sizes until it becomes a mixture."""
    return GrowthReceipt(
        source=source,
        source_hash=source_hash,
        width="experts",
        depth="stack",
        snr_db=None,
        shrink=None,
        seed=seed,
        source_sizes=_by_name(dense),
        sizes=_by_name(dense),
        layers=list(range(dense.sizes[Axis.LAYERS])),
        new_layers=[],
        source_parameters=dense.num_parameters(),
        parameters=dense.num_parameters(),
        growth_factor=1.0,
        duplicate_fraction=0.0,
        exact=inexact_because is None,
        inexact_because=inexact_because,
    )


def _by_name(described: ModelMap) -> dict[str, int]:
    return {str(axis): size for axis, size in described.sizes.items()}


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
        # Independent noise covers every scalar, so none repeats another one.
        if not transfer.noise.paired or transfer.fan_in is None:
            return 0, 0
        _, sign = pairs(indices[transfer.fan_in])
        # Paired noise leaves out coordinates without a partner (sign 0); only these are still plain copies.
        indices[transfer.fan_in] = indices[transfer.fan_in][sign == 0]
    old = [index[index >= 0] for index in indices]
    return prod(len(index) for index in old), prod(_distinct(index) for index in old)


def _distinct(index: Tensor) -> int:
    return len(torch.unique(index))
