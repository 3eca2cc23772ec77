"""Make a smaller model out of a larger one: the inverse of a growth, or the coordinates that matter most."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, ModelMap, describe
from hf_warmscale.checkpoints import (
    ModelWeights,
    content_hash,
    copy_side_files,
    open_checkpoint,
    refuse_existing,
    refuse_non_finite,
    staged_directory,
    write_json,
)
from hf_warmscale.resize.engine import transfer_tensor
from hf_warmscale.resize.importance import Importance, measure_importance
from hf_warmscale.resize.in_memory import load_weights, match_source
from hf_warmscale.resize.kept import kept_blocks, kept_everywhere, kept_in_block
from hf_warmscale.resize.layer_map import LayerMap
from hf_warmscale.resize.operators import ZeroPad
from hf_warmscale.resize.plan import Plan
from hf_warmscale.resize.receipt import CONFIG_ENTRY, RECEIPT_FILE, GrowthReceipt
from hf_warmscale.resize.replay import read_receipt, replay_growth
from hf_warmscale.resize.shrink_receipt import SHRINK_ATTRIBUTE, SHRINK_FILE, How, ShrinkReceipt
from hf_warmscale.resize.target import compensation, embedding_buffer, requested_sizes, target_config
from hf_warmscale.resize.undo import undo_weights
from hf_warmscale.resize.verify import probe_tokens, verify_growth

Calibration = Sequence[str] | Tensor


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
    receipt in its config, each old weight is what its copies agree on. Everything else keeps the coordinates that
    matter most on calibration text: neurons and heads by block, the hidden size everywhere, blocks by their influence;
    norms are rescaled as by the inverse of `zero_pad`.

    Args:
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id or a live model, which is not changed.
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
    model = (
        source
        if isinstance(source, PreTrainedModel)
        else AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)
    )
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
    weights = {name: model.state_dict()[name] for name in described.parameters}
    for name, tensor in weights.items():
        refuse_non_finite(name, tensor)
    wanted = requested_sizes(described, sizes)
    receipt = _receipt_to_undo(model.config, described, wanted) if undo_growth else None
    if receipt is not None:
        config, tensors = _undone(model.config, described, receipt, weights, dtype)
        shrink = _record(model, described, receipt.source_sizes, "receipt", weights)
        shrink.layers = _first_of_each(receipt)
    else:
        _refuse_larger(described, wanted)
        tokens = _calibration_tokens(model, calibration)
        importance = measure_importance(model, described, tokens)
        plan, config = _plan(model, described, wanted, importance, dtype)
        tensors = {
            name: transfer_tensor(
                transfer,
                weights[transfer.source],
                key=name,
                dtype=dtype or weights[transfer.source].dtype,
                compute=torch.float64,
            )
            for name, transfer in ((name, plan.transfer(name)) for name in plan.target.parameters)
        }
        shrink = _record(model, described, {str(axis): size for axis, size in wanted.items()}, "importance", weights)
        shrink.layers, shrink.block_influence = list(plan.layers.source), importance.blocks.tolist()
        shrink.calibration_tokens = tokens.numel()
    small = load_weights(type(model), config, tensors, dtype or model.dtype)
    match_source(small, model)
    small.generation_config = copy.deepcopy(model.generation_config)
    shrink.parameters = describe(config).num_parameters()
    if verify:
        shrink.verification = verify_growth(small, model, described.layer_path, probe_tokens(small))
    setattr(small, SHRINK_ATTRIBUTE, shrink.to_dict())
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
    weights = ModelWeights(open_checkpoint(source))  # refuses what is damaged, by name
    folder = weights.checkpoint.folder
    small = shrink_from_pretrained(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False), **arguments)
    content = getattr(small, SHRINK_ATTRIBUTE) | {"source": os.fspath(source)}
    with staged_directory(output) as staging:
        copy_side_files(folder, staging)
        (staging / RECEIPT_FILE).unlink(missing_ok=True)
        small.save_pretrained(staging)
        write_json(staging / SHRINK_FILE, content)
    return ShrinkReceipt.from_dict(content)


def _receipt_to_undo(config: PreTrainedConfig, source: ModelMap, wanted: Mapping[Axis, int]) -> GrowthReceipt | None:
    """Return the receipt of the growth whose old sizes are asked for, if there is one that can be undone."""
    if CONFIG_ENTRY not in config.to_dict():
        return None
    receipt = read_receipt(config, str(config.name_or_path))
    if receipt.sizes != {str(axis): size for axis, size in source.sizes.items()}:
        return None
    asked = {str(axis): size for axis, size in wanted.items()}
    if asked not in (receipt.source_sizes, receipt.sizes):
        return None
    return None if receipt.width == "szp" or receipt.experts is not None else receipt


def _first_of_each(receipt: GrowthReceipt) -> list[int]:
    """Return for each block of the source the first block that speaks for it in the target."""
    speaking = [place for place in range(len(receipt.layers)) if place not in receipt.new_layers]
    return [
        next(place for place in speaking if receipt.layers[place] == layer)
        for layer in range(receipt.source_sizes[Axis.LAYERS])
    ]


def _undone(
    config: PreTrainedConfig,
    grown: ModelMap,
    receipt: GrowthReceipt,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    sizes = {axis: receipt.source_sizes[str(axis)] for axis in grown.sizes}
    source = _plain(target_config(config, grown, sizes, LayerMap(tuple(_first_of_each(receipt))), dtype))
    return source, undo_weights(replay_growth(source, receipt), weights, dtype)


def _plan(
    model: PreTrainedModel,
    source: ModelMap,
    sizes: Mapping[Axis, int],
    importance: Importance,
    dtype: torch.dtype | None,
) -> tuple[Plan, PreTrainedConfig]:
    layers = kept_blocks(importance, sizes[Axis.LAYERS])
    config = _plain(target_config(model.config, source, sizes, layers, dtype))
    factor = embedding_buffer(model)
    factors = compensation(
        model.config, config, source, sizes, dtype or model.dtype, None if factor is None else float(factor)
    )
    block_axes = {layer: kept_in_block(importance, source, sizes, layer) for layer in layers.source}
    target = describe(config)
    axes = kept_everywhere(importance, source, sizes)
    return Plan(source, target, axes, layers, ZeroPad(source, sizes), factors, block_axes), config


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config without the entry of a growth that is no longer there."""
    return type(config).from_dict({name: value for name, value in config.to_dict().items() if name != CONFIG_ENTRY})


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
    if isinstance(calibration, Tensor):
        return calibration
    if calibration is None:
        return probe_tokens(model)
    if not calibration:
        raise ValueError("The calibration has no text; give at least one.")
    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path, trust_remote_code=False)
    longest = getattr(model.config, "max_position_embeddings", None) or 1024
    ids = [token for text in calibration for token in tokenizer(text, verbose=False)["input_ids"]]
    length = min(longest, 1024, len(ids))
    return torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)


def _record(
    model: PreTrainedModel, source: ModelMap, sizes: dict[str, int], how: How, weights: Mapping[str, Tensor]
) -> ShrinkReceipt:
    return ShrinkReceipt(
        source=model.config.name_or_path or type(model).__name__,
        source_hash=content_hash(weights),
        how=how,
        source_sizes={str(axis): size for axis, size in source.sizes.items()},
        sizes=sizes,
        layers=[],
        block_influence=[],
        source_parameters=source.num_parameters(),
        parameters=0,
        calibration_tokens=0,
    )
