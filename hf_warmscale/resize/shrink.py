"""Make a smaller model out of a larger one: the inverse of a growth, or the coordinates that matter most."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, ModelMap, describe
from hf_warmscale.checkpoints import (
    content_hash,
    copy_side_files,
    open_checkpoint,
    refuse_existing,
    staged_directory,
    write_json,
)
from hf_warmscale.resize.growing.in_memory import live_weights, load_source, load_weights, match_source
from hf_warmscale.resize.growing.receipt import RECEIPT_FILE, GrowthReceipt
from hf_warmscale.resize.growing.replay import replay_growth
from hf_warmscale.resize.growing.verify import LONGEST_PROBE, find_tokenizer, probe_tokens, verify_growth
from hf_warmscale.resize.planning.exactness import width_obstacle
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.planning.operators import ZeroPad
from hf_warmscale.resize.planning.plan import Plan
from hf_warmscale.resize.planning.target import compensation, embedding_buffer, requested_sizes, target_config
from hf_warmscale.resize.planning.transfer import transfer_tensor
from hf_warmscale.resize.shrinking.importance import Importance, measure_importance
from hf_warmscale.resize.shrinking.selection import kept_blocks, kept_everywhere, kept_in_block
from hf_warmscale.resize.shrinking.shrink_receipt import SHRINK_ATTRIBUTE, SHRINK_FILE, How, ShrinkReceipt
from hf_warmscale.resize.shrinking.undo import (
    before_growth,
    first_copies_of_blocks,
    receipt_to_undo,
    refuse_silent_cut,
    undo_weights,
    without_growth,
)

Calibration = Sequence[str] | Tensor

Shrunk = tuple[PreTrainedConfig, dict[str, Tensor], ShrinkReceipt]
"""The config and the weights of the smaller model, and what was done."""


def shrink_from_pretrained(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    num_hidden_layers: int | None = None,
    vocab_size: int | None = None,
    calibration: Calibration | None = None,
    undo_growth: bool = True,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    **other_sizes: int | None,
) -> PreTrainedModel:
    """Shrink a causal language model; what comes back is a stock model of the same class.

    A model that was grown and is asked for its old sizes, or for none, becomes again what it was grown from: by the
    receipt in its config, each old weight is what its copies agree on. One call undoes one growth, the last one first.
    Everything else keeps the coordinates that matter most on calibration text: neurons and heads by block, the hidden
    size everywhere, blocks by their influence; norms are rescaled as by the inverse of `zero_pad`. What was cut heals
    in some training: by [`HealingTrainer`] towards the larger model, or by a stage of [`ContinualTrainer`].

    Args:
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id (`id@revision` too) or a live model, which
            is not changed.
        hidden_size (`int`, *optional*): the width of the residual stream.
        intermediate_size (`int`, *optional*): neurons of an MLP.
        num_attention_heads (`int`, *optional*): query heads.
        num_key_value_heads (`int`, *optional*): key-value heads.
        num_hidden_layers (`int`, *optional*): blocks.
        vocab_size (`int`, *optional*): tokens; the first ones are kept.
        calibration (`Sequence[str]` or `Tensor`, *optional*): texts, or token ids `[batch, tokens]`; a short built-in
            text by default, which is enough to find what does nothing but not to choose well.
        undo_growth (`bool`): use the receipt of a grown model.
        dtype (`torch.dtype`, *optional*): of the result; the source's by default.
        verify (`bool`): run both models on a short probe and keep the difference in the receipt.
        other_sizes (`int`): further axes by their name in the config (`moe_intermediate_size`).

    Returns:
        `PreTrainedModel`: in evaluation mode, with a dict in `shrink_receipt`.

    Raises:
        ValueError: if a size is above the source's or breaks the heads' divisibility, the family has no such size,
            there is nothing to shrink, or a weight is not finite.
        FileNotFoundError: if there is no such source.

    Example:

    ```python
    >>> small = shrink_from_pretrained("HuggingFaceTB/SmolLM2-135M", num_hidden_layers=24, calibration=texts)
    >>> small.shrink_receipt["block_influence"]
    ```
    """
    model, name = load_source(source)
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "num_hidden_layers": num_hidden_layers,
        "vocab_size": vocab_size,
        **other_sizes,
    }
    described = describe(model.config)
    wanted = requested_sizes(described, sizes)
    weights = live_weights(model, described)
    receipt = receipt_to_undo(model.config, described, wanted) if undo_growth else None
    if receipt is not None:
        config, tensors, record = _by_receipt(model, name, described, receipt, weights, dtype)
    else:
        if undo_growth:
            refuse_silent_cut(model.config, described, wanted)
        _refuse_larger(described, wanted)
        config, tensors, record = _by_importance(model, name, described, wanted, calibration, weights, dtype)
    small = load_weights(type(model), config, tensors, dtype or model.dtype)
    match_source(small, model)
    small.generation_config = copy.deepcopy(model.generation_config)
    if verify:
        record.verification = verify_growth(
            model, small, described.layer_path, probe_tokens(model, small.config.vocab_size)
        )
    setattr(small, SHRINK_ATTRIBUTE, record.to_dict())
    return small


def shrink_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    **arguments: Any,
) -> ShrinkReceipt:
    """Shrink a stored model into a new folder; tokenizer and generation config come along.

    Args:
        source (`str` or `PathLike`): a folder or a Hub id.
        output (`str` or `PathLike`): a new or empty folder; it appears when it is complete.
        arguments: as for [`shrink_from_pretrained`].

    Returns:
        `ShrinkReceipt`: also in `shrink_receipt.json`.

    Raises:
        ValueError: as for [`shrink_from_pretrained`], or if `output` is not empty.
        FileNotFoundError: if there is no such source.

    Example:

    ```python
    >>> shrink_checkpoint("grown", "small-again").how
    'receipt'
    ```
    """
    refuse_existing(output)
    folder = open_checkpoint(source).folder
    small = shrink_from_pretrained(source, **arguments)
    content: dict[str, Any] = getattr(small, SHRINK_ATTRIBUTE)
    with staged_directory(output) as staging:
        copy_side_files(folder, staging)
        (staging / RECEIPT_FILE).unlink(missing_ok=True)
        small.save_pretrained(staging)
        write_json(staging / SHRINK_FILE, content)
    return ShrinkReceipt.from_dict(content)


def _by_receipt(
    model: PreTrainedModel,
    name: str,
    source: ModelMap,
    receipt: GrowthReceipt,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Shrunk:
    """Undo a growth."""
    sizes = {axis: receipt.source_sizes[str(axis)] for axis in source.sizes}
    layers = LayerMap(first_copies_of_blocks(receipt))
    config = before_growth(target_config(model.config, source, sizes, layers, dtype))
    tensors = undo_weights(replay_growth(config, receipt), weights, dtype)
    return config, tensors, _record(name, source, config, layers, weights, "receipt")


def _by_importance(
    model: PreTrainedModel,
    name: str,
    source: ModelMap,
    sizes: Mapping[Axis, int],
    calibration: Calibration | None,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Shrunk:
    """Keep the coordinates that matter most."""
    tokens = _calibration_tokens(model, calibration)
    importance = measure_importance(model, source, tokens)
    plan, config = _plan(model, source, sizes, importance, dtype)
    if (obstacle := width_obstacle(plan)) is not None:
        raise ValueError(f"This {source.model_type} model cannot be shrunk to these sizes: {obstacle}.")
    tensors = {}
    for key in plan.target.parameters:
        transfer = plan.transfer(key)
        weight = weights[transfer.source]
        tensors[key] = transfer_tensor(transfer, weight, key=key, dtype=dtype or weight.dtype, compute=torch.float64)
    record = _record(name, source, config, plan.layers, weights, "importance")
    record.block_influence, record.calibration_tokens = importance.blocks.tolist(), tokens.numel()
    return config, tensors, record


def _plan(
    model: PreTrainedModel,
    source: ModelMap,
    sizes: Mapping[Axis, int],
    importance: Importance,
    dtype: torch.dtype | None,
) -> tuple[Plan, PreTrainedConfig]:
    layers = kept_blocks(importance, sizes[Axis.LAYERS])
    config = without_growth(target_config(model.config, source, sizes, layers, dtype))
    factor = embedding_buffer(model)
    factors = compensation(
        model.config, config, source, sizes, dtype or model.dtype, None if factor is None else float(factor)
    )
    block_axes = {layer: kept_in_block(importance, source, sizes, layer) for layer in layers.source}
    target = describe(config)
    axes = kept_everywhere(importance, source, sizes)
    return Plan(source, target, axes, layers, ZeroPad(source, sizes), factors, block_axes), config


def _refuse_larger(source: ModelMap, sizes: Mapping[Axis, int]) -> None:
    for axis, size in sizes.items():
        if size > source.sizes[axis]:
            raise ValueError(
                f"{axis} would grow from {source.sizes[axis]} to {size}; shrinking only takes away, so use "
                "grow_from_pretrained (warmscale grow)."
            )
    if sizes.get(Axis.EXPERTS) != source.sizes.get(Axis.EXPERTS):
        raise ValueError("The number of experts stays: fewer would share out the router's weights anew.")
    if all(size == source.sizes[axis] for axis, size in sizes.items()):
        raise ValueError("Every size is the source's own; name at least one that shrinks.")


def _calibration_tokens(model: PreTrainedModel, calibration: Calibration | None) -> Tensor:
    known = model.config.vocab_size
    if calibration is None:
        return probe_tokens(model, known)
    if isinstance(calibration, Tensor):
        if calibration.dim() != 2 or calibration.is_floating_point() or not calibration.numel():
            raise ValueError(
                f"The calibration is {calibration.dtype} of shape {tuple(calibration.shape)}; give whole token ids of "
                "shape [batch, tokens]."
            )
        if not 0 <= int(calibration.min()) <= int(calibration.max()) < known:
            raise ValueError(f"The calibration has the token {int(calibration.max())}, and the model knows {known}.")
        return calibration
    if not any(calibration):
        raise ValueError("The calibration has no text; give at least one.")
    tokenizer = find_tokenizer(model)
    if tokenizer is None:
        raise ValueError(
            f"{model.config.name_or_path or 'The model'} has no tokenizer that transformers can load; give the "
            "calibration as token ids."
        )
    longest = getattr(model.config, "max_position_embeddings", None) or LONGEST_PROBE
    ids = [token for text in calibration for token in tokenizer(text, verbose=False)["input_ids"]]
    if max(ids) >= known:
        raise ValueError(
            f"The tokenizer gives the token {max(ids)}, and the model knows {known}; give the calibration as token "
            "ids, or the tokenizer of the model."
        )
    length = min(longest, LONGEST_PROBE, len(ids))
    return torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)


def _record(
    name: str,
    source: ModelMap,
    config: PreTrainedConfig,
    layers: LayerMap,
    weights: Mapping[str, Tensor],
    how: How,
) -> ShrinkReceipt:
    target = describe(config)
    return ShrinkReceipt(
        source=name,
        source_hash=content_hash(weights),
        how=how,
        source_sizes={str(axis): size for axis, size in source.sizes.items()},
        sizes={str(axis): size for axis, size in target.sizes.items()},
        layers=list(layers.source),
        block_influence=[],
        source_parameters=source.num_parameters(),
        parameters=target.num_parameters(),
        calibration_tokens=0,
    )
