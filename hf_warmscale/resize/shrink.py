"""Shrink a model: undo its growth, or select its most important coordinates."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, ModelMap, describe, on_cpu
from hf_warmscale.checkpoints import copy_side_files, find_tokenizer, refuse_existing, staged_directory, write_json
from hf_warmscale.checkpoints.tokenizers import num_ids
from hf_warmscale.options import Sizes
from hf_warmscale.resize.growing.in_memory import make_model, restore_dtypes
from hf_warmscale.resize.growing.receipt import GrowthReceipt
from hf_warmscale.resize.growing.replay import replay_growth
from hf_warmscale.resize.growing.verify import compare_models, probe_tokens
from hf_warmscale.resize.model_source import ModelSource, StoredModel, find_model
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.planning.target import requested_sizes, target_config
from hf_warmscale.resize.shrinking.calibration import Calibration
from hf_warmscale.resize.shrinking.cut import Measured, cut, measure
from hf_warmscale.resize.shrinking.shrink_receipt import How, ShrinkReceipt
from hf_warmscale.resize.shrinking.undo import (
    before_growth,
    first_copies_of_blocks,
    receipt_to_undo,
    refuse_unintended_selection,
    undo_weights,
)


@dataclass(frozen=True)
class Shrunk:
    """A smaller model before it is built.

    Args:
        config (`PreTrainedConfig`): its config.
        tensors (`Mapping[str, Tensor]`): its weights by name.
        receipt (`ShrinkReceipt`): the record.
    """

    config: PreTrainedConfig
    tensors: Mapping[str, Tensor]
    receipt: ShrinkReceipt


def shrink_from_pretrained(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    calibration: Calibration | None = None,
    undo_growth: bool = True,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    **sizes: Unpack[Sizes],
) -> PreTrainedModel:
    """Shrink a causal language model; the result is a stock model of the same class.

    If a grown model is asked for its old sizes, or for none, its growth is undone: by the receipt in its config, each
    old weight becomes the mean of its copies. One call undoes one growth, the last one first. Otherwise the most
    important coordinates on calibration text are selected: neurons and heads block by block, the hidden size for all
    blocks together, blocks by their influence; norms are rescaled by the inverse of `zero_pad`. Some training heals
    the cut: with [`DistillationTrainer`] towards the larger model, or with a stage of [`ContinualTrainer`].

    Args:
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id (`id@revision` too) or a live model, which
            is not changed.
        calibration (`Sequence[str]` or `Tensor`, *optional*): texts, or token ids `[batch, tokens]`. The default is a
            short built-in text, enough to find coordinates that do nothing, but not to select well.
        undo_growth (`bool`): use the receipt of a grown model.
        dtype (`torch.dtype`, *optional*): of all weights of the result; by default each keeps its own.
        verify (`bool`): run both models on a short probe and record the difference in the receipt.
        hidden_size (`int`, *optional*): the width of the residual stream.
        intermediate_size (`int`, *optional*): the neurons of an MLP.
        num_attention_heads (`int`, *optional*): query heads.
        num_key_value_heads (`int`, *optional*): key-value heads.
        num_hidden_layers (`int`, *optional*): blocks.
        vocab_size (`int`, *optional*): tokens; the first ones stay, so only padding should be cut.
        sizes (`int`): other axes by their name in the config (`moe_intermediate_size`); see [`Sizes`].

    Returns:
        `PreTrainedModel`: in evaluation mode, on the device of a live source, with the receipt as a dict in
        `shrink_receipt`.

    Raises:
        ValueError: if a size is above the source's or breaks the divisibility of heads, the family has no such size,
            no size shrinks, a special token would be cut, or a weight is not finite.
        FileNotFoundError: if the source does not exist.

    Example:

    ```python
    >>> small = shrink_from_pretrained("HuggingFaceTB/SmolLM2-135M", num_hidden_layers=24, calibration=texts)
    >>> small.shrink_receipt["block_influence"]
    ```
    """
    with on_cpu():
        return _shrink(find_model(source), sizes, calibration, undo_growth=undo_growth, dtype=dtype, verify=verify)


def shrink_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    calibration: Calibration | None = None,
    undo_growth: bool = True,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    max_shard_size: int | str = "5GB",
    **sizes: Unpack[Sizes],
) -> ShrinkReceipt:
    """Shrink a stored model into a new folder; the same bits as [`shrink_from_pretrained`].

    Tokenizer and generation config are copied. The source is loaded as a whole to measure importance.

    Args:
        source (`str` or `PathLike`): a folder or a Hub id (`id@revision` too).
        output (`str` or `PathLike`): a new or empty folder; it appears when it is complete.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.
        sizes (`int`): and all other arguments as for [`shrink_from_pretrained`].

    Returns:
        `ShrinkReceipt`: also in `shrink_receipt.json`.

    Raises:
        ValueError: as for [`shrink_from_pretrained`], or if `output` is not empty.
        FileNotFoundError: if the source does not exist.
        OSError: if the disk is full; nothing is left at `output`.

    Example:

    ```python
    >>> shrink_checkpoint("grown", "small-again").how
    'receipt'
    ```
    """
    refuse_existing(output)
    with on_cpu():
        model = StoredModel(source)
        small = _shrink(model, sizes, calibration, undo_growth=undo_growth, dtype=dtype, verify=verify)
    receipt = ShrinkReceipt.from_dict(vars(small)[ShrinkReceipt.attribute])
    with staged_directory(output) as folder:
        copy_side_files(model.checkpoint.folder, folder)
        small.save_pretrained(folder, max_shard_size=max_shard_size)
        write_json(folder / ShrinkReceipt.file_name, receipt.to_dict())
    return receipt


def _shrink(
    source: ModelSource,
    sizes: Sizes,
    calibration: Calibration | None,
    *,
    undo_growth: bool,
    dtype: torch.dtype | None,
    verify: bool,
) -> PreTrainedModel:
    described = describe(source.config)
    wanted = requested_sizes(described, cast(dict[str, int | None], sizes))
    growth = receipt_to_undo(source.config, described, wanted) if undo_growth else None
    if growth is not None:
        shrunk = _by_receipt(source, described, growth, dtype)
    else:
        if undo_growth:
            refuse_unintended_selection(source.config, described, wanted)
        _refuse_larger(described, wanted)
        _refuse_cut_tokens(source, wanted[Axis.VOCAB])
        shrunk = _by_importance(measure(source, described, calibration), wanted, dtype)
    return _finish(source, described, shrunk, verify=verify)


def shrink_measured(
    measured: Measured, sizes: Mapping[Axis, int], *, dtype: torch.dtype | None = None, verify: bool = True
) -> PreTrainedModel:
    """Shrink a model whose importance was measured before; the same bits as [`shrink_from_pretrained`].

    Args:
        measured (`Measured`): the model.
        sizes (`Mapping[Axis, int]`): every size of the result, none above the source's.
        dtype (`torch.dtype`, *optional*): of all weights of the result; by default each keeps its own.
        verify (`bool`): run both models on a short probe and record the difference in the receipt.

    Raises:
        ValueError: if the family cannot be shrunk to these sizes.
    """
    with on_cpu():
        return _finish(measured.source, measured.described, _by_importance(measured, sizes, dtype), verify=verify)


def _finish(source: ModelSource, described: ModelMap, shrunk: Shrunk, *, verify: bool) -> PreTrainedModel:
    """Build the model, compare it with its source, and give it its receipt."""
    small = make_model(shrunk.config, shrunk.tensors, source)
    if verify:
        tokens = probe_tokens(source.model, small.config.vocab_size)
        shrunk.receipt.verification = compare_models(source.model, small, described.layer_path, tokens)
    restore_dtypes(small, shrunk.tensors)
    setattr(small, ShrinkReceipt.attribute, shrunk.receipt.to_dict())
    return small


def _by_receipt(source: ModelSource, described: ModelMap, growth: GrowthReceipt, dtype: torch.dtype | None) -> Shrunk:
    """Undo a growth."""
    sizes = {axis: growth.source_sizes[str(axis)] for axis in described.sizes}
    layers = LayerMap(first_copies_of_blocks(growth))
    config = before_growth(target_config(source.config, described, sizes, layers, dtype))
    tensors = undo_weights(replay_growth(config, growth, source.config.dtype), source.read, dtype)
    return Shrunk(config, tensors, _receipt(source, described, config, layers, "receipt"))


def _by_importance(measured: Measured, sizes: Mapping[Axis, int], dtype: torch.dtype | None) -> Shrunk:
    """Select the coordinates that matter most."""
    smaller = cut(measured, sizes, dtype)
    receipt = _receipt(measured.source, measured.described, smaller.config, smaller.layers, "importance")
    receipt.block_influence, receipt.calibration_tokens = measured.importance.blocks.tolist(), measured.tokens
    return Shrunk(smaller.config, smaller.tensors, receipt)


def _refuse_larger(source: ModelMap, sizes: Mapping[Axis, int]) -> None:
    for axis, size in sizes.items():
        if size > source.sizes[axis]:
            raise ValueError(
                f"{axis} would grow from {source.sizes[axis]} to {size}, but shrinking only removes; use "
                "grow_from_pretrained (warmscale grow)."
            )
    if sizes.get(Axis.EXPERTS) != source.sizes.get(Axis.EXPERTS):
        raise ValueError(
            "The number of experts cannot shrink: the router would weigh all experts differently; leave it out."
        )
    if all(size == source.sizes[axis] for axis, size in sizes.items()):
        raise ValueError("Every size equals the source's; name at least one that shrinks.")


def _refuse_cut_tokens(source: ModelSource, vocab_size: int) -> None:
    """Refuse to cut tokens that the model or its tokenizer uses; only padding may go."""
    if vocab_size >= source.config.get_text_config().vocab_size:
        return
    settings = {**source.config.to_dict(), **(source.generation_config.to_dict() if source.generation_config else {})}
    special = {
        name: max(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if name.endswith("token_id") and isinstance(value, int | list) and value != []
    }
    for name, token in special.items():
        if token >= vocab_size:
            raise ValueError(f"vocab_size {vocab_size} would cut {name} {token}; choose at least {token + 1}.")
    tokenizer = find_tokenizer(source.location)
    if tokenizer is not None and num_ids(tokenizer) > vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size} would cut tokens that the tokenizer gives; choose at least {num_ids(tokenizer)}."
        )


def _receipt(
    source: ModelSource, described: ModelMap, config: PreTrainedConfig, layers: LayerMap, how: How
) -> ShrinkReceipt:
    target = describe(config)
    return ShrinkReceipt(
        source=source.name,
        source_hash=source.content_hash(),
        how=how,
        source_sizes={str(axis): size for axis, size in described.sizes.items()},
        sizes={str(axis): size for axis, size in target.sizes.items()},
        layers=list(layers.source),
        block_influence=[],
        source_parameters=described.num_parameters(),
        parameters=target.num_parameters(),
        calibration_tokens=0,
    )
