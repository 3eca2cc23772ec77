"""Undo a growth by its receipt: every source weight is what its copies agree on."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap
from hf_warmscale.resize.growing.receipt import CONFIG_ENTRY, EARLIER, GrowthReceipt
from hf_warmscale.resize.growing.replay import read_receipt
from hf_warmscale.resize.planning.request import Growth
from hf_warmscale.resize.planning.transfer import Transfer, along, compute_dtype


def receipt_to_undo(config: PreTrainedConfig, source: ModelMap, wanted: Mapping[Axis, int]) -> GrowthReceipt | None:
    """Return the receipt of the growth whose old sizes are asked for, if there is one that can be undone.

    Args:
        config (`PreTrainedConfig`): of a model that may have been grown.
        source (`ModelMap`): the same.
        wanted (`Mapping[Axis, int]`): the sizes asked for.
    """
    if CONFIG_ENTRY not in config.to_dict():
        return None
    receipt = read_receipt(config, str(config.name_or_path))
    if receipt.sizes != {str(axis): size for axis, size in source.sizes.items()}:
        return None
    asked = {str(axis): size for axis, size in wanted.items()}
    if asked not in (receipt.source_sizes, receipt.sizes):
        return None
    return None if receipt.width == "szp" or receipt.experts is not None else receipt


def refuse_silent_cut(config: PreTrainedConfig, source: ModelMap, wanted: Mapping[Axis, int]) -> None:
    """Refuse to cut a grown model by importance where its growth was meant to be undone and cannot be.

    Args:
        config (`PreTrainedConfig`): of a model whose growth [`receipt_to_undo`] does not find.
        source (`ModelMap`): the same.
        wanted (`Mapping[Axis, int]`): the sizes asked for.

    Raises:
        ValueError: if no size shrinks, or the sizes are those before an earlier growth than the last.
    """
    own, asked = ({str(axis): size for axis, size in sizes.items()} for sizes in (source.sizes, wanted))
    entry = config.to_dict().get(CONFIG_ENTRY)
    if entry is None:
        return
    if asked == own:
        raise ValueError(f"{_why_kept(GrowthReceipt.from_dict(entry), own)}; name at least one size that shrinks.")
    earlier = entry.get(EARLIER)
    while earlier is not None:
        if asked == earlier["source_sizes"]:
            raise ValueError(
                "The model was grown more than once; undo the last growth first, without sizes, then the one before, "
                "or keep the growths (undo_growth=False, --keep-growth)."
            )
        earlier = earlier.get(EARLIER)


def _why_kept(receipt: GrowthReceipt, own: Mapping[str, int]) -> str:
    """Return why the last growth of a model is not undone."""
    if receipt.width == "szp":
        return "The model was grown by szp, which cannot be undone"
    if receipt.experts is not None:
        return "The model's MLPs were made experts, which cannot be undone"
    changed = [axis for axis in {**receipt.sizes, **own} if own.get(axis) != receipt.sizes.get(axis)]
    return f"The model has another {changed[0]} than its growth gave it, so that cannot be undone"


def first_copies_of_blocks(receipt: GrowthReceipt) -> tuple[int, ...]:
    """Return for each block of the source the first block that speaks for it in the target."""
    speaking = [place for place in range(len(receipt.layers)) if place not in receipt.new_layers]
    return tuple(
        next(place for place in speaking if receipt.layers[place] == layer)
        for layer in range(receipt.source_sizes[Axis.LAYERS])
    )


def without_growth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config without the entry of growths that are no longer there."""
    return type(config).from_dict({name: value for name, value in config.to_dict().items() if name != CONFIG_ENTRY})


def before_growth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config without the entry of its last growth, and with that of the growth before, if there was one."""
    content = config.to_dict()
    earlier = content.pop(CONFIG_ENTRY).get(EARLIER)
    return type(config).from_dict(content if earlier is None else content | {CONFIG_ENTRY: earlier})


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

    Without noise, what was rescaled comes back to 1 ulp and what was not to the bit.

    Paired noise sums to zero over the copies; what is new is left out.

    Args:
        transfer (`Transfer`): how the target was made.
        target (`Tensor`): the target tensor, trained or not.
        source_shape (`tuple[int, ...]`): of the result.
    """
    transfer = transfer.folded()
    offset = transfer.offset if transfer.rescales() else 0.0
    compute = compute_dtype(target)
    values = target.double() + offset
    factor = torch.tensor(transfer.scale, dtype=compute).double()
    for dim, (index, weights) in enumerate(zip(transfer.index, transfer.weights, strict=True)):
        first = _first_copies(index, source_shape[dim])
        values = _mean_of_copies(values, dim, index, first)
        if weights is not None:
            factor = factor * along(weights[first].to(compute), dim, values).double()
    # One division by the very factors of the growth: the growth rounds once and this rounds once.
    return values / factor - offset


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


def _first_copies(index: Tensor, size: int) -> Tensor:
    """Return for each source coordinate the first target coordinate that copies it."""
    places = torch.arange(len(index))
    first = torch.full((size,), len(index))
    old = index >= 0
    return first.scatter_reduce(0, index[old], places[old], "amin")


def _mean_of_copies(values: Tensor, dim: int, index: Tensor, first: Tensor) -> Tensor:
    """Return the first copy of each coordinate plus the mean difference of the others, which is 0 without noise."""
    kept = values.index_select(dim, first)
    old = torch.nonzero(index >= 0).flatten()
    if len(old) == len(first):
        return kept
    difference = values.index_select(dim, old) - kept.index_select(dim, index[old])
    total = torch.zeros_like(kept).index_add_(dim, index[old], difference)
    return kept + total / along(torch.bincount(index[old], minlength=len(first)), dim, kept)
