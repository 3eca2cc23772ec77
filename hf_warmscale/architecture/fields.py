"""Which config field sets which axis, and configs of other sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from functools import lru_cache
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_warmscale.architecture.model_map import Axis

FIELDS: Mapping[Axis, tuple[str, ...]] = {
    Axis.HIDDEN: ("hidden_size", "d_model", "n_embd"),
    Axis.INTERMEDIATE: (
        "decoder_ffn_dim",
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "ffn_hidden_size",
        "dim_ff",
        "dff",
    ),
    Axis.HEADS: ("decoder_attention_heads", "num_attention_heads", "n_head"),
    Axis.KV_HEADS: ("num_key_value_heads", "num_kv_heads"),
    Axis.HEAD_DIM: ("head_dim", "dim_head"),
    Axis.VOCAB: ("vocab_size",),
    Axis.EXPERTS: ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    Axis.EXPERT_INTERMEDIATE: ("moe_intermediate_size",),
    Axis.SHARED_INTERMEDIATE: (
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
    ),
    Axis.LAYERS: ("decoder_layers", "num_hidden_layers", "n_layer"),
}
"""The names that transformers' configs give to each axis, a decoder's own first."""

COMPANIONS: Mapping[Axis, tuple[str, ...]] = {Axis.HIDDEN: ("word_embed_proj_dim", "embedding_size")}
"""Fields that must equal the axis wherever they exist (OPT's embedding width)."""

EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
    "moe_k",
)
"""Names of the number of routed experts that a token goes through."""

LEADING_BLOCKS = ("first_k_dense_replace", "num_dense_layers")
"""Fields that count the first blocks, which are dense where the others are mixtures of experts."""

ADJUSTED_INTERMEDIATE = "block_auto_adjust_ff_dim"
"""The switch with which LFM2 computes the width of its MLP from the field that is named after it."""

BY_BLOCK = "per_layer_config"
"""The mapping from the index of a block to what it sets otherwise than the config (Gemma 4)."""


def find_field(config: PreTrainedConfig, axis: Axis) -> str | None:
    """Return the config's own name for `axis`, or `None` if the family has no such field.

    A field that the family does not declare is ignored: a stray `intermediate_size` sets nothing in a GPT-2. The head
    size is an exception, because many families read it undeclared.

    Args:
        config (`PreTrainedConfig`): of any family.
        axis (`Axis`): the size that is looked for.

    Example:

    ```python
    >>> from transformers import GPT2Config
    >>> find_field(GPT2Config(), Axis.LAYERS)
    'n_layer'
    ```
    """
    declared = _declared(config.model_type)
    for name in FIELDS[axis]:
        # The family's own name, under which `to_dict` stores it (GPT-2: `n_embd` for `hidden_size`).
        if name in config.attribute_map:
            return config.attribute_map[name]
        if name in config.to_dict() and (axis is Axis.HEAD_DIM or not declared or name in declared):
            return name
    return None


def experts_per_token(config: PreTrainedConfig) -> int | None:
    """Return the number of routed experts that a token goes through, or `None` if no field tells."""
    found = [getattr(config, name, None) for name in EXPERTS_PER_TOKEN]
    return next((value for value in found if isinstance(value, int)), None)


@lru_cache
def _declared(model_type: str) -> frozenset[str]:
    """Return the fields of a family's config; empty for a type that transformers does not know."""
    if model_type not in CONFIG_MAPPING:
        return frozenset()
    family = CONFIG_MAPPING[model_type]
    names = {each.name for each in dataclass_fields(family)}
    try:
        return frozenset(names | family().to_dict().keys())
    except (StrictDataclassError, ValueError, TypeError):  # a family with sizes that it cannot guess
        return frozenset(names)


def per_layer_fields(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the fields that hold one entry per layer, such as `layer_types`.

    A list whose length merely coincides with the depth is ignored: a list that the family does not declare (a user's
    own, `architectures`), or one whose length differs from the depth in the family's default config.

    Args:
        config (`PreTrainedConfig`): of any family.

    Example:

    ```python
    >>> from transformers import Qwen3Config
    >>> per_layer_fields(Qwen3Config())
    ('layer_types',)
    ```
    """
    layers, known = getattr(config, "num_hidden_layers", None), _family_lists(config.model_type)
    return tuple(name for name, length in _lists(config).items() if length == layers and known.get(name, False))


@lru_cache
def _family_lists(model_type: str) -> Mapping[str, bool]:
    """Return the fields of a family, each with whether it can hold one entry per layer."""
    family, common = CONFIG_MAPPING[model_type], {each.name for each in dataclass_fields(PreTrainedConfig)}
    declared = {each.name: True for each in dataclass_fields(family) if each.name not in common}
    try:
        default = family()
    except (StrictDataclassError, ValueError, TypeError):  # a family with sizes that it cannot guess
        return declared
    layers = getattr(default, "num_hidden_layers", None)
    computed = {name: length in (0, layers) for name, length in _lists(default).items() if name not in common}
    return declared | computed


def _lists(config: PreTrainedConfig) -> dict[str, int]:
    """Return the length of every list."""
    values = config.to_dict().items()
    return {name: len(value) for name, value in values if isinstance(value, list) and not name.endswith("token_id")}


def literal_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the values of a config of the same model in which each size is what the model has.

    LFM2 takes two thirds of its `intermediate_size` and rounds them up, unless it is told not to.

    Args:
        config (`PreTrainedConfig`): of any family.

    Example:

    ```python
    >>> from transformers import Lfm2Config
    >>> literal_values(Lfm2Config(intermediate_size=12_288))["intermediate_size"]
    8192
    ```
    """
    values = config.to_dict()
    if values.get(ADJUSTED_INTERMEDIATE):
        size = int(2 * values["intermediate_size"] / 3)
        if (factor := values["block_ffn_dim_multiplier"]) is not None:
            multiple = values["block_multiple_of"]
            size = -(-int(factor * size) // multiple) * multiple
        values |= {"intermediate_size": size, ADJUSTED_INTERMEDIATE: False}
    return values


def resized_config(config: PreTrainedConfig, sizes: Mapping[Axis, int]) -> PreTrainedConfig:
    """Return a copy of `config` with other sizes; lists with one entry a layer are cut or continued periodically.

    Raises:
        ValueError: if the family has no field for an axis of `sizes`.

    Example:

    ```python
    >>> resized_config(model.config, {Axis.LAYERS: 3}).num_hidden_layers
    3
    ```
    """
    return type(config).from_dict(resized_values(config, sizes))


def resized_values(config: PreTrainedConfig, sizes: Mapping[Axis, int]) -> dict[str, Any]:
    """Return the values of the config that `resized_config` builds."""
    values = literal_values(config)
    for axis, size in sizes.items():
        field = find_field(config, axis)
        if field is None and axis is Axis.HEAD_DIM:
            field = "head_dim"  # many families read it though they do not declare it
        if field is None:
            raise ValueError(f"{config.model_type} has no config field for {axis}; leave it out.")
        values[field] = size
        values.update({name: size for name in COMPANIONS.get(axis, ()) if name in values})
    if Axis.LAYERS in sizes:
        for name in per_layer_fields(config):
            entries = values[name]
            values[name] = [entries[layer % len(entries)] for layer in range(sizes[Axis.LAYERS])]
        values |= set_by_block(config, [layer % depth_of(config) for layer in range(sizes[Axis.LAYERS])])
    return values


def set_by_block(config: PreTrainedConfig, source: Sequence[int]) -> dict[str, dict[int, Any]]:
    """Return what single blocks set for themselves in a model whose blocks are copies; nothing where none does.

    Args:
        config (`PreTrainedConfig`): of any family.
        source (`Sequence[int]`): the block of `config` that each block is a copy of.

    Example:

    ```python
    >>> from transformers import Gemma4TextConfig
    >>> set_by_block(Gemma4TextConfig(), [0, 5])
    {'per_layer_config': {1: {'head_dim': 512}}}
    ```
    """
    own = {int(block): settings for block, settings in (config.to_dict().get(BY_BLOCK) or {}).items()}
    return {BY_BLOCK: {block: own[old] for block, old in enumerate(source) if old in own}} if own else {}


def depth_of(config: PreTrainedConfig) -> int:
    """Return the number of blocks."""
    depth: int = config.to_dict()[find_field(config, Axis.LAYERS) or ""]
    return depth
