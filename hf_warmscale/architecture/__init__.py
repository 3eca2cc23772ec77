"""Describe a model once: every parameter, the axis of each of its dimensions, and its role."""

from hf_warmscale.architecture.describe import describe, find_layers
from hf_warmscale.architecture.fields import (
    LEADING_BLOCKS,
    find_field,
    per_layer_fields,
    resized_config,
    set_by_block,
)
from hf_warmscale.architecture.indexing import flat_index
from hf_warmscale.architecture.model_map import (
    Axis,
    Block,
    Component,
    Dimension,
    ModelMap,
    NormMap,
    NormPosition,
    ParameterMap,
    Role,
)
from hf_warmscale.architecture.observe import logits_of, sample_tokens
from hf_warmscale.architecture.precision import StayInFloat64
from hf_warmscale.architecture.proof import random_model
from hf_warmscale.architecture.tiny import named_state, on_cpu

__all__ = [
    "LEADING_BLOCKS",
    "Axis",
    "Block",
    "Component",
    "Dimension",
    "ModelMap",
    "NormMap",
    "NormPosition",
    "ParameterMap",
    "Role",
    "StayInFloat64",
    "describe",
    "find_field",
    "find_layers",
    "flat_index",
    "logits_of",
    "named_state",
    "on_cpu",
    "per_layer_fields",
    "random_model",
    "resized_config",
    "sample_tokens",
    "set_by_block",
]
