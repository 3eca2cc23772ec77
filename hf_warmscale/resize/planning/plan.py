"""A resize as a whole: how every parameter of the target follows from the source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis, Dimension, ModelMap, ParameterMap, flat_index
from hf_warmscale.options import WidthName
from hf_warmscale.resize.planning.axis_map import Extend, copies, is_uniform
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.planning.target import NOTHING_CHANGES, Compensation
from hf_warmscale.resize.planning.transfer import Fill, Noise, Transfer

VOCABULARY_JITTER = 0.01
"""Noise on the rows of new tokens, which start at the mean of the old rows; in units of the matrix's RMS."""

Read = Callable[[str], Tensor]
"""Return the tensor of a name."""


class WidthOperator(Protocol):
    """The rules by which widths change; what all operators share is in [`Plan`].

    Attributes:
        name (`str`): as the user writes it.
        keeps_logits (`bool`): the operator is meant to keep the logits, so changed config factors are compensated.
        divides (`bool`): new coordinates are copies, and the weights that sum over copies are divided by their number.
        rescales_stream (`bool`): the residual stream is multiplied by a factor that the norms take out again.
    """

    name: ClassVar[WidthName]
    keeps_logits: ClassVar[bool]
    divides: ClassVar[bool]
    rescales_stream: ClassVar[bool]

    def extend(self, axis: Axis) -> Extend:
        """Return the rule for the map of one axis."""
        ...

    def scale(self, parameter: ParameterMap) -> float:
        """Return the factor on the copied values of a parameter of the source."""
        ...

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        """Return the initial value of new coordinates along a dimension of a parameter of the source."""
        ...

    def noise(self, parameter: ParameterMap) -> Noise | None:
        """Return the noise on the copied values of a parameter of the target."""
        ...


class WeightPlan(Protocol):
    """The part of a growth that both sinks, memory and files, use."""

    @property
    def source(self) -> ModelMap:
        """Return the source."""
        ...

    @property
    def target(self) -> ModelMap:
        """Return the target."""
        ...

    @property
    def config(self) -> PreTrainedConfig:
        """Return the config of the target."""
        ...

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names of the source tensors that a target tensor is made of."""
        ...

    def tensor(self, name: str, read: Read) -> Tensor:
        """Return a target tensor; `read` returns source tensors."""
        ...


@dataclass(frozen=True)
class Plan:
    """How a target follows from a source.

    Args:
        source (`ModelMap`): the source.
        target (`ModelMap`): the target.
        axes (`Mapping[Axis, Tensor]`): the map of every axis that changes.
        layers (`LayerMap`): the map of the layer axis.
        operator (`WidthOperator`): the rules for the widths.
        compensation (`Compensation`): of the factors in the config that change with the sizes.
        block_axes (`Mapping[int, Mapping[Axis, Tensor]]`): for a block of the source, maps that hold in this block
            alone: a shrink selects other neurons in each block.
    """

    source: ModelMap
    target: ModelMap
    axes: Mapping[Axis, Tensor]
    layers: LayerMap
    operator: WidthOperator
    compensation: Compensation = NOTHING_CHANGES
    block_axes: Mapping[int, Mapping[Axis, Tensor]] = field(default_factory=dict)

    def transfer(self, name: str) -> Transfer:
        """Return how the parameter `name` of the target is made.

        Raises:
            ValueError: if the source has no parameter that it could be made from.
        """
        target, copy = self.target.parameters[name], self.copy(name)
        if self.is_new(target) and name in self.target.stream_gains:
            return replace(copy, scale=0.0, offset=-1.0, noise=None)  # 1: the block hands the stream on as it is
        # Only what writes to the stream is zeroed. Zero norms or inputs would leave the block without gradient.
        return replace(copy, scale=0.0, noise=None) if self.is_new(target) and self._writes_stream(target) else copy

    def is_new(self, target: ParameterMap) -> bool:
        """Tell whether a parameter of the target belongs to an inserted, zero-initialised block."""
        return target.layer in self.layers.zero_initialised

    def copy(self, name: str) -> Transfer:
        """Return the transfer of a parameter, like `transfer`, but without zeroing the outputs of inserted blocks.

        Optimizer moments and adapters follow this map.
        """
        target = self.target.parameters[name]
        source = self._source_of(target)
        norm = self.source.norms.get(source.module)
        axes = self.axes if source.layer is None else {**self.axes, **self.block_axes.get(source.layer, {})}
        index = tuple(flat_index(dimension, self.source.sizes, axes) for dimension in source.dimensions)
        # The rows of embedding and readout. Without jitter all new tokens would start with equal rows.
        lists_tokens = any(_has(dimension, Axis.VOCAB) for dimension in source.dimensions[:1])
        transfer = Transfer(
            source=source.name,
            index=index,
            fill=tuple(self._fill(source, dim) for dim in range(len(index))),
            weights=tuple(self._weights(source, dim, index[dim]) for dim in range(len(index))),
            scale=self.operator.scale(source) * self._compensation(target),
            # Only a gain is stored as g - 1; the bias of the same norm is stored as it is.
            offset=norm.gain_offset if norm is not None and source.role != "bias" else 0.0,
            jitter=VOCABULARY_JITTER if lists_tokens else 0.0,
            noise=self.operator.noise(target),
            fan_in=source.fan_in,
        )
        if transfer.shape != target.shape(self.target.sizes):
            raise ValueError(
                f"{name} would have the shape {list(transfer.shape)}, but the target needs "
                f"{list(target.shape(self.target.sizes))}: its blocks differ in structure; leave the depth as it is."
            )
        return transfer

    def means_exact(self) -> bool:
        """Tell whether the operators keep the logits in theory; `proof.inexact_because` checks it on a tiny model."""
        return self.operator.keeps_logits and self.widths_inexact_because() is None and self._keeps_blocks()

    def widths_inexact_because(self) -> str | None:
        """Return why changing these widths moves the logits, with a remedy; `None` if no reason is known."""
        for axis, reason in self.source.frozen.items():
            if self.target.sizes[axis] != self.source.sizes[axis]:
                return f"{axis} changes, but {reason}; leave it as it is"
        if self.operator.divides:
            return self._uneven_norm()
        return self._norm_on_the_stream() if self.operator.rescales_stream else None

    def _uneven_norm(self) -> str | None:
        """Find a norm that breaks copying: its mean square weighs all coordinates alike, so copies must be even."""
        for norm in self.source.norms:
            gain = self.source.parameters.get(f"{norm}.weight")
            if gain is None:
                continue
            for dimension in gain.dimensions:
                index = flat_index(dimension, self.source.sizes, self.axes)
                size = sum(block.size(self.source.sizes) for block in dimension)
                if not is_uniform(index, size):
                    return (
                        f"{norm} would get {len(index)} uneven copies of {size} coordinates; choose a multiple, or "
                        "zero_pad"
                    )
        return None

    def _norm_on_the_stream(self) -> str | None:
        """Find a norm that breaks zero padding: one whose output is the stream undoes the factor on the stream."""
        if Axis.HIDDEN not in self.axes:
            return None
        for norm in self.source.norms.values():
            # A centered post norm maps the new coordinates to 0, but the centered norms that read the stream need
            # the mean of the others there.
            if norm.position in ("residual", "embedding") or (norm.position == "post" and norm.centered):
                smaller = self.target.sizes[Axis.HIDDEN] < self.source.sizes[Axis.HIDDEN]
                remedy = (
                    "leave the hidden size as it is" if smaller else "use clone with a multiple of the hidden size"
                )
                return f"{norm.module} normalises the residual stream itself; {remedy}"
        return None

    def _keeps_blocks(self) -> bool:
        """Tell whether every block of the source occurs once and in order, apart from zero-initialised blocks."""
        # A zero-initialised block adds nothing to the stream, so only the sequence of the others must be the source's.
        copied = [layer for place, layer in enumerate(self.layers.source) if place not in self.layers.zero_initialised]
        return copied == list(range(self.source.sizes[Axis.LAYERS]))

    def _source_of(self, target: ParameterMap) -> ParameterMap:
        if target.layer is None:
            if target.name not in self.source.parameters:
                raise ValueError(
                    f"The source has no {target.name}, which the target would copy; leave its depth as it is."
                )
            return self.source.parameters[target.name]
        rest = target.name.removeprefix(f"{self.target.layer_path}.{target.layer}.")
        copied = self.layers.source[target.layer]
        # A block that starts at zero may take a weight from any block: ModernBERT's first has no norm of its own.
        blocks = self._nearest(copied) if self.is_new(target) else [copied]
        for block in blocks:
            parameter = self.source.parameters.get(f"{self.source.layer_path}.{block}.{rest}")
            if parameter is not None:
                return parameter
        raise ValueError(
            f"Block {target.layer} of the target would copy block {copied}, which has no {rest}: in a "
            f"{self.source.model_type} model the position of a block decides its kind; try another depth operator "
            "or, with 'identity', other places (insert_after), or leave the depth as it is."
        )

    def _nearest(self, block: int) -> list[int]:
        """Return the blocks of the source, those nearest to `block` first."""
        return sorted(range(self.source.sizes[Axis.LAYERS]), key=lambda other: abs(other - block))

    def _fill(self, source: ParameterMap, dim: int) -> Fill:
        return "mean" if _has(source.dimensions[dim], Axis.VOCAB) else self.operator.fill(source, dim)

    def _weights(self, source: ParameterMap, dim: int, index: Tensor) -> Tensor | None:
        """Return 1 / number of copies along a dimension that the forward pass sums over.

        A tied readout cannot be divided, because it is the embedding; the gain of the final norm is divided instead.
        """
        sums = dim == source.fan_in or (self._carries_logits(source) and self._is_tied)
        if not (self.operator.divides and sums):
            return None
        count = copies(index)
        # None, not ones: `Transfer.rescales` then knows that the bits are only copied.
        return 1 / count if bool((count > 1).any()) else None

    def _compensation(self, target: ParameterMap) -> float:
        """Return the factor by which a parameter makes up for changed factors in the config."""
        factor = 1.0
        if target is self._embedding:
            factor *= self.compensation.embedding
        if self._carries_logits(target):
            factor *= self.compensation.logits
            if self._is_tied:
                # The readout is the rescaled embedding, so the final norm takes its factor out. Under zero_pad this
                # is a second 1 / r beside the one that every norm on the stream has: the gain takes d / D in all.
                factor /= self._embedding_scale
        # Biases too: the multiplier acts on the whole branch.
        if target.layer is not None and self._writes_stream(target):
            factor *= self.compensation.residual
        return factor

    def _writes_stream(self, target: ParameterMap) -> bool:
        multiplies = target.module in self.target.norms or target.name in self.target.stream_gains
        return target.writes(Axis.HIDDEN) and not multiplies

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
        # `szp` shrinks the embedding on purpose, so its factor must not be taken out again.
        scale = self.operator.scale(self._embedding) if self.operator.keeps_logits else 1.0
        return scale * self.compensation.embedding

    @cached_property
    def _is_tied(self) -> bool:
        return not self.target.with_role("readout")

    def _carries_logits(self, parameter: ParameterMap) -> bool:
        """Tell whether a factor on the logits goes here: into the readout or, if it is tied, the final norm."""
        if not self._is_tied:
            return parameter.role == "readout"
        # By module, so that the bias of a final LayerNorm follows: the logits are linear in gain and bias alike.
        return parameter.module == self._final_norm


def _has(dimension: Dimension, axis: Axis) -> bool:
    return any(axis in block for block in dimension)
