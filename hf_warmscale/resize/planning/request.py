"""A request to grow, and the plan that follows from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap, Role, describe
from hf_warmscale.mup import is_mup
from hf_warmscale.options import DepthOperator, WidthName
from hf_warmscale.resize.planning.axis_map import head_maps, is_identity, pad
from hf_warmscale.resize.planning.init_std import mup_init_std, own_base_init_std
from hf_warmscale.resize.planning.layer_map import layer_map
from hf_warmscale.resize.planning.operators import Clone, Net2Net, ShrinkZeroPadPerturb, ZeroPad
from hf_warmscale.resize.planning.plan import Plan, Read, WidthOperator
from hf_warmscale.resize.planning.target import Compensation, compensation, requested_sizes, target_config
from hf_warmscale.resize.planning.transfer import Transfer, transfer_tensor

WIDTHS = (Axis.HIDDEN, Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE, Axis.SHARED_INTERMEDIATE)


@dataclass(frozen=True)
class GrowthRequest:
    """A request to grow a model.

    Args:
        sizes (`Mapping[str, int or None]`): sizes by the name of their axis; `None` keeps the source's.
        width (`str`): `"clone"`, `"szp"`, `"zero_pad"` or `"net2net"`.
        depth (`str`): `"stack"`, `"interleave"`, `"identity"` or `"dus"`.
        snr_db (`float` or `None`): of the noise of `clone`, in dB; `None` for none.
        shrink (`float`): lambda of `szp`.
        insert_after (`Sequence[int]` or `None`): for `identity`, the source block that each new block follows.
        seed (`int`): of all random numbers.
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
            raise ValueError(f"snr_db is {self.snr_db}; give a number of decibels, or None for no noise.")
        if not 0 < self.shrink <= 1:
            raise ValueError(f"shrink is {self.shrink}; give a factor above 0 and at most 1.")


@dataclass(frozen=True)
class Growth:
    """A planned growth: the config of the target and how its weights are made.

    Args:
        request (`GrowthRequest`): the request.
        config (`PreTrainedConfig`): of the target.
        plan (`Plan`): how each parameter follows from the source.
    """

    request: GrowthRequest
    config: PreTrainedConfig
    plan: Plan

    @cached_property
    def transfers(self) -> dict[str, Transfer]:
        """Return how every parameter of the target is made, in the model's order."""
        return {name: self.plan.transfer(name) for name in self.plan.target.parameters}

    @property
    def source(self) -> ModelMap:
        """Return the source."""
        return self.plan.source

    @property
    def target(self) -> ModelMap:
        """Return the target."""
        return self.plan.target

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the tensors of the source that a tensor of the target is made of."""
        return (self.transfers[name].source,)

    def tensor(self, name: str, read: Read) -> Tensor:
        """Return a tensor of the target, in the request's dtype or the source's.

        Args:
            name (`str`): its name.
            read (`Callable[[str], Tensor]`): returns a tensor of the source.
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
        request (`GrowthRequest`): the request.
        dtype (`torch.dtype`): of the target's weights.
        embedding_factor (`float`, *optional*): the factor on the embedding of a live source.

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
        # The target of `szp` is another function, so changed multipliers on logits and branches are not made up for.
        # Only the multiplier that muP puts on the readout goes into the weight, where no config field holds it.
        factors = Compensation(embedding=factors.embedding, logits=_own_base_logits(config, source, target))
    plan = Plan(source, target, _axis_maps(operator, source, sizes), layers, operator, factors)
    _refuse_inexact(plan)
    return Growth(request, grown, plan)


def _refuse_smaller(source: ModelMap, sizes: Mapping[Axis, int]) -> None:
    for axis, size in sizes.items():
        if size < source.sizes[axis]:
            raise ValueError(
                f"{axis} would shrink from {source.sizes[axis]} to {size}, but growing only adds; use "
                "shrink_from_pretrained (warmscale shrink)."
            )
    if sizes.get(Axis.EXPERTS) != source.sizes.get(Axis.EXPERTS):
        raise ValueError(
            f"The number of experts cannot grow from {source.sizes[Axis.EXPERTS]} to {sizes[Axis.EXPERTS]}, because "
            "the router would weigh all experts differently; make experts from a dense model instead."
        )
    if all(size == source.sizes[axis] for axis, size in sizes.items()):
        raise ValueError("Every size equals the source's; name at least one that grows.")


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
    if is_mup(grown):
        return ShrinkZeroPadPerturb(source, mup_init_std(grown, target), request.shrink)
    carried: dict[Role, float] = {
        "embedding": factors.embedding,
        "readout": _own_base_logits(config, source, target),
    }
    return ShrinkZeroPadPerturb(source, own_base_init_std(grown, source, target, carried), request.shrink)


def _own_base_logits(config: PreTrainedConfig, source: ModelMap, target: ModelMap) -> float:
    """Return the factor of `szp` on the readout: muP's 1 / m_N, unless a muP config holds it already."""
    return 1.0 if is_mup(config) else source.sizes[Axis.HIDDEN] / target.sizes[Axis.HIDDEN]


def _axis_maps(operator: WidthOperator, source: ModelMap, sizes: Mapping[Axis, int]) -> dict[Axis, Tensor]:
    axes = {axis: operator.extend(axis)(source.sizes[axis], sizes[axis]) for axis in WIDTHS if axis in sizes}
    # Tokens are never copied, whatever the operator: each id has a meaning of its own.
    axes[Axis.VOCAB] = pad(source.sizes[Axis.VOCAB], sizes[Axis.VOCAB])
    if Axis.HEADS in sizes:
        heads = (source.sizes[Axis.HEADS], sizes[Axis.HEADS])
        # Without that axis (a key per query head, or one key for all) no heads share keys in groups: groups of one.
        own_keys = Axis.KV_HEADS in sizes
        kv_heads = (source.sizes[Axis.KV_HEADS], sizes[Axis.KV_HEADS]) if own_keys else heads
        axes[Axis.HEADS], keys = head_maps(heads, kv_heads, operator.extend(Axis.HEADS))
        if own_keys:
            axes[Axis.KV_HEADS] = keys
    return {axis: index for axis, index in axes.items() if not is_identity(index, source.sizes[axis])}


def _refuse_inexact(plan: Plan) -> None:
    """Refuse `clone` and `zero_pad` where they move the logits; `net2net` may, and `szp` always does."""
    reason = plan.widths_inexact_because()
    if reason is not None and isinstance(plan.operator, Clone | ZeroPad):
        raise ValueError(f"{plan.operator.name} cannot keep the logits: {reason}.")
