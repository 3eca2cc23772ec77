"""Make the plan of a growth again, from its receipt."""

import os
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, PreTrainedConfig

from hf_warmscale.architecture import describe
from hf_warmscale.checkpoints import ModelWeights, content_hash, open_checkpoint
from hf_warmscale.options import DepthOperator, WidthName
from hf_warmscale.resize.growing.receipt import GrowthReceipt, read_receipt
from hf_warmscale.resize.planning.request import Growth, GrowthRequest, plan_growth
from hf_warmscale.resize.planning.target import stored_embedding_factor


def replay_growth(source: PreTrainedConfig, receipt: GrowthReceipt, dtype: torch.dtype | str | None = None) -> Growth:
    """Return the growth that a receipt records.

    Args:
        source (`PreTrainedConfig`): of the model that was grown.
        receipt (`GrowthReceipt`): of its growth.
        dtype (`torch.dtype`, *optional*): of the grown model; by default the source's. The factor on a Gemma's
            embedding is rounded to the dtype of its model, and a growth divides the one by the other.

    Raises:
        ValueError: if the source has other sizes than the receipt says.
    """
    if receipt.experts is not None:
        raise ValueError(
            f"The growth made {receipt.experts} experts of each MLP, so state that was trained on the dense model "
            "cannot follow; start it anew."
        )
    model = describe(source)
    sizes = {str(axis): size for axis, size in model.sizes.items()}
    if sizes != receipt.source_sizes:
        raise ValueError(f"The receipt is of a growth from other sizes: {_differences(receipt.source_sizes, sizes)}.")
    settable = {str(axis) for axis in model.fields if axis not in model.derived}
    # A derived axis cannot be requested; it follows from the others as it did in the growth.
    changed = {axis: size for axis, size in receipt.sizes.items() if size != sizes[axis] and axis in settable}
    places = [receipt.layers[layer] for layer in receipt.new_layers]
    request = GrowthRequest(
        sizes=changed,
        width=cast(WidthName, receipt.width),
        depth=cast(DepthOperator, receipt.depth),
        snr_db=receipt.snr_db,
        shrink=receipt.shrink if receipt.shrink is not None else GrowthRequest.shrink,
        insert_after=places or None,
        seed=receipt.seed,
    )
    own = source.dtype if isinstance(source.dtype, torch.dtype) else torch.float32
    target = dtype if isinstance(dtype, torch.dtype) else own
    return plan_growth(source, request, target, stored_embedding_factor(source, own))


def replay_stored(source: str | os.PathLike[str], grown: str | os.PathLike[str]) -> Growth:
    """Return the growth that made the model in the folder `grown` from the checkpoint `source`.

    Raises:
        FileNotFoundError: if a folder is not there.
        ValueError: if `grown` was made from other weights.
    """
    checkpoint = open_checkpoint(source)
    if not (Path(grown) / "config.json").is_file():
        raise FileNotFoundError(f"There is no grown model in {grown}; grow {checkpoint.source.name} into it first.")
    config = AutoConfig.from_pretrained(grown, trust_remote_code=False)
    receipt = read_receipt(config, os.fspath(grown))
    growth = replay_growth(checkpoint.config, receipt, config.dtype)
    # A live model is hashed by the names of its own tensors, which may differ from those in the files.
    own_names = content_hash(dict(ModelWeights(checkpoint).tensors()))
    if receipt.source_hash not in (checkpoint.content_hash(), own_names):
        raise ValueError(
            f"{os.fspath(grown)} was grown from other weights than those of {checkpoint.source.name}; grow them anew."
        )
    return growth


def _differences(recorded: dict[str, int], found: dict[str, int]) -> str:
    axes = [axis for axis in {**recorded, **found} if recorded.get(axis) != found.get(axis)]
    return ", ".join(f"{axis} {recorded.get(axis)}, not {found.get(axis)}" for axis in axes)
