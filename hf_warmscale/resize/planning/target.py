"""From the named sizes to the config of the target: sizes, per-layer lists, muP's multipliers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import LEADING_BLOCKS, Axis, ModelMap, find_field, resized_config, set_by_block
from hf_warmscale.mup import FORWARD_MULTIPLIERS, MupConfig, is_mup
from hf_warmscale.resize.planning.layer_map import LayerMap

Sizes = Mapping[Axis, int]

EMBEDDING_BUFFER = "embed_scale"


@dataclass(frozen=True)
class Compensation:
    """Changes of factors in the config that the weights must make up for.

    Args:
        embedding (`float`): source / target of the factor on the embedding (Gemma's sqrt(hidden size)).
        logits (`float`): source / target of the factor on the logits (muP's 1 / `logits_scaling`).
        residual (`float`): source / target of the factor on each branch (CompleteP's `residual_multiplier`).
    """

    embedding: float = 1.0
    logits: float = 1.0
    residual: float = 1.0


NOTHING_CHANGES = Compensation()


def requested_sizes(source: ModelMap, named: Mapping[str, int | None]) -> dict[Axis, int]:
    """Return the size of every axis of the target; axes that are not named keep their size.

    In families whose head size is hidden size / heads, the hidden size and the heads change together.

    Args:
        source (`ModelMap`): the source.
        named (`Mapping[str, int or None]`): sizes by the name of their axis or config field; `None` means not named.

    Raises:
        ValueError: if the family lacks an axis or cannot set it, or the head size would change.
    """
    wanted = {_axis(source, name): size for name, size in named.items() if size is not None}
    for axis, size in wanted.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{axis} is {size!r}; it must be a positive whole number.")
    _keep_head_dim(source, wanted)
    _move_heads_with_hidden(source, wanted)
    sizes = {**source.sizes, **wanted}
    # BLOOM has no field for it: four times the hidden size, whatever that becomes.
    if Axis.INTERMEDIATE in source.derived and Axis.INTERMEDIATE not in wanted:
        ratio = source.sizes[Axis.INTERMEDIATE] // source.sizes[Axis.HIDDEN]
        sizes[Axis.INTERMEDIATE] = ratio * sizes[Axis.HIDDEN]
    if Axis.KV_HEADS in sizes and sizes[Axis.HEADS] % sizes[Axis.KV_HEADS]:
        raise ValueError(
            f"{sizes[Axis.HEADS]} attention heads cannot be shared evenly among {sizes[Axis.KV_HEADS]} key-value "
            "heads; choose num_attention_heads as a multiple of num_key_value_heads."
        )
    return sizes


def _axis(source: ModelMap, name: str) -> Axis:
    """Return the axis that a name stands for in this family: Mixtral's `intermediate_size` is that of its experts."""
    for axis in source.sizes:
        if name == axis and axis in source.fields:
            return axis
    for axis, field in source.fields.items():
        if name == field:
            return axis
    if name == Axis.HEAD_DIM and Axis.HEAD_DIM in source.sizes:
        return Axis.HEAD_DIM
    known = ", ".join(axis for axis in source.sizes if axis in source.fields)
    raise ValueError(f"A {source.model_type} model has no {name} that can be set; it has {known}.")


def _keep_head_dim(source: ModelMap, wanted: Sizes) -> None:
    size = wanted.get(Axis.HEAD_DIM)
    if size is not None and size != source.sizes[Axis.HEAD_DIM]:
        raise ValueError(
            f"head_dim must stay {source.sizes[Axis.HEAD_DIM]}, not become {size}: the rotary frequencies and the "
            "attention scale depend on it; change num_attention_heads instead."
        )


def _move_heads_with_hidden(source: ModelMap, wanted: dict[Axis, int]) -> None:
    # Where no block has attention (Qwen3-Next of three blocks), the head size occurs in no weight.
    follows = Axis.HEAD_DIM in source.derived and Axis.HEAD_DIM in source.sizes
    if not follows or not {Axis.HIDDEN, Axis.HEADS} & set(wanted):
        return
    head_dim = source.sizes[Axis.HEAD_DIM]
    hidden = wanted.get(Axis.HIDDEN, wanted.get(Axis.HEADS, 0) * head_dim)
    if hidden % head_dim or wanted.get(Axis.HEADS, hidden // head_dim) != hidden // head_dim:
        heads = wanted.get(Axis.HEADS)
        also = f" and num_attention_heads {heads}" if heads is not None else ""
        raise ValueError(
            f"A {source.model_type} model has hidden_size = num_attention_heads x {head_dim}, which hidden_size "
            f"{hidden}{also} would break; choose a multiple of {head_dim} and leave num_attention_heads out."
        )
    wanted[Axis.HIDDEN], wanted[Axis.HEADS] = hidden, hidden // head_dim


def target_config(
    config: PreTrainedConfig, source: ModelMap, sizes: Sizes, layers: LayerMap, dtype: torch.dtype | None
) -> PreTrainedConfig:
    """Return the config of the target; the forward multipliers of a muP model follow the new sizes.

    Raises:
        ValueError: if the family refuses the sizes.
    """
    values = config.to_dict()
    settable = {axis: size for axis, size in sizes.items() if axis in source.fields and axis not in source.derived}
    if Axis.HEAD_DIM in sizes and Axis.HEAD_DIM not in source.derived:
        settable[Axis.HEAD_DIM] = sizes[Axis.HEAD_DIM]
    try:
        settable |= _kv_heads_without_weights(config, source, sizes)
        target = _resized_mup(config, settable) if is_mup(config) else resized_config(config, settable)
        lists = {name: [getattr(config, name)[layer] for layer in layers.source] for name in source.layer_fields}
        counts = {name: _leading_blocks(count, layers) for name in LEADING_BLOCKS if (count := values.get(name))}
        dtypes = {} if dtype is None else {"dtype": dtype}
        content = {**target.to_dict(), **lists, **set_by_block(config, layers.source), **counts, **dtypes}
        content.pop("auto_map", None)  # it names code that is not copied; the stock class needs none
        built = type(config).from_dict(copy.deepcopy(content))  # a config may change a list in place
        _refuse_other_blocks(built, lists)
        return built
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"A {config.model_type} config refuses these sizes: {reason}") from error


def _refuse_other_blocks(config: PreTrainedConfig, lists: Mapping[str, list[Any]]) -> None:
    """Refuse a config that makes blocks of another kind than the copies are: Gemma 4 ends in full attention."""
    for name, asked in lists.items():
        for block, (kind, made) in enumerate(zip(asked, getattr(config, name), strict=True)):
            if kind != made:
                raise ValueError(
                    f"it makes block {block}, a copy with the entry {kind!r} in {name}, {made!r}; choose another "
                    "depth or depth operator"
                )


def _leading_blocks(count: int, layers: LayerMap) -> int:
    """Return how many of the target's leading blocks copy one of the first `count` blocks of the source."""
    return len(list(takewhile(lambda layer: layer < count, layers.source)))


def _kv_heads_without_weights(config: PreTrainedConfig, source: ModelMap, sizes: Sizes) -> dict[Axis, int]:
    """Return the size of key-value heads that occur in no weight: latent attention needs as many as query heads."""
    field = find_field(config, Axis.KV_HEADS)
    if Axis.KV_HEADS in sizes or field is None or getattr(config, field) != source.sizes.get(Axis.HEADS):
        return {}
    return {Axis.KV_HEADS: sizes[Axis.HEADS]}


def compensation(
    config: PreTrainedConfig,
    target: PreTrainedConfig,
    source: ModelMap,
    sizes: Sizes,
    dtype: torch.dtype,
    embedding_factor: float | None = None,
) -> Compensation:
    """Return the model's own factors before the resize, divided by those after it.

    Args:
        config (`PreTrainedConfig`): of the source.
        target (`PreTrainedConfig`): of the target.
        source (`ModelMap`): the source.
        sizes (`Mapping[Axis, int]`): of the target.
        dtype (`torch.dtype`): of the target's weights.
        embedding_factor (`float`, *optional*): the factor on the embedding of a live source, if it is known.
    """
    embedding = 1.0
    if source.embedding_scale == "sqrt":
        # The factor as the model multiplies by it: the rounding of its buffer is part of the function to keep.
        before = embedding_factor or _sqrt_as_held(config, source.sizes[Axis.HIDDEN], dtype)
        embedding = before / _sqrt_as_held(target, sizes[Axis.HIDDEN], dtype)
    if not is_mup(config):
        return Compensation(embedding=embedding)
    old, new = config.to_dict(), target.to_dict()
    return Compensation(
        embedding=embedding,
        logits=new["logits_scaling"] / old["logits_scaling"],  # it divides
        residual=old["residual_multiplier"] / new["residual_multiplier"],
    )


def embedding_buffer(model: PreTrainedModel) -> torch.Tensor | None:
    """Return the buffer that holds the factor on Gemma's embedding; other families compute it."""
    return dict(model.get_input_embeddings().named_buffers()).get(EMBEDDING_BUFFER)


def stored_embedding_factor(config: PreTrainedConfig, dtype: torch.dtype) -> float | None:
    """Return the factor on the embedding when a stored Gemma is loaded in `dtype`; `None` for other families.

    The buffer has the dtype of the model: in bfloat16 sqrt(96) is 9.8125, which is off by 1e-3.
    """
    with torch.device("meta"):
        buffer = embedding_buffer(AutoModelForCausalLM.from_config(config))
    if buffer is None:
        return None
    field = find_field(config, Axis.HIDDEN)
    if field is None:  # a composite config; `describe` says what to do with it
        return None
    hidden_size: int = config.to_dict()[field]
    return float(torch.tensor(hidden_size**0.5, dtype=torch.float64).to(dtype))


def _sqrt_as_held(config: PreTrainedConfig, hidden_size: int, dtype: torch.dtype) -> float:
    """Return sqrt(hidden size) with the rounding of this family's buffer."""
    return stored_embedding_factor(config, dtype) or hidden_size**0.5


def _resized_mup(config: PreTrainedConfig, sizes: Sizes) -> PreTrainedConfig:
    return MupConfig.from_dict(config.to_dict()).resized(**{str(axis): size for axis, size in sizes.items()})


def at_own_base(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a muP model with its own sizes as the base shape."""
    values = config.to_dict()
    entry = {name: value for name, value in values["mup"].items() if not name.startswith("base_")}
    follow = dict.fromkeys(FORWARD_MULTIPLIERS, 1.0)  # MupConfig fills in what is 1
    own = {**values, **follow, "mup": {**entry, "base_hidden_size": values["hidden_size"]}}
    return type(config).from_dict(MupConfig.from_dict(own).to_dict())
