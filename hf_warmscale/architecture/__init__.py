"""Describe a model once: every parameter, the axis of each of its dimensions, and its role."""

from hf_warmscale.architecture.describe import describe
from hf_warmscale.architecture.fields import find_field, per_layer_fields, resized_config
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
from hf_warmscale.architecture.precision import StayInFloat64

__all__ = [
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
    "flat_index",
    "per_layer_fields",
    "resized_config",
]
