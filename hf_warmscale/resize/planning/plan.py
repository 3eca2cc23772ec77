"""A growth as a whole: for every parameter of the target, how it follows from the source."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from hf_warmscale.architecture import Axis, Dimension, ModelMap, ParameterMap, flat_index
from hf_warmscale.resize.planning.axis_map import copies
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.planning.operators import WidthOperator
from hf_warmscale.resize.planning.transfer import Fill, Transfer

VOCABULARY_JITTER = 0.01
"""Noise on the rows of new tokens, which start at the mean of the old ones, in units of the matrix' RMS."""


@dataclass(frozen=True)
class Compensation:
    """What the config's own factors become, and the weights must make up for.

    Args:
        embedding (`float`): source / target of the factor on the embedding (Gemma's sqrt(hidden size)).
        logits (`float`): source / target of the factor on the logits (muP's 1 / `logits_scaling`).
        residual (`float`): source / target of the factor on each branch (CompleteP's `residual_multiplier`).
    """

    embedding: float = 1.0
    logits: float = 1.0
    residual: float = 1.0


@dataclass(frozen=True)
class Plan:
    """How a target follows from a source.

    Args:
        source (`ModelMap`): the source.
        target (`ModelMap`): the target.
        axes (`Mapping[Axis, Tensor]`): the map of every axis that changes.
        layers (`LayerMap`): the map of the layer axis.
        operator (`WidthOperator`): the rules for the widths.
        compensation (`Compensation`): for the config's factors.
        block_axes (`Mapping[int, Mapping[Axis, Tensor]]`): for a block of the source the maps that are its own; each
            block of a smaller model keeps other neurons.
    """

    source: ModelMap
    target: ModelMap
    axes: Mapping[Axis, Tensor]
    layers: LayerMap
    operator: WidthOperator
    compensation: Compensation = Compensation()
    block_axes: Mapping[int, Mapping[Axis, Tensor]] = field(default_factory=dict)

    def transfer(self, name: str) -> Transfer:
        """Return how the parameter `name` of the target is made.

        Raises:
            ValueError: if the source has nothing that it could be made of.
        """
        target, copy = self.target.parameters[name], self.copy(name)
        silent = self.is_new(target) and target.writes(Axis.HIDDEN) and target.module not in self.target.norms
        return replace(copy, scale=0.0, noise=None) if silent else copy

    def is_new(self, target: ParameterMap) -> bool:
        """Tell whether a parameter of the target is of an inserted block, which writes nothing at first."""
        return target.layer in self.layers.silent

    def copy(self, name: str) -> Transfer:
        """Return the same, but of an inserted block as if it were to write at once."""
        target = self.target.parameters[name]
        source = self._source_of(target)
        norm = self.source.norms.get(source.module)
        axes = self.axes if source.layer is None else {**self.axes, **self.block_axes.get(source.layer, {})}
        index = tuple(flat_index(dimension, self.source.sizes, axes) for dimension in source.dimensions)
        lists_tokens = any(_has(dimension, Axis.VOCAB) for dimension in source.dimensions[:1])
        transfer = Transfer(
            source=source.name,
            index=index,
            fill=tuple(self._fill(source, dim) for dim in range(len(index))),
            weights=tuple(self._weights(source, dim, index[dim]) for dim in range(len(index))),
            scale=self.operator.scale(source) * self._compensation(target),
            offset=norm.gain_offset if norm is not None and source.role != "bias" else 0.0,
            jitter=VOCABULARY_JITTER if lists_tokens else 0.0,
            noise=self.operator.noise(target),
            fan_in=source.fan_in,
        )
        if transfer.shape != target.shape(self.target.sizes):
            raise ValueError(
                f"{name} would have the shape {list(transfer.shape)} where the target needs "
                f"{list(target.shape(self.target.sizes))}; its blocks differ in structure."
            )
        return transfer

    def _source_of(self, target: ParameterMap) -> ParameterMap:
        if target.layer is None:
            if target.name not in self.source.parameters:
                raise ValueError(
                    f"The source has no {target.name}, which the target would copy; leave its depth as it is."
                )
            return self.source.parameters[target.name]
        rest = target.name.removeprefix(f"{self.target.layer_path}.{target.layer}.")
        copied = self.layers.source[target.layer]
        parameter = self.source.parameters.get(f"{self.source.layer_path}.{copied}.{rest}")
        if parameter is None:
            raise ValueError(
                f"Block {target.layer} of the target would copy block {copied}, which has no {rest}, for in a "
                f"{self.source.model_type} model the place of a block decides its kind; try another depth operator "
                "or, with 'identity', other places (insert_after), or leave the depth as it is."
            )
        return parameter

    def _fill(self, source: ParameterMap, dim: int) -> Fill:
        return "mean" if _has(source.dimensions[dim], Axis.VOCAB) else self.operator.fill(source, dim)

    def _weights(self, source: ParameterMap, dim: int, index: Tensor) -> Tensor | None:
        """Return one over the number of copies where the forward pass sums over them.

        A tied readout cannot be divided, for it is the embedding: the final norm before it is.
        """
        sums = dim == source.fan_in or (self._carries_logits(source) and self._is_tied)
        if not (self.operator.divides and sums):
            return None
        count = copies(index)
        return 1 / count if bool((count > 1).any()) else None

    def _compensation(self, target: ParameterMap) -> float:
        factor = 1.0
        if target is self._embedding:
            factor *= self.compensation.embedding
        if self._carries_logits(target):
            factor *= self.compensation.logits
            if self._is_tied:
                factor /= self._embedding_scale
        if target.layer is not None and target.writes(Axis.HIDDEN) and target.module not in self.target.norms:
            factor *= self.compensation.residual
        return factor

    @cached_property
    def _embedding(self) -> ParameterMap:
        lookups = [p for p in self.target.with_role("embedding") if _has(p.dimensions[0], Axis.VOCAB)]
        if not lookups:
            raise ValueError(f"No embedding of {self.target.model_type} has a row for each token, so it cannot grow.")
        return lookups[0]

    @cached_property
    def _final_norm(self) -> str | None:
        return next(
            (norm.module for norm in reversed(list(self.target.norms.values())) if norm.position == "final"), None
        )

    @cached_property
    def _embedding_scale(self) -> float:
        kept = self.operator.scale(self._embedding) if self.operator.keeps_logits else 1.0
        return kept * self.compensation.embedding

    @cached_property
    def _is_tied(self) -> bool:
        return not self.target.with_role("readout")

    def _carries_logits(self, parameter: ParameterMap) -> bool:
        """Tell whether a factor on the logits belongs to this parameter: the readout, or if tied the final norm."""
        if not self._is_tied:
            return parameter.role == "readout"
        return parameter.module == self._final_norm


def _has(dimension: Dimension, axis: Axis) -> bool:
    return any(axis in block for block in dimension)
