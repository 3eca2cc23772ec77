"""Parameter groups that give every parameter its muP learning rate, weight decay and eps."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hf_warmscale.mup.factors import TrainingFactors
from hf_warmscale.mup.parameter_scaling import find_scaling
from hf_warmscale.mup.realization import config_of, realize
from hf_warmscale.mup.rules import OptimizerFactors, Parametrization
from hf_warmscale.mup.weight_decay import WeightDecayRule, group_weight_decay

Trainable = tuple[nn.Parameter, str, OptimizerFactors]
Groups = list[dict[str, Any]]


def mup_param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    base_config: PreTrainedConfig | None = None,
    parametrization: Parametrization | None = None,
    factors: TrainingFactors | None = None,
    weight_decay_rule: WeightDecayRule = "paper",
    timescale: float | None = None,
) -> list[dict[str, Any]]:
    """Build the optimizer's parameter groups, one per distinct rate, decay and eps; nearest to the base rate first.

    Parameters are found by name, never by shape, so the groups are the same under DDP, ZeRO-3 (which hides shapes),
    `fully_shard`, `torch.compile` and peft. Every trainable parameter is in exactly one group. Trainer logs the rate
    of the first group. Clipping by the global gradient norm is not part of muP: the norm depends on the width and on
    where the multipliers stand.

    Args:
        model (`nn.Module`): a [`MupForCausalLM`], another causal LM that [`init_mup`] initialised, or what wraps one.
        lr (`float`): the learning rate tuned at the base shape.
        weight_decay (`float`): the decoupled weight decay at the base shape; gains and biases are not decayed.
        eps (`float`): Adam's eps at the base shape.
        base_config (`PreTrainedConfig`, *optional*): the model that was tuned, of the same family; not for a
            [`MupForCausalLM`], which knows its base.
        parametrization (`Parametrization`, *optional*): with `base_config`; by default CompleteP.
        factors (`TrainingFactors`, *optional*): instead, what [`export_checkpoint`] wrote beside a folded model.
        weight_decay_rule (`str`): see [`group_weight_decay`].
        timescale (`float`, *optional*): in steps, for the rule `ema_timescale`.

    Returns:
        `list[dict]`: groups with `params`, `lr`, `weight_decay`, `eps` and `name` (the roles in the group).

    Raises:
        ValueError: if the rate is not positive, the base is missing or does not fit, or a parameter is unknown.

    Example:

    ```python
    >>> optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2, weight_decay=0.1))
    ```
    """
    if lr <= 0:
        raise ValueError(f"The learning rate is {lr}; give the positive rate tuned at the base shape.")

    def decay(group_lr: float, factor: float) -> float:
        return group_weight_decay(
            weight_decay_rule,
            factor=factor,
            lr=lr,
            group_lr=group_lr,
            weight_decay=weight_decay,
            timescale=timescale,
        )

    trainable = _by_factors(model, factors) if factors else _by_rules(model, base_config, parametrization)
    return _grouped(trainable, lr, decay, eps)


def group_by_factors(trainable: Iterable[Trainable], *, lr: float, weight_decay: float, eps: float) -> Groups:
    """Group parameters by what their factors make of a rate, a weight decay and an eps.

    Args:
        trainable (`Iterable[tuple]`): parameter, role and factors.
        lr, weight_decay, eps (`float`): at the base shape.
    """
    return _grouped(trainable, lr, lambda _, factor: weight_decay * factor, eps)


def _grouped(trainable: Iterable[Trainable], lr: float, decay: Callable[[float, float], float], eps: float) -> Groups:
    members: dict[tuple[float, float, float], list[tuple[nn.Parameter, str]]] = {}
    for parameter, role, own in trainable:
        # Decay rules other than `paper` need the group's rate, so they are applied here and not in the factors.
        key = lr * own.lr, decay(lr * own.lr, own.weight_decay), eps * own.eps
        members.setdefault(key, []).append((parameter, role))
    groups = [
        {
            "params": [parameter for parameter, _ in pairs],
            "lr": group_lr,
            "weight_decay": group_decay,
            "eps": group_eps,
            "name": "+".join(sorted({role for _, role in pairs})),
        }
        for (group_lr, group_decay, group_eps), pairs in members.items()
    ]
    # By the ratio, not the difference: a tenth of the base rate is as far from it as ten times the base rate.
    return sorted(groups, key=lambda group: abs(math.log(group["lr"] / lr)))


def _by_rules(
    model: nn.Module, base_config: PreTrainedConfig | None, parametrization: Parametrization | None
) -> Iterator[Trainable]:
    realization = realize(config_of(model), base_config, parametrization)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scaling = find_scaling(realization.scalings, name)
            yield parameter, scaling.role, scaling.factors(realization.parametrization)


def _by_factors(model: nn.Module, factors: TrainingFactors) -> Iterator[Trainable]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield parameter, *factors.find(name)
