"""What a user asks of a growth, and the plan that follows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import GraniteConfig, PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap, describe
from hf_warmscale.options import DepthOperator, WidthName
from hf_warmscale.resize.planning.axis_map import head_maps, is_identity, pad
from hf_warmscale.resize.planning.exactness import width_obstacle
from hf_warmscale.resize.planning.init_std import mup_init_std, own_base_init_std
from hf_warmscale.resize.planning.layer_map import layer_map
from hf_warmscale.resize.planning.operators import (
    Clone,
    Net2Net,
    ShrinkZeroPadPerturb,
    WidthOperator,
    ZeroPad,
)
from hf_warmscale.resize.planning.plan import Compensation, Plan
from hf_warmscale.resize.planning.target import compensation, is_mup, requested_sizes, target_config
from hf_warmscale.resize.planning.transfer import Transfer, transfer_tensor

Read = Callable[[str], Tensor]
"""Gives the tensor of a name."""

WIDTHS = (Axis.HIDDEN, Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE, Axis.SHARED_INTERMEDIATE)


@dataclass(frozen=True)
class GrowthRequest:
    """What a user asks of a growth.

    Args:
        sizes (`Mapping[str, int or None]`): sizes by the name of their axis; `None` keeps the source's.
        width (`str`): `"clone"`, `"szp"`, `"zero_pad"` or `"net2net"`.
        depth (`str`): `"stack"`, `"interleave"`, `"identity"` or `"dus"`.
        snr_db (`float` or `None`): of the noise of `clone`, in dB; `None` for none.
        shrink (`float`): lambda of `szp`.
        insert_after (`Sequence[int]` or `None`): for `identity`, the source block before each new one.
        seed (`int`): of all noise and draws.
        dtype (`torch.dtype` or `None`): of the grown weights; `None` keeps the source's.
    """

    sizes: Mapping[str, int | None]
    width: WidthName = "clone"
    depth: DepthOperator = "stack"
    snr_db: float | None = 10.0
    shrink: float = 0.4
    insert_after: Sequence[int] | None = None
    seed: int = 0
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.snr_db is not None and not math.isfinite(self.snr_db):
            raise ValueError(f"snr_db is {self.snr_db}; give a number of decibels, or none for no noise.")
        if not 0 < self.shrink <= 1:
            raise ValueError(f"The shrink factor is {self.shrink}; it must lie between 0 and 1.")


@dataclass(frozen=True)
class Growth:
    """A request that was understood: the config of the target and how its weights are made.

    Args:
        request (`GrowthRequest`): what was asked.
        config (`PreTrainedConfig`): of the target.
        plan (`Plan`): for every parameter.
    """

    request: GrowthRequest
    config: PreTrainedConfig
    plan: Plan

    @cached_property
    def transfers(self) -> dict[str, Transfer]:
        """How every parameter of the target is made, in the model's order."""
        return {name: self.plan.transfer(name) for name in self.plan.target.parameters}

    @property
    def source(self) -> ModelMap:
        """The source."""
        return self.plan.source

    @property
    def target(self) -> ModelMap:
        """The target."""
        return self.plan.target

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the tensors of the source that a tensor of the target is made of."""
        return (self.transfers[name].source,)

    def tensor(self, name: str, read: Read) -> Tensor:
        """Return a tensor of the target, in the request's dtype or the source's.

        Args:
            name (`str`): its name.
            read (`Callable[[str], Tensor]`): gives a tensor of the source.
        """
        transfer = self.transfers[name]
        source = read(transfer.source)
        key = f"{self.request.seed}:{name}"
        return transfer_tensor(transfer, source, key=key, dtype=self.request.dtype or source.dtype)


def plan_growth(
    config: PreTrainedConfig, request: GrowthRequest, dtype: torch.dtype, embedding_factor: float | None = None
) -> Growth:
    """Return the plan of a growth.

    Args:
        config (`PreTrainedConfig`): of the source.
        request (`GrowthRequest`): what is asked.
        dtype (`torch.dtype`): of the target's weights.
        embedding_factor (`float`, *optional*): what a live source multiplies its embedding by.

    Raises:
        ValueError: if the request cannot be met; see `grow_from_pretrained`.
    """
    source = describe(config)
    sizes = requested_sizes(source, request.sizes)
    _refuse_smaller(source, sizes)
    layers = layer_map(request.depth, source.sizes[Axis.LAYERS], sizes[Axis.LAYERS], request.insert_after)
    grown = target_config(config, source, sizes, layers, request.dtype)
    target = describe(grown)
    factors = compensation(config, grown, source, sizes, dtype, embedding_factor)
    operator = _operator(request, config, grown, source, target, factors)
    if not operator.keeps_logits:
        factors = Compensation(embedding=factors.embedding, logits=_own_base_logits(config, source, target))
    plan = Plan(source, target, _axis_maps(operator, source, sizes), layers, operator, factors)
    _refuse_inexact(plan)
    return Growth(request, grown, plan)


def _refuse_smaller(source: ModelMap, sizes: Mapping[Axis, int]) -> None:
    for axis, size in sizes.items():
        if size < source.sizes[axis]:
            raise ValueError(
                f"{axis} would shrink from {source.sizes[axis]} to {size}; growing only adds, so use "
                "shrink_from_pretrained (warmscale shrink)."
            )
    if sizes.get(Axis.EXPERTS) != source.sizes.get(Axis.EXPERTS):
        raise ValueError(
            f"The number of experts cannot grow from {source.sizes[Axis.EXPERTS]} to {sizes[Axis.EXPERTS]}: more "
            "experts share out the router's weights anew; experts are made from a dense model."
        )
    if all(size == source.sizes[axis] for axis, size in sizes.items()):
        raise ValueError("Every size is the source's own; name at least one that grows.")


def _operator(
    request: GrowthRequest,
    config: PreTrainedConfig,
    grown: PreTrainedConfig,
    source: ModelMap,
    target: ModelMap,
    factors: Compensation,
) -> WidthOperator:
    if request.width == "clone":
        return Clone(snr_db=request.snr_db)
    if request.width == "net2net":
        return Net2Net(seed=request.seed)
    if request.width == "zero_pad":
        return ZeroPad(source, target.sizes)
    if request.width != "szp":
        raise ValueError(f"The width operator {request.width!r} is unknown; use clone, szp, zero_pad or net2net.")
    if is_mup(grown) and isinstance(grown, GraniteConfig):
        return ShrinkZeroPadPerturb(source, mup_init_std(grown, target), request.shrink)
    carried = Compensation(embedding=factors.embedding, logits=_own_base_logits(config, source, target))
    return ShrinkZeroPadPerturb(source, own_base_init_std(grown, source, target, carried), request.shrink)


def _own_base_logits(config: PreTrainedConfig, source: ModelMap, target: ModelMap) -> float:
    """Return what `szp` multiplies the readout by: muP's 1 / m_N, which a muP model has in its config."""
    return 1.0 if is_mup(config) else source.sizes[Axis.HIDDEN] / target.sizes[Axis.HIDDEN]


def _axis_maps(operator: WidthOperator, source: ModelMap, sizes: Mapping[Axis, int]) -> dict[Axis, Tensor]:
    axes = {axis: operator.extend(axis)(source.sizes[axis], sizes[axis]) for axis in WIDTHS if axis in sizes}
    axes[Axis.VOCAB] = pad(source.sizes[Axis.VOCAB], sizes[Axis.VOCAB])
    if Axis.HEADS in sizes:
        heads = (source.sizes[Axis.HEADS], sizes[Axis.HEADS])
        own_keys = Axis.KV_HEADS in sizes
        kv_heads = (source.sizes[Axis.KV_HEADS], sizes[Axis.KV_HEADS]) if own_keys else heads
        axes[Axis.HEADS], keys = head_maps(heads, kv_heads, operator.extend(Axis.HEADS))
        if own_keys:
            axes[Axis.KV_HEADS] = keys
    return {axis: index for axis, index in axes.items() if not is_identity(index, source.sizes[axis])}


def _refuse_inexact(plan: Plan) -> None:
    obstacle = width_obstacle(plan)
    if obstacle is not None and isinstance(plan.operator, Clone | ZeroPad):
        raise ValueError(f"{plan.operator.name} cannot keep the logits: {obstacle}.")
