"""Undo a growth by its receipt: every source weight is the mean of its copies."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap
from hf_warmscale.resize.growing.receipt import CONFIG_ENTRY, EARLIER, GrowthReceipt, read_receipt
from hf_warmscale.resize.planning.plan import Read
from hf_warmscale.resize.planning.request import Growth
from hf_warmscale.resize.planning.transfer import Transfer, along, compute_dtype


def receipt_to_undo(config: PreTrainedConfig, source: ModelMap, wanted: Mapping[Axis, int]) -> GrowthReceipt | None:
    """Return the receipt of the growth whose old sizes are requested, if there is one that can be undone.

    Args:
        config (`PreTrainedConfig`): of a model that may have been grown.
        source (`ModelMap`): the same model.
        wanted (`Mapping[Axis, int]`): the requested sizes.
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


def refuse_unintended_selection(config: PreTrainedConfig, source: ModelMap, wanted: Mapping[Axis, int]) -> None:
    """Refuse to shrink a grown model by importance where the request seems to mean undoing a growth.

    Args:
        config (`PreTrainedConfig`): of a model whose growth [`receipt_to_undo`] does not find.
        source (`ModelMap`): the same model.
        wanted (`Mapping[Axis, int]`): the requested sizes.

    Raises:
        ValueError: if no size shrinks, or the sizes are those before an earlier growth than the last.
    """
    own, asked = ({str(axis): size for axis, size in sizes.items()} for sizes in (source.sizes, wanted))
    entry = config.to_dict().get(CONFIG_ENTRY)
    if entry is None:
        return
    if asked == own:
        raise ValueError(
            f"{_why_not_undone(GrowthReceipt.from_dict(entry), own)}; name at least one size that shrinks."
        )
    earlier = entry.get(EARLIER)
    while earlier is not None:
        if asked == earlier["source_sizes"]:
            raise ValueError(
                "The model was grown more than once; undo the last growth first, without sizes, then the one before, "
                "or keep the growths (undo_growth=False, --keep-growth)."
            )
        earlier = earlier.get(EARLIER)


def _why_not_undone(receipt: GrowthReceipt, own: Mapping[str, int]) -> str:
    """Return why the last growth of a model cannot be undone."""
    if receipt.width == "szp":
        return "The model was grown by szp, which cannot be undone"
    if receipt.experts is not None:
        return "The model's MLPs were made experts, which cannot be undone"
    changed = [axis for axis in {**receipt.sizes, **own} if own.get(axis) != receipt.sizes.get(axis)]
    return f"The model has another {changed[0]} than its growth gave it, so the growth cannot be undone"


def first_copies_of_blocks(receipt: GrowthReceipt) -> tuple[int, ...]:
    """Return, for each block of the source, its first copy in the target that is not zero-initialised."""
    copies = [place for place in range(len(receipt.layers)) if place not in receipt.new_layers]
    return tuple(
        next(place for place in copies if receipt.layers[place] == layer)
        for layer in range(receipt.source_sizes[Axis.LAYERS])
    )


def before_growth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config with the entry of the growth before the last one, or without an entry if there was none."""
    content = config.to_dict()
    earlier = content.pop(CONFIG_ENTRY).get(EARLIER)
    return type(config).from_dict(content if earlier is None else content | {CONFIG_ENTRY: earlier})


def undo_transfers(growth: Growth) -> dict[str, tuple[str, Transfer]]:
    """Return, for every parameter of the source, its name in the target and the transfer that made it.

    If several blocks have the same source, the first one counts.
    """
    found: dict[str, tuple[str, Transfer]] = {}
    for name, parameter in growth.plan.target.parameters.items():
        transfer = growth.plan.transfer(name)
        # A transfer with scale 0 keeps nothing of its source.
        if not growth.plan.is_new(parameter) and transfer.scale:
            found.setdefault(transfer.source, (name, transfer))
    return found


def undo_transfer(transfer: Transfer, target: Tensor, source_shape: tuple[int, ...]) -> Tensor:
    """Return the source tensor: the mean over all copies, divided by the factors of the growth (float64).

    Without noise and training, rescaled values return within 1 ulp and all others bit for bit. Paired noise sums to
    zero over the copies. New coordinates are ignored.

    Args:
        transfer (`Transfer`): the transfer that made the target.
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
    # One division by exactly the factors of the growth, in its precision, so that each direction rounds only once.
    return values / factor - offset


def undo_weights(growth: Growth, read: Read, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return every weight of the source of a growth, in the dtypes of the target or in `dtype`.

    Args:
        growth (`Growth`): the growth.
        read (`Callable[[str], Tensor]`): returns a tensor of the target.
        dtype (`torch.dtype`, *optional*): of the result.
    """
    source = growth.plan.source
    tensors = {}
    for name, (grown, transfer) in undo_transfers(growth).items():
        weight = read(grown)
        shape = source.parameters[name].shape(source.sizes)
        tensors[name] = undo_transfer(transfer, weight, shape).to(dtype or weight.dtype)
    return tensors


def _first_copies(index: Tensor, size: int) -> Tensor:
    """Return for each source coordinate the first target coordinate that copies it."""
    places = torch.arange(len(index))
    # len(index) is out of range: a coordinate without any copy raises on selection instead of taking a wrong value.
    first = torch.full((size,), len(index))
    old = index >= 0
    return first.scatter_reduce(0, index[old], places[old], "amin")


def _mean_of_copies(values: Tensor, dim: int, index: Tensor, first: Tensor) -> Tensor:
    """Return the first copy of each coordinate plus the mean difference of the others from it.

    Without noise the difference is exactly 0, where a sum divided by the number of copies would round.
    """
    chosen = values.index_select(dim, first)
    old = torch.nonzero(index >= 0).flatten()
    if len(old) == len(first):
        return chosen
    difference = values.index_select(dim, old) - chosen.index_select(dim, index[old])
    total = torch.zeros_like(chosen).index_add_(dim, index[old], difference)
    return chosen + total / along(torch.bincount(index[old], minlength=len(first)), dim, chosen)
