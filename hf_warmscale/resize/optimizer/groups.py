"""The parameter groups of a saved optimizer, by name, and the groups that the grown model needs.

`optimizer.pt` only numbers the parameters. Their names follow from how the groups were made: by muP, by Trainer (with
and without weight decay), or as a single group. If no way gives the same numbers and shapes, the state belongs to
another model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer

from hf_warmscale.architecture import ModelMap
from hf_warmscale.checkpoints import skeleton
from hf_warmscale.mup import (
    OptimizerFactors,
    Parametrization,
    TrainingFactors,
    is_mup,
    muon_shape_factor,
    mup_param_groups,
)
from hf_warmscale.mup.folded_form import folded_scalings
from hf_warmscale.resize.optimizer.moments import POWERS, OptimizerKind, growth_factors
from hf_warmscale.resize.planning.plan import Plan

Group = Mapping[str, Any]
"""A parameter group of `optimizer.state_dict()`, or one that an optimizer is made with."""

OWN_KEYS = ("params", "param_names", "lr", "initial_lr", "weight_decay", "eps", "name")
"""Settings that differ between groups; all others, such as betas, are shared."""


@dataclass(frozen=True)
class NamedGroup:
    """A group with its parameters' names, and its factors in units of what the user chose.

    Args:
        names (`tuple[str, ...]`): in the order of the group.
        factors (`OptimizerFactors`): learning rate, weight decay and eps.
    """

    names: tuple[str, ...]
    factors: OptimizerFactors = field(default_factory=OptimizerFactors)


@dataclass(frozen=True)
class SavedOptimizer:
    """A saved optimizer whose parameters have been identified by name.

    Args:
        state (`dict`): as `optimizer.state_dict()`.
        groups (`list[NamedGroup]`): for each of its parameter groups.
    """

    state: dict[str, Any]
    groups: list[NamedGroup]

    @property
    def kind(self) -> OptimizerKind:
        """The optimizer, by the options of its groups."""
        return "muon" if "ns_steps" in self.state["param_groups"][0] else "adam"

    def chosen(self, name: str) -> float:
        """Return what the user chose for `lr`, `weight_decay` or `eps`, before the groups' own factors."""
        for saved, named in zip(self.state["param_groups"], self.groups, strict=True):
            value = _peak(saved) if name == "lr" else saved.get(name, 0.0)
            # A group with factor 0 (no decay) says nothing about the value that the user chose.
            if value and getattr(named.factors, name):
                return float(value / getattr(named.factors, name))
        return 0.0

    def members(self) -> Iterator[tuple[str, int, int]]:
        """Yield (name, number of the parameter, number of its group)."""
        for place, (saved, named) in enumerate(zip(self.state["param_groups"], self.groups, strict=True)):
            for name, number in zip(named.names, saved["params"], strict=True):
                yield name, number, place


def read_groups(
    state: dict[str, Any],
    config: PreTrainedConfig,
    source: ModelMap,
    *,
    base_config: PreTrainedConfig | None = None,
    factors: TrainingFactors | None = None,
) -> SavedOptimizer:
    """Find the names of a saved optimizer's parameters.

    Args:
        state (`dict`): as `optimizer.state_dict()`.
        config (`PreTrainedConfig`): of the model it trained.
        source (`ModelMap`): of the same model.
        base_config, factors: what `mup_optimizer` got, if it made the groups and the config has no muP entry.

    Raises:
        ValueError: if no way of making groups gives these.
    """
    _refuse_kind(state)
    model = skeleton(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    groups = state["param_groups"]
    known = is_mup(config) or base_config is not None or factors is not None
    # Numbers and shapes do not tell all ways apart, so the way that the config or the caller names is tried first.
    ways = [_mup_groups(groups, model, base_config, factors)] if known else []
    if all("param_names" in group for group in groups):
        ways.append(_own_names(groups))
    # torch's Muon takes matrices alone, so it may hold no more than those of the blocks.
    matrices = tuple(p.name for p in source.with_role("hidden") if p.layer is not None and len(p.dimensions) == 2)
    ways += [*_trainer_groups(model), [NamedGroup(matrices)]]
    for way in ways:
        saved = SavedOptimizer(state, way)
        if _fits(saved, shapes):
            return saved
    lengths = " + ".join(str(len(group["params"])) for group in groups)
    raise ValueError(
        f"The optimizer state has {lengths} parameters in its groups, which are not those of this {config.model_type} "
        f"model with {len(shapes)} parameters; take the optimizer.pt that was saved beside it."
    )


def _mup_groups(
    saved: Sequence[Group],
    model: PreTrainedModel,
    base_config: PreTrainedConfig | None,
    factors: TrainingFactors | None,
) -> list[NamedGroup]:
    # Units of 1, or of any rate: only the ratios between what comes back and what went in are kept, as factors.
    rate, decayed = _peak(saved[0]), any(group.get("weight_decay") for group in saved)
    groups = mup_param_groups(
        model, lr=rate, weight_decay=float(decayed), eps=1.0, base_config=base_config, factors=factors
    )
    return [
        NamedGroup(
            names, OptimizerFactors(lr=group["lr"] / rate, weight_decay=group["weight_decay"], eps=group["eps"])
        )
        for names, group in zip(group_names(groups, model), groups, strict=True)
    ]


def _own_names(saved: Sequence[Group]) -> list[NamedGroup]:
    """Return the groups of an optimizer that was made of named parameters; the first one's settings are the unit."""
    decay = max(group.get("weight_decay", 0.0) for group in saved) or 1.0
    return [
        NamedGroup(
            tuple(group["param_names"]),
            OptimizerFactors(
                lr=_peak(group) / _peak(saved[0]),
                weight_decay=group.get("weight_decay", 0.0) / decay,
                eps=group.get("eps", 1.0) / saved[0].get("eps", 1.0),
            ),
        )
        for group in saved
    ]


def _trainer_groups(model: PreTrainedModel) -> Iterator[list[NamedGroup]]:
    """Yield the groups of an unmodified Trainer, and a single one."""
    names = tuple(name for name, _ in model.named_parameters())
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]  # it uses no self
    yield [
        NamedGroup(tuple(name for name in names if name in decayed)),
        NamedGroup(tuple(name for name in names if name not in decayed), OptimizerFactors(weight_decay=0.0)),
    ]
    yield [NamedGroup(names)]


def _peak(group: Group) -> float:
    """Return the rate of a group before its schedule."""
    return float(group.get("initial_lr", group["lr"]))


def _refuse_kind(state: dict[str, Any]) -> None:
    """Refuse an optimizer whose state or rates do not follow a growth as those of Adam or Muon do."""
    names = {key for entry in state["state"].values() for key, value in entry.items() if isinstance(value, Tensor)}
    muon = "ns_steps" in state["param_groups"][0]
    if strange := names - POWERS.keys() - {"step"} | ({"momentum_buffer"} & names if not muon else set()):
        raise ValueError(
            f"The optimizer keeps {min(strange)!r}, which growth cannot follow; it knows Adam, AdamW and Muon."
        )
    if not muon and "betas" not in state["param_groups"][0]:
        raise ValueError(
            "The optimizer has no betas, so it is neither Adam nor AdamW nor Muon, which growth can follow."
        )


def _fits(saved: SavedOptimizer, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    groups = saved.state["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group.names) for group in saved.groups]:
        return False
    return all(
        # A moment has the shape of its parameter; Adam's step is a tensor without dimensions.
        name in shapes and tensor.shape in (shapes[name], ())
        for name, number, _ in saved.members()
        for tensor in saved.state["state"].get(number, {}).values()
        if isinstance(tensor, Tensor)
    )


def group_names(groups: Sequence[Group], model: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of the parameters of groups that were made for `model`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [tuple(names[id(parameter)] for parameter in group["params"]) for group in groups]


def grown_factors(plan: Plan, saved: SavedOptimizer) -> TrainingFactors:
    """Return the factors with which each parameter of a grown model trains on as in the source: growth's own scaling.

    Args:
        plan (`Plan`): the growth. The target of `szp` is no copy: its factors are those of muP.
        saved (`SavedOptimizer`): of the source.
    """
    source = {name: saved.groups[place].factors for name, _, place in saved.members()}
    factors = {}
    for name, parameter in plan.target.parameters.items():
        copied = plan.copy(name).source
        if copied in source:
            factors[name] = parameter.role, _product(source[copied], _change(plan, name, saved))
    return TrainingFactors(factors)


def _change(plan: Plan, name: str, saved: SavedOptimizer) -> OptimizerFactors:
    copy = plan.copy(name)
    change = growth_factors(copy, saved.kind) if plan.operator.keeps_logits else _mup_factors(plan, name, saved.kind)
    if saved.kind == "adam":
        return change
    # Muon itself multiplies its rate by a factor of the matrix's shape. The growth changes that factor, so it is
    # divided out of ours: it must not act twice.
    adjust = saved.state["param_groups"][0].get("adjust_lr_fn")
    before = plan.source.parameters[copy.source].shape(plan.source.sizes)
    own = muon_shape_factor(copy.shape, adjust) / muon_shape_factor(before, adjust)
    return replace(change, lr=change.lr / own, weight_decay=change.weight_decay * own)


def _mup_factors(plan: Plan, name: str, kind: OptimizerKind) -> OptimizerFactors:
    parametrization = Parametrization(rule="mup")
    scaling = folded_scalings(plan.target, plan.source, parametrization)[name]
    if kind == "adam":
        return scaling.factors(parametrization)
    return parametrization.muon_factors(scaling.role, scaling.ratios).absorb(scaling.absorbed)


def _product(one: OptimizerFactors, other: OptimizerFactors) -> OptimizerFactors:
    return OptimizerFactors(
        lr=one.lr * other.lr, weight_decay=one.weight_decay * other.weight_decay, eps=one.eps * other.eps
    )
