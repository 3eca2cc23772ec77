"""Describe a model once: every parameter, the axis of each of its dimensions, and its role."""

from hf_warmscale.architecture.model_map import (
    Axis,
    Block,
    Component,
    Dimension,
    ModelMap,
    NormMap,
    ParameterMap,
    Role,
)

__all__ = ["Axis", "Block", "Component", "Dimension", "ModelMap", "NormMap", "ParameterMap", "Role"]
