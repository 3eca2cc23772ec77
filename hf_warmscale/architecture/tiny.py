"""Tiny configs of a given architecture: the same structure, other sizes."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed

from hf_warmscale.architecture.fields import (
    LEADING_BLOCKS,
    find_field,
    per_layer_fields,
    resized_values,
    set_by_block,
)
from hf_warmscale.architecture.model_map import Axis

# Sizes that differ from one another and from every product of two others, so that no dimension is taken for another.
TINY: Mapping[Axis, int] = {
    Axis.HIDDEN: 24,
    Axis.INTERMEDIATE: 20,
    Axis.HEADS: 4,
    Axis.KV_HEADS: 2,
    Axis.HEAD_DIM: 8,
    Axis.VOCAB: 80,
    Axis.EXPERTS: 4,
    Axis.EXPERT_INTERMEDIATE: 10,
    Axis.SHARED_INTERMEDIATE: 14,
}

OTHER: Mapping[Axis, int] = {
    Axis.HIDDEN: 40,
    Axis.INTERMEDIATE: 36,
    Axis.HEADS: 8,
    Axis.KV_HEADS: 4,
    Axis.HEAD_DIM: 16,
    Axis.VOCAB: 112,
    Axis.EXPERTS: 6,
    Axis.EXPERT_INTERMEDIATE: 18,
    Axis.SHARED_INTERMEDIATE: 26,
}
"""The size each axis takes when it is the one that changes."""

FIRST_ORDINARY_TOKEN = 4
"""Token ids below may have a meaning of their own (padding, beginning of text)."""

_NEUTRAL: Mapping[str, int] = {
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "rotary_dim": 4,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
}
"""Experts in one group, two at a time; rotary embeddings that fit the smallest head; no scan padded to hundreds."""

_NOT_STRUCTURE = ("_name_or_path", "architectures", "dtype", "growth", "transformers_version", "use_cache")
"""Values that name, date or store a model; tiny configs leave them out, so that one proof serves all of a family."""


@contextmanager
def on_cpu() -> Iterator[None]:
    """Make new tensors on the CPU although the caller has set another default device.

    Without such a default nothing is set, since transformers takes any set device for a request to place the model.

    Example:

    ```python
    >>> with on_cpu():
    ...     torch.ones(2).device
    device(type='cpu')
    ```
    """
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


def build_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Instantiate a causal LM without allocating its weights."""
    with torch.device("meta"):
        return build(config)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """Instantiate a causal LM with eager attention, in evaluation mode."""
    with unpartitioned():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager"
        )
    model.eval()
    return model


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Build whole models, also while a ZeRO-3 config is alive, with which transformers partitions what it builds."""
    reference = vars(deepspeed)["_hf_deepspeed_config_weak_ref"]
    zero = None if reference is None else reference()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if zero is not None:
            deepspeed.set_hf_deepspeed_config(zero)


def tiny_config(config: PreTrainedConfig, sizes: Mapping[Axis, int]) -> PreTrainedConfig:
    """Return `config` at other sizes, its token ids inside the vocabulary and its experts in one group."""
    if Axis.KV_HEADS not in sizes and Axis.HEADS in sizes and find_field(config, Axis.KV_HEADS) is not None:
        sizes = {**sizes, Axis.KV_HEADS: sizes[Axis.HEADS]}
    values = resized_values(config, sizes)
    neutral = {name: value for name, value in _NEUTRAL.items() if isinstance(values.get(name), int)}
    tokens = {
        name: 0 if isinstance(value, int) else [0]
        for name, value in values.items()
        if name.endswith("token_id") and isinstance(value, int | list)
    }
    rope = {name: _plain_rope(values[name]) for name in ("rope_parameters", "rope_scaling") if values.get(name)}
    structure = {name: value for name, value in values.items() if name not in _NOT_STRUCTURE}
    kinds = _kinds_of_blocks(config, sizes.get(Axis.LAYERS))
    return type(config).from_dict({**structure, **neutral, **tokens, **rope, **kinds})


def _kinds_of_blocks(config: PreTrainedConfig, layers: int | None) -> dict[str, Any]:
    """Return the fields that tell the kinds of the blocks, such that a few layers show all kinds if they can."""
    depth = getattr(config, "num_hidden_layers", None)
    if layers is None or not isinstance(depth, int):
        return {}
    return _leading_blocks(config, layers, depth) | _lists_of_all_kinds(config, layers)


def _lists_of_all_kinds(config: PreTrainedConfig, layers: int) -> dict[str, Any]:
    """Return what is set by layer with one entry of each kind, if otherwise so few layers would lack some."""
    values = config.to_dict()
    lists = {name: values[name] for name in per_layer_fields(config)}
    blocks = list(zip(*lists.values(), strict=True))
    kinds: dict[str, int] = {}  # of each kind, its first block
    for place, block in enumerate(blocks):
        kinds.setdefault(repr((block, set_by_block(config, [place]))), place)
    shown = [place for place in kinds.values() if place < layers]
    if not len(shown) < len(kinds) <= layers:
        return {}
    firsts = list(kinds.values())
    source = [firsts[layer % len(kinds)] for layer in range(layers)]
    return {name: [entries[old] for old in source] for name, entries in lists.items()} | set_by_block(config, source)


def _leading_blocks(config: PreTrainedConfig, layers: int, depth: int) -> dict[str, int]:
    """Return the numbers of dense blocks before a mixture of experts: one shows as much as three."""
    values = config.to_dict()
    counts = {name: values[name] for name in LEADING_BLOCKS if isinstance(values.get(name), int)}
    return {name: layers if count >= depth else min(count, 1) for name, count in counts.items()}


def _plain_rope(parameters: Any) -> Any:
    """Return rotary parameters without factors per frequency (longrope), which fit one head size only.

    They act alike in all heads, so they change nothing that the proof looks at.
    """
    if not isinstance(parameters, dict):
        return parameters
    if any(isinstance(value, list) for value in parameters.values()):
        kept = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
        return {"rope_type": "default", **kept}
    return {name: _plain_rope(value) for name, value in parameters.items()}


def axes_of(config: PreTrainedConfig) -> frozenset[Axis]:
    """Return the axes that the family's config can set; `HEAD_DIM` too, since many read it undeclared."""
    present = {axis for axis in TINY if find_field(config, axis) is not None} - {Axis.HEAD_DIM}
    head_dim = inspect.getattr_static(type(config), "head_dim", None)
    read_only = isinstance(head_dim, property) and head_dim.fset is None
    return frozenset(present if read_only or has_latent_heads(config) else present | {Axis.HEAD_DIM})


def has_latent_heads(config: PreTrainedConfig) -> bool:
    """Tell whether heads have several widths of their own (latent attention), which all stay as they are."""
    return "qk_rope_head_dim" in config.to_dict()


def named_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the parameters and the buffers that a checkpoint holds, tied weights once, in the model's order.

    Args:
        model (`PreTrainedModel`): of any family.

    Example:

    ```python
    >>> list(named_state(model))[:2]
    ['model.embed_tokens.weight', 'model.layers.0.self_attn.q_proj.weight']
    ```
    """
    state = model.state_dict(keep_vars=True)
    saved = {name: buffer for name, buffer in model.named_buffers() if name in state}
    return {**dict(model.named_parameters()), **saved}
